"""The ``cpp`` backend: the native core (csrc/) on all cores of the CPU, by the number contract.

Element i of a parameter is a function of the seed, the parameter's name and i alone. All records go to the core in one
call.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ..contract import records as contract
from ..plans import Fill
from ..progress import Listener
from . import extensions, limits, structured
from .generators import Generators

NUMBERS = contract.NUMBERS
IS_CONTRACT = True
why_not_fill = limits.why_not_fill

_native, _WHY_NOT = extensions.imported("_native", "the native core", "native_missing.txt")


def why_not(device: torch.device) -> str | None:
    """Returns why the backend cannot run on a device: it is not the CPU, or the native core is missing."""
    if _native is None:
        return _WHY_NOT
    return None if device.type == "cpu" else f"it only fills CPU tensors, but these are on {device}"


def why_not_now(device: torch.device) -> str | None:
    """Returns None: this backend can always run."""
    return None


def engine() -> str:
    """Returns the engine's name for reports, e.g. ``avx512, 2 threads``."""
    return f"{_core().instruction_sets()[0]}, {torch.get_num_threads()} threads"


def run(
    fills: Sequence[Fill],
    seed: int | None,
    generators: Generators | None = None,
    *,
    advance: Listener | None = None,
) -> int:
    """Runs the fills in one call of the native core, or more where fills overlap in memory (threads would race).

    Structured ones come after the rest, each with calls of its own.

    Ctrl-C ends it within a tenth of a second; nothing is written afterwards.
    """
    assert seed is not None, "contract backends need a seed"
    return structured.run(fills, partial(_run, seed), advance)


def differing(fills: Sequence[Fill], seed: int, advance: Listener | None = None) -> dict[int, int | None]:
    """Finds the fills, without structure, whose memory does not hold what they would write; nothing is written.

    Values are drawn into the cache and compared there, so that memory is read once. Ctrl-C ends it within a tenth of a
    second.

    Returns:
        The number of each fill that differs, and its first element that does, row-major in its tensor; None where the
        fill is none of a whole tensor that lies in order.
    """
    records, of_fill = contract.lowered_by_fill(fills, seed)
    first = _core().compare(records.view(np.uint8), torch.get_num_threads(), **watching(advance))
    return {
        i: int(first[at]) if fills[i].parts is None and fills[i].tensor.is_contiguous() else None
        for at, i in zip(np.flatnonzero(first >= 0).tolist(), of_fill[first >= 0].tolist())
    }


def watching(advance: Listener | None) -> dict[str, Any]:
    """Returns what a call of the core may do with Python meanwhile: handle Ctrl-C, and say how far it is."""
    return {"handles_signals": threading.current_thread() is threading.main_thread(), "advance": advance}


def _run(seed: int, fills: Sequence[Fill], advance: Listener | None = None) -> int:
    n_launches = 0
    for _, records in contract.launches(fills, seed):
        _core().fill(records.view(np.uint8), torch.get_num_threads(), **watching(advance))
        n_launches += 1
    return n_launches


def _core() -> Any:
    assert _native is not None, "call why_not first"
    return _native
