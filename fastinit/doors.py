"""Doors: names of a package that load the module they come from when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def door(package: str, later: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__getattr__`` and ``__dir__`` of a package whose modules are partly loaded at first use.

    Args:
        package: its ``__name__``.
        later: module of the package -> the names that come from it. The module is an attribute of the package, too.
    """
    module_of = {name: module for module, given in later.items() for name in given}

    def load(name: str) -> Any:
        if name in module_of:
            value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        elif name in later:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next one who asks finds it there
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of, *later})

    return load, names
