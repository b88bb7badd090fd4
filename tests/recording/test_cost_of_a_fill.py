"""What a recorded fill leaves behind, and what it asks of torch: counted, and not timed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import needs
import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import fastinit
from fastinit.execution.memory_book import MemoryBook
from fastinit.execution.scope import Scope
from fastinit.execution.seeds import Generators
from fastinit.execution.writes import PendingFill
from fastinit.plans import Distribution
from fastinit.recording import operators
from fastinit.recording.torch_modes import Functions

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


class _Counting(TorchFunctionMode):
    """Counts the functions that it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.told.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_mode_is_told_how_torch_finds_the_fans_of_a_weight(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    original = Functions.__torch_function__

    def function(self: Functions, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told.append(getattr(func, "__name__", str(func)))
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(Functions, "__torch_function__", function)
    fastinit.build(nn.Linear, 4, 4, backend=backend, seed=0)
    assert told.count("empty") == 2
    assert not {"dim", "size", "uniform_"} & set(told)


def test_a_mode_of_the_users_is_told_how_torch_finds_the_fans_of_a_weight() -> None:
    with _Counting() as plain:
        nn.Linear(4, 4)
    with fastinit.capture(seed=0), _Counting() as recorded:
        nn.Linear(4, 4)
    assert recorded.told.count("dim") == plain.told.count("dim") > 0


@needs.mark(needs.CPP)
def test_fills_of_a_kind_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[torch.Size] = []
    original = operators._can

    def can(scope: Scope, tensor: torch.Tensor, values: Distribution) -> bool:
        checked.append(tensor.shape)
        return original(scope, tensor, values)

    monkeypatch.setattr(operators, "_can", can)
    fastinit.build(lambda: nn.Sequential(*(nn.LayerNorm(8) for _ in range(5))), backend="cpp", seed=0)
    assert checked == [(8,)] * 2  # the weights' kind and the biases'


def _released() -> torch.Tensor:
    tensor = torch.empty(8)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_released, id="released"),
        pytest.param(lambda: torch.from_numpy(np.zeros(8)), id="numpy's"),
        pytest.param(lambda: torch.empty(8, device="meta"), id="meta"),
    ],
)
def test_memory_of_numpys_or_that_is_not_there_is_not_new(make: Callable[[], torch.Tensor]) -> None:
    places = [MemoryBook().new_place(tensor) for tensor in (make(), torch.empty(8))]
    assert [place is None for place in places] == [True, False]
