"""Version counters: how autograd, and we, know that a tensor was written in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from ..plans import Fill


def count_writes(fills: Iterable[Fill]) -> None:
    """Increments the version counters of the fills' tensors, as torch's in-place operations do."""
    tensors = [fill.tensor for fill in fills]
    if _TAKES_MANY:
        torch.autograd.graph.increment_version(tensors)
    else:
        for tensor in tensors:
            count_write(tensor)


def count_write(tensor: torch.Tensor) -> None:
    """As ``count_writes``, of one tensor."""
    torch.autograd.graph.increment_version(tensor)


def _takes_many() -> bool:
    """Tells whether this torch increments many tensors in one call (the oldest supported ones do not)."""
    try:
        torch.autograd.graph.increment_version([torch.empty(0, device="cpu")])  # type: ignore[arg-type,unused-ignore]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


_TAKES_MANY = _takes_many()


def tensors_in(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yields the tensors among arguments, those in lists and tuples too."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from tensors_in(argument)


def version_of(tensor: torch.Tensor) -> int:
    """Returns how often a tensor was written in place; -1 for a lazy parameter, until it has a shape."""
    if is_lazy(tensor):
        return -1
    # Inference tensors count no versions; they are no parameters that anyone trains.
    return 0 if tensor.is_inference() else tensor._version
