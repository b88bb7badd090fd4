"""Ctrl-C in a fill of the native core: it stops soon, and no thread writes afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import needs
import pytest
import torch
from torch import nn

import fastinit

pytestmark = needs.mark(needs.CPP, needs.LINUX)

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


def test_a_fill_in_another_thread_handles_no_signals() -> None:
    model = nn.Linear(8, 8)
    thread = threading.Thread(
        target=lambda: fastinit.initialize(model, dict(type="Constant", val=2, layer="Linear"), backend="cpp")
    )
    thread.start()
    thread.join()
    assert (model.weight == 2).all()
