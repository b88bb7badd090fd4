"""How far a long call is: what works says how many bytes are done, and a bar in the terminal shows it.

A bar appears after two seconds, where tqdm is installed and stderr is a terminal; FASTINIT_PROGRESS=0 switches it off.
Of several ranks the first shows one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Listener = Callable[[int], object]
"""Is called with a number of bytes."""

VARIABLE = "FASTINIT_PROGRESS"
_OFF = ("0", "false", "no", "off")
_DELAY_S = 2.0
# What is less is done before a bar would appear: torch draws truncated normals at 80 MB a second, all else is faster.
_LEAST_BYTES = 64 << 20
# Of a terminal that does not say how large it is (tqdm shows nothing on 0 of either).
_COLUMNS, _ROWS = 80, 24

# For all threads of the process: work is done in several, and a command line has one call at a time.
_listeners: tuple[Listener, Listener] | None = None
_is_silent = False


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


# --- bars ------------------------------------------------------------------------------------------------------------


def is_wanted() -> bool:
    """Tells whether bars are to be shown: there is a terminal to show them on, and nobody has switched them off."""
    if _is_silent or os.environ.get(VARIABLE, "").strip().lower() in _OFF or os.environ.get("RANK", "0") != "0":
        return False
    return _is_terminal()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def silent() -> Iterator[None]:
    """Shows no bars in the block."""
    global _is_silent
    before, _is_silent = _is_silent, True
    try:
        yield
    finally:
        _is_silent = before


@contextmanager
def showing(what: str, n_bytes: int) -> Iterator[None]:
    """Shows how many bytes are done in the block, as far as it says so; nothing where a larger call shows it already.

    Args:
        what: is done, a verb.
        n_bytes: that will be done, about; of few bytes nothing is shown. ``expect`` says how many exactly.
    """
    if is_heard() or n_bytes < _LEAST_BYTES or not is_wanted():
        yield
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield
        return
    how = dict(desc=what, unit="B", unit_scale=True, delay=_DELAY_S, leave=False, ncols=_columns(), nrows=_ROWS)
    with tqdm(**how) as shown:

        def expected(more: int) -> None:
            shown.total = (shown.total or 0) + more

        with listening(expected, shown.update):
            yield


def _columns() -> int:
    """Returns the width of the terminal."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS
