"""The GPU day reports what goes wrong: steps that hang, die or find a wrong byte, tools that may not look, backends missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import bench_gpu
import gpu_day
import gpu_day_checks
import gpu_day_device
import gpu_day_step
import gpu_day_tools
import gpu_rates
import gpu_workloads
import pytest
import torch
from gpu_days import collected, needs_cpp, wrong_ones

from fastinit import plans
from fastinit.backends import BACKENDS, cpp_backend

TOOLS = Path(gpu_day.__file__).parent
findings = pytest.fixture(collected, name="findings")

STEPS = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from gpu_day_step import check, found, going_on, not_done, wrong

def facts(is_gpu=""): found("a machine", description="a machine", is_gpu=bool(is_gpu))
def good(): found("fine", number=3)
def bad(): wrong("a byte")
def raises(): raise KeyError("lost")
def stops(): raise SystemExit("nothing is timed")
def dies(): found("half way"); os.kill(os.getpid(), signal.SIGKILL)
def silent(): pass
def partly(): found("one"); not_done("no tool")
def goes_on():
    with going_on("first"):
        raise ValueError("lost")
    found("second")
def hangs():
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
    found("began", child=child.pid)
    time.sleep(60)
def child_is_wrong(): subprocess.run([sys.executable, "-c", "import gpu_day_step; gpu_day_step.wrong('in a child')"])
def before():
    folder = Path(os.environ["FASTINIT_GPU_DAY_OUT"])
    results = json.loads((folder / "results.json").read_text())
    check("fine" in (folder / "summary.txt").read_text() and results["steps"][-1]["state"] == "right", "written before me")
"""


@pytest.fixture
def day(tmp_path, monkeypatch):
    """Runs steps of the text above, by their names, and returns exit code, outcomes by name, and the summary."""
    (tmp_path / "made_up.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_day, "GRACE_S", 0.2)

    def run(*names, seconds=60.0, limit=20.0, arguments=()):
        steps = [gpu_day.Step(name, limit, "", f"made_up:{name}", arguments) for name in names]
        code = gpu_day.run_day(steps, tmp_path / "out", seconds)
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        assert results["exit_code"] == code
        return code, {each["step"]: each for each in results["steps"]}, (tmp_path / "out" / "summary.txt").read_text()

    return run


# --- the runner -------------------------------------------------------------------------------------------------------


def test_a_day_without_a_mistake_exits_with_0_and_has_its_numbers(day):
    code, steps, summary = day("good", "before")
    assert code == 0 and [each["state"] for each in steps.values()] == ["right", "right"]
    assert steps["good"]["findings"] == [{"kind": "found", "text": "fine", "numbers": {"number": 3}}]
    assert summary.splitlines()[-1].endswith("2 steps: 2 right")


@pytest.mark.parametrize(
    "name, words",
    [
        ("bad", "WRONG: a byte"),
        ("raises", "WRONG: KeyError: 'lost'"),
        ("stops", "WRONG: nothing is timed"),
        ("dies", "dies: FAILED (signal 9)"),
        ("silent", "silent: FAILED (it found nothing at all)"),
        ("goes_on", "WRONG: first: ValueError: lost"),
        ("child_is_wrong", "WRONG: in a child"),
        ("not_there", "WRONG: AttributeError"),
    ],
)
def test_a_step_that_fails_makes_the_exit_code_and_the_next_one_runs(day, name, words):
    code, steps, summary = day(name, "good")
    assert code == 1 and steps[name]["state"] == "FAILED" and steps["good"]["state"] == "right"
    assert words in summary and f"1 FAILED ({name})" in summary.splitlines()[-1]
    if name == "goes_on":
        assert "second" in summary
    if name == "dies":
        assert "half way" in summary


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_step_that_hangs_is_killed_with_its_children_and_the_next_one_runs(day):
    began = time.monotonic()
    code, steps, summary = day("hangs", "good", limit=1.5)
    assert code == 1 and time.monotonic() - began < 30
    assert "hangs: FAILED (killed after 2 s)" in summary and "began" in summary
    assert steps["good"]["state"] == "right"
    assert not is_alive(steps["hangs"]["findings"][0]["numbers"]["child"])


def test_what_a_tool_could_not_look_at_and_what_found_no_time_is_left_out_and_not_right(day):
    code, steps, summary = day("partly", "good")
    assert code == 3 and steps["partly"]["state"] == "not done" and "NOT DONE: no tool" in summary
    code, steps, summary = day("good", seconds=-1)
    assert code == 3 and steps["good"]["state"] == "left out" and "0 s were left" in summary


def test_each_line_of_a_day_without_a_gpu_says_so(day):
    _, _, summary = day("facts", "good", "bad")
    assert all(line.startswith(gpu_day.NO_GPU) for line in summary.splitlines())
    _, _, summary = day("facts", arguments=("gpu",))
    assert gpu_day.NO_GPU not in summary and summary.startswith("a machine")


def test_a_day_that_is_ended_ends_its_step(tmp_path):
    (tmp_path / "made_up.py").write_text(STEPS)
    code = "import gpu_day; gpu_day.STEPS = [gpu_day.Step('hangs', 50, '', 'made_up:hangs')]; gpu_day.main()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{TOOLS}", "OUT": str(tmp_path / "out")}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    log, began = tmp_path / "out" / "log.txt", time.monotonic()
    while not (log.exists() and "began" in log.read_text()) and time.monotonic() - began < 20:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert children and not any(map(is_alive, children))


