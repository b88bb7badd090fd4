"""Version counters: they tell autograd about the writes of our kernels, which torch does not see."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..plans import Fill


def count_writes(fills: Iterable[Fill]) -> None:
    """Increments the version counters of the fills' tensors, as torch's in-place operations do."""
    tensors = [fill.tensor for fill in fills]
    if _TAKES_MANY:
        torch.autograd.graph.increment_version(tensors)
    else:
        for tensor in tensors:
            torch.autograd.graph.increment_version(tensor)


def _takes_many() -> bool:
    """Tells whether this torch increments many tensors in one call (the oldest supported ones do not)."""
    try:
        torch.autograd.graph.increment_version([torch.empty(0, device="cpu")])  # type: ignore[arg-type,unused-ignore]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


_TAKES_MANY = _takes_many()
