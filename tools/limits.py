"""Runs code in a child process with limits, to see what hostile input costs and whether it survives. Linux only."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

# In addition to the process's own: hostile input is stopped here, well above what it is allowed to take.
MEMORY_LIMIT = 2 << 30
CPU_LIMIT_S = 30


def status_bytes(name: str) -> int:
    """Returns one of this process's sizes in /proc, such as VmRSS, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def in_limited_child(work: Callable[[int], None], cpu_s: int = CPU_LIMIT_S) -> tuple[bytes, signal.Signals | None]:
    """Runs a function in a fork of this process, with a limit on address space and CPU time.

    Args:
        work: called in the child with the write end of a pipe, for its answer.
        cpu_s: CPU time after which the kernel ends the child.

    Returns:
        The answer, and the signal that ended the child, if any.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            faulthandler.disable()  # pytest's; the parent reports how the child ended
            resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + MEMORY_LIMIT,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work(writer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    return data, signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
