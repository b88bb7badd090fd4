"""The runner of the GPU day reports what goes wrong: steps that hang, die, or find a wrong byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_day
import pytest

TOOLS = Path(gpu_day.__file__).parent

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


def test_a_day_without_errors_exits_with_0_and_has_its_numbers(day):
    code, steps, summary = day("good", "before")
    assert code == 0
    assert [each["state"] for each in steps.values()] == ["right", "right"]
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
def test_a_failing_step_sets_the_exit_code_and_the_next_one_runs(day, name, words):
    code, steps, summary = day(name, "good")
    assert code == 1
    assert steps[name]["state"] == "FAILED"
    assert steps["good"]["state"] == "right"
    assert words in summary
    assert f"1 FAILED ({name})" in summary.splitlines()[-1]
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
    assert code == 1
    assert time.monotonic() - began < 30
    assert "hangs: FAILED (killed after 2 s)" in summary
    assert "began" in summary
    assert steps["good"]["state"] == "right"
    assert not is_alive(steps["hangs"]["findings"][0]["numbers"]["child"])


def test_skipped_and_timed_out_steps_count_as_left_out(day):
    code, steps, summary = day("partly", "good")
    assert code == 3
    assert steps["partly"]["state"] == "not done"
    assert "NOT DONE: no tool" in summary
    code, steps, summary = day("good", seconds=-1)
    assert code == 3
    assert steps["good"]["state"] == "left out"
    assert "0 s were left" in summary


def test_each_line_of_a_day_without_a_gpu_says_so(day):
    _, _, summary = day("facts", "good", "bad")
    assert all(line.startswith(gpu_day.NO_GPU) for line in summary.splitlines())
    _, _, summary = day("facts", arguments=("gpu",))
    assert gpu_day.NO_GPU not in summary
    assert summary.startswith("a machine")


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
    assert children
    assert not any(map(is_alive, children))


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


def test_facts_always_run_and_an_unknown_step_is_refused():
    assert [step.name for step in gpu_day.chosen("smoke,pytest")] == ["facts", "smoke", "pytest"]
    assert gpu_day.chosen("") == gpu_day.STEPS
    with pytest.raises(SystemExit, match="no step is named smok"):
        gpu_day.chosen("smok")


def test_results_of_another_day_are_not_written_over(day):
    day("good")
    with pytest.raises(SystemExit, match="results of a day already"):
        gpu_day.new_folder(Path(os.environ["PYTHONPATH"]) / "out")
