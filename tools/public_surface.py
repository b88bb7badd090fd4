"""Writes tests/data/public_surface.txt: the names that docs/stability.md calls stable, with their signatures.

Run ``python tools/public_surface.py`` after a change of one, and read the difference; a test fails until you do.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ForwardRef, get_origin

import fastinit

SURFACE = Path(__file__).parent.parent / "tests" / "data" / "public_surface.txt"
# In this order, with the names that count; None: those of `__all__`, and without one what is defined there. Those of
# fastinit.rules are in fastinit/rules.pyi.
MODULES: dict[str, tuple[str, ...] | None] = {
    "fastinit": None,
    "fastinit.errors": tuple(sorted(name for name in vars(fastinit.errors) if name.startswith("Init"))),
    "fastinit.plans": (
        *("Constant", "DeltaOrthogonal", "Dirac", "Identity", "Normal", "Orthogonal", "Sparse", "TensorDigest"),
        *("TruncatedNormal", "Uniform"),
    ),
    "fastinit.presets": None,
    "fastinit.mup": None,
    "fastinit.integrations.mmengine": ("disable", "enable", "register", "unregister"),
    "fastinit.integrations.transformers": None,
    "fastinit.base_module": None,
    "fastinit.weight_init": None,
    "fastinit.checkpoint": (
        *("CheckpointLoader", "find_latest_checkpoint", "get_state_dict", "load_checkpoint", "load_state_dict"),
        *("save_checkpoint", "weights_to_cpu"),
    ),
}  # fmt: skip


def generated() -> str:
    """Returns the text of the file."""
    lines: list[str] = []
    seen: set[int] = set()
    for module_name, chosen in MODULES.items():
        module = importlib.import_module(module_name)
        lines += ["", f"[{module_name}]"] if lines else [f"[{module_name}]"]
        for name in sorted(chosen or names_of(module)):
            value = getattr(module, name)
            if id(value) in seen and (inspect.isclass(value) or inspect.isfunction(value)):
                lines.append(f"{name}: {value.__module__}.{value.__qualname__}" if chosen else name)
                continue
            seen.add(id(value))
            lines += _lines_of(name, value)
    return "\n".join(lines) + "\n"


def names_of(module: ModuleType) -> list[str]:
    """Returns the names of a module that count where none were chosen."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    found = vars(module).items()
    return [
        name for name, each in found if not name.startswith("_") and getattr(each, "__module__", "") == module.__name__
    ]


def _lines_of(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, ModuleType):
        yield f"{name}: a module"
    elif inspect.isclass(value):
        bases = ", ".join(each.__name__ for each in value.__bases__ if each is not object)
        yield f"class {name}({bases}){_signature(value)}"
        for member, inner in sorted(_members(value).items()):
            if isinstance(inner, property | functools.cached_property):
                yield f"    {member}"
            else:
                function = inner.__func__ if isinstance(inner, staticmethod | classmethod) else inner
                yield f"    {member}{_signature(function) if callable(function) else ''}"
    elif get_origin(value) is not None:
        yield f"{name}: a type"
    elif callable(value):
        yield f"{name}{_signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def _members(kind: type) -> dict[str, Any]:
    """Returns the public members of a class that no public base has; fields are in its signature."""
    fields = {each.name for each in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    fields |= set(getattr(kind, "_fields", ()))
    public = {each for each in vars(fastinit).values() if inspect.isclass(each)} - {kind}
    mro = itertools.takewhile(lambda each: each not in public, kind.__mro__)
    own = [each for each in mro if each.__module__.startswith("fastinit")]
    found = {name: value for each in reversed(own) for name, value in vars(each).items()}
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in fields}


def _signature(function: Any) -> str:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in, or a TypedDict
        return ""
    given = [
        each.replace(annotation=_text(each.annotation), default=_default(each.default))
        for each in signature.parameters.values()
    ]
    return str(signature.replace(parameters=given, return_annotation=_text(signature.return_annotation)))


class _Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _text(annotation: Any) -> Any:
    """Returns an annotation as it stands in the source, whatever Python has made of it."""
    if annotation is inspect.Parameter.empty:
        return annotation
    if isinstance(annotation, ForwardRef):
        return _Shown(annotation.__forward_arg__)
    return _Shown(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _default(value: Any) -> Any:
    """Returns a default with a text that has no address in it."""
    plain = value is inspect.Parameter.empty or isinstance(value, (bool, int, float, str, tuple, type(None)))
    return value if plain else _Shown(f"<{type(value).__name__}>")


if __name__ == "__main__":
    SURFACE.write_text(generated())