def test_every_step_of_the_day_is_there_and_listed(capsys, monkeypatch):
    for step in gpu_day.STEPS:
        module, _, name = step.run.partition(":")
        assert (TOOLS / f"{module}.py").exists()
        assert f"def {name}(" in (TOOLS / f"{module}.py").read_text(), step
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--list"])
    assert gpu_day.main() == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [step.name for step in gpu_day.STEPS]
    text = (TOOLS.parent / "docs" / "gpu.md").read_text()
    assert all(f"`{step.name}`" in text for step in gpu_day.STEPS)


def test_the_facts_come_always_and_an_unknown_step_is_refused():
    assert [step.name for step in gpu_day.chosen("smoke,pytest")] == ["facts", "smoke", "pytest"]
    assert gpu_day.chosen("") == gpu_day.STEPS
    with pytest.raises(SystemExit, match="no step is named smok"):
        gpu_day.chosen("smok")


def test_results_of_another_day_are_not_written_over(day):
    day("good")
    with pytest.raises(SystemExit, match="results of a day already"):
        gpu_day.new_folder(Path(os.environ["PYTHONPATH"]) / "out")


# --- the checks -------------------------------------------------------------------------------------------------------


@needs_cpp
def test_the_right_kernels_pass_the_smoke_test(findings):
    gpu_day_checks.smoke()
    assert not wrong_ones(findings) and gpu_day_step.exit_code() == 0
    assert any("all distributions x dtypes: 272 fills, 1 launch(es), 0 wrong" in text for _, text in findings())


def another_seed(fills, seed):
    return cpp_backend.run(fills, seed + 1)


def one_byte_behind(fills, seed):
    launches = cpp_backend.run(fills, seed)
    tensor = fills[0].tensor
    end = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride())) + 1
    if end < tensor.untyped_storage().nbytes() // tensor.element_size():
        tensor.as_strided((1,), (1,), end).view(torch.uint8).bitwise_not_()
    return launches


def last_one_forgotten(fills, seed):
    last = [fill.tensor.reshape(-1)[-1:].clone() for fill in fills]
    launches = cpp_backend.run(fills, seed)
    for fill, kept in zip(fills, last):
        fill.tensor[(-1,) * fill.tensor.dim()] = kept[0]
    return launches


def imprecise_doubles(fills, seed):
    launches = cpp_backend.run(fills, seed)
    for fill in fills:
        if fill.tensor.dtype == torch.float64 and not isinstance(fill.distribution, plans.Constant):
            fill.tensor.mul_(1 + 1e-11)
    return launches


