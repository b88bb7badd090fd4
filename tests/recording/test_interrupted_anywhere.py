"""An interrupt may come anywhere, as a signal's handler raises: nothing of a block is left in the thread.

Python looks for signals where a function begins, among other places. Here each beginning of a function of fastinit's, and
of one that contextlib runs for it, is interrupted once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import needs
import pytest
import torch
from capturing import cpp, is_uninstalled
from torch import nn

import fastinit
from fastinit.execution import calls
from fastinit.recording import watch as watching


class Stop(BaseException):
    """What the handler raises."""


class Interrupting:
    """A trace function that raises at the k-th beginning of a function."""

    def __init__(self, k: int) -> None:
        self.k, self.n, self.where = k, 0, ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        names = [each.f_globals.get("__name__", "") for each in (frame, frame.f_back) if each is not None]
        if event != "call" or not names[names[0] == "contextlib"].startswith("fastinit"):
            return
        self.n += 1
        if self.n == self.k:
            self.where = f"{names[0]}.{frame.f_code.co_name}, the {self.k}th function"
            raise Stop


def interrupted(code: Callable[[], object], k: int) -> Interrupting:
    """Runs code with an interrupt at the k-th beginning of a function."""
    interrupting, before = Interrupting(k), sys.gettrace()
    sys.settrace(interrupting)
    try:
        code()
    except Stop:
        pass
    finally:
        sys.settrace(before)
    return interrupting


def left() -> list[str]:
    """Returns what a block has left in the thread."""
    found = {
        "hooks or modes": not is_uninstalled(),
        "gradients": not torch.is_grad_enabled(),
        "an open call": calls.current_call() is not None,
        "functions of subclasses": not torch._C._is_torch_function_enabled(),
        "no collector": not gc.isenabled(),
    }
    return [what for what, is_left in found.items() if is_left]


def build(backend: str) -> None:
    fastinit.build(nn.Linear, 2, 2, backend=backend, seed=0)


def initialize(backend: str) -> None:
    fastinit.initialize(nn.Linear(2, 2), dict(type="Normal", layer="Linear"), backend=backend, seed=0)


def materialize(backend: str) -> None:
    fastinit.materialize(nn.Linear(2, 2, device="meta"), backend=backend, seed=0)


# Where a trace function raises as a generator goes on, Python 3.10 leaves its finally clauses out.
@needs.mark(needs.python_from(3, 11))
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=cpp)])
@pytest.mark.parametrize("code", [build, initialize, materialize])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_leaves_nothing_in_the_thread(code: Callable[[str], None], backend: str) -> None:
    code(backend)  # caches
    n = interrupted(lambda: code(backend), 0).n
    assert n > 100
    for k in range(1, n + 1):
        where = interrupted(lambda: code(backend), k).where
        assert left() == [], where


@pytest.mark.parametrize("kind", ["Functions", "Dispatch"])
def test_a_mode_that_torch_left_behind_is_taken_away_by_the_next_block(kind: str) -> None:
    with fastinit.capture():
        watch = watching.current_watch.get()
    getattr(watching, kind)(watch).__enter__()
    build("torch")
    assert left() == []


def test_a_mode_that_code_leaves_entered_stays() -> None:
    with fastinit.capture():
        mode = torch.overrides.BaseTorchFunctionMode()
        mode.__enter__()
    assert torch._C._len_torch_function_stack() == 1
    mode.__exit__(None, None, None)
    assert left() == []
