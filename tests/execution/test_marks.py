"""Marks: a parameter that was written, or has got other memory, is not as it was; which parameters lie at an address."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastinit.execution.marks import Marks, memory_of


def parameter_of(memory: torch.Tensor) -> nn.Parameter:
    """Returns a parameter in memory that others share, with a version of its own."""
    return nn.Parameter(memory.data)


def marked(*parameters: torch.Tensor) -> Marks:
    marks = Marks()
    for parameter in parameters:
        marks.renew(parameter)
    return marks


def met(marks: Marks, memory: torch.Tensor) -> list[torch.Tensor]:
    return list(marks.meeting(*memory_of(memory)))


@torch.no_grad()
def write(parameter: nn.Parameter) -> None:
    parameter[1:].fill_(1)


def give_other_memory(parameter: nn.Parameter) -> None:
    parameter.data = torch.zeros(4)


def move_within(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data[1:]


def shorten(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data[:3]


@pytest.mark.parametrize("change", [write, give_other_memory, move_within, shorten])
def test_a_change_shows_until_it_is_looked_at(change: Callable[[nn.Parameter], None]) -> None:
    parameter, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    marks = marked(parameter, other)
    assert not marks.has_changed(parameter)
    change(parameter)
    assert marks.has_changed(parameter) and not marks.has_changed(other)
    marks.renew(parameter)
    assert not marks.has_changed(parameter)


def test_only_what_was_looked_at_has_a_mark() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    assert parameter in marked(parameter) and nn.Parameter(torch.zeros(4)) not in marked(parameter)


@pytest.mark.parametrize(
    "start, end, found", [(0, 4, "a"), (4, 8, "b"), (3, 5, "ab"), (0, 8, "ab"), (8, 10, ""), (7, 9, "b")]
)
def test_parameters_are_found_by_the_bytes_that_they_have(start: int, end: int, found: str) -> None:
    memory = torch.zeros(10)
    a, b = parameter_of(memory[:4]), parameter_of(memory[4:8])
    names = {a: "a", b: "b"}
    assert "".join(names[each] for each in met(marked(a, b), memory[start:end])) == found


def test_other_storages_hold_no_parameters() -> None:
    assert met(marked(nn.Parameter(torch.zeros(4))), torch.zeros(4)) == []


def test_a_parameter_that_moved_is_found_where_it_is_now() -> None:
    before, after = torch.zeros(4), torch.zeros(4)
    parameter, stays = parameter_of(before), parameter_of(before)
    marks = marked(parameter, stays)
    parameter.data = after
    marks.renew(parameter)
    assert met(marks, after) == [parameter] and met(marks, before) == [stays]


def test_a_parameter_that_moved_unseen_is_not_found_where_it_was() -> None:
    memory = torch.zeros(4)
    parameter = parameter_of(memory)
    marks = marked(parameter)
    parameter.data = parameter.data[2:]
    assert met(marks, memory[:2]) == []


def test_a_write_leaves_a_parameter_where_it_was() -> None:
    memory = torch.zeros(4)
    parameter = parameter_of(memory)
    marks = marked(parameter)
    write(parameter)
    marks.renew(parameter)
    assert met(marks, memory) == [parameter]  # once


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, device="meta"),
        lambda: torch.zeros(2).to_sparse(),
        lambda: torch.zeros(0),
        lambda: nn.UninitializedParameter(),
    ],
    ids=["meta", "sparse", "empty", "lazy"],
)
def test_what_has_no_memory_to_compare_has_no_address(make: Callable[[], torch.Tensor]) -> None:
    assert memory_of(make()) == (0, 0, 0)


def test_addresses_are_those_of_the_storage_and_of_what_is_in_it() -> None:
    memory = torch.zeros(10, dtype=torch.float64)
    start = memory.data_ptr()
    assert memory_of(memory[2:5]) == (start, start + 16, start + 40)


def test_writes_to_parameters_without_memory_show() -> None:
    parameter = nn.Parameter(torch.zeros(4, device="meta"))
    marks = marked(parameter)
    write(parameter)
    assert marks.has_changed(parameter)
