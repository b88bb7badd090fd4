"""How far a long call is: what works says how many bytes are done, and a command line may show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[int], object]

# For all threads of the process: work is done in several, and a command line has one call at a time.
_listeners: tuple[Listener, Listener] | None = None


@contextmanager
def listening(expected: Listener, done: Listener) -> Iterator[None]:
    """Calls functions in the block: one with how many bytes are to come, one with how many more are done."""
    global _listeners
    before, _listeners = _listeners, (expected, done)
    try:
        yield
    finally:
        _listeners = before


def is_heard() -> bool:
    """Tells whether somebody listens."""
    return _listeners is not None


def expect(n_bytes: int) -> None:
    """Says that so many bytes more are to be done."""
    if _listeners is not None:
        _listeners[0](n_bytes)


def advance(n_bytes: int) -> None:
    """Says that so many bytes more are done."""
    if _listeners is not None:
        _listeners[1](n_bytes)
