"""Writes docs/api: a page for each kind of public names, with the first sentences of their docstrings.

The rest is filled in when the site is built (mkdocstrings, ``make docs``). Run ``python tools/api_pages.py`` after a
new public name or a new first sentence; a test fails until you do. A new name needs its place in ``pages``. What stands
between the two marks of a page is written by hand, and stays.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import public_surface

_BEGIN, _END = "<!-- by hand -->", "<!-- end -->"
FOLDER = Path(__file__).parent.parent / "docs" / "api"


class ApiPage(NamedTuple):
    """A page of the reference: what it is called, what it begins with, and the names on it, in this order."""

    title: str
    text: str
    names: tuple[str, ...]


def _of(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


def _all_of(module: str) -> tuple[str, ...]:
    return tuple(name for name in public_names() if name.rpartition(".")[0] == module)


def public_names() -> list[str]:
    """Returns the public names by their first path, as in tests/data/public_surface.txt, without modules."""
    names, seen = [], set()
    for module_name, chosen in public_surface.MODULES.items():
        module = importlib.import_module(module_name)
        for name in sorted(chosen or public_surface.names_of(module)):
            value = getattr(module, name)
            if inspect.ismodule(value) or name == "__version__" or id(value) in seen:
                continue
            seen.add(id(value))
            names.append(f"{module_name}.{name}")
    return names


@functools.cache
def pages() -> dict[str, ApiPage]:
    """Returns the pages by the names of their files."""
    calls = (
        *("plan", "initialize", "materialize", "build", "capture", "use", "values", "digest", "verify", "redraw"),
        *("write", "lsuv", "signals", "available_backends"),
    )
    results = (
        *("Plan", "PlanDiff", "Row", "Report", "CheckpointReport", "Recipe", "Verification", "Digest", "DigestDiff"),
        *("plans.TensorDigest", "Signals"),
    )
    classes = tuple(name for name in _all_of("fastinit") if name.endswith("Init") and name != "fastinit.BaseInit")
    functions = tuple(name for name in _all_of("fastinit") if name.endswith("_init"))
    return {
        "calls.md": ApiPage(
            "Calls",
            "What a program calls. [Concepts](../concepts.md) says what backends, seeds and names are.",
            _of("fastinit", *calls),
        ),
        "results.md": ApiPage(
            "Results",
            "What the calls return. Their constructors are not for use; [stability](../stability.md#names) lists what "
            "is stable of them.",
            _of("fastinit", *results),
        ),
        "initializers.md": ApiPage(
            "Initializers",
            "The classes behind the `type` of a rule; [configs](../config.md#types) has the table, "
            "[schemes](../schemes.md) what they promise.",
            ("fastinit.BaseInit", *classes, "fastinit.WEIGHT_INITIALIZERS"),
        ),
        "functions.md": ApiPage(
            "Functional inits",
            "mmengine's functions, and others like them, for one module at a time.",
            (*functions, *_of("fastinit", "trunc_normal_", "bias_init_with_prob", "update_init_info")),
        ),
        "modules.md": ApiPage(
            "Modules",
            "Modules that carry a config ([mmengine](../mmengine.md#basemodule)).",
            _of("fastinit", "BaseModule", "Sequential", "ModuleList", "ModuleDict", "base_module.is_model_wrapper"),
        ),
        "presets.md": ApiPage(
            "Presets",
            "Configs of published models, as plain data ([schemes](../schemes.md#presets)).",
            _all_of("fastinit.presets"),
        ),
        "mup.md": ApiPage("muP", "Numbers that go with the width ([muP](../mup.md)).", _all_of("fastinit.mup")),
        "distributions.md": ApiPage(
            "Distributions",
            "What a plan says of values, and what an initializer of yours returns.",
            tuple(name for name in _all_of("fastinit.plans") if name != "fastinit.plans.TensorDigest"),
        ),
        "checkpoint.md": ApiPage(
            "Checkpoints",
            "mmengine's functions for checkpoints, which run no code of a file ([checkpoints](../checkpoints.md)).",
            _all_of("fastinit.checkpoint"),
        ),
        "integrations.md": ApiPage(
            "Integrations",
            "Bridges to other libraries ([a backend in your library](../backend.md#in-other-libraries)).",
            (*_all_of("fastinit.integrations.mmengine"), *_all_of("fastinit.integrations.transformers")),
        ),
        "errors.md": ApiPage(
            "Errors",
            "What fastinit raises on purpose ([stability](../stability.md#errors)). Each kind is also the built-in "
            "error of its name.",
            ("fastinit.Error", "fastinit.InitWarning", *_all_of("fastinit.errors")),
        ),
    }


def generated() -> dict[str, str]:
    """Returns the text of each page that is written here; docs/api/rules.md is written by hand."""
    texts = {name: _text(page, _by_hand(FOLDER / name)) for name, page in pages().items()}
    lines = [
        "# Reference",
        "",
        "Every public name; [stability](../stability.md) says what that means. `import fastinit` makes all of them "
        "available.",
        "",
        "| page | names |",
        "|---|---|",
    ]
    for name, page in pages().items():
        lines.append(f"| [{page.title}]({name}) | {', '.join(f'`{_short(each)}`' for each in page.names)} |")
    lines.append("| [Typed rules](rules.md) | `rules` |")
    lines += [
        "",
        "`fastinit.weight_init` and `fastinit.base_module` have the same classes and functions under mmengine's paths.",
    ]
    return {"index.md": "\n".join(lines) + "\n", **texts}


def _by_hand(path: Path) -> str:
    """Returns what stands between the marks of a page, nothing of a new one."""
    text = path.read_text() if path.exists() else ""
    return text.partition(f"{_BEGIN}\n")[2].partition(_END)[0]


def _text(page: ApiPage, by_hand: str) -> str:
    lines = [f"# {page.title}", "", page.text, "", "| name | |", "|---|---|"]
    lines += [f"| `{name}` | {summary(name)} |" for name in page.names]
    lines += ["", f"{_BEGIN}\n{by_hand}{_END}"]
    lines += ["", "The site has the docstrings below (`make docs`); in Python, `help` shows them."]
    for name in page.names:
        lines += ["", f"::: {name}"]
    return "\n".join(lines) + "\n"


def _short(name: str) -> str:
    return name.removeprefix("fastinit.").removeprefix("integrations.")


def summary(name: str) -> str:
    """Returns the first paragraph of a public name's documentation, for a cell of a table."""
    module_name, _, short = name.rpartition(".")
    value = getattr(importlib.import_module(module_name), short)
    is_code = inspect.isclass(value) or inspect.isfunction(value)
    text = inspect.getdoc(value) if is_code else _text_below(module_name, short)
    assert text, f"{name} has no docstring"
    first = " ".join(text.strip().split("\n\n")[0].split())
    return first.replace("``", "`").replace("|", "\\|")


def _text_below(module_name: str, name: str) -> str:
    """Returns the string that stands below the assignment of a name, where it is assigned."""
    value = getattr(importlib.import_module(module_name), name)
    places = [each for key, each in sys.modules.items() if key.split(".")[0] == "fastinit"]
    for place in (each for each in places if vars(each).get(name) is value):
        body = ast.parse(inspect.getsource(place)).body
        for above, below in itertools.pairwise(body):
            targets = above.targets if isinstance(above, ast.Assign) else [getattr(above, "target", None)]
            if any(isinstance(each, ast.Name) and each.id == name for each in targets) and isinstance(below, ast.Expr):
                return str(ast.literal_eval(below.value))
    return ""


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in generated().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
