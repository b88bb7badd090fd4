"""The ``cpp`` backend: the native core (csrc/) on all cores of the CPU, by the number contract.

Element i of a parameter is a function of the seed, the parameter's name and i alone. Hands the records of the fills
over in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..contract import records as contract
from ..plans import Fill
from . import extensions, limits

NUMBERS = contract.NUMBERS
IS_CONTRACT = True
why_not_fill = limits.why_not_fill

_native, _WHY_NOT = extensions.imported("_native", "the native core", "native_missing.txt")


def why_not(device: torch.device) -> str | None:
    """Returns why the backend cannot run on a device: it is not the CPU, or the native core was not built."""
    if _native is None:
        return _WHY_NOT
    return None if device.type == "cpu" else f"it fills memory of the CPU, and the tensors are on {device}"


def why_not_now(device: torch.device) -> str | None:
    """Returns None: it can run at any moment."""
    return None


def engine() -> str:
    """Returns what does the work, e.g. ``avx512, 2 threads``."""
    return f"{_core().instruction_sets()[0]}, {torch.get_num_threads()} threads"


def run(fills: Sequence[Fill], seed: int | None) -> int:
    """Executes the fills, in one call of the native core where none writes another's memory (threads would race)."""
    assert seed is not None, "a contract backend is given a seed"
    n_launches = 0
    for _, records in contract.launches(fills, seed):
        _core().fill(records.view(np.uint8), torch.get_num_threads())
        n_launches += 1
    return n_launches


def _core() -> Any:
    assert _native is not None, "why_not was not asked"
    return _native
