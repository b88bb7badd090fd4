"""exp, log and powers that give the same float64 on every platform, which those of C libraries need not.

Whole powers are exact integers until they are rounded; the others are computed by ``decimal``, whose ``exp`` and ``ln``
are rounded correctly by its specification. With so many digits the last rounding, too, is correct but for ties.
"""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

_DIGITS = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
# Beyond these the results of exp are infinite, and 0.
_LARGEST_EXPONENT, _SMALLEST_EXPONENT = 709.8, -745.2
# Exact results, and those halfway between two float64, have 54 bits at most; beyond 3**34 only powers of 2 have so few.
_LARGEST_WHOLE_POWER = 64


def exp(x: float) -> float:
    """Returns e to the power x.

    Raises:
        OverflowError: the result is too large for a float64.
    """
    return _exp(Decimal(x)) if _SMALLEST_EXPONENT < x < _LARGEST_EXPONENT else _beyond(x)


def log(x: float) -> float:
    """Returns the natural logarithm of a positive number."""
    return float(_DIGITS.ln(Decimal(x)))


def power(x: float, y: float) -> float:
    """Returns x to the power y; a whole power is rounded correctly.

    Raises:
        OverflowError: the result is too large for a float64.
        ValueError: x is negative and y is not whole.
        ZeroDivisionError: x is 0 and y is negative.
    """
    if y == 0 or x == 1:
        return 1.0
    if x == 0:
        if y < 0:
            raise ZeroDivisionError
        return 0.0
    if x < 0 and not y.is_integer():
        raise ValueError
    sign = -1.0 if x < 0 and y % 2 else 1.0
    size = abs(x)
    exponent = y * math.log(size)  # only its size counts here, not its last bits
    if not _SMALLEST_EXPONENT - 1 < exponent < _LARGEST_EXPONENT + 1:
        return sign * _beyond(exponent)
    if y.is_integer() and abs(y) <= _LARGEST_WHOLE_POWER:
        return sign * _whole_power(size, int(y))
    if y == 0.5:
        return math.sqrt(size)
    return sign * _exp(_DIGITS.multiply(Decimal(y), _DIGITS.ln(Decimal(size))))


def _whole_power(x: float, n: int) -> float:
    above, below = x.as_integer_ratio()
    if n < 0:
        above, below = below, above
    return float(above ** abs(n) / below ** abs(n))  # Python divides integers with one correct rounding


def _exp(x: Decimal) -> float:
    value = float(_DIGITS.exp(x))
    if math.isinf(value):
        raise OverflowError
    return value


def _beyond(exponent: float) -> float:
    if exponent > 0:
        raise OverflowError
    return 0.0
