"""An interval map: values by the spans of bytes that they are for.

Spans may overlap, nest and be empty. They are kept in classes by length, each class sorted by where its spans begin:
whatever touches a span begins in it, or before it by no more than the longest of a class. So a question costs a binary
search for each class (a storage's spans have few lengths, and never more than 64 classes) and its answers, among a
thousand rows or a million. A span that is no answer is looked at only where it ends less than its own length before the
question begins. Nearly every storage has one or two spans; those are a plain list.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Generic, TypeVar

Value = TypeVar("Value")

# With more, looking at each costs more than searching in classes.
_FEW = 8
_by_number = itemgetter(1)


class Spans(Generic[Value]):
    """Finds values by spans, those that were added first before the others."""

    __slots__ = ("_classes", "_few", "_n_added", "_numbered")

    def __init__(self) -> None:
        # (start, number, end, value). Numbers count what was added: no two are equal, so values are never compared.
        self._few: list[tuple[int, int, int, Value]] = []
        self._classes: dict[int, list[tuple[int, int, int, Value]]] | None = None
        """The greatest length in a class -> its spans, sorted; None as long as there are few."""
        self._numbered: dict[int, Value] = {}
        """All values of the classes, in order."""
        self._n_added = 0

    def __bool__(self) -> bool:
        return bool(self._few or self._numbered)

    def __iter__(self) -> Iterator[Value]:
        """Yields all values in order."""
        return iter([each[3] for each in self._few] if self._classes is None else list(self._numbered.values()))

    def __reversed__(self) -> Iterator[Value]:
        """Yields all values, the latest first; the map must stay as it is meanwhile."""
        return (each[3] for each in reversed(self._few)) if self._classes is None else reversed(self._numbered.values())

    def add(self, start: int, end: int, value: Value) -> None:
        """Adds a value for the bytes from ``start`` up to ``end``, which is not one of them."""
        self._n_added += 1
        span = start, self._n_added, end, value
        if self._classes is not None:
            self._put(span)
            return
        self._few.append(span)
        if len(self._few) > _FEW:
            spans, self._few, self._classes = self._few, [], {}
            for each in spans:
                self._put(each)

    def _put(self, span: tuple[int, int, int, Value]) -> None:
        assert self._classes is not None
        start, number, end, value = span
        insort(self._classes.setdefault(_greatest(start, end), []), span)
        self._numbered[number] = value

    def meeting(self, start: int, end: int) -> list[Value]:
        """Returns the values whose spans have a byte in common with one, or are empty and lie inside it."""
        if self._classes is None:
            return [each[3] for each in self._few if each[0] < end and start < each[2]]
        found: list[tuple[int, int, int, Value]] = []
        for greatest, spans in self._classes.items():
            first, last = _range(spans, start - greatest, end - 1)
            found += [each for each in spans[first:last] if start < each[2]]
        found.sort(key=_by_number)
        return [each[3] for each in found]

    def holding(self, start: int, end: int) -> list[Value]:
        """Returns the values whose spans hold all of one."""
        if self._classes is None:
            return [each[3] for each in self._few if each[0] <= start and end <= each[2]]
        found: list[tuple[int, int, int, Value]] = []
        for greatest, spans in self._classes.items():
            first, last = _range(spans, end - greatest, start)
            found += [each for each in spans[first:last] if end <= each[2]]
        found.sort(key=_by_number)
        return [each[3] for each in found]

    def take_within(self, start: int, end: int, is_taken: Callable[[Value], bool]) -> list[Value]:
        """Removes the values whose spans lie in one and for which ``is_taken`` holds; returns them."""
        taken: list[tuple[int, int, int, Value]] = []

        def stays(span: tuple[int, int, int, Value]) -> bool:
            if start <= span[0] and span[2] <= end and is_taken(span[3]):
                taken.append(span)
                return False
            return True

        if self._classes is None:
            self._few = [each for each in self._few if stays(each)]
            return [each[3] for each in taken]
        for greatest, spans in list(self._classes.items()):
            if greatest > 2 * (end - start):  # the least length in the class is half of that
                continue
            first, last = _range(spans, start, end)
            spans[first:last] = [each for each in spans[first:last] if stays(each)]
            if not spans:
                del self._classes[greatest]
        for _, number, _, _ in taken:
            del self._numbered[number]
        self._classes = self._classes or None
        return [each[3] for each in taken]

    def replace(self, start: int, end: int, old: Value, new: Value) -> None:
        """Puts a value in the place of another one, which was added for exactly this span."""
        spans, at = self._few, 0
        if self._classes is not None:
            spans = self._classes[_greatest(start, end)]
            at = bisect_left(spans, (start,))  # type: ignore[arg-type]
        while spans[at][3] is not old:
            at += 1
        number = spans[at][1]
        spans[at] = start, number, end, new
        if self._classes is not None:
            self._numbered[number] = new


def _greatest(start: int, end: int) -> int:
    """Returns the greatest length in the class of a span: one less than a power of two."""
    return int((1 << (end - start).bit_length()) - 1)


def _range(spans: list[tuple[int, int, int, Value]], low: int, high: int) -> tuple[int, int]:
    """Returns which of sorted spans begin at ``low`` to ``high``, both included: the first, and behind the last."""
    first = bisect_left(spans, (low,))  # type: ignore[arg-type]
    return first, bisect_left(spans, (high + 1,), first)  # type: ignore[arg-type]
