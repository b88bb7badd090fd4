"""What must be known across the copies of one load, also where modules' own code stands between."""

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
        """Why something could not be read. Modules take an error of ``copy_`` for a mismatch and go on."""
        self.files: dict[int, File] = {}
        self._copied: dict[int, tuple[torch.Tensor, tuple[object, ...]]] = {}

    def is_copied(self, destination: torch.Tensor, place: tuple[object, ...]) -> bool:
        """Tells whether the same bytes went there before, and nobody wrote since: tied weights have many names."""
        found = self._copied.get(id(destination))
        return found is not None and found[1] == (*place, version_of(destination))

    def note(self, destination: torch.Tensor, place: tuple[object, ...]) -> None:
        """Notes a copy from a place in a file."""
        self._copied[id(destination)] = destination, (*place, version_of(destination))


_current: ContextVar[Loading | None] = ContextVar("fastinit_loading", default=None)


def current() -> Loading | None:
    """Returns the load that is going on, if one is."""
    return _current.get()


@contextmanager
def loading() -> Iterator[Loading]:
    """Opens a load for the block; mappings that it made end with it."""
    opened = Loading()
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)
        for file in opened.files.values():
            file.unmap()
        vars(opened).clear()  # a traceback, or a function that refers to itself, may keep it for long


@contextmanager
def reading() -> Iterator[None]:
    """What the block raises is a failure to read, of whatever type, and no mismatch; the load that goes on is told."""
    try:
        yield
    except Exception as error:
        opened = _current.get()
        if opened is not None and opened.failure is None:
            opened.failure = error
        raise
