"""From pending fills to fills: the parameter that holds a place, the stream of its numbers, what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..plans import Box, Fill, Strided, is_drawn, row_major
from ..shards.dtensor import PLAIN, boxes_of, is_sharded
from .memory_book import MemoryBook
from .places import Place
from .spans import Spans
from .writes import PendingFill, Stream


class Owner(NamedTuple):
    """The parameter or buffer that holds a place."""

    rank: int
    """Its position among the names."""
    name: str
    tensor: torch.Tensor
    place: Place


class Owners:
    """Finds the parameter or buffer that holds a place."""

    def __init__(self, named: Iterable[tuple[torch.Tensor, str]], book: MemoryBook, ordinal: Callable[[], str]) -> None:
        self.ordinal = ordinal
        """Returns ``#k``, the name of the next draw that has none."""
        self._all: list[Owner] = []
        self._first: dict[int, Owner] = {}
        """By storage, the first of it, which is nearly always the only one."""
        self._others: dict[int, Spans[Owner]] = {}
        """By storage, those that hold what none before them holds."""
        for rank, (tensor, name) in enumerate(named):
            place = book.place_of(tensor)
            if place is not None:
                self._all.append(owner := Owner(rank, name, tensor, place))
                if self._first.setdefault(place.storage_id, owner) is not owner and self.of(place) is None:
                    self._others.setdefault(place.storage_id, Spans()).add(place.start, place.end, owner)

    def of(self, place: Place) -> Owner | None:
        """Returns the first owner by name that holds all of the place."""
        first = self._first.get(place.storage_id)
        if first is None or (first.place.dtype == place.dtype and first.place.has_span_of(place)):
            return first
        others = self._others.get(place.storage_id)
        held = [] if others is None else others.holding(place.start, place.end)
        return next((owner for owner in held if owner.place.dtype == place.dtype), None)

    def __iter__(self) -> Iterator[Owner]:
        return iter(self._all)


def stream_of(pending: PendingFill, owners: Owners) -> Stream:
    """Returns the stream of a fill's draw: that of the first parameter by name that holds it, else an ordinal."""
    if pending.named is not None:
        return _stream_as_named(pending.named)
    stream = pending.stream
    if stream is None:
        best: tuple[int, Stream] | None = None
        for other in pending.sharing:
            owner = owners.of(other.place)
            index = None if owner is None else index_in(owner, other.place)
            if owner is not None and index is not None and (best is None or owner.rank < best[0]):
                best = owner.rank, Stream(owner.name, index, True)
        unnamed = Stream(owners.ordinal(), Strided.whole(pending.place.shape), False) if best is None else None
        pending.stream = stream = unnamed if best is None else best[1]  # type: ignore[assignment]
    assert stream is not None
    return stream


def _stream_as_named(fill: Fill) -> Stream:
    """Returns the stream of a fill that came with a name; a part of a parameter says itself where it stands."""
    if not fill.is_part:
        return Stream(fill.stream_name, Strided.whole(fill.shape), True)
    (box,) = fill.boxes
    return Stream(fill.stream_name, box.indices, True)


def fill_for(pending: PendingFill, owners: Owners, later: Sequence[Place] = ()) -> Fill | None:
    """Returns the fill that executes a pending one but for what is written ``later``; None if nothing is left of it."""
    place = pending.place
    named = pending.named
    if named is not None and not later and place.is_of(named.tensor):
        return named
    if named is not None and named.is_part:
        return _rest_of_part(pending, named, later)
    owner = owners.of(place)
    needs_stream = is_drawn(pending.distribution)
    stream = stream_of(pending, owners) if needs_stream else Stream("", Strided.whole(place.shape), True)
    is_owner = owner is not None and owner.place.geometry == place.geometry
    if owner is not None and is_owner:
        name, tensor = owner.name, owner.tensor
        if is_sharded(tensor):
            shape = tuple(tensor.shape)
            parts = tuple(_parts_left(boxes_of(tensor), place, tensor, later))
            return _fill(pending, name, tensor, shape, parts, stream._replace(indices=Strided.whole(shape)))
        if not later and stream.indices == Strided.whole(place.shape):
            return _fill(pending, name, tensor, place.shape, None, stream)
    view = place.view()
    if view is None:
        return None
    if owner is None or (is_sharded(owner.tensor) and not is_owner):
        name, tensor = stream.name, view
    else:
        name, tensor = owner.name, owner.tensor
    boxes = tuple(_boxes(place, tensor if is_owner else view, stream.indices, later))
    if not boxes and place.numel:
        return None
    return _fill(pending, name, tensor, place.shape, boxes, stream)


