"""What no contract backend can do: a layout, a distribution or a dtype."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from ..contract.records import DTYPES, inward
from ..contract.tails import truncation
from ..plans import (
    Constant,
    Dirac,
    Distribution,
    Fill,
    Identity,
    TruncatedNormal,
    Uniform,
    describe,
    is_structured,
    may_overlap,
    numbers_of,
)
from .torch_backend import why_not_matrices, why_not_values, why_short

_STRIDED = torch.strided


def why_not_fill(fill: Fill) -> str | None:
    """Returns why no contract backend can do a fill: its layout, its distribution or its dtype."""
    for tensor in (fill.tensor,) if fill.parts is None else [box.tensor for box in fill.parts]:
        reason = _why_not_memory(tensor)
        if reason is not None:
            return reason
    if is_structured(fill.distribution):
        reason = why_not_matrices(fill.distribution, fill.shape)
        if reason is not None:
            return reason
    return _why_not_numbers(fill.distribution, fill.tensor.dtype)


@lru_cache(maxsize=4096)  # a model has few different ones, and many fills
def _why_not_numbers(distribution: Distribution, dtype: torch.dtype) -> str | None:
    """Returns why no contract backend can draw from a distribution into a dtype."""
    if isinstance(distribution, (Constant, Identity, Dirac)):
        return why_not_values(dtype, distribution if isinstance(distribution, Constant) else Constant(1))
    if dtype not in DTYPES:
        return f"it draws no random numbers into {dtype}, only into {', '.join(map(str, DTYPES))}"
    numbers = numbers_of(distribution)
    if isinstance(distribution, Uniform) and dtype.itemsize == 1:  # torch draws none into float8, so it is not asked
        limits = torch.finfo(dtype)
        if not limits.min <= distribution.low <= distribution.high <= limits.max:
            return f"{describe(distribution)} is out of bounds for {dtype}, [{limits.min}, {limits.max}]"
    bounds = ("low", "high") if isinstance(distribution, TruncatedNormal) else ()  # they may be infinite
    if not all(math.isfinite(number.real) for name, number in numbers.items() if name not in bounds):
        return f"{describe(distribution)} is not finite"
    if dtype != torch.float64:
        most = torch.finfo(torch.float32).max
        if any(abs(numbers.get(name, 0)) > most for name in ("mean", "std")):
            return f"{describe(distribution)} has numbers beyond float32's, with which it is drawn"
    if isinstance(distribution, TruncatedNormal):
        try:
            truncation(*numbers.values())  # type: ignore[arg-type]
        except ValueError as error:
            return str(error)
        low, high = (inward(distribution, dtype, up) for up in (True, False))
        if low > high:
            return f"no number of {dtype} lies within [{distribution.low}, {distribution.high}]"
    if is_structured(distribution):  # values are made in float32, and their size is that of the gain or of normal draws
        return None
    return why_not_values(torch.float32 if dtype.itemsize == 1 else dtype, distribution)  # float8: drawn, and rounded


def _why_not_memory(tensor: torch.Tensor) -> str | None:
    """Returns why a contract backend cannot write the memory of a tensor."""
    if tensor.layout != _STRIDED or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return "it fills plain strided tensors only"
    if tensor.numel() == 0:
        return None
    if not tensor.is_contiguous() and may_overlap(tensor.shape, tensor.stride()):
        return "elements of the tensor share memory (it was expanded, or made with as_strided)"
    if not tensor.is_meta:
        address = tensor.data_ptr()
        if address == 0:
            return "its memory was released (its storage is empty)"
        if address % 8 and address % min(tensor.element_size(), 8):
            return "its elements are not aligned in memory"
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "it was made in inference mode, so it can only be written in inference mode"
    return why_short(tensor)
