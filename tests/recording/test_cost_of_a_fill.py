"""What a recorded fill leaves behind, and what it asks of torch: counted, and not timed."""

from __future__ import annotations

import gc
from collections.abc import Callable

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit.execution.seeds import Generators
from fastinit.execution.writes import PendingFill

BACKENDS = [pytest.param("cpp", marks=needs.mark(needs.CPP)), "torch"]


def _build(backend: str) -> None:
    fastinit.build(nn.Linear, 4, 4, backend=backend, seed=0)


def _capture(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0):
        model = nn.Linear(4, 4)
    del model  # not earlier: fills of memory that is gone are dropped in the block


@pytest.mark.parametrize("record", [_build, _capture])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_block_has_recorded_is_freed_without_the_cycle_collector(
    backend: str, record: Callable[[str], None]
) -> None:
    def n_fills() -> int:
        return sum(type(each) is PendingFill for each in gc.get_objects())

    gc.collect()
    before, was_enabled = n_fills(), gc.isenabled()
    gc.disable()
    try:
        record(backend)
        assert n_fills() == before
    finally:
        if was_enabled:
            gc.enable()


def test_recorded_constants_of_torch_are_lent_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    def next_draw(self: Generators, device: torch.device) -> None:
        raise AssertionError(f"a generator of {device} is lent")

    monkeypatch.setattr(Generators, "next_draw", next_draw)
    assert fastinit.build(nn.LayerNorm, 8, backend="torch", seed=0).weight.sum().item() == 8