def not_the_same_twice(fills, seed):
    another_seed.calls = getattr(another_seed, "calls", 0) + 1
    return cpp_backend.run(fills, seed + another_seed.calls % 2)


@needs_cpp
@pytest.mark.parametrize(
    "run, caught_by",
    [
        (another_seed, ["distributions", "boxes", "500 tensors", "none waited for", "windows wrong"]),
        (one_byte_behind, ["distributions", "boxes"]),
        (last_one_forgotten, ["distributions", "boxes", "500 tensors", "windows wrong"]),
        (imprecise_doubles, ["distributions", "boxes"]),
        (not_the_same_twice, ["three fills"]),
    ],
)
def test_the_smoke_test_finds_a_backend_that_is_wrong(findings, monkeypatch, run, caught_by):
    monkeypatch.setitem(BACKENDS, "broken", SimpleNamespace(run=run))
    monkeypatch.setattr(gpu_day_checks, "backends", lambda: ["broken"])
    gpu_day_checks.smoke()
    texts = wrong_ones(findings)
    assert gpu_day_step.exit_code() == 1
    for words in caught_by:
        assert any(words in text for text in texts), (words, texts)


@needs_cpp
def test_an_element_that_is_not_written_is_found_outside_of_all_windows(findings, monkeypatch):
    def with_a_hole(fills, seed):
        launches = cpp_backend.run(fills, seed)
        fills[0].tensor.view(torch.int16)[1000] = -1
        return launches

    monkeypatch.setitem(BACKENDS, "broken", SimpleNamespace(run=with_a_hole))
    monkeypatch.setattr(gpu_day_checks, "HUGE_WINDOW", 16)
    gpu_day_checks.huge("broken", torch.bfloat16, 1 << 16, plans.Normal(0, 1))
    assert "windows wrong, 1 elements not written" in wrong_ones(findings)[0] and ": 0 of " in wrong_ones(findings)[0]


@needs_cpp
def test_float64_within_the_contracts_error_is_right(findings, monkeypatch):
    def nearly(fills, seed):
        launches = cpp_backend.run(fills, seed)
        for fill in fills:
            if fill.tensor.dtype == torch.float64 and not isinstance(fill.distribution, plans.Constant):
                fill.tensor.mul_(1 + 2e-16)
        return launches

    monkeypatch.setitem(BACKENDS, "nearly", SimpleNamespace(run=nearly))
    gpu_day_checks.compare("doubles", "nearly", gpu_day_checks.everything())
    assert not wrong_ones(findings)


@needs_cpp
def test_a_backend_that_is_missing_on_a_gpu_is_wrong_and_none_at_all_ends_the_step(findings, monkeypatch):
    monkeypatch.setattr(gpu_day_device, "GPU", True)
    reasons = {"triton": None, "cuda": "it was not built"}
    for name in reasons:
        monkeypatch.setattr(BACKENDS[name], "why_not", lambda device, name=name: reasons[name])
    able = gpu_day_device.backends.__wrapped__
    assert able() == ["triton"]
    assert wrong_ones(findings) == ["cuda is MISSING, and is not tried: it was not built"]
    reasons["triton"] = "too old"
    with pytest.raises(SystemExit, match="no backend can run here"):
        able()
    monkeypatch.setattr(cpp_backend, "why_not", lambda device: "no compiler")
    with pytest.raises(SystemExit, match="cpp, which all is compared with, is MISSING: no compiler"):
        able()


def test_a_gpu_that_torch_does_not_see_is_wrong(findings, monkeypatch):
    monkeypatch.setattr(gpu_day_device, "GPU", False)
    monkeypatch.setattr(gpu_day_device, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_day_tools, "answer", lambda command, *_: "NVIDIA H200, 580" if "smi" in command[0] else "")
    gpu_day_tools.facts()
    assert wrong_ones(findings) == [
        "torch does not see this machine's GPU: a day on cpp proves nothing about the kernels"
    ]


