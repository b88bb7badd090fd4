"""Runs one step of the GPU day, a function, in its own process, and records its findings line by line.

``python gpu_day_step.py MODULE:FUNCTION [ARGUMENT...]``. A finding is printed and appended to a file of JSON lines at
once, so that a killed step loses nothing. Steps call ``found``, ``wrong`` and ``not_done``; the exit code says which of
them were called.
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

# Steps use the benchmarks' modules.
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

# Names the file of findings; if unset, they are only printed.
FINDINGS = "FASTINIT_GPU_DAY_FINDINGS"
# Exit codes. NOT_DONE: a tool is missing or lacks permission, so nothing is known to be wrong or right.
RIGHT, WRONG, NOT_DONE = 0, 1, 3

_kinds: set[str] = set()


def found(text: str, **numbers: object) -> None:
    """Records a finding: a text, and numbers by name (anything that JSON can hold)."""
    _record("found", text, numbers)


def wrong(text: str, **numbers: object) -> None:
    """Records a finding that fails the step."""
    _record("wrong", text, numbers)


def not_done(reason: str) -> None:
    """Records why part of the step could not be done here."""
    _record("not done", reason, {})


def check(good: bool, text: str, **numbers: object) -> None:
    """Records a finding, which fails the step unless ``good``."""
    _record("found" if good else "wrong", text, numbers)


def _record(kind: str, text: str, numbers: dict[str, object]) -> None:
    _kinds.add(kind)
    print(f"=> {'' if kind == 'found' else kind.upper() + ': '}{text}", flush=True)
    if path := os.environ.get(FINDINGS):
        with Path(path).open("a") as file:
            file.write(json.dumps({"kind": kind, "text": text, "numbers": numbers}) + "\n")


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """Turns an exception into a failing finding, so that the rest of the step still runs."""
    try:
        yield
    except (Exception, SystemExit) as error:  # SystemExit is how a benchmark stops at a wrong value
        traceback.print_exc()
        wrong(f"{what}: {type(error).__name__}: {str(error)[:200]}")


def exit_code() -> int:
    """Returns the exit code for the findings of this process."""
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
    # The findings are in the module that steps import, not in this copy named __main__.
    import gpu_day_step

    sys.exit(gpu_day_step.main(sys.argv[1:]))
