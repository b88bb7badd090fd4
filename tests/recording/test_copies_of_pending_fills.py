"""Copies of pending fills: in other formats, of parts, into memory that others see, and numbers that are pending."""

from __future__ import annotations

from collections.abc import Callable

import torch
from capturing import Holder, captured, cpp
from helpers import same_bits
from torch import nn

import fastinit

pytestmark = cpp


def watched(code: Callable[[Holder], object]) -> Holder:
    """Returns a model on which code has run in a block."""
    return captured(code)[0]  # type: ignore[no-any-return]


def test_a_copy_has_the_memory_format_that_was_asked_for() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        copied = torch.empty(2, 3, 4, 5).normal_().clone(memory_format=torch.channels_last)
    assert copied.is_contiguous(memory_format=torch.channels_last)


def test_a_copy_is_on_the_device_that_was_asked_for() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        assert torch.empty(4).normal_().to("meta").is_meta


def test_a_pending_row_is_copied_into_every_row() -> None:
    model = watched(lambda m: m.a.copy_(torch.empty(4).normal_()))
    assert same_bits(model.a[0], model.a[5]) and model.a[0].std() > 0


def test_a_pending_column_is_copied_into_a_column() -> None:
    def code(model: Holder) -> None:
        model.a.zero_()
        model.late = nn.Parameter(torch.empty(6).normal_())
        model.a[:, 1].copy_(model.late)

    model = watched(code)
    assert same_bits(model.a[:, 1], model.late.detach()) and (model.a[:, 0] == 0).all() and model.late.std() > 0


def test_a_copy_into_exposed_memory_is_there_at_once() -> None:
    def code(model: Holder) -> None:
        seen = model.b.detach().numpy()
        model.b.copy_(torch.empty(4, 6).normal_())
        assert seen.std() > 0

    watched(code)


def test_a_copy_of_what_has_run_is_made_at_once() -> None:
    def code(model: Holder) -> None:
        drawn = torch.empty(4, 6).normal_()
        drawn.sum().item()
        model.b.copy_(drawn)
        model.late = nn.Parameter(drawn)

    model = watched(code)
    assert same_bits(model.b, model.late.detach())


def test_a_copy_of_what_has_run_in_part_is_all_of_it() -> None:
    def code(model: Holder) -> None:
        model.a.normal_().sum().item()
        model.a[1].normal_()
        model.late = nn.Parameter(model.a.clone())

    model = watched(code)
    assert same_bits(model.late, model.a)


def test_a_copy_of_a_fill_that_was_computed_on_is_computed_too() -> None:
    def code(model: Holder) -> None:
        model.a.uniform_().erfinv_()
        model.late = nn.Parameter(model.a.clone())

    model = watched(code)
    assert same_bits(model.late, model.a) and model.a.max() > 1


def test_a_copy_in_another_layout_has_every_part_in_its_place() -> None:
    def code(model: Holder) -> None:
        drawn = torch.empty(4, 6).t()
        drawn.normal_()
        drawn[1].zero_()
        model.a.copy_(drawn)
        model.late = nn.Parameter(drawn)

    model = watched(code)
    assert torch.equal(model.a, model.late) and (model.a[1] == 0).all() and (model.a[0] != 0).all()


def test_a_copy_of_a_part_of_memory_has_every_part_in_its_place() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        memory = torch.empty(48)
        drawn = memory[24:].view(6, 4)
        drawn.normal_()
        drawn[1].zero_()
        copied = drawn.clone()
    assert torch.equal(copied, drawn) and (copied[1] == 0).all() and (copied[0] != 0).all()


def test_a_number_that_is_itself_pending_is_read_before_it_is_filled_in() -> None:
    assert (watched(lambda m: m.a.fill_(torch.full((), 3.0))).a == 3).all()


def test_a_number_that_is_itself_pending_is_read_before_it_is_multiplied_by() -> None:
    assert (watched(lambda m: m.a.fill_(2).mul_(torch.full((), 3.0))).a == 6).all()
