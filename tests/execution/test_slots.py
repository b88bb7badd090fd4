"""Slots: where a model holds tensors without memory, what is put there for a time, and what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit.errors import InitRuntimeError
from fastinit.execution.memory_book import MemoryBook
from fastinit.naming import Names, walk
from fastinit.slots import Slot, adopt, allocate, hiding, put_back, put_stand_ins, restoring, slots_in

META = torch.device("meta")


class Tied(nn.Module):
    """Two holders of one weight, a buffer, a parameter that is there, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3, bias=False, device=META), nn.Linear(2, 3, bias=False, device=META)
        self.b.weight = self.a.weight
        self.a.register_buffer("table", torch.zeros(4, dtype=torch.int64, device=META))
        self.there = nn.Parameter(torch.ones(2))
        self.register_parameter("none", None)
        self.again = self.a


def slots_of(model: nn.Module) -> list[Slot]:
    return list(slots_in(walk(model)))


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    return {slot.name: slot.tensor for slot in slots_of(model)}


def test_every_holder_of_a_tensor_without_memory_is_a_slot_once() -> None:
    assert [slot.name for slot in slots_of(Tied())] == ["a.weight", "a.table", "b.weight"]


def test_a_slot_has_its_name_in_a_call() -> None:
    model = Tied()
    names = Names(model, {"": "large", "b": "head"})
    assert [slot.name_in(names) for slot in slots_of(model)] == ["large.a.weight", "large.a.table", "large.a.weight"]


@pytest.mark.parametrize(
    "tensor, message",
    [
        (lambda: nn.UninitializedParameter(device=META), "'w' is lazy"),
        (lambda: nn.Parameter(torch.empty(2, 2, layout=torch.sparse_coo, device=META)), "'w' is a torch.sparse_coo"),
    ],
    ids=["lazy", "sparse"],
)
def test_what_cannot_get_memory_is_refused_by_name(tensor: Any, message: str) -> None:
    model = nn.Module()
    model.w = tensor()
    with pytest.raises(InitRuntimeError, match=message):
        slots_of(model)


def test_what_is_allocated_is_alike_and_tied_alike() -> None:
    model = Tied()
    model.a.weight.requires_grad_(False)
    model.a.weight.mark = "kept"
    before, slots = held(model), slots_of(model)
    new = allocate(slots, torch.device("cpu"))
    assert set(new) == set(before.values()) and slots_of(model) == []
    weight = model.a.weight
    assert weight is model.b.weight is new[before["a.weight"]] and weight.shape == (3, 2)
    assert type(weight) is nn.Parameter and not weight.requires_grad and weight.mark == "kept"
    assert type(model.a.table) is torch.Tensor and model.a.table.dtype == torch.int64


def test_strides_are_kept() -> None:
    model = nn.Conv2d(3, 4, 2, device=META).to(memory_format=torch.channels_last)
    strides = model.weight.stride()
    allocate(slots_of(model), torch.device("cpu"))
    assert model.weight.stride() == strides == (12, 1, 6, 3)


class Tree(fastinit.BaseModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.tied = nn.Linear(2, 2, device=META), Tied()


def test_a_failure_puts_back_what_was_there() -> None:
    model = Tree()
    before = held(model)
    with pytest.raises(KeyboardInterrupt), restoring(walk(model)) as slots:
        allocate(slots, torch.device("cpu"))
        model._is_init = True
        raise KeyboardInterrupt
    assert held(model) == before and not model.is_init


def test_what_was_initialized_before_a_failure_stays_so() -> None:
    model = Tree()
    model.is_init = True
    with pytest.raises(ValueError), restoring(walk(model)):
        raise ValueError
    assert model.is_init


def test_success_keeps_what_was_put_there() -> None:
    model = Tree()
    with restoring(walk(model)) as slots:
        allocate(slots, torch.device("cpu"))
        model._is_init = True
    assert slots_of(model) == [] and model.is_init


def test_stand_ins_are_alike_without_memory() -> None:
    model = Tied()
    slots = slots_of(model)
    allocate(slots, torch.device("cpu"))
    model.a.weight.requires_grad_(False)
    there = [slot.tensor for slot in slots]
    before = put_stand_ins(slots)
    assert model.a.weight.is_meta and model.a.weight is model.b.weight
    assert type(model.a.weight) is nn.Parameter and not model.a.weight.requires_grad
    assert model.a.table.is_meta and model.a.table.dtype == torch.int64 and type(model.a.table) is torch.Tensor
    put_back(before)
    assert all(slot.tensor is tensor for slot, tensor in zip(slots, there))


def test_what_is_done_to_hidden_tensors_is_in_vain() -> None:
    model = nn.Linear(2, 2, device=META)
    slots, book = slots_of(model), MemoryBook()
    allocate(slots, torch.device("cpu"))
    weight = model.weight
    with torch.no_grad():
        weight.fill_(1)
    with pytest.raises(ValueError), hiding(slots[:1], book), torch.no_grad():
        model.weight.fill_(2)
        raise ValueError
    assert model.weight is weight and (weight == 1).all()
    assert book.generation == 1  # parameters have their names again


def test_hiding_nothing_leaves_names_alone() -> None:
    book = MemoryBook()
    with hiding([], book):
        pass
    assert book.generation == 0


def test_tensors_of_own_code_are_moved_to_the_device_of_the_others() -> None:
    model = nn.Module()
    model.w, model.kept = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2, device=META))
    model.register_buffer("table", torch.ones(2))
    slots = [Slot(model, "", model._parameters, "w"), Slot(model, "", model._buffers, "table")]
    before = model.w
    adopt(slots, torch.device("cpu"))
    assert model.w is before  # it is there already
    adopt(slots, META)  # stands for any other device
    assert model.w.is_meta and type(model.w) is nn.Parameter and not model.w.requires_grad
    assert model.table.is_meta and type(model.table) is torch.Tensor


def test_what_own_code_took_away_is_left_out_and_what_it_made_without_memory_is_refused() -> None:
    model = nn.Module()
    model.register_buffer("gone", None)
    model.register_buffer("table", torch.ones(2, device=META))
    adopt([Slot(model, "m", model._buffers, "gone")], torch.device("cpu"))
    with pytest.raises(InitRuntimeError, match="'m.table' has no values: code of Module has replaced it"):
        adopt([Slot(model, "m", model._buffers, "table")], torch.device("cpu"))
