"""The numbers with which a truncated normal is drawn, in decimal arithmetic.

They become part of the bits, so they must not depend on a C library's erf or log: Python's decimal module rounds every
operation exactly, the same everywhere. All is done for the standard normal; Q(z) is its upper tail probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache

# 50 digits: Q(7) is taken from 1/2 and loses 12 of them, and what is left is rounded to a float.
_CONTEXT = Context(prec=50, Emin=MIN_EMIN, Emax=MAX_EMAX)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097")
_HALF = Decimal("0.5")
# Where the power series gives way to the continued fraction: below, the series has under 120 terms.
_SERIES_BELOW = 7
_FRACTION_TERMS = 200
# Beyond this many standard deviations the exponents of the tail leave what decimal can hold.
MAX_SIGMA = 10**8
# The near form's polynomial for tails is fitted down to this tail probability (csrc/distributions.h, kTail).
SMALLEST_NEAR = Decimal("2.1e-16")
# cos(pi (2 j + 1) / 16): the nodes of the far form's polynomial of degree 7.
_NODES = [sign * Decimal(node) for node in ("0.98078528", "0.83146961", "0.55557023", "0.19509032") for sign in (1, -1)]


@dataclass(frozen=True)
class Near:
    """z from both tails: t = min(lower + u * width, upper + (1 - u) * width) is a tail probability, z = +-Q^-1(t)."""

    lower: float
    width: float
    upper: float
    sign: int


@dataclass(frozen=True)
class Far:
    """One tail, too small for Near: v = rho + u (1 - rho), s = sqrt(k - 2 ln v), z = -P(scale * s + shift)."""

    rho: float
    one_minus_rho: float
    k: float
    scale: float
    shift: float
    coefficients: tuple[float, ...]
    sign: int


@lru_cache(maxsize=1024)  # some milliseconds each; a model has few different ones
def truncation(mean: float, std: float, low: float, high: float) -> Near | Far:
    """Returns how to draw N(mean, std) within [low, high].

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
            raise ValueError(f"[{low}, {high}] lies more than {MAX_SIGMA:.0e} standard deviations from the mean")
        lower, upper = upper_tail(-alpha), upper_tail(beta)
        inside = 1 - upper if beta > 0 else upper_tail(-beta)  # the probability below beta
        width = inside - lower
        if lower + width / 2**33 >= SMALLEST_NEAR:
            return Near(float(lower), float(width), float(upper), sign)
        rho = lower / inside
        k = -2 * inside.ln()
        first = k.sqrt()
        last = (k - 2 * max(rho, Decimal(2) ** -33).ln()).sqrt()
        middle, reach = (first + last) / 2, max((last - first) / 2, Decimal("1e-12"))
        coefficients = _interpolated([(node, inverse_tail(middle + reach * node)) for node in _NODES])
        return Far(float(rho), float(1 - rho), float(k), float(1 / reach), float(-middle / reach), coefficients, sign)


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


def _interpolated(points: list[tuple[Decimal, Decimal]]) -> tuple[float, ...]:
    """Returns the coefficients, the constant first, of the polynomial through the points (Newton's form, expanded)."""
    nodes = [node for node, _ in points]
    divided = [value for _, value in points]
    for order in range(1, len(points)):
        for i in range(len(points) - 1, order - 1, -1):
            divided[i] = (divided[i] - divided[i - 1]) / (nodes[i] - nodes[i - order])
    polynomial = [Decimal(0)] * len(points)
    for node, value in zip(reversed(nodes), reversed(divided)):
        shifted = [Decimal(0), *polynomial[:-1]]
        polynomial = [a - node * b for a, b in zip(shifted, polynomial)]
        polynomial[0] += value
    return tuple(map(float, polynomial))
