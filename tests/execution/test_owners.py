"""Owners: which parameter holds a place, whose stream a draw takes, and what later fills leave of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastinit.execution.memory_book import MemoryBook
from fastinit.execution.owners import Owners, fill_for, fills_for, stream_of
from fastinit.execution.places import Place
from fastinit.execution.scope import Scope
from fastinit.execution.writes import PendingFill, State, Stream
from fastinit.plans import Box, Constant, Distribution, Fill, Normal, Strided

SCOPE, DRAW = Scope(None, None), Normal(0, 1)
BOOK = MemoryBook()


def place(tensor: torch.Tensor) -> Place:
    found = BOOK.place_of(tensor)
    assert found is not None
    return found


def pending(tensor: torch.Tensor, values: Distribution = DRAW, **more: Any) -> PendingFill:
    return PendingFill(place(tensor), "info", 0, values, SCOPE, "rule", **more)


def owners(**named: torch.Tensor) -> Owners:
    numbers = iter("0123456789")
    return Owners([(tensor, name) for name, tensor in named.items()], BOOK, lambda: f"#{next(numbers)}")


# --- who holds a place ------------------------------------------------------------------------------------------------


def test_the_first_by_name_of_those_that_hold_a_place_owns_it() -> None:
    memory = torch.zeros(8)
    found = owners(b=memory, a=memory.view(2, 4)).of(place(memory[2:3]))
    assert found is not None and found.name == "b"


def test_a_tensor_that_holds_only_the_beginning_of_a_place_does_not_own_it() -> None:
    memory = torch.zeros(8)
    assert owners(a=memory[:4]).of(place(memory[2:6])) is None


def test_a_tensor_of_another_dtype_does_not_own_a_place() -> None:
    memory = torch.zeros(8)
    assert owners(a=memory.view(torch.int32)).of(place(memory)) is None


def test_owners_are_listed_in_the_order_of_their_names_over_all_storages() -> None:
    first, second = torch.zeros(4), torch.zeros(4)
    assert [owner.name for owner in owners(a=first[:2], b=second, c=first[2:])] == ["a", "b", "c"]


# --- whose stream -----------------------------------------------------------------------------------------------------


def test_a_part_takes_the_stream_of_its_owner_at_its_place() -> None:
    memory = torch.zeros(6, 4)
    assert stream_of(pending(memory[2:4]), owners(w=memory)) == Stream("w", Strided(8, (2, 4), (4, 1)), True)


def test_a_draw_of_several_fills_takes_the_stream_of_the_first_by_name() -> None:
    a, b, c = (torch.zeros(4) for _ in range(3))
    fills = [pending(tensor) for tensor in (b, a, c)]
    for each in fills[1:]:
        fills[0].share_with(each)
    assert stream_of(fills[2], owners(a=a, b=b, c=c)).name == "a"
    assert {each.stream.name for each in fills if each.stream is not None} == {"a"}


def test_a_draw_that_nobody_owns_takes_an_ordinal_and_keeps_it() -> None:
    fill, none = pending(torch.zeros(4)), owners()
    assert stream_of(fill, none) == stream_of(fill, none) == Stream("#0", Strided.whole((4,)), False)


def test_a_fill_that_came_with_a_name_keeps_its_stream() -> None:
    memory = torch.zeros(4)
    named = Fill("b", memory, DRAW, "", "", (4,), None, "a")
    assert stream_of(pending(memory, named=named), owners(c=memory)).name == "a"


def test_a_part_that_came_with_a_name_stands_where_it_says() -> None:
    memory = torch.zeros(6, 4)
    named = Fill("b", memory, DRAW, "", "", (4,), (Box(memory[1], 4, (1,)),), "a")
    assert stream_of(pending(memory[1], named=named), owners()) == Stream("a", Strided(4, (4,), (1,)), True)


# --- the fill that executes it ----------------------------------------------------------------------------------------


def filled(each: PendingFill, known: Owners, later: Sequence[torch.Tensor] = ()) -> Fill:
    fill = fill_for(each, known, [place(tensor) for tensor in later])
    assert fill is not None
    return fill


def test_a_whole_owner_is_filled_as_itself() -> None:
    memory = torch.zeros(4)
    fill = filled(pending(memory), owners(w=memory))
    assert (fill.name, fill.tensor, fill.parts, fill.stream) == ("w", memory, None, "")


def test_a_fill_that_came_with_a_name_is_executed_as_it_came() -> None:
    memory = torch.zeros(4)
    named = Fill.whole("w", memory, DRAW, "", "")
    assert filled(pending(memory, named=named), owners(w=memory)) is named


def test_a_named_fill_of_a_tensor_that_got_other_memory_fills_the_memory_that_was_meant() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    memory = parameter.data
    each = pending(parameter, named=Fill.whole("w", parameter, DRAW, "", ""))
    parameter.data = torch.ones(4)
    fill = filled(each, owners(w=parameter))
    assert fill.tensor.data_ptr() == memory.data_ptr() and fill.stream_name == "w"


def test_numbers_in_another_order_are_taken_by_their_indices() -> None:
    memory = torch.zeros(3, 4)
    each = pending(memory)
    each.stream = Stream("v", Strided(0, (3, 4), (1, 3)), True)
    fill = filled(each, owners(w=memory))
    assert fill.boxes[0].steps == (1, 3) and fill.name == "w" and fill.stream == "v"
    assert fill.tensor is fill.boxes[0].tensor is memory


def test_a_part_belongs_to_its_owner_and_writes_its_own_memory() -> None:
    memory = torch.zeros(6, 4)
    fill = filled(pending(memory[2:4]), owners(w=memory))
    assert fill.tensor is memory and fill.shape == (2, 4) and fill.boxes[0].first_index == 8
    assert fill.boxes[0].tensor.data_ptr() == memory[2:4].data_ptr()


def test_what_nobody_owns_is_called_by_its_stream() -> None:
    memory = torch.zeros(4)
    fill = filled(pending(memory), owners())
    assert fill.name == "#0" and fill.stream == ""


def test_a_fill_of_memory_that_is_gone_is_none() -> None:
    memory = torch.zeros(4)
    each = pending(memory)
    del memory
    assert fill_for(each, owners()) is None


# --- what later fills leave -------------------------------------------------------------------------------------------


def stretches(fill: Fill) -> list[tuple[int, int]]:
    return [(box.first_index, box.tensor.numel()) for box in fill.boxes]


def test_later_fills_are_cut_away() -> None:
    memory = torch.zeros(6, 4)
    fill = filled(pending(memory), owners(w=memory), [memory[1], memory[3:5]])
    assert stretches(fill) == [(0, 4), (8, 4), (20, 4)]
    assert [box.tensor.storage_offset() for box in fill.boxes] == [0, 8, 20]


def test_later_fills_are_cut_away_from_a_part_where_it_stands() -> None:
    memory = torch.zeros(6, 4)
    fill = filled(pending(memory[2:5]), owners(w=memory), [memory[3]])
    assert stretches(fill) == [(8, 4), (16, 4)]
    assert [box.tensor.storage_offset() for box in fill.boxes] == [8, 16]


def test_a_later_fill_is_cut_away_to_its_last_byte() -> None:
    memory = torch.zeros(8)
    half_of_one = memory.view(torch.float16)[:5]
    assert stretches(filled(pending(memory), owners(w=memory), [half_of_one])) == [(3, 5)]


def test_a_later_fill_with_gaps_is_not_cut_away() -> None:
    memory = torch.zeros(6, 4)
    assert stretches(filled(pending(memory), owners(w=memory), [memory[:, 1]])) == [(0, 24)]


def test_nothing_is_cut_from_memory_in_another_order() -> None:
    memory = torch.zeros(4, 6).t()
    assert stretches(filled(pending(memory), owners(w=memory), [memory[:, 1]])) == [(0, 24)]


def test_nothing_is_cut_from_numbers_in_another_order() -> None:
    memory = torch.zeros(3, 4)
    each = pending(memory)
    each.stream = Stream("v", Strided(0, (3, 4), (1, 3)), True)
    assert stretches(filled(each, owners(w=memory), [memory[1]])) == [(0, 12)]


def test_a_fill_that_later_ones_cover_together_is_none() -> None:
    memory = torch.zeros(6, 4)
    assert fill_for(pending(memory), owners(w=memory), [place(memory[:3]), place(memory[3:])]) is None


def test_a_fill_without_elements_is_still_one() -> None:
    memory = torch.zeros(0, 4)
    assert filled(pending(memory, Constant(1)), owners()).tensor.numel() == 0


def test_only_what_was_requested_later_is_cut_away() -> None:
    book, memory = MemoryBook(), torch.zeros(6, 4)
    at = [book.place_of(tensor) for tensor in (memory[0], memory, memory[1])]
    for each in at:
        assert each is not None
        book.add(each, DRAW, SCOPE, "", "", state=State.PENDING)
    found = dict(fills_for(book.fills(), book, owners(w=memory)))
    assert [stretches(fill) for fill in found.values()] == [[(0, 4), (8, 16)], [(4, 4)]]
