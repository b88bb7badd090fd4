"""bench_engine.py compares checkouts by results before it compares them by time."""

from __future__ import annotations

from pathlib import Path

import bench_engine
import engine_workloads
import needs
import pytest
from bench_engine import Side

SMALL = 0.01


@needs.mark(needs.CPP)
@pytest.mark.parametrize("name", [name for name in engine_workloads.WORKLOADS if "Llama" not in name])
def test_every_workload_gives_the_same_result_twice(name: str) -> None:
    assert engine_workloads.digest_of(engine_workloads.WORKLOADS[name](SMALL))


def test_a_workload_with_other_weights_than_its_peers_is_refused() -> None:
    workload = engine_workloads.capture("torch", SMALL)
    lying = engine_workloads.Workload(**{**vars(workload), "peer": lambda _: engine_workloads.blocks(1)})
    with pytest.raises(SystemExit, match="different results"):
        engine_workloads.digest_of(lying)


def answering(monkeypatch: pytest.MonkeyPatch, *digests: str) -> list[Side]:
    """Returns sides whose processes answer with these digests."""
    sides = [Side(Path(f"checkout {number}"), "") for number in range(len(digests))]
    answers = {side.root: {"digest": digest, "tensors": 7} for side, digest in zip(sides, digests)}
    monkeypatch.setattr(bench_engine, "run", lambda side, name, scale, repeats: answers[side.root])
    return sides


def test_checkouts_with_different_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = answering(monkeypatch, "a", "b")
    with pytest.raises(
        SystemExit, match="plan, cpp: checkout 0 and checkout 1 give different results: nothing is timed"
    ):
        bench_engine.must_be_equal("plan, cpp", sides, 1)


def test_checkouts_with_equal_results_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench_engine.must_be_equal("plan, cpp", answering(monkeypatch, "a", "a"), 1) == 7


def test_the_speed_is_the_ratio_of_the_medians() -> None:
    this = Side(Path("here"), "this", seconds=[1.0, 2.0, 9.0], peer=[1.0])
    other = Side(Path("there"), "abc1234", seconds=[5.0, 6.0, 5.0])
    assert bench_engine.table_row("plan", 1000, [this, other])["times faster"] == "2.50"


def test_a_folder_without_a_compiled_core_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no compiled core"):
        bench_engine.checked(Side(tmp_path, ""))


def test_an_unknown_revision_is_refused() -> None:
    with pytest.raises(SystemExit, match="neither a folder nor a git revision"):
        with bench_engine.other_checkout("no-such-revision"):
            pass
