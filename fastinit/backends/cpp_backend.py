"""The ``cpp`` backend: the native core (csrc/) on all cores of the CPU, by the number contract.

Element i of a parameter is a function of the seed, the parameter's name and i alone. All records go to the core in one
call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ..contract import records as contract
from ..plans import Fill
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


def run(fills: Sequence[Fill], seed: int | None, generators: Generators | None = None) -> int:
    """Runs the fills in one call of the native core, or more where fills overlap in memory (threads would race).

    Structured ones come after the rest, each with calls of its own.

    Ctrl-C ends it within a tenth of a second; nothing is written afterwards.
    """
    assert seed is not None, "contract backends need a seed"
    return structured.run(fills, partial(_run, seed))


def prepared(fills: Sequence[Fill], seed: int) -> Callable[[], object]:
    """Returns what runs fills without structure in the thread that calls it, of memory that does not overlap.

    The memory must stay alive until then. No function of torch is called.
    """
    return partial(_core().fill, contract.lowered(fills, seed).view(np.uint8), 1)


def _run(seed: int, fills: Sequence[Fill]) -> int:
    n_launches = 0
    for _, records in contract.launches(fills, seed):
        is_main = threading.current_thread() is threading.main_thread()
        _core().fill(records.view(np.uint8), torch.get_num_threads(), handles_signals=is_main)
        n_launches += 1
    return n_launches


def _core() -> Any:
    assert _native is not None, "call why_not first"
    return _native
