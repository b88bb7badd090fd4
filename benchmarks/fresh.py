"""Measurements in fresh memory: pages that a process has already touched cost no faults."""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import resource
import time
from collections.abc import Callable
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any


class State(Enum):
    """What happened to free memory before a measurement.

    A virtual machine may hand memory that nobody uses back to its host after some seconds, and then pays for its first
    touch by what the host has to do.
    """

    GIVEN_BACK = "nobody used memory for 12 s"
    IDLE = "3 s after another process has freed as much"
    JUST_FREED = "another process has just freed as much"


def seconds_and_gigabytes(
    work: Callable[[], Any], n_bytes: int, state: State = State.GIVEN_BACK
) -> tuple[float, float]:
    """Returns the seconds and the growth of peak memory, in GB, of a call that takes ``n_bytes``, in a new process.

    The calling process must not have used torch's threads, which do not survive a fork.
    """
    if state is State.GIVEN_BACK:
        time.sleep(12)
    else:
        _forked(touch, n_bytes + n_bytes // 4 + (1 << 26))
        time.sleep(3 if state is State.IDLE else 0)
    seconds, gigabytes = _forked(_measure, work)
    return seconds, gigabytes


def check(work: Callable[[], None]) -> None:
    """Runs a check in its own process, and exits if it fails."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _forked(target: Callable[[Connection, Any], None], argument: object) -> tuple[float, float]:
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=target, args=(sender, argument))
    process.start()
    sender.close()
    try:
        answer: tuple[float, float] = receiver.recv()
    except EOFError:
        raise SystemExit("the measured process failed") from None
    process.join()
    return answer


def touch(end: Connection, n_bytes: int) -> None:
    """Touches fresh memory, reports that it has, and ends."""
    touch_and_free(n_bytes)
    end.send((0.0, 0.0))


def touch_and_free(n_bytes: int) -> None:
    """Touches fresh memory in huge pages, and gives it back to the system."""
    memory = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 1, n_bytes)


def _measure(end: Connection, work: Callable[[], Any]) -> None:
    gc.disable()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - began
    end.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6))
    del kept
