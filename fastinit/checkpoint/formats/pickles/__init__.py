"""A pickle reader that only makes data, in time and memory bounded by the length of the pickle.

Python's own unpickler trusts its input: it allocates memory for counts, calls any function, sets attributes of classes,
and hashes keys nested a million deep. This one knows about sixty opcodes, and

- a name in the pickle becomes the value that ``find`` returns; only a ``Name`` may be called, with a function of ours;
- ``BUILD`` changes instances of the types in ``kinds`` alone, never a class or a function;
- the memo is a dict, lengths are checked against the remaining bytes, and repeated work is charged to a budget;
- keys are strings, numbers and short tuples of them, so hashing is cheap in time and stack;
- nothing recurses, so depth only costs memory.

The interface: ``load(data, find, ...)``, with ``stubs.Name``, ``stubs.Foreign`` and ``Kind``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...storage.stubs import Refusal
from .errors import PickleError, TruncatedError
from .loop import run
from .machine import PADDING, Find, Kind, Machine

__all__ = ["PADDING", "Find", "Kind", "Machine", "PickleError", "TruncatedError", "load"]


def load(
    data: bytes,
    find: Find,
    *,
    refusal: Refusal,
    persistent: Callable[[Any], Any] | None = None,
    kinds: Mapping[type, Kind] = {},
    position: int = 0,
) -> tuple[Any, int]:
    """Returns the contents of a pickle, and its end.

    Args:
        data: the pickle starts at ``position``; there may be more data after it.
        find: (module, name) -> a ``Name``, which may be called, a ``Foreign``, whose calls and states are stubs again,
            or any constant. Python 2's names are translated to Python 3's.
        refusal: of the file.
        persistent: returns the value of a persistent id; None: the pickle must have none.
        kinds: exact types whose instances the pickle may change.

    Raises:
        TruncatedError: the data end before the pickle does.
        PickleError: it is damaged, or uses opcodes that data never need.
    """
    machine = Machine(data + PADDING, len(data), find, refusal, persistent, kinds, position)
    return run(machine), machine.position
