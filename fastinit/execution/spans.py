"""An interval map: values by the spans of bytes that they are for.

Spans may overlap, nest and be empty. They are kept in classes by length, each class sorted by where its spans begin:
whatever touches a span begins in it, or before it by no more than the longest of a class. So a question costs a binary
search for each class (a storage's spans have few lengths, and never more than 64 classes) and its answers, among a
thousand rows or a million. A span that is no answer is looked at only where it ends less than its own length before the
question begins. Nearly every storage has one or two spans; those are a plain list.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")

# With more, looking at each costs more than searching in classes.
_FEW = 8
_by_number = itemgetter(1)


class Spans(Generic[Value]):
    """Finds values by spans, those that were added first before the others."""

    __slots__ = ("_classes", "_few", "_n_added", "_numbered")

    def __init__(self) -> None:
        self._few: list[Any] = []
        """Start, end and value of each, one behind the other: one object for Python's cycle collector to look at."""
        # (start, number, end, value). Numbers count what was added: no two are equal, so values are never compared.
        self._classes: dict[int, list[tuple[int, int, int, Value]]] | None = None
        """The greatest length in a class -> its spans, sorted; None as long as there are few."""
        self._numbered: dict[int, Value] | None = None
        """All values of the classes, in order."""
        self._n_added = 0

    def __bool__(self) -> bool:
        return bool(self._few or self._classes)

    @property
    def are_few(self) -> bool:
        """Whether looking at all of them costs as little as asking for some."""
        return self._classes is None

    def __iter__(self) -> Iterator[Value]:
        """Yields all values in order."""
        return iter(self._few[2::3] if self._numbered is None else list(self._numbered.values()))

    def __reversed__(self) -> Iterator[Value]:
        """Yields all values, the latest first; the map must stay as it is meanwhile."""
        return reversed(self._few[2::3] if self._numbered is None else self._numbered.values())

    def is_only(self, value: Value) -> bool:
        """Tells whether a value that was added is the only one."""
        return len(self._few) == 3 and self._few[2] is value

    def add(self, start: int, end: int, value: Value) -> None:
        """Adds a value for the bytes from ``start`` up to ``end``, which is not one of them."""
        if self._classes is not None:
            self._put(start, end, value)
            return
        self._few += start, end, value
        if len(self._few) > 3 * _FEW:
            few, self._few, self._classes, self._numbered = self._few, [], {}, {}
            for each in zip(few[0::3], few[1::3], few[2::3]):
                self._put(*each)

    def _put(self, start: int, end: int, value: Value) -> None:
        assert self._classes is not None and self._numbered is not None
        self._n_added += 1
        insort(self._classes.setdefault(_greatest(start, end), []), (start, self._n_added, end, value))
        self._numbered[self._n_added] = value

    def _among_few(self) -> Iterable[tuple[int, int, Value]]:
        return zip(self._few[0::3], self._few[1::3], self._few[2::3])

    def meeting(self, start: int, end: int) -> list[Value]:
        """Returns the values whose spans have a byte in common with one, or are empty and lie inside it."""
        if len(few := self._few) == 3:  # as nearly always
            return [few[2]] if few[0] < end and start < few[1] else []
        if self._classes is None:
            return [value for low, high, value in self._among_few() if low < end and start < high]
        found: list[tuple[int, int, int, Value]] = []
        for greatest, spans in self._classes.items():
            first, last = _range(spans, start - greatest, end - 1)
            found += [each for each in spans[first:last] if start < each[2]]
        found.sort(key=_by_number)
        return [each[3] for each in found]

    def holding(self, start: int, end: int) -> list[Value]:
        """Returns the values whose spans hold all of one."""
        if self._classes is None:
            return [value for low, high, value in self._among_few() if low <= start and end <= high]
        found: list[tuple[int, int, int, Value]] = []
        for greatest, spans in self._classes.items():
            first, last = _range(spans, end - greatest, start)
            found += [each for each in spans[first:last] if end <= each[2]]
        found.sort(key=_by_number)
        return [each[3] for each in found]

    def take_within(self, start: int, end: int, is_taken: Callable[[Value], bool]) -> list[Value]:
        """Removes the values whose spans lie in one and for which ``is_taken`` holds; returns them."""
        if self._classes is None or self._numbered is None:
            return self._take_of_few(start, end, is_taken)
        taken: list[tuple[int, int, int, Value]] = []

        def stays(span: tuple[int, int, int, Value]) -> bool:
            if span[2] <= end and is_taken(span[3]):
                taken.append(span)
                return False
            return True

        for greatest, spans in list(self._classes.items()):
            if greatest > 2 * (end - start):  # the least length in the class is half of that
                continue
            first, last = _range(spans, start, end)
            spans[first:last] = [each for each in spans[first:last] if stays(each)]
            if not spans:
                del self._classes[greatest]
        for _, number, _, _ in taken:
            del self._numbered[number]
        if not self._classes:
            self._classes = self._numbered = None
        return [each[3] for each in taken]

    def _take_of_few(self, start: int, end: int, is_taken: Callable[[Value], bool]) -> list[Value]:
        taken: list[Value] = []
        kept: list[Any] = []
        for low, high, value in self._among_few():
            if start <= low and high <= end and is_taken(value):
                taken.append(value)
            else:
                kept += low, high, value
        self._few = kept
        return taken

    def replace(self, start: int, end: int, old: Value, new: Value) -> None:
        """Puts a value in the place of another one, which was added for exactly this span."""
        if self._classes is None or self._numbered is None:
            self._few[next(at for at in range(2, len(self._few), 3) if self._few[at] is old)] = new
            return
        spans = self._classes[_greatest(start, end)]
        at = bisect_left(spans, (start,))  # type: ignore[arg-type]
        while spans[at][3] is not old:
            at += 1
        number = spans[at][1]
        spans[at] = start, number, end, new
        self._numbered[number] = new


def _greatest(start: int, end: int) -> int:
    """Returns the greatest length in the class of a span: one less than a power of two."""
    return int((1 << (end - start).bit_length()) - 1)


def _range(spans: list[tuple[int, int, int, Value]], low: int, high: int) -> tuple[int, int]:
    """Returns which of sorted spans begin at ``low`` to ``high``, both included: the first, and behind the last."""
    first = bisect_left(spans, (low,))  # type: ignore[arg-type]
    return first, bisect_left(spans, (high + 1,), first)  # type: ignore[arg-type]
