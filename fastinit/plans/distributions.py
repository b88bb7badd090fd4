"""Distributions: frozen records of numbers, equal exactly where their numbers are.

An impossible distribution cannot be constructed; the error types are torch's own for the same numbers. The values of
the structured ones (matrices that are orthogonal, sparse, an identity) depend on each other or on where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard, Union, get_args

from ..errors import InitRuntimeError, InitTypeError, InitValueError, InitZeroDivisionError

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
            raise InitRuntimeError(f"uniform expects low <= high, but found low={self.low}, high={self.high}")


@dataclass(frozen=True, eq=False)
class Normal(_Numbers):
    """Independent draws from the normal distribution."""

    kind: ClassVar[str] = "normal"
    mean: float
    std: float

    def __post_init__(self) -> None:
        self._settle(mean=real_number("mean", self.mean), std=real_number("std", self.std))
        if not self.std >= 0:
            raise InitRuntimeError(f"normal expects std >= 0.0, but found std {self.std}")


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
            raise InitZeroDivisionError(
                "trunc_normal expects std > 0.0, but found std 0.0", hint="; a Constant needs no std"
            )
        if not self.std > 0:
            raise InitRuntimeError(f"trunc_normal expects std > 0.0, but found std {self.std}")
        if not self.low <= self.high:
            raise InitRuntimeError(f"trunc_normal expects bounds a <= b, but found a={self.low}, b={self.high}")


class TorchTruncatedNormal(TruncatedNormal):
    """The same, but that the backend ``torch`` draws as torch.nn.init.trunc_normal_ does, and not as mmengine."""


@dataclass(frozen=True, eq=False)
class Identity(_Numbers):
    """1 on the diagonal of a matrix and 0 elsewhere."""

    kind: ClassVar[str] = "identity"

    def __post_init__(self) -> None:
        self._settle()


@dataclass(frozen=True, eq=False)
class Dirac(_Numbers):
    """A convolution that gives its input back, in each of ``groups`` groups of channels."""

    kind: ClassVar[str] = "dirac"
    groups: int

    def __post_init__(self) -> None:
        self._settle(groups=_count("groups", self.groups, 1))


@dataclass(frozen=True, eq=False)
class Sparse(_Numbers):
    """Normal draws with mean 0; in each column of a matrix a share of the elements, rounded up, is 0."""

    kind: ClassVar[str] = "sparse"
    sparsity: float
    std: float

    def __post_init__(self) -> None:
        self._settle(sparsity=real_number("sparsity", self.sparsity), std=real_number("std", self.std))
        if not 0 <= self.sparsity <= 1:
            raise InitValueError(f"sparsity is the share of zeros, from 0 to 1, but got {self.sparsity}")
        if not self.std >= 0:
            raise InitRuntimeError(f"sparse expects std >= 0.0, but found std {self.std}")


@dataclass(frozen=True, eq=False)
class Orthogonal(_Numbers):
    """A random matrix with orthonormal columns (rows, if there are fewer rows), uniform over all of these, times gain.

    The first ``batch_dims`` dimensions stack independent matrices; of the others all but the first are the columns.
    """

    kind: ClassVar[str] = "orthogonal"
    gain: float
    batch_dims: int

    def __post_init__(self) -> None:
        batch_dims = _count("batch_dims", self.batch_dims, 0)
        self._settle(gain=real_number("gain", self.gain), batch_dims=batch_dims)


@dataclass(frozen=True, eq=False)
class DeltaOrthogonal(_Numbers):
    """A convolution whose kernel is 0 but for its centre, which is an orthogonal matrix, times gain."""

    kind: ClassVar[str] = "delta_orthogonal"
    gain: float

    def __post_init__(self) -> None:
        self._settle(gain=real_number("gain", self.gain))


Structured = Union[Identity, Dirac, Sparse, Orthogonal, DeltaOrthogonal]
Distribution = Union[Constant, Uniform, Normal, TruncatedNormal, Structured]
_STRUCTURED = get_args(Structured)


def is_structured(distribution: Distribution) -> TypeGuard[Structured]:
    """Tells whether values depend on each other, or on where in a matrix they are."""
    return isinstance(distribution, _STRUCTURED)


def is_drawn(distribution: Distribution) -> bool:
    """Tells whether values are random, and so need the name of a stream."""
    return not isinstance(distribution, (Constant, Identity, Dirac))


def matrices_of(distribution: Structured, shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns how many matrices a structured distribution makes of a tensor, and their (rows, columns).

    Args:
        distribution: the distribution.
        shape: the tensor's full shape.

    Raises:
        ValueError: it makes no tensor of that shape.
    """
    shape, kind = tuple(shape), distribution.kind
    if isinstance(distribution, Orthogonal):
        own = shape[distribution.batch_dims :]
        if len(own) < 2:
            behind = f" after batch_dims={distribution.batch_dims}" if distribution.batch_dims else ""
            raise InitValueError(f"{kind} needs at least 2 dimensions{behind}, but the shape is {shape}")
        return math.prod(shape[: distribution.batch_dims]), own[0], math.prod(own[1:])
    if isinstance(distribution, (Identity, Sparse)):
        if len(shape) != 2:
            raise InitValueError(f"{kind} needs a matrix, with 2 dimensions, but the shape is {shape}")
        return 1, shape[0], shape[1]
    if len(shape) not in (3, 4, 5):
        raise InitValueError(
            f"{kind} needs the weight of a convolution, with 3, 4 or 5 dimensions, but the shape is {shape}"
        )
    if isinstance(distribution, Dirac) and shape[0] % distribution.groups:
        raise InitValueError(
            f"{kind} needs out channels divisible by groups={distribution.groups}, but the shape is {shape}"
        )
    if isinstance(distribution, DeltaOrthogonal) and shape[1] > shape[0]:
        raise InitValueError(f"{kind} needs as many out channels as in channels, or more, but the shape is {shape}")
    return 1, shape[0], math.prod(shape[1:])


def _scalar(what: str, value: Any) -> Any:
    """Returns a plain Python number for a number, a numpy scalar or a tensor of one element."""
    if hasattr(value, "item"):
        n = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
        if n != 1:
            raise InitTypeError(f"{what} must be one number, but got {n}, in a {type(value)}")
        value = value.item()
    if not isinstance(value, (bool, int, float, complex)):
        raise InitTypeError(f"{what} must be a number, but got {value!r} of {type(value)}")
    return value


def _count(what: str, value: Any, least: int) -> int:
    """Returns a whole number that is at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InitValueError(f"{what} must be a whole number of at least {least}, but got {value!r}")
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
        raise InitTypeError(f"{what} must be a real number, but got {number!r}")
    return float(number)


def numbers_of(distribution: Distribution) -> dict[str, Number]:
    """Returns the distribution's numbers by name, in their order."""
    return {name: getattr(distribution, name) for name in distribution.__match_args__}


def describe(distribution: Distribution) -> str:
    """Returns e.g. ``normal(mean=0, std=0.02)``."""
    values = numbers_of(distribution)
    if isinstance(distribution, Constant):
        return f"constant({short(distribution.value)})"
    return f"{distribution.kind}({', '.join(f'{name}={short(value)}' for name, value in values.items())})"


def short(number: Number) -> str:
    """Returns a number with six digits, for people."""
    return f"{number:.6g}" if isinstance(number, float) else str(number)
