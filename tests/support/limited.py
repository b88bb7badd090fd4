"""A child process with limits: what hostile input costs, and whether it survives."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from typing import NamedTuple

import needs
import pytest
from limits import in_limited_child, status_bytes

needs_linux = needs.mark(needs.LINUX)
# What hostile input may take beyond its own size, and how long; both as the documentation says.
MOST_BYTES = 100 << 20
MOST_CPU_S = 1.0


class Cost(NamedTuple):
    result: object
    """What the function returned, or the exception's type and text."""
    peak_bytes: int
    """Memory beyond what was there before."""
    cpu_s: float


def run_limited(function: Callable[[], object]) -> Cost:
    """Runs a function in a fork of this process; a child that dies of a signal fails the test."""

    def work(writer: int) -> None:
        before, start = status_bytes("VmRSS"), time.process_time()
        try:
            result: object = function()
        except BaseException as error:
            result = type(error).__name__, str(error)[:2000], len(str(error))
        cost = Cost(result, max(0, status_bytes("VmHWM") - before), time.process_time() - start)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(cost, pipe)

    data, killed_by = in_limited_child(work)
    if killed_by is not None:
        pytest.fail(f"the process was killed by {killed_by.name}")
    assert data, "the process ended without a word"
    return pickle.loads(data)
