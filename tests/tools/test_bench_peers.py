"""bench_peers.py times no wrong result: every contender passes a check that finds what is slightly wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import bench_peers
import needs
import numpy as np
import peers
import pytest
import torch
from peers import DTYPES, FILLS

pytestmark = needs.mark(needs.CPP)
N = 300_000
NORMAL = FILLS["normal"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", [name for name in peers.CONTENDERS if not name.startswith("JAX")])
def test_what_a_contender_makes_passes_the_check(name: str, fill: str, dtype: str) -> None:
    filler = peers.CONTENDERS[name](FILLS[fill], DTYPES[dtype], N)
    if filler is None:
        assert name.startswith("numpy")
        assert dtype == "bfloat16" or fill == "truncated normal"
    else:
        assert peers.examined(filler, FILLS[fill], DTYPES[dtype])[0] == ""


def drawn(seed: int) -> torch.Tensor:
    return torch.empty(N).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))


def filler_of(make: Callable[[int], torch.Tensor]) -> peers.Filler:
    """Returns one that fills the same memory again, and new memory, with what a function makes."""
    memory = torch.ones(N)
    return peers.Filler(lambda seed: memory.copy_(make(seed)), lambda seed: make(seed).clone(), lambda tensor: tensor)


WRONG: dict[str, Callable[[int], torch.Tensor]] = {
    "a mean": lambda seed: drawn(seed) + 0.0003,
    "are below -2": lambda seed: drawn(seed) * 1.02,
    "are below -3": lambda seed: drawn(seed).clamp(-0.058, 0.058),
    "not finite": lambda seed: torch.where(torch.arange(N) == 7, torch.inf, drawn(seed)),
    "two seeds": lambda seed: drawn(0),
    "several results": lambda seed: torch.empty(N).normal_(0, 0.02),
}


@pytest.mark.parametrize("problem", WRONG)
def test_normals_that_are_slightly_wrong_are_refused(problem: str) -> None:
    assert peers.examined(filler_of(drawn), NORMAL, torch.float32)[0] == ""
    assert problem in peers.examined(filler_of(WRONG[problem]), NORMAL, torch.float32)[0]


def test_a_truncated_normal_beyond_its_bounds_is_refused() -> None:
    problem, _ = peers.examined(filler_of(drawn), FILLS["truncated normal"], torch.float32)
    assert problem.startswith("values from -0.0")


def test_another_constant_is_refused() -> None:
    problem, _ = peers.examined(filler_of(lambda seed: torch.full((N,), 0.5)), FILLS["constant"], torch.float32)
    assert problem == "other values than the constant"


def test_new_memory_that_is_the_old_one_is_refused() -> None:
    again = filler_of(drawn).again
    problem, _ = peers.examined(peers.Filler(again, again, lambda tensor: tensor), NORMAL, torch.float32)
    assert "memory" in problem


def answers(**reasons: tuple[str, int]) -> dict[str, tuple[str, int]]:
    return {bench_peers.OURS: ("", 1), **reasons}


def test_values_that_depend_on_the_threads_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_peers.must_agree("normal", answers(other=("", 1)), answers(other=("", 2)))
    assert found == {bench_peers.OURS: "", "other": "the number of threads changes the values"}
    assert "normal: other is refused" in capsys.readouterr().err


def test_nothing_is_timed_where_fastinit_is_wrong() -> None:
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench_peers.must_agree("normal", {bench_peers.OURS: ("a mean", 1)}, answers())


def test_without_jax_its_cells_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fillers: dict[str, Any] = {}
    found = bench_peers.prepare(fillers, "normal", "float32", 1000, is_checked=True)
    assert [bench_peers.cell_of(found[name][0]) for name in ("JAX, threefry", "JAX, rbg")] == ["not installed"] * 2
    assert "numpy, SFC64" in fillers


def test_a_small_run_prints_the_rates_of_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    bench_peers.main(["--only", "uniform, float64", "--elements", "20000", "--rounds", "1"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| uniform")]
    assert len(lines) == 3
    assert np.all([float(cell) > 0 for cells in lines for cell in cells[3:7]])
