"""The state of one load, shared by its copies even when modules' own code runs between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from ...execution.version_counters import version_of
from .files import File


class Loading:
    """One load of a model."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        """Why a read failed. Modules treat any error of ``copy_`` as a mismatch and continue."""
        self.files: dict[int, File] = {}
        self._copied: dict[int, tuple[torch.Tensor, tuple[object, ...]]] = {}

    def is_copied(self, destination: torch.Tensor, place: tuple[object, ...]) -> bool:
        """Returns whether these bytes were copied there before, with no write since: tied weights have many names."""
        found = self._copied.get(id(destination))
        return found is not None and found[1] == (*place, version_of(destination))

    def note(self, destination: torch.Tensor, place: tuple[object, ...]) -> None:
        """Notes a copy from a place in a file."""
        self._copied[id(destination)] = destination, (*place, version_of(destination))


_current: ContextVar[Loading | None] = ContextVar("fastinit_loading", default=None)


def current() -> Loading | None:
    """Returns the current load, if there is one."""
    return _current.get()


@contextmanager
def loading() -> Iterator[Loading]:
    """Opens a load for the block; the mappings it made end with it."""
    opened = Loading()
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)
        for file in opened.files.values():
            file.unmap()
        vars(opened).clear()  # a traceback or a reference cycle may keep it alive


@contextmanager
def reading() -> Iterator[None]:
    """Records any exception of the block in the current load as a failure to read, not a mismatch."""
    try:
        yield
    except Exception as error:
        opened = _current.get()
        if opened is not None and opened.failure is None:
            opened.failure = error
        raise
