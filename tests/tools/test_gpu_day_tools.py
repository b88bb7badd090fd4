"""What the tools of the GPU day print is understood, and nothing wrong is timed."""

from __future__ import annotations

from types import SimpleNamespace

import bench_gpu
import gpu_day_tools
import gpu_rates
import gpu_workloads
import pytest
import torch
from gpu_days import another_seed, collected, needs_cpp, wrong_ones

from fastinit.backends import BACKENDS

findings = pytest.fixture(collected, name="findings")

COLUMNS = ["ID", "Kernel Name", "gpu__time_duration.sum", "launch__registers_per_thread", "smsp__inst_executed.sum"]


def ncu_file(path, n_rows, unit="us"):
    def quoted(cells):
        return ",".join(f'"{cell}"' for cell in cells)

    rows = [[i, "fill", "1,234.5" if i else "0.5", 64, 123456789] for i in range(n_rows)]
    lines = [
        "==PROF== Connected",
        quoted(COLUMNS),
        quoted(["", "", unit, "register/thread", "inst"]),
        *map(quoted, rows),
    ]
    path.write_text("\n".join([*lines, "=> cuda: 10 launches"]) + "\n")
    return path


def test_the_profilers_table_is_read_in_the_order_of_the_launches(findings, tmp_path):
    gpu_day_tools.ncu_verdict("cuda", 0, ncu_file(tmp_path / "ncu.csv", len(gpu_rates.TARGETS)))
    assert not wrong_ones(findings)
    assert len(findings()) == len(gpu_rates.TARGETS)
    assert findings()[1] == ("found", "ncu, cuda, float32 normal: ms 1.234, registers 64, instructions 123456789")
    assert "ms 0.0005," in findings()[0][1]
    assert [next(gpu_day_tools.ncu_rows(ncu_file(tmp_path / "x", 1, unit)))["ms"] for unit in ("ns", "ms")] == [
        "5e-07",
        "0.5",
    ]


def test_a_short_profile_is_wrong_and_a_forbidden_one_is_not_done(findings, tmp_path):
    gpu_day_tools.ncu_verdict("cuda", 0, ncu_file(tmp_path / "ncu.csv", 3))
    assert any(f"3 of {len(gpu_rates.TARGETS)} kernels" in text for text in wrong_ones(findings))
    (tmp_path / "refused").write_text("==ERROR== ERR_NVGPUCTRPERM - no permission\n")
    gpu_day_tools.ncu_verdict("cuda", 1, tmp_path / "refused")
    assert findings()[-1] == ("not done", "cuda: ncu cannot look here: ERR_NVGPUCTRPERM")


@pytest.mark.parametrize(
    "rc, text, kind",
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", "found"),
        (0, "========= ERROR SUMMARY: 0 errors\n========= ERROR SUMMARY: 2 errors\n", "wrong"),
        (1, "========= ERROR SUMMARY: 0 errors\n", "wrong"),
        (255, "Segmentation fault", "wrong"),
        (1, "========= Error: Device not supported. ERROR SUMMARY: 1 error\n", "not done"),
    ],
)
def test_the_sanitizers_output_is_understood(findings, rc, text, kind):
    gpu_day_tools.memcheck_verdict("cuda", rc, text)
    assert [each for each, _ in findings()] == [kind]


@needs_cpp
def test_the_benchmark_writes_its_table_after_every_workload(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path, seen = tmp_path / "bench_gpu.csv", []

    def told(rows):
        seen.append(len(rows))
        assert len(path.read_text().splitlines()) == 1 + sum(seen)

    bench_gpu.measured(["float32, constant", "float32, uniform"], 1, 1 << 12, path, told)
    assert len(seen) == 2
    assert seen[0] == 3 + 4
    bench_gpu.measured(["bfloat16, constant"], 1, 1 << 12, path)  # rows of the same machine stay
    assert len(path.read_text().splitlines()) == 1 + sum(seen) + 2
    with pytest.raises(SystemExit, match="no workload has one of"):
        bench_gpu.measured(["int4"], 1, 1 << 12, path)


@needs_cpp
def test_nothing_wrong_is_timed(monkeypatch, findings):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    broken = SimpleNamespace(run=another_seed, why_not=lambda device: None)
    monkeypatch.setitem(gpu_workloads.OURS, "cpu", {"broken": broken})
    with pytest.raises(SystemExit, match="differs from the cpp backend; nothing is timed"):
        bench_gpu.measured(["float32, normal"], 1, 1 << 12, None)
    monkeypatch.setitem(BACKENDS, "broken", broken)
    monkeypatch.setattr(gpu_rates, "N_ELEMENTS", 1 << 12)
    with pytest.raises(SystemExit, match="broken, normal, float64: weight differs"):
        gpu_rates.rate("broken", "normal", "float64", 1e9)


@needs_cpp
def test_rates_are_written_and_reported(findings, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_rates, "N_ELEMENTS", 1 << 12)
    gpu_rates.rates()
    n = len(gpu_rates.DTYPES) * len(gpu_rates.DISTRIBUTIONS)
    assert not wrong_ones(findings)
    assert len(findings()) == 1 + n
    assert len((tmp_path / "gpu_rates.csv").read_text().splitlines()) == 1 + n
