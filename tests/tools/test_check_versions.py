"""The script that runs the tests on other releases: what it counts, what it refuses to install, what it keeps."""

from __future__ import annotations

import subprocess
import sys

import check_versions
import pytest
from check_versions import Counts, LeftOutError, Pair
from paths import ROOT

PAIR = Pair("3.10", "2.1.2")


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("3 passed in 0.10s", Counts(3, 0, 0)),
        ("1 failed, 20 passed, 4 skipped, 2 warnings in 9.99s", Counts(20, 4, 1)),
        ("5 passed, 1 xfailed, 2 errors in 1.00s (0:01:00)", Counts(6, 0, 2)),
        ("1 error in 0.50s", Counts(0, 0, 1)),
    ],
)
def test_tests_are_counted_as_pytest_says(line, counts):
    assert check_versions.counts_of(f"something failed, 7 passed\n{line}\n") == counts


def test_a_run_that_does_not_end_is_no_result():
    with pytest.raises(LeftOutError, match="No module named"):
        check_versions.counts_of("E   ModuleNotFoundError: No module named 'torch'")


def test_failures_stand_out():
    assert [str(Counts(9, 0, 0)), str(Counts(9, 2, 1))] == ["9", "9, 2 skipped, **1 failed**"]


def test_torch_for_gpus_is_told_by_what_it_brings():
    names = ["torch", "numpy", "nvidia-cublas-cu12", "triton", "cuda-bindings", "typing_extensions"]
    report = {"install": [{"metadata": {"name": name}} for name in names]}
    assert check_versions.gpu_packages(report) == ["nvidia-cublas-cu12", "triton", "cuda-bindings"]


def test_torch_for_gpus_is_not_installed(tmp_path, monkeypatch):
    ran = []

    def run(*command, **_):
        ran.append(words := [str(word) for word in command])
        if "--report" in words:
            report = words[words.index("--report") + 1]
            check_versions.Path(report).parent.mkdir(parents=True)
            check_versions.Path(report).write_text('{"install": [{"metadata": {"name": "nvidia-nccl-cu12"}}]}')
        return "Python 3.10.1"

    monkeypatch.setattr(check_versions, "run", run)
    monkeypatch.setattr(check_versions.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(LeftOutError, match=r"only with 1 packages for GPUs \(nvidia-nccl-cu12"):
        check_versions.environment_of(PAIR, tmp_path)
    assert all("--dry-run" in words for words in ran if "torch==2.1.2" in words)


def test_a_python_that_is_missing_leaves_the_pair_out(tmp_path, monkeypatch):
    monkeypatch.setattr(check_versions.shutil, "which", lambda name: None)
    with pytest.raises(LeftOutError, match="no python3.10 on the PATH"):
        check_versions.environment_of(PAIR, tmp_path)


def test_cells_and_rows_that_were_not_run_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(check_versions, "RESULTS", tmp_path)
    monkeypatch.setattr(check_versions, "_release_of", lambda python, package: "1.0")
    for pair, folder, n in [
        (Pair("3.13", "2.11.0"), "plans", 1),
        (PAIR, "config", 2),
        (PAIR, "plans", 3),
        (Pair("3.11", "2.4.1"), "plans", 4),
        (PAIR, "config", 5),
    ]:
        check_versions.note(pair, tmp_path, {folder: Counts(n, 0, 0)})
    rows = check_versions.read(tmp_path / check_versions.TABLE)
    found = [(row["python"], row["torch"], row["config"], row["plans"]) for row in rows]
    assert found == [("3.10", "2.1.2", "5", "3"), ("3.11", "2.4.1", "", "4"), ("3.13", "2.11.0", "", "1")]


def test_every_folder_of_tests_is_tried_or_named_as_none_that_versions_change():
    folders = {path.parent.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - set(check_versions.FOLDERS) == {"kernels", "house", "tools"}
    assert set(check_versions.FOLDERS) <= folders


def test_an_unknown_pair_is_refused_with_those_that_there_are():
    command = [sys.executable, "tools/check_versions.py", "--only", "3.10:1.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "one of 3.10:2.1.2, " in done.stderr and "got '3.10:1.0'" in done.stderr
