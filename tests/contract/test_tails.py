"""The decimal arithmetic behind truncated normals, against scipy and by its own consistency."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import special, stats

from fastinit.contract import tails


@pytest.fixture(autouse=True)
def fifty_digits():
    with localcontext(tails._CONTEXT):
        yield


@pytest.mark.parametrize("z", [-9.0, -1.0, 0.0, 1e-9, 0.3, 2.0, 6.99, 7.0, 12.0, 37.0])
def test_the_tail_probability_matches_scipy(z):
    assert float(tails.upper_tail(Decimal(z))) == pytest.approx(stats.norm.sf(z), rel=1e-13)


def test_series_and_continued_fraction_agree_where_they_meet(monkeypatch):
    z = Decimal("7.5")
    by_fraction = tails.upper_tail(z)
    monkeypatch.setattr(tails, "_SERIES_BELOW", 8)
    assert abs(tails.upper_tail(z) / by_fraction - 1) < Decimal("1e-14")


@pytest.mark.parametrize("s", [0.5, 1.2, 3.0, 8.0, 40.0, 1e4])
def test_the_inverse_inverts(s):
    z = tails.inverse_tail(Decimal(s))
    log_tail = special.log_ndtr(-float(z))
    assert -2 * log_tail == pytest.approx(s * s, rel=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "limit"),
    [(-math.inf, -1.6, 6e-7), (-5, -1.7, 2e-7), (-math.inf, -4.7, 1e-8), (-30, -29, 1e-8), (-1000, -999, 1e-8)],
)
def test_a_tails_polynomial_is_the_inverse(low, high, limit):
    tail = tails.truncation(0.0, 1.0, low, high)
    assert isinstance(tail, tails.Tail)
    v = np.linspace(max(tail.rho, 2**-33) ** (1 / 8), 1, 20_001) ** 8  # dense where it is small
    s = np.sqrt(tail.k - 2 * np.log(v))
    found = -np.polynomial.polynomial.polyval(tail.scale * s + tail.shift, tail.coefficients)
    exact = special.ndtri_exp(special.log_ndtr(high) + np.log(v))
    assert np.abs(found - exact).max() < limit
    double = tails.truncation(0.0, 1.0, low, high, double=True)
    below = tails.upper_tail(Decimal(-high))
    for each in v[:: len(v) // 40]:  # scipy's inverse is not exact enough for these
        s = np.sqrt(double.k - 2 * np.log(each))
        found = -np.polynomial.polynomial.polyval(double.scale * s + double.shift, double.coefficients)
        exact = -tails.inverse_tail((-2 * (below * Decimal(each)).ln()).sqrt())
        assert abs(found - float(exact)) < 1e-13 * max(1, -high)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (-2, 2, "inside"),
        (-2.001, 2, "wide"),
        (0.5, 2, "inside"),
        (-9, -1.59, "wide"),
        (-2, -1.61, "tail"),
        (3, 4, "tail"),
    ],
)
def test_the_form_is_chosen_by_the_bounds(low, high, kind):
    form = tails.truncation(0.0, 1.0, low, high)
    found = "tail" if isinstance(form, tails.Tail) else "inside" if form.inside else "wide"
    assert found == kind


def test_an_interval_above_the_mean_is_mirrored():
    up, down = tails.truncation(0.0, 1.0, 5.0, 8.0), tails.truncation(0.0, 1.0, -8.0, -5.0)
    assert (up.sign, down.sign) == (-1, 1)
    assert up._replace(sign=1) == down


def test_numbers_do_not_depend_on_the_callers_decimal_context():
    import decimal

    expected = tails.truncation(0.0, 1.0, -11.0, -9.0)
    tails.truncation.cache_clear()
    with decimal.localcontext() as context:
        context.prec, context.Emin = 5, -10
        assert tails.truncation(0.0, 1.0, -11.0, -9.0) == expected


def test_known_numbers_are_unchanged():
    # They are part of the bits: a change here is a new version of the numbers.
    whole = tails.truncation(0.0, 0.02, -2.0, 2.0)
    assert (whole.lower, whole.width, whole.upper) == (0.0, 1.0, 0.0)
    centre = tails.truncation(0.25, 1.5, -2.5, 3.0)
    assert [number.hex() for number in (centre.lower, centre.width, centre.upper)] == KNOWN_CENTRE
    tail = tails.truncation(0.0, 1.0, -11.0, -9.0)
    assert [number.hex() for number in (tail.rho, tail.k, *tail.coefficients[:2])] == KNOWN_TAIL


def test_bounds_too_far_out_are_refused():
    with pytest.raises(ValueError, match="standard deviations from the mean"):
        tails.truncation(0.0, 1e-9, 1.0, 2.0)


KNOWN_CENTRE = ["0x1.116b9c1101eefp-5", "0x1.ddd28c7ddfc22p-1", "0x1.116b9c1101eefp-5"]
KNOWN_TAIL = ["0x1.d15bc0ace6aa9p-30", "0x1.5d06740000000p+6", "0x1.400d5b54b5b3fp+3", "0x1.ffeeecdfd3f4bp-1"]
