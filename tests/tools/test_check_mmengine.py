"""The comparison of mmengine's own tests with and without fastinit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_mmengine
import needs

needs.module("mmengine")

REPORT = """<testsuites><testsuite>
<testcase classname="a.B" name="good"/>
<testcase classname="a.B" name="bad"><failure message="no&#10;more">text</failure></testcase>
<testcase classname="a.B" name="bad"><error message="teardown"/></testcase>
<testcase classname="a.B" name="left"><skipped message="GPU"/></testcase>
</testsuite></testsuites>"""

PASSED, FAILED = ("passed", ""), ("failed", "why")


def test_outcomes_are_those_of_pytests_report(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    found = check_mmengine.outcomes_in(tmp_path / "report.xml")
    assert found == {"a.B.good": PASSED, "a.B.bad": ("failed", "no"), "a.B.left": ("skipped", "GPU")}


def test_a_test_that_fails_once_enabled_is_a_difference() -> None:
    (line,) = check_mmengine.differences({"a": PASSED, "b": FAILED}, {"a": FAILED, "b": FAILED})
    assert line == "a: passed plain, failed enabled: why"


def test_a_test_that_one_run_lacks_is_a_difference() -> None:
    (line,) = check_mmengine.differences({"a": PASSED}, {})
    assert line.startswith("a: passed plain, not run enabled")


def test_enabled_runs_have_fastinits_initializers_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    code = (
        "from mmengine.model import BaseModule\ndef test_it(): assert 'fastinit' in BaseModule.init_weights.__module__"
    )
    (tmp_path / "tests" / "test_one.py").write_text(code)
    plain, enabled = (check_mmengine.run(tmp_path / "tests", ["test_one.py"], each) for each in (None, "torch"))
    assert [outcome for outcome, _ in (*plain.values(), *enabled.values())] == ["failed", "passed"]


def test_without_mmengines_tests_it_says_where_they_are(tmp_path: Path) -> None:
    command = [sys.executable, check_mmengine.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and ("git clone" in done.stderr or "pip install" in done.stderr)
