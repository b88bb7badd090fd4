"""Ctrl-C in a fill of the native core: it stops soon, and no thread writes afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import needs
import pytest
import torch
from torch import nn

import fastinit

pytestmark = [needs.mark(needs.CPP, needs.LINUX), pytest.mark.usefixtures("hears_ctrl_c")]

# Enough for some seconds on one core.
N = 1 << 30


@pytest.fixture
def large() -> Iterator[nn.Module]:
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(N, dtype=torch.bfloat16))
    yield model


def interrupt_soon() -> threading.Timer:
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_stops_a_fill_and_nothing_is_written_afterwards(large: nn.Module) -> None:
    timer = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        fastinit.initialize(large, dict(type="Normal", param="w"), backend="cpp", seed=0)
    timer.join()
    weight = large.w.detach()
    n_written = int((weight.view(-1, 1 << 16)[:, 0] != 0).sum())  # type: ignore[operator]
    time.sleep(0.2)
    assert 0 < n_written < (N >> 16) * 3 // 4
    assert int((weight.view(-1, 1 << 16)[:, 0] != 0).sum()) == n_written  # type: ignore[operator]


def test_ctrl_c_stops_verify(large: nn.Module) -> None:
    plan = fastinit.plan(large, dict(type="Uniform", a=1, b=2, param="w"), backend="cpp", seed=0)
    fastinit.initialize(large, plan)
    timer = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        fastinit.verify(large, plan)
    timer.join()


def test_a_fill_in_another_thread_handles_no_signals() -> None:
    model = nn.Linear(8, 8)
    thread = threading.Thread(
        target=lambda: fastinit.initialize(model, dict(type="Constant", val=2, layer="Linear"), backend="cpp")
    )
    thread.start()
    thread.join()
    assert (model.weight == 2).all()


ENDS_WITHIN_A_FILL = """
import threading, time, torch, fastinit
from torch import nn

model = nn.Module()
model.w = nn.Parameter(torch.zeros(1 << 26, dtype=torch.bfloat16))
has_begun = threading.Event()


def fill_for_ever():
    while True:
        has_begun.set()
        fastinit.initialize(model, dict(type="Normal", param="w"), backend="cpp", seed=0)


threading.Thread(target=fill_for_ever, daemon=True).start()
has_begun.wait()
while not model.w.detach()[0]:
    time.sleep(0.01)
print("ends")
"""


def test_python_ends_while_a_daemon_thread_is_within_a_fill() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_WITHIN_A_FILL], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
