"""A child process with limits: what hostile input costs, and whether it survives."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import NamedTuple

import needs
import pytest
from limits import in_limited_child, status_bytes

from fastinit.errors import kind_of

needs_linux = needs.mark(needs.LINUX)
# What hostile input may take beyond its own size, as the documentation says.
MOST_BYTES = 100 << 20
# It also says a second. That is no assertion, since other processes slow the CPU down; what grows with the square of a
# size, or worse, takes minutes, and the kernel ends it here.
CPU_LIMIT_S = 15


class Cost(NamedTuple):
    result: object
    """What the function returned, or the exception's type and text."""
    peak_bytes: int
    """Memory beyond what was there before."""


def run_limited(function: Callable[[], object]) -> Cost:
    """Runs a function in a fork of this process; a child that dies of a signal, or takes more than CPU_LIMIT_S, fails the test."""

    def work(writer: int) -> None:
        before = status_bytes("VmRSS")
        try:
            result: object = function()
        except BaseException as error:
            result = kind_of(error), str(error)[:2000], len(str(error))
        cost = Cost(result, max(0, status_bytes("VmHWM") - before))
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(cost, pipe)

    data, killed_by = in_limited_child(work, CPU_LIMIT_S)
    if killed_by is not None:
        pytest.fail(f"the process was killed by {killed_by.name}")
    assert data, "the process ended without a word"
    return pickle.loads(data)
