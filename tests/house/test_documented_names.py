"""Names of the package and paths of the repository that the documentation mentions exist."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from paths import ROOT

# CHANGELOG.md is missing here: it also names what no longer exists.
PAGES = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.name,
)
TOP_FOLDERS = ("tests", "tools", "fastinit", "benchmarks", "csrc", "docs", ".ci")
# Paths that a fresh checkout need not hold, with the reason.
NOT_COMMITTED = {
    "fastinit/*.so": "setup.py builds them",
    "benchmarks/results/NAME.csv": "NAME is a placeholder",
}

# Resolves names the way a user's program would: nothing is imported besides the package itself.
RESOLVE = """
import functools, json, sys
import fastinit

def resolves(name):
    try:
        functools.reduce(getattr, name.split(".")[1:], fastinit)
    except AttributeError:
        return False
    return True

json.dump([name for name in json.load(sys.stdin) if not resolves(name)], sys.stdout)
"""


def fenced_blocks(page: str) -> list[tuple[str, str]]:
    """Returns the language and the text of every code block between lines of three backticks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def code_of(page: str) -> str:
    """Returns all code of a page, one piece a line: code blocks, and what stands in single backticks."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([text for _, text in fenced_blocks(page)] + re.findall(r"`([^`\n]+)`", prose))


def dotted_names(page: str) -> set[str]:
    """Returns the names ``fastinit.x.y`` in the code of a page, those of ``from fastinit.x import y`` included."""
    code = code_of(page)
    names = set(re.findall(r"(?<![\w./-])fastinit(?:\.[A-Za-z_]\w*)+", code))
    for module, imported in re.findall(r"from (fastinit[\w.]*) import ([\w, ]+)", code):
        names.update(f"{module}.{name}" for name in re.findall(r"\w+", imported))
    return names


def unresolved(names: Iterable[str]) -> list[str]:
    """Returns the names that ``import fastinit`` alone does not make available, in a process of their own."""
    ran = subprocess.run(
        [sys.executable, "-c", RESOLVE], input=json.dumps(sorted(names)), capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@functools.cache
def unresolved_of_all_pages() -> list[str]:
    """Returns the unresolved names of all pages, by one process: importing torch takes seconds."""
    return unresolved(set().union(*(dotted_names(page.read_text()) for page in PAGES)))


def repository_paths(page: str) -> set[str]:
    """Returns the paths below the repository's top folders in the code of a page; braces are expanded."""
    folders = "|".join(map(re.escape, TOP_FOLDERS))
    found = re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*,{{}}-]*", code_of(page))
    return {path for each in found for path in expanded(each.rstrip(".,"))}


def expanded(path: str) -> list[str]:
    """Returns the paths that ``a/{b,c}`` stands for."""
    pieces = [piece.strip("{}").split(",") for piece in re.split(r"(\{[^}]*\})", path)]
    return ["".join(choice) for choice in itertools.product(*pieces)]


def missing_paths(paths: Iterable[str], root: Path = ROOT) -> list[str]:
    """Returns the paths, or globs, that match nothing in the repository."""
    return sorted(path for path in paths if path not in NOT_COMMITTED and not any(root.glob(path.rstrip("/"))))


def syntax_errors(page: str) -> list[str]:
    """Returns the first lines of the Python blocks that do not parse; doctests are run elsewhere."""
    broken = []
    for language, text in fenced_blocks(page):
        if language == "python" and not text.startswith(">>>"):
            try:
                ast.parse(text)
            except SyntaxError:
                broken.append(text.splitlines()[0])
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_documented_names_resolve_from_a_bare_import(page: Path) -> None:
    assert not dotted_names(page.read_text()) & set(unresolved_of_all_pages())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_documented_paths_exist(page: Path) -> None:
    assert not missing_paths(repository_paths(page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_parse(page: Path) -> None:
    assert not syntax_errors(page.read_text())


WRONG = """
`fastinit.plan` and fastinit.prose, `from fastinit.weight_init import trunc_normal_, xavier_uniform, ...`,
`tests/house` and `tools/{gpu_day,gpu_night}.py`, [a page](docs/none.md), `csrc/none*.h`. Not ours: `my/tests/none.py`.

```python
>>> fastinit.plans.Nrmal(0, 1), fastinit.plans.Normal(0, 1)
```

```python
fastinit.materialise(model
```

```sh
python3 benchmarks/bench_none.py   # benchmarks/bench_fill.py
```
"""


def test_wrong_names_are_found() -> None:
    names = ["fastinit.materialise", "fastinit.plans.Nrmal", "fastinit.weight_init.xavier_uniform"]
    assert unresolved(dotted_names(WRONG)) == names


def test_modules_that_a_bare_import_leaves_out_are_found() -> None:
    assert unresolved(["fastinit.demo", "fastinit.checkpoint"]) == ["fastinit.demo"]


def test_missing_paths_are_found() -> None:
    assert missing_paths(repository_paths(WRONG)) == ["benchmarks/bench_none.py", "csrc/none*.h", "tools/gpu_night.py"]


def test_broken_python_blocks_are_found() -> None:
    assert syntax_errors(WRONG) == ["fastinit.materialise(model"]


def test_the_pages_have_names_and_paths_to_check() -> None:
    assert "fastinit.plans.Normal" in dotted_names((ROOT / "docs/concepts.md").read_text())
    assert "tools/gpu_day.py" in repository_paths((ROOT / "docs/benchmarks.md").read_text())
