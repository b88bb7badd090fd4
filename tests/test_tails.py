"""The decimal arithmetic behind truncated normals, against scipy and by its own consistency."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import special, stats

from fastinit import tails


@pytest.fixture(autouse=True)
def fifty_digits():
    with localcontext(tails._CONTEXT):
        yield


@pytest.mark.parametrize("z", [-9.0, -1.0, 0.0, 1e-9, 0.3, 2.0, 6.99, 7.0, 12.0, 37.0])
def test_the_tail_probability_is_scipys(z):
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


def test_the_far_polynomial_is_the_inverse_within_2e_minus_7():
    for low, high in [(-math.inf, -4.7), (-30, -29), (-12, -9), (-1000, -999)]:
        far = tails.truncation(0.0, 1.0, low, high)
        assert isinstance(far, tails.Far)
        v = np.linspace(max(far.rho, 2**-33), 1, 2001)
        s = np.sqrt(far.k - 2 * np.log(v))
        found = -np.polynomial.polynomial.polyval(far.scale * s + far.shift, far.coefficients)
        expected = special.ndtri_exp(-(s**2) / 2)
        assert np.abs(found - expected).max() < 2e-7 * max(1, abs(low) if math.isfinite(low) else 1)


def test_an_interval_above_the_mean_is_mirrored():
    up, down = tails.truncation(0.0, 1.0, 5.0, 8.0), tails.truncation(0.0, 1.0, -8.0, -5.0)
    assert (up.sign, down.sign) == (-1, 1) and (up.lower, up.width, up.upper) == (down.lower, down.width, down.upper)


def test_numbers_do_not_depend_on_the_callers_decimal_context():
    import decimal

    expected = tails.truncation(0.0, 1.0, -11.0, -9.0)
    tails.truncation.cache_clear()
    with decimal.localcontext() as context:
        context.prec, context.Emin = 5, -10
        assert tails.truncation(0.0, 1.0, -11.0, -9.0) == expected


def test_known_numbers_stay_as_they_are():
    # They are part of the bits: a change here is a new version of the numbers.
    near = tails.truncation(0.0, 0.02, -2.0, 2.0)
    assert (near.lower, near.width, near.upper) == (0.0, 1.0, 0.0)
    near = tails.truncation(0.25, 1.5, -2.5, 3.0)
    assert [number.hex() for number in (near.lower, near.width, near.upper)] == KNOWN_NEAR
    far = tails.truncation(0.0, 1.0, -11.0, -9.0)
    assert [number.hex() for number in (far.rho, far.k, *far.coefficients[:2])] == KNOWN_FAR


def test_bounds_too_far_out_are_refused():
    with pytest.raises(ValueError, match="standard deviations from the mean"):
        tails.truncation(0.0, 1e-9, 1.0, 2.0)


KNOWN_NEAR = ["0x1.116b9c1101eefp-5", "0x1.ddd28c7ddfc22p-1", "0x1.116b9c1101eefp-5"]
KNOWN_FAR = ["0x1.d15bc0ace6aa9p-30", "0x1.5d06730ad62ecp+6", "0x1.400d5bdf7cbcbp+3", "0x1.ffeeeb9d03260p-1"]
