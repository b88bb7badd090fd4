"""Geometry: what elements at regular steps cover, whether they overlap, and what of them lies in another's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns what a step along each dimension adds to the row-major index."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def may_overlap(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Tells whether two elements may share memory: a dimension does not step over all that the smaller ones span."""
    span = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape) if size > 1):
        if step < span:
            return True
        span += (size - 1) * step
    return False


def byte_span(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the addresses of a strided tensor's first byte and of the byte behind its last."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return start, start + (last + 1) * tensor.element_size()
