"""bench_growth.py counts no wrong result, and its exponents are those of powers."""

from __future__ import annotations

from pathlib import Path

import bench_growth
import needs
import pytest
import torch

pytestmark = needs.mark(needs.CPP, needs.LINUX)
N = 100


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growth")
    bench_growth.write_checkpoints([N], folder)
    return folder / f"{N}.safetensors"


@pytest.mark.parametrize("name", bench_growth.CALLS)
def test_the_result_of_every_call_passes_its_check(name: str, checkpoint: Path) -> None:
    seconds, megabytes = bench_growth.measured(name, N, checkpoint, is_checked=True)
    assert seconds > 0
    assert megabytes >= 0


@pytest.mark.parametrize("name", [name for name in bench_growth.CALLS if not name.startswith(("plan", "constructor"))])
def test_a_result_with_one_wrong_tensor_fails_the_check(name: str, checkpoint: Path) -> None:
    call = bench_growth.CALLS[name]
    result = call.run(call.prepare(N, checkpoint), N, checkpoint)
    if isinstance(result, torch.nn.Module):
        with torch.no_grad():
            result.get_parameter("0.1.0.weight")[0, 0] += 1
    else:
        result.fills = {**result.fills, "0.1.0.weight": result.fills["0.0.1.weight"]}
    assert "0.1.0.weight" in call.problem(result, N, checkpoint)


@pytest.mark.parametrize("name", bench_growth.CALLS)
def test_a_result_of_another_size_fails_the_check(name: str, checkpoint: Path) -> None:
    call = bench_growth.CALLS[name]
    result = call.run(call.prepare(N, checkpoint), N, checkpoint)
    if "load" in name:
        result.extra = torch.nn.Linear(2, 2)
    assert call.problem(result, N + 4, checkpoint)


def test_a_wrong_result_is_not_counted(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    wrong = bench_growth.CALLS["plan"]._replace(problem=lambda *_: "rows of 3 parameters")
    monkeypatch.setattr(bench_growth, "CALLS", {"plan": wrong})
    with pytest.raises(SystemExit, match="plan, 100 tensors: rows of 3 parameters"):
        bench_growth.measured("plan", N, checkpoint, is_checked=True)


def test_the_exponent_of_a_square_is_two() -> None:
    assert bench_growth.exponent([10, 100, 1000], [3e2, 3e4, 3e6]) == pytest.approx(2)
    assert bench_growth.exponent([10, 1000], [7, 7]) == pytest.approx(0)


def test_a_small_run_prints_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    bench_growth.main(["--only", "initialize", "--sizes", "100", "200", "--rounds", "1"])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| initialize"))
    assert all(float(cell) for cell in row.strip("| ").split(" | ")[1:4])
