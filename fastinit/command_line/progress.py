"""A progress bar for what takes more than two seconds, where tqdm is installed and stderr is a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..progress import listening

VARIABLE = "FASTINIT_PROGRESS"
_DELAY_S = 2.0
# Of a terminal that does not say how large it is (tqdm shows nothing on 0 of either).
_COLUMNS, _ROWS = 80, 24
_OFF = ("0", "false", "no", "off")


def is_wanted(options: argparse.Namespace) -> bool:
    """Tells whether bars are to be shown: there is a terminal to show them on, and nobody has switched them off."""
    is_off = os.environ.get(VARIABLE, "").strip().lower() in _OFF
    return not is_off and getattr(options, "progress", True) and sys.stderr.isatty()


def _columns() -> int:
    """Returns the width of the terminal."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS


@contextmanager
def bar(what: str, options: argparse.Namespace, total: int | None = None) -> Iterator[None]:
    """Shows how many bytes are done in the block.

    Args:
        what: is done.
        options: of the command.
        total: how many bytes there are; None: what is done says it.
    """
    if not is_wanted(options):
        yield
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield
        return
    how = dict(desc=what, unit="B", unit_scale=True, delay=_DELAY_S, leave=False, ncols=_columns(), nrows=_ROWS)
    with tqdm(total=total, **how) as shown:

        def expect(n_bytes: int) -> None:
            shown.total = (shown.total or 0) + n_bytes

        with listening(expect, shown.update):
            yield