def test_a_build_that_does_not_import_is_wrong_and_says_why(findings, monkeypatch, tmp_path):
    (tmp_path / "fastinit").mkdir()
    (tmp_path / "fastinit" / "cuda_missing.txt").write_text("nvcc is not installed\n")
    (tmp_path / "setup.py").write_text("import os; print(os.environ['FASTINIT_CUDA_ARCHS'], file=open('archs', 'w'))")
    monkeypatch.setattr(gpu_day_tools, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_day_tools, "imported", lambda: "")
    monkeypatch.setattr(gpu_day_device, "GPU", False)
    gpu_day_tools.build()
    assert (tmp_path / "archs").read_text() == "90\n"
    assert "nvcc is not installed" in wrong_ones(findings) and len(wrong_ones(findings)) == 2


SUITE = """
import os
from pytest import skip
def test_device(request): assert request.config.getoption("--device") == "cuda"
def test_backends(): assert os.environ["FASTINIT_REQUIRE"] == "cpp,triton,cuda"
def test_skipped(): skip("one GPU only")
"""


@pytest.mark.parametrize("is_gpu", [True, False])
def test_the_suite_requires_all_backends_on_a_gpu_and_its_failures_are_told(findings, monkeypatch, tmp_path, is_gpu):
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device', default='cpu')")
    (tmp_path / "test_made_up.py").write_text(SUITE)
    monkeypatch.setattr(gpu_day_tools, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_day_tools, "TESTS", ("test_made_up.py",))
    monkeypatch.setattr(gpu_day_device, "GPU", is_gpu)
    gpu_day_tools.suite()
    *failures, (kind, last) = [each for each in findings() if "one GPU only" not in each[1]]
    assert kind == ("found" if is_gpu else "wrong") and f"exit code {int(not is_gpu)}" in last
    assert len(failures) == (0 if is_gpu else 2) and len(findings()) == len(failures) + 2
    gpu_day_tools.suite("-k", "no_test_has_this_name")
    assert findings()[-1][0] == "wrong" and "exit code 5" in findings()[-1][1]


# --- the tools' words -------------------------------------------------------------------------------------------------

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
    assert not wrong_ones(findings) and len(findings()) == len(gpu_rates.TARGETS)
    assert findings()[1] == ("found", "ncu, cuda, float32 uniform: ms 1.234, registers 64, instructions 123456789")
    assert "ms 0.0005," in findings()[0][1]
    assert [next(gpu_day_tools.ncu_rows(ncu_file(tmp_path / "x", 1, unit)))["ms"] for unit in ("ns", "ms")] == [
        "5e-07",
        "0.5",
    ]


def test_a_profile_of_too_few_kernels_is_wrong_and_one_that_is_not_allowed_is_not_done(findings, tmp_path):
    gpu_day_tools.ncu_verdict("cuda", 0, ncu_file(tmp_path / "ncu.csv", 3))
    assert any("3 of 10 kernels" in text for text in wrong_ones(findings))
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
def test_what_the_sanitizer_says_is_understood(findings, rc, text, kind):
    gpu_day_tools.memcheck_verdict("cuda", rc, text)
    assert [each for each, _ in findings()] == [kind]


# --- what is measured -------------------------------------------------------------------------------------------------


@needs_cpp
def test_the_benchmark_writes_its_table_after_every_workload(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path, seen = tmp_path / "bench_gpu.csv", []

    def told(rows):
        seen.append(len(rows))
        assert len(path.read_text().splitlines()) == 1 + sum(seen)

    bench_gpu.measured(["float32, constant", "float32, uniform"], 1, 1 << 12, path, told)
    assert len(seen) == 2 and seen[0] == 3 + 4  # ceilings, and the contenders of a uniform
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
def test_the_rates_are_written_and_told(findings, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_rates, "N_ELEMENTS", 1 << 12)
    gpu_rates.rates()
    n = len(gpu_rates.DTYPES) * len(gpu_rates.DISTRIBUTIONS)
    assert not wrong_ones(findings) and len(findings()) == 1 + n
    assert len((tmp_path / "gpu_rates.csv").read_text().splitlines()) == 1 + n
