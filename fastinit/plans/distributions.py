"""Distributions: frozen records of numbers, equal exactly where their numbers are.

An impossible distribution cannot be constructed; the error types are torch's own for the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Union

Number = Union[bool, int, float, complex]


class _Numbers:
    """Compares distributions by their exact numbers: 1, 1.0 and True differ, and so do 0.0 and -0.0."""

    __match_args__: ClassVar[tuple[str, ...]]
    _exact: tuple[object, ...]
    _hash: int

    def _settle(self, **numbers: Number) -> None:
        """Sets the numbers, as plain Python ones; the records are frozen but for this."""
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        exact = (type(self), *map(repr, numbers.values()))
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_hash", hash(exact))

    def __reduce__(self) -> tuple[object, ...]:  # a hash holds in one process only
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and self._exact == other._exact

    def __hash__(self) -> int:
        return self._hash  # asked for with every fill


@dataclass(frozen=True, eq=False)
class Constant(_Numbers):
    """Every element is ``value``."""

    kind: ClassVar[str] = "constant"
    value: Number

    def __post_init__(self) -> None:
        self._settle(value=_scalar("val", self.value))


@dataclass(frozen=True, eq=False)
class Uniform(_Numbers):
    """Independent draws from [low, high); rounded to the dtype of a parameter, some may be ``high``."""

    kind: ClassVar[str] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        self._settle(low=real_number("low", self.low), high=real_number("high", self.high))
        if not self.low <= self.high:
            raise RuntimeError(f"uniform expects low <= high, but found low={self.low}, high={self.high}")


@dataclass(frozen=True, eq=False)
class Normal(_Numbers):
    """Independent draws from the normal distribution."""

    kind: ClassVar[str] = "normal"
    mean: float
    std: float

    def __post_init__(self) -> None:
        self._settle(mean=real_number("mean", self.mean), std=real_number("std", self.std))
        if not self.std >= 0:
            raise RuntimeError(f"normal expects std >= 0.0, but found std {self.std}")


@dataclass(frozen=True, eq=False)
class TruncatedNormal(_Numbers):
    """Independent draws from the normal distribution on [low, high]; absolute bounds, not in units of std."""

    kind: ClassVar[str] = "trunc_normal"
    mean: float
    std: float
    low: float
    high: float

    def __post_init__(self) -> None:
        self._settle(
            mean=real_number("mean", self.mean),
            std=real_number("std", self.std),
            low=real_number("low", self.low),
            high=real_number("high", self.high),
        )
        if self.std == 0:
            raise ZeroDivisionError("trunc_normal expects std > 0.0, but found std 0.0; a Constant needs no std")
        if not self.std > 0:
            raise RuntimeError(f"trunc_normal expects std > 0.0, but found std {self.std}")
        if not self.low <= self.high:
            raise RuntimeError(f"trunc_normal expects bounds a <= b, but found a={self.low}, b={self.high}")


Distribution = Union[Constant, Uniform, Normal, TruncatedNormal]


def _scalar(what: str, value: Any) -> Any:
    """Returns a plain Python number for a number, a numpy scalar or a tensor of one element."""
    if hasattr(value, "item"):
        n = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
        if n != 1:
            raise TypeError(f"{what} must be one number, but got {n}, in a {type(value)}")
        value = value.item()
    if not isinstance(value, (bool, int, float, complex)):
        raise TypeError(f"{what} must be a number, but got {value!r} of {type(value)}")
    return value


def real_number(what: str, value: Any) -> float:
    """Returns a real number as a float.

    Args:
        what: what messages call it.
        value: a number, a numpy scalar or a tensor of one element.

    Raises:
        TypeError: it is none of these, or complex.
    """
    number = _scalar(what, value)
    if isinstance(number, complex):
        raise TypeError(f"{what} must be a real number, but got {number!r}")
    return float(number)


def numbers_of(distribution: Distribution) -> dict[str, Number]:
    """Returns the distribution's numbers by name, in their order."""
    return {name: getattr(distribution, name) for name in distribution.__match_args__}


def describe(distribution: Distribution) -> str:
    """Returns e.g. ``normal(mean=0, std=0.02)``."""
    values = numbers_of(distribution)
    if isinstance(distribution, Constant):
        return f"constant({_short(distribution.value)})"
    return f"{distribution.kind}({', '.join(f'{name}={_short(value)}' for name, value in values.items())})"


def _short(number: Number) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)
