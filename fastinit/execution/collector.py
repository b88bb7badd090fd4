"""Python's collector of cycles, which looks through all objects again and again while many are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps Python's collector of cycles out of the block, which makes many objects and no cycles.

    With 20,000 tensors that is more than half of the time it takes to read what a file lists, a third of a load, and
    two fifths of recording a model of small layers. Nothing but fastinit's own work belongs in the block.
    """
    was_enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if was_enabled:
            gc.enable()
