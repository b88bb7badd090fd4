"""The memory book: what of the writes to a storage still shows, and who is told of them."""

from __future__ import annotations

import threading
from typing import Any

import needs
import pytest
import torch
from torch.overrides import TorchFunctionMode

from fastinit.execution import memory_book
from fastinit.execution.done import Done
from fastinit.execution.ledger import Ledger
from fastinit.execution.memory_book import MemoryBook
from fastinit.execution.places import Place
from fastinit.execution.scope import Scope
from fastinit.execution.writes import PendingFill, State, Stream
from fastinit.plans import Constant, Distribution, Normal, Strided

SCOPE = Scope(None, None)
DRAW = Normal(0, 1)


class Book(MemoryBook):
    """A book, and one storage of 24 floats to write to."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = torch.zeros(24)

    def at(self, part: Any = slice(None)) -> Place:
        """Returns a part of the storage, as indices of a matrix of 6 rows of 4."""
        place = self.place_of(self.tensor.view(6, 4)[part])
        assert place is not None
        return place

    def fill(self, part: Any = slice(None), values: Distribution = DRAW, state: State = State.PENDING) -> PendingFill:
        return self.add(self.at(part), values, SCOPE, "rule", "info", state=state)


@pytest.fixture
def book() -> Book:
    return Book()


# --- fills over fills -------------------------------------------------------------------------------------------------


def test_a_fill_replaces_what_it_covers(book: Book) -> None:
    book.fill(1)
    whole = book.fill()
    assert book.fills() == [whole]


def test_a_fill_leaves_what_it_covers_in_part(book: Book) -> None:
    whole, row = book.fill(), book.fill(1)
    assert book.fills() == [whole, row]


def test_a_fill_that_is_covered_leaves_the_draw_that_it_shares(book: Book) -> None:
    first, second = book.fill(0), book.fill(1)
    first.share_with(second)
    assert list(second.sharing) == [first, second]
    book.fill(slice(0, 1))
    assert list(second.sharing) == [second]


def test_fills_of_a_shared_draw_have_one_stream(book: Book) -> None:
    first, second, third = book.fill(0), book.fill(1), book.fill(2)
    first.stream = stream = Stream("w", Strided.whole((4,)), True)
    first.share_with(second)
    assert second.stream == stream
    second.share_with(third)
    third.stream = other = stream._replace(name="v")
    assert first.stream == other


def test_fills_are_listed_in_the_order_of_their_requests_over_all_storages(book: Book) -> None:
    other = torch.zeros(4)
    place = book.place_of(other)
    assert place is not None
    first = book.fill(0)
    second = book.add(place, DRAW, SCOPE, "", "")
    third = book.fill(1)
    assert book.fills() == [first, second, third]


def test_only_fills_that_have_not_run_are_pending(book: Book) -> None:
    book.fill(0, state=State.RUN)
    waits = book.fill(1)
    assert book.pending() == [waits] == book.pending(book.at(3))


def test_fills_of_memory_that_is_gone_are_dropped_and_leave_their_draws(book: Book) -> None:
    gone = torch.zeros(4)
    place = book.place_of(gone)
    assert place is not None
    kept = book.fill(0)
    kept.share_with(book.add(place, DRAW, SCOPE, "", ""))
    del gone
    assert book.fills() == [kept]
    assert book.pending() == [kept] and list(kept.sharing) == [kept]


def test_a_book_forgets_memory_that_is_gone_while_fills_go_on(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_book, "_PURGE_EVERY", 10)
    for _ in range(100):
        place = book.place_of(torch.zeros(4))
        assert place is not None
        book.add(place, DRAW, SCOPE, "", "")
    assert len(book._storages) <= 10


# --- other writes -----------------------------------------------------------------------------------------------------


def test_a_write_over_a_part_of_a_run_fill_makes_the_rest_a_write_too(book: Book) -> None:
    book.fill(state=State.RUN)
    book.wrote(book.at(1), "code", False)
    assert book.fills() == [] and [(each.info, each.is_random) for each in book.others_at(book.at())] == [
        ("info", True),
        ("code", False),
    ]


def test_what_is_left_of_a_constant_is_not_random(book: Book) -> None:
    book.fill(values=Constant(1), state=State.RUN)
    book.wrote(book.at(1), "code", True)
    assert [each.is_random for each in book.others_at(book.at())] == [False, True]


def test_a_fill_that_is_broken_by_a_write_leaves_the_draw_that_it_shares(book: Book) -> None:
    first, second = book.fill(slice(0, 2), state=State.RUN), book.fill(5, state=State.RUN)
    first.share_with(second)
    book.wrote(book.at(1), "code", False)
    assert list(second.sharing) == [second]


def test_a_write_leaves_a_pending_fill_around_it(book: Book) -> None:
    fill = book.fill()
    book.wrote(book.at(1), "code", False)
    assert book.pending() == [fill]


def test_a_write_leaves_run_fills_beside_it(book: Book) -> None:
    beside = book.fill(0, state=State.RUN)
    book.wrote(book.at(1), "code", False)
    assert book.fills() == [beside]


def test_a_write_replaces_what_it_covers(book: Book) -> None:
    book.fill(1)
    book.wrote(book.at(), "code", False)
    assert [each.info for each in book.writes_at(book.at())] == ["code"]


def test_writes_elsewhere_in_the_storage_do_not_show_in_a_place(book: Book) -> None:
    book.fill(1)
    assert book.writes_at(book.at(0)) == []


# --- who gave a place its values --------------------------------------------------------------------------------------


def test_the_current_fill_is_of_exactly_that_place(book: Book) -> None:
    fill = book.fill(1)
    assert book.current(book.at(1)) is fill and book.current(book.at(slice(1, 3))) is None


def test_there_is_no_current_fill_after_another_write_to_a_part(book: Book) -> None:
    fill = book.fill()
    book.wrote(book.at(1), "code", False)
    assert book.fills_at(book.at()) == [fill] and book.current(book.at()) is None


def test_there_is_no_current_fill_under_another_write_that_came_first(book: Book) -> None:
    book.wrote(book.at((slice(None), 1)), "code", False)
    book.add(book.at((slice(None), 1)), DRAW, SCOPE, "", "")
    assert book.current(book.at((slice(None), 1))) is None  # it has gaps: what lies there is not known


def test_all_of_a_place_are_the_fills_within_it(book: Book) -> None:
    first, second = book.fill(0), book.fill(1)
    assert book.all_of(book.at(slice(0, 2))) == [first, second]


def test_a_fill_that_reaches_beyond_a_place_is_not_all_of_it(book: Book) -> None:
    book.fill()
    assert book.all_of(book.at(0)) is None


def test_fills_are_not_all_of_a_place_that_something_else_wrote(book: Book) -> None:
    book.wrote(book.at(1), "code", False)
    book.fill(0)
    assert book.all_of(book.at(slice(0, 2))) is None


def test_a_place_with_gaps_has_no_list_of_fills(book: Book) -> None:
    book.fill((slice(None), 1))
    assert book.all_of(book.at((slice(None), 1))) is None


# --- who may read, and what is written --------------------------------------------------------------------------------


def test_memory_is_exposed_once_its_address_is_given_out(book: Book) -> None:
    assert not book.is_exposed(book.at())
    book.expose(book.at(1))
    assert book.is_exposed(book.at(5))


@needs.mark(needs.torch_from(2, 2))  # before, torch does not tell
def test_memory_of_numpy_is_exposed(book: Book) -> None:
    place = book.place_of(torch.from_numpy(torch.zeros(3).numpy().copy()))
    assert place is not None and not book.is_exposed(place)  # gone by now
    kept = torch.from_numpy(torch.zeros(3).numpy().copy())
    place = book.place_of(kept)
    assert place is not None and book.is_exposed(place)


def test_fresh_memory_is_marked_when_it_is_exposed(book: Book) -> None:
    book.is_new(book.at())
    book.expose(book.at())
    assert not book.is_written(book.at())
    book.tensor[3] = 1
    assert book.is_written(book.at())


def test_memory_that_was_there_before_is_not_marked(book: Book) -> None:
    book.expose(book.at())
    assert (book.tensor == 0).all()


def test_fresh_memory_with_values_is_not_marked(book: Book) -> None:
    book.is_new(book.at())
    book.wrote(book.at(1), "code", False)
    book.expose(book.at())
    assert (book.tensor == 0).all()


def test_memory_is_marked_once(book: Book) -> None:
    book.is_new(book.at())
    book.expose(book.at())
    book.tensor[3] = 1
    book.expose(book.at())
    assert book.tensor[3] == 1


def test_a_place_is_written_once_all_of_its_elements_are(book: Book) -> None:
    book.fill((slice(None), 0))
    book.fill((slice(None), slice(1, 3)))
    assert not book.is_written(book.at())
    book.wrote(book.at((slice(None), 3)), "code", False)
    assert book.is_written(book.at())


def test_a_place_is_not_written_by_a_part_in_another_dtype(book: Book) -> None:
    half = book.place_of(book.tensor.view(torch.float16)[:24])
    assert half is not None
    book.add(half, DRAW, SCOPE, "", "")
    assert not book.is_written(book.at())


def test_a_place_without_elements_needs_no_write(book: Book) -> None:
    assert book.is_written(book.at(slice(0, 0)))


# --- pauses and the ledger --------------------------------------------------------------------------------------------


def test_a_pause_ends_where_the_outer_one_does(book: Book) -> None:
    with book.paused():
        with book.paused():
            pass
        assert book.is_paused
    assert not book.is_paused


def test_a_pause_is_of_one_thread_only(book: Book) -> None:
    seen: list[bool] = []
    with book.paused():
        thread = threading.Thread(target=lambda: seen.append(book.is_paused))
        thread.start()
        thread.join()
    assert seen == [False]


def test_modes_of_the_user_see_nothing_of_a_pause(book: Book) -> None:
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    with Mode(), book.paused():
        _ = book.tensor.shape
    assert seen == []


def attributed(book: Book) -> tuple[Ledger, torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Returns a ledger of two parameters that are the first and the last row of the book's storage."""
    first, last = torch.nn.Parameter(book.tensor[:4]), torch.nn.Parameter(book.tensor[20:])
    return Ledger({first: "first", last: "last"}, ""), first, last, torch.nn.Module()


