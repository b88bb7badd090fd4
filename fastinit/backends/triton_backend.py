"""The ``triton`` backend: one launch of the Triton kernel (kernels/fill.py) for each device, by the number contract."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..plans import Fill
from . import lowering

NUMBERS = lowering.NUMBERS
IS_CONTRACT = True


def why_not(device: torch.device) -> str | None:
    """Returns why the backend cannot run on a device: it is no GPU, or Triton is missing."""
    return "not there yet"


def why_not_fill(fill: Fill) -> str | None:
    """Returns why the backend cannot do a fill: its distribution, its dtype or its layout."""
    return lowering.why_not_fill(fill)


def engine() -> str:
    """Returns what does the work."""
    return "Triton"


def run(fills: Sequence[Fill], seed: int | None) -> None:
    """Executes the fills."""
    raise NotImplementedError