def _rest_of_part(pending: PendingFill, named: Fill, later: Sequence[Place]) -> Fill | None:
    """Returns what is left of the fill of a part of a parameter, where others write after it."""
    place = pending.place
    view = place.view()
    boxes = () if view is None else tuple(_boxes(place, view, _stream_as_named(named).indices, later))
    if not boxes and place.numel:
        return None
    how = dict(distribution=pending.distribution, rule=pending.rule, info=pending.info)
    return replace(named, parts=boxes, **how)  # type: ignore[arg-type]


def _fill(
    pending: PendingFill,
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    boxes: tuple[Box, ...] | None,
    stream: Stream,
) -> Fill:
    stream_name = "" if stream.name == name else stream.name
    seed = None if pending.named is None else pending.named.seed
    numbers = None if stream.indices == Strided.whole(shape) else stream.indices
    how = pending.distribution, pending.rule, pending.info
    return Fill(name, tensor, *how, shape, boxes, stream_name, seed, numbers)


def fills_for(pending: Iterable[PendingFill], book: MemoryBook, owners: Owners) -> Iterator[tuple[PendingFill, Fill]]:
    """Yields pending fills with the fills that execute them; what later ones overwrite is cut away where it can be."""
    for each in pending:
        fill = _whole_for(each, book, owners)
        if fill is not None:  # as of nearly all
            yield each, fill
            continue
        writes = book.writes_at(each.place)
        later = [write.place for write in writes if write.order > each.order and isinstance(write, PendingFill)]
        fill = fill_for(each, owners, later)
        if fill is not None:
            yield each, fill


def _whole_for(pending: PendingFill, book: MemoryBook, owners: Owners) -> Fill | None:
    """Returns the fill of a parameter that nothing else writes and whose numbers nobody shares; None for any other."""
    place = pending.place
    owner = owners.of(place)
    if owner is None or owner.place.memory != place.memory or owner.place.dtype != place.dtype:
        return None
    is_plain = type(owner.tensor) in PLAIN and pending.named is None and pending.draw is None
    if not is_plain or pending.stream is not None or not book.is_only_write(pending):
        return None
    shape = place.memory.shape
    if is_drawn(pending.distribution):
        pending.stream = Stream(owner.name, Strided.whole(shape), True)
    return Fill(owner.name, owner.tensor, pending.distribution, pending.rule, pending.info, shape)


def index_in(owner: Owner, place: Place) -> Strided | None:
    """Returns the row-major indices, in an owner, of the elements of a place; None if they are no part of it."""
    if is_sharded(owner.tensor):  # what is here of it, or nothing that could be called a part of the whole
        return Strided.whole(place.shape) if place.geometry == owner.place.geometry else None
    if place.memory == owner.place.memory:  # as nearly all are
        return Strided.whole(place.shape)
    return place.memory.within(owner.place.memory)


def _boxes(place: Place, target: torch.Tensor, indices: Strided, later: Sequence[Place]) -> Iterator[Box]:
    """Yields what is left of a place where others write after it: stretches of memory, as long as it is contiguous."""
    is_run = place.memory.in_order and indices.steps == row_major(place.shape)
    if not later or not is_run or not all(each.is_dense for each in later):
        yield Box(target, indices.first, indices.steps)
        return
    size = target.element_size()
    for stretch in place.memory.minus((each.start // size, -(-each.end // size)) for each in later):
        piece = place.view(stretch)
        assert piece is not None, "the caller holds the storage"
        yield Box(piece, indices.first + stretch[0] - place.memory.first, (1,))


def _parts_left(boxes: Sequence[Box], place: Place, tensor: torch.Tensor, later: Sequence[Place]) -> Iterable[Box]:
    """Yields what is left of the parts of a distributed tensor that are here, where others write after them."""
    if later and len(boxes) == 1 and tuple(boxes[0].tensor.shape[1:]) == tuple(tensor.shape[1:]):  # rows of the whole
        (box,) = boxes
        rows = Strided(box.first_index, place.shape, row_major(place.shape))
        return _boxes(place, box.tensor, rows, later)
    return boxes
