"""Counts what a run of the tests skipped, by what was needed; no skip goes unseen where FASTINIT_REQUIRE is set.

A test may be skipped for what needs.py lists. There FASTINIT_REQUIRE turns into failures what was asked for; anything
else that is skipped, or expected to fail, fails the whole session here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import needs
import pytest


class Skips:
    """A plugin of pytest, and of pytest-xdist: workers tell their controller what they skipped while they collected."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}  # by test or file

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._add(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._add(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        # Of files that were skipped as a whole pytest-xdist passes on one report for each reason, not for each file.
        self.reasons.update(getattr(node, "workeroutput", {}).get("skips", {}))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["skips"] = self.reasons
        elif self.wrong() and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.reasons:
            return
        terminalreporter.section("skipped, by what was needed")
        for need, count in Counter(map(_need, self.reasons.values())).most_common():
            terminalreporter.write_line(f"{count:5}  {need}")
        if wrong := self.wrong():
            terminalreporter.section(f"FAILED: {len(wrong)} skipped although FASTINIT_REQUIRE is set", red=True)
            for name, reason in wrong.items():
                terminalreporter.write_line(f"{name}: {reason}", red=True)

    def wrong(self) -> dict[str, str]:
        """Returns the tests and files that must not be skipped, with their reasons."""
        if not needs.is_strict():
            return {}
        return {name: reason for name, reason in self.reasons.items() if not _may_be(reason)}

    def _add(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped:
            where = report.longrepr
            reason = where[2] if isinstance(where, (tuple, list)) else getattr(report, "wasxfail", str(where))
            self.reasons[report.nodeid] = reason.removeprefix("Skipped: ")


def _kind(reason: str) -> needs.Kind | None:
    return next((kind for kind in needs.Kind if reason.startswith(f"needs {kind.value}: ")), None)


def _need(reason: str) -> str:
    kind = _kind(reason)
    return f"needs {kind.value}" if kind else f"none of the reasons in tests/support/needs.py: {reason}"


def _may_be(reason: str) -> bool:
    kind = _kind(reason)
    return kind is not None and not kind.must_be_met()
