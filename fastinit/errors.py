"""What fastinit raises on purpose: ``Error`` and its kinds; and errors and warnings that name their origin.

Each kind is also the built-in type in its name, which is mmengine's and torch's for the same mistake: ``except
KeyError`` catches ``InitKeyError``, and the text is that of a KeyError. A test looks for other errors in the source.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn


class Error(Exception):
    """Base of all errors that fastinit raises on purpose, each of which is a built-in error, too.

    Args:
        arguments: those of the built-in error; the last one is the message.
        place: where it is: in a config, a file or a model. It is not added to the message.
        hint: the end of the message, with the signs that join it to what is before. It is added.
        of: the error whose message the end of this one is: its place is behind this one's, its hint is this one's.

    Example:
        >>> import fastinit, torch
        >>> try:
        ...     fastinit.plan(torch.nn.Linear(2, 2), [dict(type="Constnt", val=0, layer="Linear")])
        ... except fastinit.Error as error:
        ...     print(isinstance(error, KeyError), error.place, error.hint[:24], sep="; ")
        True; init_cfg[0]; Did you mean 'Constant'?
    """

    place: str | None = None
    """Where it is: ``init_cfg[2].override[0]``, a file, ``parameter 'head.weight'``; of several, from the outermost in,
    with a comma between them. None where that is not known."""
    hint: str | None = None
    """What to do, or what was probably meant: the end of the message. None where it says nothing of the kind."""

    def __init__(
        self, *arguments: object, place: object = None, hint: str = "", of: BaseException | None = None
    ) -> None:
        if hint:
            arguments = (*arguments[:-1], f"{arguments[-1]}{hint}")
        super().__init__(*arguments)
        inner = of if isinstance(of, Error) else None
        if hint or inner:
            self.hint = hint.lstrip(" .,;:\n") or (inner.hint if inner else None)
        places = [str(each) for each in (place, inner and inner.place) if each is not None]
        if places:
            self.place = ", ".join(places)


class InitAssertionError(Error, AssertionError):
    """An argument that mmengine refuses by an assertion."""


class InitAttributeError(Error, AttributeError):
    """A module's attribute is not what a config takes it for."""


class InitFileExistsError(Error, FileExistsError):
    """A file is in the way of one that is to be written."""


class InitFileNotFoundError(Error, FileNotFoundError):
    """There is no such file, here or at its address."""


class InitImportError(Error, ImportError):
    """A package is not installed that only some need."""


class InitIndexError(Error, IndexError):
    """An index is out of a shape's bounds."""


class InitKeyError(Error, KeyError):
    """There is nothing of that name. As of every KeyError, ``str(error)`` is the message in quotes."""


class InitNotImplementedError(Error, NotImplementedError):
    """What was asked for does not exist (yet)."""


class InitOSError(Error, OSError):
    """A file cannot be read or written."""


class InitOverflowError(Error, OverflowError):
    """A number is too large."""


class InitRuntimeError(Error, RuntimeError):
    """A request cannot be met: a model, a file, a backend or another process is not as it must be for it."""


class InitTypeError(Error, TypeError):
    """An argument is of a wrong type."""


class InitUnpicklingError(Error, pickle.UnpicklingError):
    """A pickle cannot be read."""


class InitValueError(Error, ValueError):
    """An argument has a value that it must not have."""


class InitZeroDivisionError(Error, ZeroDivisionError):
    """A number is 0 that must not be."""


# Errors whose only argument is a message can be rebuilt with the place in front. All others get it as a note.
_KINDS: dict[type[BaseException], type[Error]] = {
    AssertionError: InitAssertionError,
    AttributeError: InitAttributeError,
    FileNotFoundError: InitFileNotFoundError,
    IndexError: InitIndexError,
    KeyError: InitKeyError,
    NotImplementedError: InitNotImplementedError,
    OverflowError: InitOverflowError,
    RuntimeError: InitRuntimeError,
    TypeError: InitTypeError,
    ValueError: InitValueError,
    ZeroDivisionError: InitZeroDivisionError,
    pickle.UnpicklingError: InitUnpicklingError,
}
_KINDS |= {kind: kind for kind in _KINDS.values()}


