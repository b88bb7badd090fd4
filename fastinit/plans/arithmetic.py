"""Arithmetic on fills that wait: what scaling, shifting, clamping and casting make of a distribution.

A result is exact (in float64 on the distribution's numbers), or there is none and the values have to be computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ..errors import InitRuntimeError
from .distributions import (
    Constant,
    DeltaOrthogonal,
    Dirac,
    Distribution,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    Structured,
    TruncatedNormal,
    Uniform,
    is_structured,
)


@lru_cache(maxsize=64)
def is_filled_by_torch(dtype: torch.dtype) -> bool:
    """Tells whether this torch fills tensors of a dtype with a number: older ones know float8 by conversion only."""
    if dtype.itemsize > 1 or not dtype.is_floating_point:
        return True
    try:
        torch.empty(2, dtype=dtype, device="cpu").fill_(1)
    except RuntimeError:
        return False
    return True


def element_of(value: complex, dtype: torch.dtype) -> torch.Tensor:
    """Returns the element that ``fill_`` makes of a number in a dtype, a tensor of shape (1,) on the CPU.

    Raises:
        RuntimeError: the dtype cannot hold the number.
    """
    if is_filled_by_torch(dtype):
        return torch.empty(1, dtype=dtype, device="cpu").fill_(value)  # type: ignore[arg-type]
    wide = torch.tensor([value], dtype=torch.float32, device="cpu")  # from which torch rounds, when it fills, too
    element, limits = wide.to(dtype), torch.finfo(dtype)
    is_kept = element.to(torch.float32).item() == value  # infinity, where the dtype has it
    if not (is_kept or math.isnan(value.real) or limits.min <= value.real <= limits.max):
        raise InitRuntimeError(f"{value} is out of bounds for {dtype}, [{limits.min}, {limits.max}]")
    return element


def in_dtype(distribution: Distribution, old: torch.dtype, new: torch.dtype) -> Distribution | None:
    """Returns the distribution whose values in one dtype are those in another, rounded; None if there is none."""
    if isinstance(distribution, Constant):
        return Constant(element_of(distribution.value, old).to(new).item())
    if old == new or isinstance(distribution, (Identity, Dirac)):
        return distribution
    # By the contract the values in half precision are those in float32, rounded.
    if old != torch.float32 or new not in (torch.bfloat16, torch.float16):
        return None
    if isinstance(distribution, TruncatedNormal):  # but for bounds, which are rounded inward
        bounds = torch.tensor([distribution.low, distribution.high], dtype=torch.float64, device="cpu")
        if not torch.equal(bounds.to(new).to(torch.float64), bounds):
            return None
    return distribution


@dataclass
class Chain:
    """A uniform draw that the inverse error function, scaling and shifting are making a truncated normal.

    That is how timm, mmengine and torch before 2.12 draw one: uniform between the images of the bounds under 2 Phi - 1,
    erfinv, times sqrt(2) std, plus mean, clamped to the bounds. It stays a plain sequence of operations until the last.
    """

    base: Uniform
    """The draw."""
    scale: float
    shift: float
    steps: list[tuple[Any, tuple[Any, ...], Mapping[str, Any]]]

    def replay(self, view: torch.Tensor | None) -> None:
        """Does the operations to memory that holds the draw."""
        if view is not None:
            for func, args, kwargs in self.steps:
                func(view, *args, **kwargs)

    def bounded(self, low: float, high: float) -> TruncatedNormal | None:
        """Returns the truncated normal that clamping to the bounds completes; None if it is something else."""
        std = _with_few_digits(self.scale / math.sqrt(2.0), lambda std: std * math.sqrt(2.0) == self.scale)
        if not std > 0 or not low <= high:
            return None
        for bound, image in ((low, self.base.low), (high, self.base.high)):
            if abs(math.erf((bound - self.shift) / std / math.sqrt(2.0)) - image) > _SAME_BOUND:
                return None
        return TruncatedNormal(self.shift, std, low, high)


# Between the image of a bound as the code computed it and as it is computed here: roundings of numbers below 1.
_SAME_BOUND = 1e-9


def _with_few_digits(number: float, is_as_good: Callable[[float], bool]) -> float:
    """Returns the number that was meant, e.g. 0.02, where arithmetic has changed its last digit."""
    short = float(f"{number:.15g}")
    return short if is_as_good(short) else number


class Change(NamedTuple):
    """An elementwise operation with numbers."""

    operation: str
    """The name of the tensor's method."""
    numbers: tuple[float | None, ...]

    def of(self, known: Distribution | Chain, dtype: torch.dtype) -> Distribution | Chain | None:
        """Returns what it makes of a fill, exactly (in float64 on the distribution's numbers); None: nothing known."""
        if isinstance(known, Constant):
            return self._of_constant(known, dtype)
        if not dtype.is_floating_point:
            return None
        if self.operation == "erfinv":
            if isinstance(known, Uniform) and -1 <= known.low <= known.high <= 1:
                return Chain(known, 1.0, 0.0, [])
            return None
        if self.operation == "clamp":
            low, high = (*self.numbers, None)[:2]
            if isinstance(known, Chain) and low is not None and high is not None:
                return known.bounded(float(low), float(high))
            return None
        (number,) = self.numbers
        if number is None or not math.isfinite(number):
            return None
        return self._moved(known, float(number))

    def _moved(self, known: Distribution | Chain, number: float) -> Distribution | Chain | None:
        def move(x: float) -> float:
            if self.operation == "mul":
                return x * number
            if self.operation == "div":
                return x / number
            return x + number if self.operation == "add" else x - number

        scales = self.operation in ("mul", "div")
        if scales and not number > 0:  # a mirror image has other numbers, and none has one value
            return None
        try:
            if isinstance(known, Chain):
                scale = move(known.scale) if scales else known.scale
                return Chain(known.base, scale, move(known.shift), list(known.steps))
            if isinstance(known, Uniform):
                return Uniform(move(known.low), move(known.high))
            if isinstance(known, Normal):
                return Normal(move(known.mean), move(known.std) if scales else known.std)
            if isinstance(known, TruncatedNormal):
                std = move(known.std) if scales else known.std
                return TruncatedNormal(move(known.mean), std, move(known.low), move(known.high))
            return _scaled(known, move) if scales and is_structured(known) else None
        except (OverflowError, RuntimeError, ZeroDivisionError):
            return None

    def _of_constant(self, known: Constant, dtype: torch.dtype) -> Constant | None:
        """Lets torch do it to one element."""
        element = torch.full((1,), known.value, dtype=dtype, device="cpu")  # type: ignore[arg-type]
        try:
            return Constant(getattr(element, self.operation + "_")(*self.numbers).item())
        except RuntimeError:
            return None  # the operator itself will raise it


def _scaled(known: Structured, scale: Callable[[float], float]) -> Structured | None:
    """Returns structured values times a number, None where their distribution has none that stands for it."""
    if isinstance(known, Orthogonal):
        return Orthogonal(scale(known.gain), known.batch_dims)
    if isinstance(known, DeltaOrthogonal):
        return DeltaOrthogonal(scale(known.gain))
    return Sparse(known.sparsity, scale(known.std)) if isinstance(known, Sparse) else None
