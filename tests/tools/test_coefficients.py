"""The polynomials of the headers are those that the fits give."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from paths import ROOT

PATH = ROOT / "tools" / "fit_coefficients.py"


@pytest.fixture
def fits(monkeypatch):
    spec = importlib.util.spec_from_file_location("fit_coefficients", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fit_coefficients", module)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_near_the_best_polynomial(fits, capsys):
    assert fits.main() == 0
    assert capsys.readouterr().out.count("in the header") == 7


@pytest.mark.parametrize(
    ("right", "wrong"), [("0.11071793957626713f", "0.11071993957626713f"), ("1.2612367878226556", "1.2612367878226558")]
)
def test_a_wrong_coefficient_is_detected(fits, monkeypatch, right, wrong):
    assert fits.HEADER.count(right) == 1
    monkeypatch.setattr(fits, "HEADER", fits.HEADER.replace(right, wrong))
    inside = [table for table in fits.tables() if table.name == "kInside"]
    monkeypatch.setattr(fits, "tables", lambda: inside)
    assert fits.main() == 1