def test_a_ledger_is_told_of_fills_and_writes_and_changes(book: Book) -> None:
    ledger, first, last, module = attributed(book)
    with ledger.attributing(module, "fill", book.sensing):
        fill = book.fill(0)
    assert ledger.written == {first} and ledger[first]["init_info"] == "fill"
    with ledger.attributing(module, "write", book.sensing):
        book.wrote(book.at(5), "code", False)
    assert ledger.written == {first, last}
    assert (ledger[first]["init_info"], ledger[last]["init_info"]) == ("fill", "write")
    with ledger.attributing(module, "change", book.sensing):
        book.touch(fill.place)
    assert ledger[first]["init_info"] == "change" and ledger[last]["init_info"] == "write"


def test_a_ledger_is_told_of_nothing_after_its_block(book: Book) -> None:
    ledger, _, _, module = attributed(book)
    with ledger.attributing(module, "code", book.sensing):
        pass
    book.fill(0)
    assert ledger.written == set()


def test_a_ledger_within_another_gives_way_to_that_again(book: Book) -> None:
    outer, inner = attributed(book), attributed(book)
    with outer[0].attributing(outer[3], "outer", book.sensing):
        with inner[0].attributing(inner[3], "inner", book.sensing):
            pass
        book.fill(0)
    assert outer[0].written == {outer[1]} and inner[0].written == set()


