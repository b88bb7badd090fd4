"""The numbers with which a truncated normal is drawn, in decimal arithmetic.

They become part of the bits, so they must not depend on a C library's erf or log: Python's decimal module rounds every
operation exactly, the same everywhere. All is done for the standard normal; Q(z) is its upper tail probability.
"""

from __future__ import annotations

import math
import struct
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache
from typing import NamedTuple

from ..errors import InitValueError

# 50 digits: Q(7) is taken from 1/2 and loses 12 of them, and what is left is rounded to a float.
_CONTEXT = Context(prec=50, Emin=MIN_EMIN, Emax=MAX_EMAX)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097")
_HALF = Decimal("0.5")
# Where the power series gives way to the continued fraction: below, the series has under 120 terms.
_SERIES_BELOW = 7
_FRACTION_TERMS = 200
# Beyond this many standard deviations the exponents of the tail leave what decimal can hold.
MAX_SIGMA = 10**8
# Upper bounds this far below the mean take the form of a tail. Nearer, a polynomial of ten coefficients is not enough
# for it; farther, the other form would lose digits of 1 - t near the upper bound (0.055 is left of it here).
_TAIL_BEYOND = Decimal("1.6")
# csrc/distributions.h, kInside, is fitted for bounds within 2.001.
_INSIDE = Decimal("2.0005")
# Coefficients of a tail's polynomial: 5e-7 and 4e-14 at worst (a tail from 1.6 sigma to infinity).
_TERMS, _TERMS_DOUBLE = 10, 26


class Centre(NamedTuple):
    """The probabilities below, above and between the bounds: z = +-Q^-1 of lower + u width or upper + (1 - u) width."""

    lower: float
    upper: float
    width: float
    sign: int
    inside: bool
    """Whether both bounds are within two standard deviations."""


class Tail(NamedTuple):
    """One tail: v = rho + u (1 - rho), s = sqrt(k - 2 ln v), z = -P(scale * s + shift)."""

    rho: float
    one_minus_rho: float
    k: float
    scale: float
    shift: float
    coefficients: tuple[float, ...]
    sign: int


@lru_cache(maxsize=1024)  # some milliseconds each; a model has few different ones
def truncation(mean: float, std: float, low: float, high: float, double: bool = False) -> Centre | Tail:
    """Returns how to draw N(mean, std) within [low, high], in float64 (``double``) or float32.

    An interval from the mean upward is mirrored (``sign`` is -1): what is small is always a lower tail.

    Raises:
        ValueError: the interval lies more than 10^8 standard deviations away, or the numbers are not finite.
    """
    with localcontext(_CONTEXT):
        alpha, beta = ((Decimal(bound) - Decimal(mean)) / Decimal(std) for bound in (low, high))
        sign = 1
        if alpha >= 0:
            alpha, beta, sign = -beta, -alpha, -1
        if beta < -MAX_SIGMA:
            raise InitValueError(f"[{low}, {high}] lies more than {MAX_SIGMA:.0e} standard deviations from the mean")
        lower, upper = upper_tail(-alpha), upper_tail(beta)
        below = 1 - upper if beta > 0 else upper_tail(-beta)  # the probability below beta
        if beta > -_TAIL_BEYOND:
            inside = alpha >= -_INSIDE and beta <= _INSIDE
            return Centre(float(lower), float(upper), float(below - lower), sign, inside)
        rho = lower / below
        k = -2 * below.ln()
        first = k.sqrt()
        last = (k - 2 * max(rho, Decimal(2) ** (-65 if double else -33)).ln()).sqrt()
        middle, reach = (first + last) / 2, max((last - first) / 2, Decimal("1e-12"))
        # The kernels have these three in their own precision: the polynomial is fitted for what is left of them.
        rounded = _float64 if double else _float32
        scale, shift, k_rounded = rounded(1 / reach), rounded(-middle / reach), rounded(k)
        points = []
        for node in nodes(_TERMS_DOUBLE if double else _TERMS):
            s = (node - shift) / scale
            points.append((node, inverse_tail((s * s + k - k_rounded).sqrt())))
        return Tail(
            float(rho), float(1 - rho), float(k_rounded), float(scale), float(shift), interpolated(points), sign
        )


def nodes(n: int) -> list[Decimal]:
    """Returns the Chebyshev points of [-1, 1], to eight digits, so that no C library's cosine shows in them."""
    return [Decimal(f"{math.cos(math.pi * (2 * j + 1) / (2 * n)):.8f}") for j in range(n)]


def _float64(number: Decimal) -> Decimal:
    return Decimal(float(number))


def _float32(number: Decimal) -> Decimal:
    return Decimal(struct.unpack("f", struct.pack("f", number))[0])


def upper_tail(z: Decimal) -> Decimal:
    """Returns Q(z), to some 35 digits (relative)."""
    if z < 0:
        return 1 - upper_tail(-z)
    if z.is_infinite() or z > 2 * MAX_SIGMA:
        return Decimal(0)
    density = (-z * z / 2).exp() / (2 * _PI).sqrt()
    if z < _SERIES_BELOW:  # 1/2 - density * (z + z^3 / 3 + z^5 / 15 + ...)
        term = total = z
        n = 1
        while term > total.scaleb(-52):
            term *= z * z / (2 * n + 1)
            total += term
            n += 1
        return _HALF - density * total
    below = z  # density / (z + 1 / (z + 2 / (z + ...))) (Laplace)
    for n in range(_FRACTION_TERMS, 0, -1):
        below = z + n / below
    return density / below


def inverse_tail(s: Decimal) -> Decimal:
    """Returns the z for which -2 ln Q(z) = s^2, by Newton's method; the function is convex and z < s."""
    z = s
    for _ in range(60):
        tail = upper_tail(z)
        density = (-z * z / 2).exp() / (2 * _PI).sqrt()
        step = (-2 * tail.ln() - s * s) * tail / (2 * density)
        z -= step
        if abs(step) < Decimal("1e-25"):
            return z
    raise ArithmeticError(f"Newton's method did not settle for s = {s}")


def interpolated(points: list[tuple[Decimal, Decimal]]) -> tuple[float, ...]:
    """Returns the coefficients, the constant first, of the polynomial through the points (Newton's form, expanded)."""
    at = [node for node, _ in points]
    divided = [value for _, value in points]
    for order in range(1, len(points)):
        for i in range(len(points) - 1, order - 1, -1):
            divided[i] = (divided[i] - divided[i - 1]) / (at[i] - at[i - order])
    polynomial = [Decimal(0)] * len(points)
    for node, value in zip(reversed(at), reversed(divided)):
        shifted = [Decimal(0), *polynomial[:-1]]
        polynomial = [a - node * b for a, b in zip(shifted, polynomial)]
        polynomial[0] += value
    return tuple(map(float, polynomial))
