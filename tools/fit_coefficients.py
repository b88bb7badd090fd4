"""Fits the polynomials of distributions.h and float64.h anew, and compares them with the headers.

Each table is the minimax polynomial of a function on an interval (least maximal weighted error, found by Lawson's
iteration: weighted least squares whose weights grow where the error is large), its coefficients rounded to float32.
Prints for each the maximal error of the best polynomial, that of the header's rounded coefficients in double precision,
and the fitted coefficients. Exits with 1 if the header's are more than 5% and 5e-8 worse. The float64 tables are
interpolated at Chebyshev points with the decimal arithmetic of fastinit.contract.tails, and must be equal to the
header's.

Needs numpy, scipy and fastinit. Run with ``python tools/fit_coefficients.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.polynomial import polynomial as power
from scipy import special

from fastinit.contract import tails

Values = np.ndarray[Any, np.dtype[np.floating[Any]]]
CSRC = Path(__file__).parent.parent / "csrc"
HEADER = (CSRC / "distributions.h").read_text() + (CSRC / "float64.h").read_text()
N_POINTS = 4000  # Chebyshev points of the interval; 2000 give the same errors to three digits
N_STEPS = 100  # with 500 the errors change in the third digit


@dataclass(frozen=True)
class Table:
    """The polynomial of table ``name``, which minimizes the weighted error of ``function`` on [low, high]."""

    name: str
    n: int
    low: float
    high: float
    function: Callable[[Values], Values]
    weight: Callable[[Values], Values]
    centred: bool = False  # in powers of x mapped to [-1, 1], not of x


def constant(name: str) -> float:
    """Returns a number of the header: ``constexpr float name = 15.5f``."""
    found = re.search(rf"\b{name} = ([-\d.e]+)f?\b", HEADER)
    assert found, name
    return float(found[1])


def in_header(name: str) -> Values:
    """Returns a table of the header, rounded to float32."""
    found = re.search(rf"{name}\[\d+\] = {{([^}}]*)}}", HEADER)
    assert found, name
    return np.array([float(number.strip().rstrip("f")) for number in found[1].split(",")], np.float32).astype(float)


def lawson(table: Table) -> tuple[float, Values]:
    """Returns the maximal error and the coefficients of the best polynomial."""
    nodes = np.cos(np.pi * (np.arange(N_POINTS) + 0.5) / N_POINTS)
    x = (table.low + table.high) / 2 + (table.high - table.low) / 2 * nodes
    y, weight = table.function(x), table.weight(x)
    matrix = chebyshev.chebvander(nodes, table.n - 1)
    importance = np.full(N_POINTS, 1 / N_POINTS)
    best = (np.inf, np.zeros(table.n))
    for _ in range(N_STEPS):
        scale = np.sqrt(importance) * weight
        series = np.linalg.lstsq(matrix * scale[:, None], y * scale, rcond=None)[0]
        error = np.abs((matrix @ series - y) * weight)
        if error.max() < best[0]:
            best = (float(error.max()), series)
        importance *= error
        importance /= importance.sum()
    centred = chebyshev.cheb2poly(best[1])
    return best[0], centred if table.centred else recentred(centred, table.low, table.high)


def recentred(coefficients: Values, low: float, high: float) -> Values:
    """Returns the coefficients in x of a polynomial in x mapped from [low, high] to [-1, 1]."""
    mapping = np.array([-(low + high) / (high - low), 2 / (high - low)])
    result = np.array([coefficients[-1]])
    for coefficient in coefficients[-2::-1]:
        result = power.polyadd(power.polymul(result, mapping), [coefficient])
    return result


def error_of(table: Table, coefficients: Values) -> float:
    """Returns the maximal error of given coefficients, evaluated in double precision."""
    x = np.linspace(table.low, table.high, 200_001)
    variable = (2 * x - table.low - table.high) / (table.high - table.low) if table.centred else x
    error = (power.polyval(variable, coefficients) - table.function(x)) * table.weight(x)
    return float(np.abs(error).max())


def bend(f: Values) -> Values:
    """-2 (ln(1 + f) - f ln 2) / (f (1 - f))."""
    f = np.clip(f, 1e-9, 1 - 1e-9)
    result: Values = -2 * (np.log1p(f) - f * np.log(2)) / (f * (1 - f))
    return result


def bend_in_root(f: Values) -> Values:
    """The weight of an error of bend in sqrt(-2 ln((1 + f) / 2)), the smallest root: d sqrt(L) = dL / (2 sqrt(L))."""
    f = np.clip(f, 1e-9, 1 - 1e-9)
    result: Values = f * (1 - f) / (2 * np.sqrt(-2 * np.log((1 + f) / 2)))
    return result


def tail_of(v: Values) -> Values:
    """The t <= 1/2 with -2 ln(4 t (1 - t)) = v."""
    q = np.exp(-v / 2) / 4
    result: Values = 2 * q / (1 + np.sqrt(np.maximum(1 - 4 * q, 0)))
    return result


def centre(v: Values) -> Values:
    """z / (1 - 2 t) where t = Q(z) and v = -2 ln(4 t (1 - t))."""
    x = np.sqrt(-np.expm1(-np.maximum(v, 1e-9) / 2))  # 1 - 2 t
    near_zero = np.sqrt(np.pi / 2) * (1 + np.pi / 12 * x * x)
    result: Values = np.where(v < 1e-4, near_zero, -special.ndtri(tail_of(np.maximum(v, 1e-9))) / x)
    return result


def inside(y: Values) -> Values:
    """z / x where x = 2 Phi(z) - 1 and y = sqrt(1 - x^2)."""
    x = np.maximum(np.sqrt(np.maximum(1 - y * y, 0)), 1e-7)
    result: Values = special.ndtri((1 + x) / 2) / x
    return result


def turn(function: Callable[[Values], Values]) -> Callable[[Values], Values]:
    """Returns y -> function(2 pi sqrt(y))."""
    return lambda y: function(2 * np.pi * np.sqrt(np.maximum(y, 1e-14)))


def tables() -> list[Table]:
    """Returns all tables."""
    end, first, last = constant("kCentreEnd"), constant("kTailFirst"), constant("kTailLast")
    y_end = constant("kInsideEnd")
    return [
        Table("kBend", 6, 0.0, 1.0, bend, bend_in_root),
        Table("kSin", 5, 0.0, 1 / 16, lambda y: turn(np.sin)(y) / np.sqrt(np.maximum(y, 1e-14)), np.sqrt),
        Table("kCos", 5, 0.0, 1 / 16, turn(np.cos), np.ones_like),
        Table("kBendTruncated", 5, 0.0, 1.0, bend, lambda f: f * (1 - f)),
        Table("kInside", 10, y_end, 1.0, inside, lambda y: np.sqrt(1 - y * y), centred=True),
        Table("kCentre", 10, 0.0, end, centre, lambda v: 1 - 2 * tail_of(v), centred=True),
        Table("kTail", 7, first, last, lambda s: -special.ndtri_exp(-s * s / 2), np.ones_like, centred=True),
    ]


def tables64() -> dict[str, tuple[float, ...]]:
    """Returns the tables of float64.h."""

    def centre(v: Decimal) -> Decimal:
        root = (1 - (-v / 2).exp()).sqrt()
        t = (-v / 2).exp() / (2 * (1 + root))
        return tails.inverse_tail((-2 * t.ln()).sqrt()) / root

    with localcontext(tails._CONTEXT):
        end, first, last = (Decimal(str(constant(name))) for name in ("kCentreEnd64", "kTailFirst64", "kTailLast64"))
        return {
            "kCentre64": tails.interpolated([(x, centre((x + 1) * end / 2)) for x in tails.nodes(22)]),
            "kTail64": tails.interpolated(
                [(x, tails.inverse_tail((first + last + x * (last - first)) / 2)) for x in tails.nodes(18)]
            ),
        }


def main() -> int:
    """Prints all tables; returns 1 if one of the header's is not near the best."""
    worse = 0
    for name, exact in tables64().items():
        text = re.search(rf"{name}\[\d+\] = {{([^}}]*)}}", HEADER)
        assert text, name
        equal = [float(number) for number in text[1].split(",")] == list(exact)
        worse |= not equal
        print(f"{name}[{len(exact)}]: {'equal' if equal else 'NOT EQUAL'} to the header's")
        print("  ", ", ".join(map(repr, exact)))
    for table in tables():
        best, coefficients = lawson(table)
        rounded = error_of(table, coefficients.astype(np.float32).astype(float))
        print(f"{table.name}[{table.n}]: best {best:.2e}, rounded to float32 {rounded:.2e}", end="")
        try:
            found = error_of(table, in_header(table.name))
        except AssertionError:
            print(", not in the header")
        else:
            print(f", in the header {found:.2e}")
            worse |= found > 1.05 * rounded + 5e-8
        print("  ", ", ".join(f"{float(c)!r}f" for c in coefficients))
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
