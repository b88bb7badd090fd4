"""Stubs for the objects of a checkpoint that are not data: named, never run, and refused when they are used.

``shown`` quotes values from a file in messages: short, escaped, and without calling methods of those values.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from ...errors import InitRuntimeError, kind_of

# A longer name or key is no use to a reader.
_MAX_SHOWN_CHARACTERS = 100
# More than shapes usually have.
_MAX_SHOWN_ITEMS = 8
# Larger numbers are damage, and Python refuses to print more than 4,300 digits.
_MAX_SHOWN_BITS = 128
# Names of modules and classes are shorter.
_MAX_NAME = 200
# Enough to see what kind of file it is.
_MAX_NAMES = 20
# Errors of torch and json quote their input.
_MAX_LINE = 500
_PRINTED_AS_THEY_ARE = (bool, float, complex, type(None), torch.dtype, torch.device, torch.layout)


def shown(value: object) -> str:
    """Returns a short text for a value from a file: escaped, bounded, and without running code of its class."""
    return _one(value, _MAX_SHOWN_ITEMS)


def _one(value: object, n_items: int) -> str:
    kind = type(value)
    if kind is str or kind is bytes:
        text: Any = value
        if len(text) <= _MAX_SHOWN_CHARACTERS:
            return repr(text)
        return f"{text[:_MAX_SHOWN_CHARACTERS]!r}... ({len(text):,} long)"
    if kind is int:
        n_bits = int.bit_length(value)  # type: ignore[arg-type]
        return repr(value) if n_bits <= _MAX_SHOWN_BITS else f"a number of {n_bits:,} bits"
    if kind in _PRINTED_AS_THEY_ARE:
        return repr(value)
    if kind in (list, tuple, torch.Size):
        items: Any = value
        if len(items) > n_items:
            return f"a {kind.__name__} of {len(items):,}"
        inner = ", ".join(_one(each, 0) for each in items)
        return f"[{inner}]" if kind is list else f"({inner}{',' if len(items) == 1 else ''})"
    if isinstance(value, Foreign):
        return Foreign.__repr__(value)
    return f"a {kind.__name__}"


def one_line(error: BaseException) -> str:
    """Returns an error's message as one printable line of bounded length; the error's name if it has none."""
    return printable(str(error), _MAX_LINE) or kind_of(error)


def printable(text: str, longest: int) -> str:
    """Returns the beginning of a text with control, hiding and direction characters escaped."""
    cut = text[:longest] + ("..." if len(text) > longest else "")
    return cut if cut.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in cut)


class Refusal:
    """Collects the names a file asks for besides data, and makes the error about them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.names: dict[str, None] = {}
        """In the order of the file."""

    def error(self, *used: str) -> RuntimeError:
        """Returns the error for using these names; it lists the file's other names, too."""
        every = dict.fromkeys((*(each for each in used if each not in self.names), *self.names))
        names = [printable(each, _MAX_NAME) if index < _MAX_NAMES else each for index, each in enumerate(every)]
        listed = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES:,} more" * (len(names) > _MAX_NAMES))
        # Only names in the file can be allowed; others (a dtype of objects) describe a value.
        allowable = [each for each in names if each in self.names]
        instead = f"; or allow-list the types, e.g. allow=[{allowable[0]!r}]" if allowable else ""
        return InitRuntimeError(
            f"{self.path}: the file holds more than tensors and plain containers: it asks for {listed}, and loading "
            f"that could run code that came with the file",
            place=self.path,
            hint=f". If you trust it, pass weights_only=False{instead}",
        )


class Foreign:
    """A stub for an object of a file that is not data. Its ``repr`` says what it was; using it raises.

    Args:
        name: the full name of the class or function that made it.
        refusal: of its file.
    """

    __slots__ = ("_name", "_refusal")

    def __init__(self, name: str, refusal: Refusal) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_refusal", refusal)

    def __repr__(self) -> str:
        return f"<{printable(name_of(self), _MAX_NAME)}, not loaded>"

    # A stub may be a dict's key; it is hashed by identity.
    __hash__ = object.__hash__


def name_of(foreign: Foreign) -> str:
    """Returns the full name of the object that a stub replaces."""
    return object.__getattribute__(foreign, "_name")  # type: ignore[no-any-return]


def like(foreign: Foreign) -> Foreign:
    """Returns a stub for the result of calling a stub."""
    return Foreign(name_of(foreign), object.__getattribute__(foreign, "_refusal"))


def refuse(*foreign: Foreign) -> NoReturn:
    """Raises the error that names the objects behind the stubs of one file, and says what to do."""
    refusal: Refusal = object.__getattribute__(foreign[0], "_refusal")
    raise refusal.error(*map(name_of, foreign))


def _used(self: Foreign, *_: Any, **__: Any) -> Any:
    refuse(self)


# Python looks these up on the class; __getattr__ is only called for attributes that a stub lacks.
for _method in (
    *("getattr", "setattr", "delattr", "call", "eq", "ne", "lt", "le", "gt", "ge", "bool", "len", "iter", "next"),
    *("contains", "getitem", "setitem", "delitem", "enter", "exit", "int", "float", "complex", "index", "bytes"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "matmul"),
    *("and", "or", "xor", "neg", "pos", "abs", "invert", "fspath", "reduce_ex", "reduce", "copy", "deepcopy"),
):
    setattr(Foreign, f"__{_method}__", _used)


class Name(Foreign):
    """A stub for a class or function that a pickle names: it may be called, and nothing else.

    Args:
        name: its full name.
        refusal: of its file.
        call: makes a value: ``call(machine, *arguments)``; None: the name may only be an argument.
        new: the same for the opcodes that call ``__new__``; None: ``call``.
    """

    __slots__ = ("call", "new")
    call: Callable[..., Any] | None
    new: Callable[..., Any] | None

    def __init__(
        self,
        name: str,
        refusal: Refusal,
        call: Callable[..., Any] | None = None,
        new: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(name, refusal)
        object.__setattr__(self, "call", call)
        object.__setattr__(self, "new", call if new is None else new)


class Unfinished(Foreign):
    """A value whose state has not been read yet; ``finish(machine, state)`` then makes the value that replaces it."""

    __slots__ = ("finish", "slot")
    finish: Callable[..., Any]
    slot: int | None
    """Its index in the memo."""

    def __init__(self, name: str, refusal: Refusal, finish: Callable[..., Any]) -> None:
        super().__init__(name, refusal)
        object.__setattr__(self, "finish", finish)
        object.__setattr__(self, "slot", None)
