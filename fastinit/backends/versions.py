"""Version counters: whoever runs kernels that torch does not see tells autograd of their writes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..plans import Fill


def count_writes(fills: Iterable[Fill]) -> None:
    """Counts up the versions of the fills' tensors, as an in-place operation of torch does."""
    tensors = [fill.tensor for fill in fills]
    if _TAKES_MANY:
        torch.autograd.graph.increment_version(tensors)
    else:
        for tensor in tensors:
            torch.autograd.graph.increment_version(tensor)


def _takes_many() -> bool:
    """Tells whether this torch counts up many tensors in one call (the oldest that fastinit runs on do not)."""
    try:
        torch.autograd.graph.increment_version([torch.empty(0, device="cpu")])  # type: ignore[arg-type,unused-ignore]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


_TAKES_MANY = _takes_many()
