"""What a checkpoint holds besides data: named, never run, and refused as soon as somebody uses it.

``shown`` puts a file's own words into messages: short, escaped, and without calling anything that the file made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch

# A file's name or key is read by people: what is longer says nothing more to them.
_MAX_SHOWN_CHARACTERS = 100
# As many numbers as shapes have, generously.
_MAX_SHOWN_ITEMS = 8
# Numbers of more digits than this are damage, and Python refuses to print those of more than 4,300.
_MAX_SHOWN_BITS = 128
# Names of modules and classes are shorter.
_MAX_NAME = 200
# Enough names to see what kind of file it is.
_MAX_NAMES = 20
# The errors of torch and json that quote what they were given.
_MAX_LINE = 500
_PRINTED_AS_THEY_ARE = (bool, float, complex, type(None), torch.dtype, torch.device, torch.layout)


def shown(value: object) -> str:
    """Returns a short text for what came from a file: escaped, bounded, and without running code of its classes."""
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
    """Returns what an error says, as one printable line that is not too long; its name if it says nothing."""
    return printable(str(error), _MAX_LINE) or type(error).__name__


def printable(text: str, longest: int) -> str:
    """Returns the beginning of a text with what moves cursors, or hides and turns text, escaped."""
    cut = text[:longest] + ("..." if len(text) > longest else "")
    return cut if cut.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in cut)


class Refusal:
    """What one file asks for besides data, and the error about it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.names: dict[str, None] = {}
        """In the order in which they were asked for."""

    def error(self, *used: str) -> RuntimeError:
        """Returns the error for the use of names, which tells the file's others too."""
        every = dict.fromkeys((*(each for each in used if each not in self.names), *self.names))
        names = [printable(each, _MAX_NAME) if index < _MAX_NAMES else each for index, each in enumerate(every)]
        told = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES:,} more" * (len(names) > _MAX_NAMES))
        # What is no name of the file, such as a dtype of objects, cannot be let through by its name.
        allowable = [each for each in names if each in self.names]
        instead = f"; or allow-list the types, e.g. allow=[{allowable[0]!r}]" if allowable else ""
        return RuntimeError(
            f"{self.path}: the file holds more than tensors and plain containers: it asks for {told}, and loading that "
            f"could run code that came with the file. If you trust it, pass weights_only=False{instead}"
        )


class Foreign:
    """Stands for an object of a file that is not data. Its ``repr`` says what it was; any use of it is refused.

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

    # A dict's keys may be foreign: they are told apart as objects.
    __hash__ = object.__hash__


def name_of(foreign: Foreign) -> str:
    """Returns the full name of what a stub stands for."""
    return object.__getattribute__(foreign, "_name")  # type: ignore[no-any-return]


def like(foreign: Foreign) -> Foreign:
    """Returns a stub for what a stub makes when it is called."""
    return Foreign(name_of(foreign), object.__getattribute__(foreign, "_refusal"))


def refuse(*foreign: Foreign) -> NoReturn:
    """Raises the error that says what stubs of one file stand for, and what to do."""
    refusal: Refusal = object.__getattribute__(foreign[0], "_refusal")
    raise refusal.error(*map(name_of, foreign))


def _used(self: Foreign, *_: Any, **__: Any) -> Any:
    refuse(self)


# Python looks these up on the class. Attributes come last: only those that a stub lacks are asked for.
for _method in (
    *("getattr", "setattr", "delattr", "call", "eq", "ne", "lt", "le", "gt", "ge", "bool", "len", "iter", "next"),
    *("contains", "getitem", "setitem", "delitem", "enter", "exit", "int", "float", "complex", "index", "bytes"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "matmul"),
    *("and", "or", "xor", "neg", "pos", "abs", "invert", "fspath", "reduce_ex", "reduce", "copy", "deepcopy"),
):
    setattr(Foreign, f"__{_method}__", _used)


class Name(Foreign):
    """What stands for a class or function that a pickle names: it may be called, and nothing else.

    Args:
        name: its full name.
        refusal: of its file.
        call: what makes a value: ``call(machine, *arguments)``; None: the name is good as an argument only.
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
    """A value whose state has not come yet; once it has, ``finish(machine, state)`` is there in its place."""

    __slots__ = ("finish", "slot")
    finish: Callable[..., Any]
    slot: int | None
    """Where it is in the memo."""

    def __init__(self, name: str, refusal: Refusal, finish: Callable[..., Any]) -> None:
        super().__init__(name, refusal)
        object.__setattr__(self, "finish", finish)
        object.__setattr__(self, "slot", None)
