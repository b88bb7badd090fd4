"""Pickles read by a machine of our own, which makes data and nothing else, in time and memory that the bytes bound.

Python's own unpickler trusts what it reads: it sets memory aside for counts, calls what it finds, sets attributes of
classes, and hashes what may be nested a million deep. Here every opcode is one of about sixty below, and

- a name of the pickle is whatever ``find`` returns for it; only a ``Name`` may be called, by a function of ours;
- ``BUILD`` changes instances of the types in ``kinds`` alone, never a class or a function;
- the memo is a dict, lengths are compared with what is left, and work that repeats is paid for by bytes of the pickle;
- keys are texts, numbers and short tuples of these, so that hashing takes no time and no stack;
- nothing recurses, so depth costs memory only.

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
    """Returns what a pickle holds, and where it ends.

    Args:
        data: holds the pickle, from ``position`` on; there may be more behind it.
        find: (module, name) -> what stands for the name: a ``Name``, which may be called, a ``Foreign``, whose calls
            and states are stubs again, or any constant. Python 2's names come as Python 3's.
        refusal: of the file, for the stubs.
        persistent: makes values of persistent ids; None: there must be none.
        kinds: the types whose instances the pickle may change, each by its exact type.

    Raises:
        TruncatedError: the data end before the pickle does.
        PickleError: it is damaged, or asks for what data never need.
    """
    machine = Machine(data + PADDING, len(data), find, refusal, persistent, kinds, position)
    return run(machine), machine.position
