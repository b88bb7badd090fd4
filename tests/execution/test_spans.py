"""The interval map: the same answers as a plain list gives, and how much is looked at for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinit.execution.spans import Spans

Span = tuple[int, int]


@dataclass
class Naive:
    """What ``Spans`` does, by looking at all."""

    found: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, start: int, end: int, value: int) -> None:
        self.found.append((start, end, value))

    def meeting(self, start: int, end: int) -> list[int]:
        return [value for low, high, value in self.found if low < end and start < high]

    def holding(self, start: int, end: int) -> list[int]:
        return [value for low, high, value in self.found if low <= start and end <= high]

    def take_within(self, start: int, end: int, is_taken: Callable[[int], bool]) -> list[int]:
        within = [value for low, high, value in self.found if start <= low and high <= end]
        taken = [value for value in within if is_taken(value)]
        self.found = [each for each in self.found if each[2] not in taken]
        return taken

    def replace(self, start: int, end: int, old: int, new: int) -> None:
        self.found = [(low, high, new if value == old else value) for low, high, value in self.found]


# Short ones among which many are equal, adjacent, nested or empty; and some that are far apart and long.
SPAN = st.one_of(
    st.tuples(st.integers(0, 40), st.integers(0, 12)),
    st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 41)),
).map(lambda each: (each[0], each[0] + each[1]))
STEP = st.tuples(st.sampled_from(["add", "add", "add", "add", "take", "replace"]), SPAN, st.integers(0, 3))


def replayed(steps: Sequence[tuple[str, Span, int]]) -> tuple[Spans[int], Naive]:
    """Returns both after the same steps, whose answers are compared."""
    spans, naive = Spans[int](), Naive()
    for number, (step, (start, end), some) in enumerate(steps):
        if step == "add":
            spans.add(start, end, number)
            naive.add(start, end, number)
        elif step == "take":

            def is_taken(value: int, some: int = some) -> bool:
                return value % 4 != some

            assert set(spans.take_within(start, end, is_taken)) == set(naive.take_within(start, end, is_taken))
        elif naive.found:
            low, high, old = naive.found[some % len(naive.found)]
            new = -number
            spans.replace(low, high, old, new)
            naive.replace(low, high, old, new)
    return spans, naive


@given(st.lists(STEP, max_size=60), SPAN)
def test_what_meets_a_span_is_what_a_list_would_give(steps: list[tuple[str, Span, int]], asked: Span) -> None:
    spans, naive = replayed(steps)
    assert spans.meeting(*asked) == naive.meeting(*asked)


@given(st.lists(STEP, max_size=60), SPAN)
def test_what_holds_a_span_is_what_a_list_would_give(steps: list[tuple[str, Span, int]], asked: Span) -> None:
    spans, naive = replayed(steps)
    assert spans.holding(*asked) == naive.holding(*asked)


@given(st.lists(STEP, max_size=60))
def test_all_values_are_listed_in_the_order_in_which_they_were_added(steps: list[tuple[str, Span, int]]) -> None:
    spans, naive = replayed(steps)
    assert list(spans) == [value for _, _, value in naive.found]


@given(st.lists(STEP, max_size=60))
def test_a_map_is_true_while_it_holds_anything(steps: list[tuple[str, Span, int]]) -> None:
    spans, naive = replayed(steps)
    assert bool(spans) is bool(naive.found)


@given(st.lists(SPAN, min_size=20, max_size=40))
def test_a_map_that_was_emptied_takes_spans_again(added: list[Span]) -> None:
    spans = Spans[int]()
    for _ in range(2):
        for number, (start, end) in enumerate(added):
            spans.add(start, end, number)
        assert len(spans.take_within(0, 1 << 42, lambda value: True)) == len(added)
        assert not spans


class Counted(int):
    """A number that counts how often it is compared."""

    comparisons: ClassVar[int] = 0

    def _counted(name: str) -> Callable[[int, int], bool]:  # type: ignore[misc]
        def compare(self: int, other: int) -> bool:
            Counted.comparisons += 1
            return bool(getattr(int, name)(self, other))

        return compare

    __lt__, __le__, __gt__, __ge__ = map(_counted, ("__lt__", "__le__", "__gt__", "__ge__"))  # type: ignore[assignment]
    __eq__ = _counted("__eq__")  # type: ignore[assignment]
    __hash__ = int.__hash__


def rows(n: int, length: int = 64) -> list[Span]:
    return [(Counted(at * length), Counted((at + 1) * length)) for at in range(n)]


def comparisons_of_asking(added: Sequence[Span], asked: Sequence[Span]) -> float:
    """Returns how many comparisons each question takes."""
    spans = Spans[int]()
    for number, (start, end) in enumerate(added):
        spans.add(start, end, number)
    Counted.comparisons = 0
    for span in asked:
        assert spans.meeting(*span) and spans.holding(*span)
    return Counted.comparisons / (2 * len(asked))


@pytest.mark.parametrize("whole", [[], [(Counted(0), Counted(64 << 12))]], ids=["rows", "rows of a whole"])
def test_asking_for_one_of_many_rows_looks_at_few(whole: list[Span]) -> None:
    added = rows(4096)
    assert comparisons_of_asking(whole + added, added) < 100


def test_asking_for_one_of_few_looks_at_these_only() -> None:
    assert comparisons_of_asking(rows(1), rows(1)) <= 2


def test_adding_in_order_takes_as_many_comparisons_as_a_search() -> None:
    spans = Spans[int]()
    Counted.comparisons = 0
    for number, (start, end) in enumerate(rows(4096)):
        spans.add(start, end, number)
    assert Counted.comparisons < 4096 * 30


def test_taking_one_of_many_rows_looks_at_few() -> None:
    spans = Spans[int]()
    for number, (start, end) in enumerate(rows(4096)):
        spans.add(start, end, number)
    Counted.comparisons = 0
    for number, (start, end) in enumerate(rows(4096)):
        assert spans.take_within(start, end, lambda value, number=number: value == number) == [number]  # type: ignore[misc]
    assert Counted.comparisons < 4096 * 100


def test_a_span_is_found_by_its_last_byte() -> None:
    spans = Spans[int]()
    for number in range(20):
        spans.add(100 * number, 100 * number + 63, number)  # the greatest length of its class
    assert [spans.meeting(100 * at + 62, 100 * at + 63) for at in range(20)] == [[at] for at in range(20)]
