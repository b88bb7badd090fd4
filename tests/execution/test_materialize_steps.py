"""What materialize does when: checks before memory is allocated, own code beside stand-ins, items rebound to memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from capturing import cpp
from helpers import same_bits
from torch import nn

import fastinit
from fastinit import slots
from fastinit.backends import torch_backend
from fastinit.materializing import rebound
from fastinit.plans import Box, Call, Constant, Copy, CopyEntry, Fill, LoadResult

CONSTANT = dict(type="Constant", val=1, layer="Linear")


def linear(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2, device="meta", **options))


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors were allocated, for each time."""
    counts: list[int] = []
    original = slots.allocate_like

    def allocate_like(metas: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        counts.append(len(metas))
        return original(metas, device)

    monkeypatch.setattr(slots, "allocate_like", allocate_like)
    return counts


# --- before memory is allocated ---------------------------------------------------------------------------------------


@cpp
def test_a_fill_that_the_backend_cannot_do_is_an_error_before_memory_is_allocated(allocated: list[int]) -> None:
    model = linear(dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"init_cfg: the backend 'cpp' cannot fill the parameter '0.weight'"):
        fastinit.materialize(model, dict(type="Normal", layer="Linear"), backend="cpp", seed=0)
    assert allocated == []


def test_a_tensor_that_nothing_will_write_is_an_error_before_memory_is_allocated(allocated: list[int]) -> None:
    model = linear()
    model.register_buffer("mask", torch.empty(2, device="meta"))
    with pytest.raises(RuntimeError, match="no values: mask.*have no reset_parameters"):
        fastinit.materialize(model, CONSTANT)
    assert allocated == []


def test_a_tied_tensor_is_allocated_once(allocated: list[int]) -> None:
    model = nn.Sequential(*linear(bias=False), *linear(bias=False))
    model[1].weight = model[0].weight
    fastinit.materialize(model, CONSTANT)
    assert allocated == [1] and model[1].weight is model[0].weight


def test_a_device_that_must_not_be_used_now_is_known_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(torch_backend, "why_not_now", lambda device: "it is busy")
    monkeypatch.setattr(torch_backend, "run", lambda fills, seed, **_: ran.append(fills))
    with pytest.raises(RuntimeError, match="init_cfg: the backend 'torch' cannot fill.*it is busy"):
        fastinit.materialize(linear(), CONSTANT)
    assert ran == []


def test_strictness_of_a_block_is_that_of_materialize() -> None:
    with fastinit.use(strict=True), pytest.raises(RuntimeError, match="an error under strict"):
        fastinit.materialize(linear(), dict(type="Constant", val=1, layer="Conv2d"))


# --- the modules' own code --------------------------------------------------------------------------------------------


class Looks(nn.Module):
    """Two names of one parameter that a rule reaches, and a parameter that its own code fills."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(2, device="meta"), requires_grad=False)
        self.b = self.a
        self.own = nn.Parameter(torch.empty(2, device="meta"))
        self.seen: dict[str, Any] = {}

    def reset_parameters(self) -> None:
        self.seen = {
            "meta": (self.a.is_meta, self.own.is_meta),
            "grad": (self.a.requires_grad, self.own.requires_grad),
            "tied": self.a is self.b,
            "parameter": type(self.a) is nn.Parameter,
        }
        self.own.zero_().add_(3)  # as it is written in code that runs without gradients


def looked() -> Looks:
    model = Looks()
    fastinit.materialize(model, dict(type="Constant", val=1, param="a"))
    return model


def test_own_code_runs_without_gradients() -> None:
    assert (looked().own == 3).all()


def test_own_code_sees_what_rules_have_filled() -> None:
    assert looked().seen["meta"] == (False, False)


def test_own_code_sees_which_parameters_are_trained() -> None:
    assert looked().seen["grad"] == (False, True)


def test_own_code_sees_tied_parameters_tied() -> None:
    model = looked()
    assert model.seen["tied"] and model.seen["parameter"] and model.a is model.b and (model.a == 1).all()


# --- items for the tensors that took their places ---------------------------------------------------------------------


def fill_of_row(tensor: torch.Tensor, row: int) -> Fill:
    """Returns the fill of a row of a matrix of 2 columns."""
    box = Box(tensor.detach()[row], 2 * row, (1,))
    return Fill("w", tensor, Constant(row), "", "", (2,), (box,))


@pytest.mark.parametrize("old_begins", [0, 6])
@pytest.mark.parametrize("new_begins", [0, 4])
def test_a_part_is_rebound_to_its_place_in_the_new_tensor(old_begins: int, new_begins: int) -> None:
    old = torch.empty(20, device="meta")[old_begins : old_begins + 6].view(3, 2)
    memory = torch.zeros(12)
    new = memory[new_begins : new_begins + 6].view(3, 2)
    (item,) = rebound([fill_of_row(old, 2)], {old: new})
    assert isinstance(item, Fill) and item.tensor is new
    assert item.boxes[0].tensor.storage_offset() == new_begins + 4 and item.boxes[0].first_index == 4
    item.boxes[0].tensor.fill_(1)
    assert same_bits(new[2], torch.ones(2)) and memory.sum() == 2


def test_a_whole_fill_is_rebound_to_the_new_tensor() -> None:
    old, new = torch.empty(2, device="meta"), torch.zeros(2)
    (item,) = rebound([Fill.whole("w", old, Constant(0), "", "")], {old: new})
    assert isinstance(item, Fill) and item.tensor is new and item.parts is None


def test_the_entries_of_a_copy_are_rebound_to_new_tensors() -> None:
    old, new, kept = torch.empty(2, device="meta"), torch.zeros(2), torch.zeros(2)
    entries = tuple(CopyEntry("", tensor, "", (2,)) for tensor in (old, kept))

    def load() -> Any:
        return LoadResult((), (), (), ()), ()

    (item,) = rebound([Copy(nn.Module(), entries, "", "", "", False, False, load)], {old: new})
    assert isinstance(item, Copy) and [entry.tensor is each for entry, each in zip(item.entries, (new, kept))] == [
        True,
        True,
    ]


def test_what_is_not_about_a_new_tensor_stays_as_it_is() -> None:
    tensor = torch.zeros(2)
    items = [Fill.whole("w", tensor, Constant(0), "", ""), Call(nn.Module(), "", "", "", lambda: None)]
    assert all(after is before for after, before in zip(rebound(items, {}), items))
