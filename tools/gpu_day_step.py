"""One step of the GPU day in a process of its own: runs a function, and keeps what it finds line by line.

``python gpu_day_step.py MODULE:FUNCTION [ARGUMENT...]``. A finding is printed and appended to a file of JSON lines at
once, so that a step that is killed loses nothing. Steps call ``found``, ``wrong`` and ``not_done``; the exit code says
which of them were called.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What steps measure with.
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

# The file of findings; without it they are only printed.
FINDINGS = "FASTINIT_GPU_DAY_FINDINGS"
# Exit codes. One was not done where a tool is missing or may not look: nothing is wrong, but nothing is known either.
RIGHT, WRONG, NOT_DONE = 0, 1, 3

_kinds: set[str] = set()


def found(text: str, **numbers: object) -> None:
    """Keeps a finding, as a text and as numbers by name (anything that JSON can hold)."""
    _record("found", text, numbers)


def wrong(text: str, **numbers: object) -> None:
    """Keeps a finding that makes the step fail."""
    _record("wrong", text, numbers)


def not_done(reason: str) -> None:
    """Keeps why a part of the step could not be done here."""
    _record("not done", reason, {})


def check(good: bool, text: str, **numbers: object) -> None:
    """Keeps a finding that is one of the two, as ``good`` says."""
    _record("found" if good else "wrong", text, numbers)


def _record(kind: str, text: str, numbers: dict[str, object]) -> None:
    _kinds.add(kind)
    print(f"=> {'' if kind == 'found' else kind.upper() + ': '}{text}", flush=True)
    if path := os.environ.get(FINDINGS):
        with Path(path).open("a") as file:
            file.write(json.dumps({"kind": kind, "text": text, "numbers": numbers}) + "\n")


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """Turns an exception into a finding that is wrong, so that what comes after it is tried too."""
    try:
        yield
    except (Exception, SystemExit) as error:  # the second: how a benchmark stops at a wrong value
        traceback.print_exc()
        wrong(f"{what}: {type(error).__name__}: {str(error)[:200]}")


def exit_code() -> int:
    """Returns what the findings of this process come to."""
    return WRONG if "wrong" in _kinds else NOT_DONE if "not done" in _kinds else RIGHT


def main(arguments: list[str]) -> int:
    """Runs the function that the first argument names, and returns the exit code."""
    module, _, name = arguments[0].partition(":")
    try:
        getattr(importlib.import_module(module), name)(*arguments[1:])
    except Exception as error:
        traceback.print_exc()
        wrong(f"{type(error).__name__}: {str(error)[:200]}")
    except SystemExit as error:  # how a benchmark stops at a wrong value
        if error.code:
            wrong(str(error.code))
    return exit_code()


if __name__ == "__main__":
    # The module that steps import, and not a second copy of it named __main__, holds the findings.
    import gpu_day_step

    sys.exit(gpu_day_step.main(sys.argv[1:]))