def test_a_ledger_finds_a_parameter_that_has_moved_within_its_storage(book: Book) -> None:
    ledger, first, last, module = attributed(book)
    with ledger.attributing(module, "nothing", book.sensing):
        pass
    first.data = book.tensor[8:12]
    ledger.record(first, "moved")
    with ledger.attributing(module, "fill", book.sensing):
        book.fill(2)
    assert ledger[first]["init_info"] == "fill" and last not in ledger.written


def test_a_parameter_with_other_memory_of_its_storage_is_attributed_to_the_code_that_ran(book: Book) -> None:
    ledger, first, _, module = attributed(book)
    module.first = first
    with ledger.attributing(module, "code", book.sensing):
        first.data = book.tensor[8:12]
    assert ledger[first]["init_info"] == "code"


# --- many writes ------------------------------------------------------------------------------------------------------


def test_the_fills_of_a_storage_that_were_added_last_are_those_behind_an_order(book: Book) -> None:
    book.fill(0)
    order = book.n_writes
    book.wrote(book.at(1), "code", False)
    later = [book.fill(2), book.fill(3)]
    assert book.fills_in(book.at(), order) == later


def test_what_a_call_asked_for_is_what_of_it_still_shows(book: Book) -> None:
    call = Done(SCOPE, None)
    covered, kept, broken = (
        book.add(book.at(row), DRAW, SCOPE, "", "", asked_by=call, state=state)
        for row, state in ((0, State.PENDING), (1, State.PENDING), (slice(2, 4), State.RUN))
    )
    assert book.asked_by(call) == [covered, kept, broken]
    book.fill(0)
    book.wrote(book.at(2), "code", False)
    assert book.asked_by(call) == [kept]


def test_a_call_that_asked_for_nothing_has_no_fills(book: Book) -> None:
    book.fill(0)
    assert book.asked_by(Done(SCOPE, None)) == []


@pytest.mark.parametrize("n_rows", [3, 20])
def test_a_place_is_written_by_rows_without_a_gap(n_rows: int) -> None:
    book, tensor = MemoryBook(), torch.zeros(n_rows + 2, 4)
    places = [book.place_of(row) for row in (*tensor[1:-1], tensor[1:-1], tensor)]
    *rows, inside, whole = [place for place in places if place is not None]
    for at, row in enumerate(rows):
        assert not book.is_written(inside), at
        book.add(row, DRAW, SCOPE, "", "")
    assert book.is_written(inside) and not book.is_written(whole)