def message_of(error: BaseException) -> str:
    """Returns an error's message, that of a KeyError without its quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def kind_of(error: BaseException) -> str:
    """Returns the name of an error's type for messages, that of the built-in error for one of fastinit's kinds."""
    kind = type(error)
    return (kind.__bases__[1] if Error in kind.__bases__ and len(kind.__bases__) == 2 else kind).__name__


@contextmanager
def locating(where: str, *, is_place: bool = True) -> Iterator[None]:
    """Prefixes the messages of errors in the block with ``where``; built-in type, hint, cause and traceback are kept.

    Errors of others' code become ``Error`` by it, if they are of a built-in type whose only argument is a message. All
    others (an OSError with its number, a class of somebody's own) keep their text and get a note.

    Args:
        where: the prefix.
        is_place: whether it is also the errors' ``place``, in front of the one they have.
    """
    try:
        yield
    except Exception as error:
        kind = _KINDS.get(type(error))
        if kind is None or len(error.args) > 1:
            if is_place and isinstance(error, Error):
                error.place = where if error.place is None else f"{where}, {error.place}"
            _add_note(error, where)
            raise
        message = message_of(error)
        located = kind(f"{where}: {message}" if message else where, place=where if is_place else None, of=error)
        if notes := getattr(error, "__notes__", None):
            located.__notes__ = notes  # type: ignore[attr-defined]
        raise located.with_traceback(error.__traceback__) from error.__cause__


_NOTE = "fastinit: at "


def _add_note(error: Exception, where: str) -> None:
    """Adds a place to an error that keeps its class and arguments: as a note, of several places the outermost first."""
    notes: list[str] = list(getattr(error, "__notes__", ()))
    if notes and notes[-1].startswith(_NOTE):
        notes[-1] = f"{_NOTE}{where}, {notes[-1].removeprefix(_NOTE)}"
    else:
        notes.append(f"{_NOTE}{where}")
    error.__notes__ = notes  # type: ignore[attr-defined]
    first = error.args[0] if error.args else None
    if not _SHOWS_NOTES and isinstance(first, str) and str(error) in (first, repr(first)):
        error.args = (f"{where}: {first}", *error.args[1:])


_SHOWS_NOTES = sys.version_info >= (3, 11)
"""Tracebacks have the notes of errors. Before, the place goes in front of a message that is the only argument."""


class InitWarning(UserWarning):
    """Every warning of fastinit: to silence them, or to make them errors, without those of others."""


_noting: ContextVar[tuple[dict[str, None], ...]] = ContextVar("fastinit_noting", default=())
"""Who notes what is warned of, the outermost first."""


def warn_user(message: str) -> None:
    """Issues an InitWarning that points to the user's line, the innermost one outside fastinit."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fastinit", "contextlib"):
        level += 1
        frame = frame.f_back  # type: ignore[assignment]
    for noted in _noting.get():
        noted.setdefault(message)
    warnings.warn(message, InitWarning, stacklevel=level + 1)


@contextmanager
def noting_warnings() -> Iterator[dict[str, None]]:
    """Notes what is warned of in the block, each message once; the warnings are given all the same."""
    noted: dict[str, None] = {}
    token = _noting.set((*_noting.get(), noted))
    try:
        yield noted
    finally:
        _noting.reset(token)


def _told(given: object) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else str(type(given))


def _instead_of_module(given: object) -> str:
    """Returns what to do about something that is no module, by what it is."""
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f": make one, {given.__name__}(...)"
    if isinstance(given, Mapping) and any(isinstance(each, torch.Tensor) for each in given.values()):
        return ". A state dict has to be in its model: model.load_state_dict(...)"
    if isinstance(given, dict) or (isinstance(given, list) and given and isinstance(given[0], dict)):
        return ". The module comes first and the config behind it, as in initialize(model, init_cfg)"
    if callable(given) and not isinstance(given, type):
        return ": call it, and give what it returns"
    return (
        if_path(
            given,
            ". Make the model, and fastinit.checkpoint.load_checkpoint(model, path) brings a checkpoint into it; only "
            "fastinit.digest and commands such as `fastinit verify` take a file by itself",
        )
        or ". For a tensor use torch.nn.init or fastinit.trunc_normal_"
    )


def if_path(given: object, hint: str) -> str:
    """Returns a hint where what was given is a path, or may be one, "" otherwise."""
    return hint if isinstance(given, (str, os.PathLike)) else ""


def check_module(module: object) -> None:
    """Raises TypeError unless ``module`` is an ``nn.Module``, RuntimeError if FSDP1 has flattened its parameters."""
    if not isinstance(module, nn.Module):
        raise InitTypeError(
            f"module must be a torch.nn.Module, but got {_told(module)}", hint=_instead_of_module(module)
        )
    # A module can only be an instance of an imported class.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(each, fsdp.FullyShardedDataParallel) for each in module.modules()):
        raise InitRuntimeError(
            f"{type(module).__name__} is wrapped in FullyShardedDataParallel, which flattens and splits parameters, so "
            f"that their names and shapes are lost",
            hint=". Use fully_shard (FSDP2) instead; or initialize before wrapping, on rank 0, and wrap with "
            "sync_module_states=True",
        )
