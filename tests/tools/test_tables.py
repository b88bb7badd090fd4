"""Benchmarks that run in parts keep each other's rows, of one machine and of the same versions."""

from __future__ import annotations

from pathlib import Path

import machine
import pytest
import tables
import torch


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def rows(results: Path) -> list[tuple[str, str]]:
    return [(row["fill"], row["ms"]) for row in tables.read(results / "some.csv")]


def test_a_row_takes_the_place_of_the_one_with_its_keys(results: Path) -> None:
    tables.replace("some.csv", [{"fill": "normal", "ms": 1}, {"fill": "uniform", "ms": 2}], "fill")
    tables.replace("some.csv", [{"fill": "normal", "ms": 3}, {"fill": "constant", "ms": 4}], "fill")
    assert rows(results) == [("normal", "3"), ("uniform", "2"), ("constant", "4")]


def test_rows_of_other_versions_go(results: Path) -> None:
    tables.replace("some.csv", [{"fill": "normal", "ms": 1}], "fill", packages=["numpy"])
    tables.replace("some.csv", [{"fill": "uniform", "ms": 2}], "fill", packages=["numpy"])
    assert len(rows(results)) == 2
    tables.replace("some.csv", [{"fill": "constant", "ms": 3}], "fill")  # measured without regard to numpy
    assert rows(results) == [("constant", "3")]


def test_rows_with_other_columns_go(results: Path) -> None:
    tables.replace("some.csv", [{"fill": "normal", "ms": 1, "abc1234, ms": 2}], "fill")
    tables.replace("some.csv", [{"fill": "uniform", "ms": 2, "def5678, ms": 2}], "fill")  # against another revision
    assert rows(results) == [("uniform", "2")]


def test_packages_that_are_missing_are_left_out() -> None:
    described = machine.describe(["numpy", "no-such-package"])
    assert described.startswith(machine.describe() + ", numpy ") and f"torch {torch.__version__}" in described
    assert "no-such-package" not in described
