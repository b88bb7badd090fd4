"""A child process with limits: what hostile input costs, and whether it survives."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

# Beyond what the process has: what a test may take before it is stopped, more than any test may show.
MEMORY_LIMIT = 2 << 30
CPU_LIMIT_S = 30

needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


class Cost(NamedTuple):
    result: object
    """What the function returned, or the exception's type and text."""
    peak_bytes: int
    """Memory beyond what was there before."""
    cpu_s: float


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def run_limited(function: Callable[[], object]) -> Cost:
    """Runs a function in a fork of this process; a child that dies of a signal fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY_LIMIT,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            before, start = _status("VmRSS"), time.process_time()
            try:
                result: object = function()
            except BaseException as error:
                result = type(error).__name__, str(error)[:2000], len(str(error))
            cost = Cost(result, max(0, _status("VmHWM") - before), time.process_time() - start)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(cost, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        pytest.fail(f"the process was killed by {signal.Signals(os.WTERMSIG(status)).name}")
    assert data, "the process ended without a word"
    return pickle.loads(data)
