"""Fills that wait: what was asked for and is not written yet, storage by storage.

A later fill of the same bytes replaces an earlier one. A fill keeps hold of memory only weakly: one of a tensor that is
gone by the time it would run is never run. Random numbers belong to a ``Draw``, which gets its name (the key of its
stream) when it must be executed, as late as that: in a constructor no parameter has a name yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..plans import Box, Constant, Distribution, Fill, Strided, row_major
from ..shards.dtensor import boxes_of, is_sharded, local_part


class Place:
    """A strided view of a storage, without keeping the storage alive. Offsets and strides are in elements."""

    __slots__ = ("dtype", "end", "is_dense", "memory", "numel", "ref", "start")

    def __init__(self, tensor: torch.Tensor, ref: StorageWeakRef) -> None:
        self.ref = ref
        self.dtype = tensor.dtype
        self.memory = memory = Strided.of(tensor)
        self.numel = tensor.numel()
        size = tensor.element_size()
        self.start = memory.first * size
        """Of the first byte, in the storage."""
        span = memory.span
        self.end = self.start + span * size
        """Behind the last byte."""
        self.is_dense = span == self.numel and memory.is_dense

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.memory.shape

    @property
    def key(self) -> int:
        """The identity of the storage, for as long as ``ref`` is held."""
        return self.ref.cdata  # type: ignore[no-any-return]

    @property
    def geometry(self) -> tuple[torch.dtype, Strided]:
        """What two places of one storage have in common exactly where they are the same elements in the same order."""
        return self.dtype, self.memory

    def meets(self, other: Place) -> bool:
        """Tells whether the spans of bytes have one in common."""
        return self.start < other.end and other.start < self.end

    def covers(self, other: Place) -> bool:
        """Tells for sure that every byte of ``other`` is one of this place."""
        if self.is_dense:
            return self.start <= other.start and other.end <= self.end
        return self.geometry == other.geometry

    def view(self, flat: tuple[int, int] | None = None) -> torch.Tensor | None:
        """Returns a tensor on the place (or on ``flat``, a stretch of elements), None where the storage is gone."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self.ref.cdata)
        if storage is None:
            return None
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        if flat is None:
            return empty.set_(storage, *self.memory)  # type: ignore[call-overload, no-any-return]
        return empty.set_(storage, flat[0], (flat[1] - flat[0],), (1,))  # type: ignore[call-overload, no-any-return]


@dataclass(eq=False)
class Draw:
    """One set of random numbers; copies and multiples of a tensor share it."""

    entries: list[Entry] = field(default_factory=list)
    key: Key | None = None
    """Once it is known."""


class Key(NamedTuple):
    """Where the numbers of a draw stand in a stream."""

    name: str
    first_index: int
    steps: tuple[int, ...]
    is_name: bool
    """It is the name of a parameter or buffer, and not an ordinal."""


@dataclass(eq=False)
class Entry:
    """One fill that was asked for: it waits, or it was done and nothing else has written there since."""

    place: Place
    draw: Draw
    distribution: Distribution
    session: Any
    """Whose seed, names and backend it goes by."""
    order: int
    rule: str
    info: str
    origin: Any = None
    """The call that asked for it, a part of ``session``."""
    fill: Fill | None = None
    """As a rule asked for it, with its name."""
    is_done: bool = False
    is_told: bool = False
    """The report has it."""
    ran: Fill | None = None
    """As what it was executed."""
    chain: Any = None
    """In-place operations on a draw that may turn out to be a distribution when complete (``recording``)."""


class Owner(NamedTuple):
    """The parameter or buffer that holds a place."""

    rank: int
    """Its position among the names."""
    name: str
    tensor: torch.Tensor
    place: Place


@dataclass(eq=False)
class _Storage:
    ref: StorageWeakRef
    entries: list[Entry] = field(default_factory=list)
    foreign: list[tuple[Place, str, bool]] = field(default_factory=list)
    """(place, by what, whether random) of writes that are no fills."""
    is_exposed: bool = False
    """Somebody has an address of the memory: a write there must not wait."""
    is_fresh: bool = False
    """It holds nothing before it is filled."""
    is_marked: bool = False
    """Every byte was _UNTOUCHED when the memory was exposed."""


# Entries of temporary tensors cost a kilobyte each, and looking for those that are gone a microsecond for each storage.
_PURGE_EVERY = 4096
# Written into fresh memory before somebody gets its address, to see whether they wrote there. No float, bool or index
# is likely to consist of it.
_UNTOUCHED = 0xFB


class Deferred:
    """The fills of one outermost call, with what is known of the memory that they are for."""

    def __init__(self) -> None:
        self._storages: dict[int, _Storage] = {}
        self._n_entries = 0
        self.generation = 0
        """Counts what may have given parameters other memory or other names."""
        self.lock = threading.RLock()
        """Threads that are recorded together take turns."""
        self._paused_by: int | None = None

    @contextmanager
    def paused(self, subclasses: bool = False) -> Iterator[None]:
        """What this thread does in the block is fastinit's own work, and nobody watches it.

        Args:
            subclasses: tensors of classes with functions of their own are at work.
        """
        with self.lock, nullcontext() if subclasses else torch._C.DisableTorchFunction():
            before, self._paused_by = self._paused_by, threading.get_ident()
            try:
                yield
            finally:
                self._paused_by = before

    @property
    def is_paused(self) -> bool:
        """Whether what this thread does is fastinit's own work."""
        return self._paused_by == threading.get_ident()

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        """Returns where a tensor lies, None if it has no plain memory."""
        if is_sharded(tensor):
            tensor = local_part(tensor)
        if tensor.layout != torch.strided or is_traceable_wrapper_subclass(tensor) or is_lazy(tensor):
            return None
        try:
            storage = tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):
            return None
        known = self._storages.get(storage._cdata)
        return Place(tensor, known.ref if known is not None else StorageWeakRef(storage))  # type: ignore[no-untyped-call]

    def is_at(self, tensor: torch.Tensor, place: Place) -> bool:
        """Tells whether a tensor still has its memory where it had it (``p.data = ...`` gives it another)."""
        tensor = local_part(tensor) if is_sharded(tensor) else tensor
        return bool(tensor.untyped_storage()._cdata == place.key)

    def _storage(self, place: Place) -> _Storage:
        return self._storages.setdefault(place.key, _Storage(place.ref))

    # --- noting -------------------------------------------------------------------------------------------------------

    def add(
        self,
        place: Place,
        distribution: Distribution,
        session: Any,
        rule: str,
        info: str,
        *,
        draw: Draw | None = None,
        origin: Any = None,
        fill: Fill | None = None,
        is_done: bool = False,
        is_told: bool = False,
    ) -> Entry:
        """Notes a fill; what it covers is forgotten."""
        self.forget(place)
        if self._n_entries % _PURGE_EVERY == 0:
            self._purge()
        draw = Draw() if draw is None else draw
        entry = Entry(place, draw, distribution, session, self._n_entries, rule, info, origin, fill, is_done, is_told)
        self._n_entries += 1
        draw.entries.append(entry)
        self._storage(place).entries.append(entry)
        return entry

    def forget(self, place: Place) -> None:
        """Drops the fills and foreign writes that a place covers: the bytes are about to be overwritten."""
        storage = self._storages.get(place.key)
        if storage is None:
            return
        kept = []
        for entry in storage.entries:
            if place.covers(entry.place):
                _leave(entry)
            else:
                kept.append(entry)
        storage.entries = kept
        storage.foreign = [each for each in storage.foreign if not place.covers(each[0])]

    def wrote(self, place: Place, what: str, is_random: bool) -> None:
        """Notes a write that is no fill, to a place for which nothing waits any more."""
        self.forget(place)
        storage = self._storage(place)
        kept = []
        for entry in storage.entries:
            if entry.place.meets(place) and entry.is_done:
                # What is left of its values stays where it is, but they are no fill that could be repeated.
                storage.foreign.append((entry.place, entry.info, not isinstance(entry.distribution, Constant)))
                _leave(entry)
            else:
                kept.append(entry)
        storage.entries = kept
        storage.foreign.append((place, what, is_random))

    def expose(self, place: Place) -> None:
        """Notes that somebody got an address of the memory."""
        storage = self._storage(place)
        storage.is_exposed = True
        if storage.is_fresh and not (storage.is_marked or storage.entries or storage.foreign):
            _bytes_of(storage).fill_(_UNTOUCHED)
            storage.is_marked = True

    def is_new(self, place: Place) -> None:
        """Notes that memory was made just now and holds nothing."""
        self._storage(place).is_fresh = True

    def is_exposed(self, place: Place) -> bool:
        """Tells whether the memory may be read unseen: by an address, or as memory of numpy's or of another process."""
        storage = self._storages.get(place.key)
        if storage is not None and storage.is_exposed:
            return True
        memory = torch.UntypedStorage._new_with_weak_ptr(place.key)
        if memory is None:
            return False
        # torch before 2.2 does not tell; there memory of numpy's, made before the block, is taken for torch's own.
        return not memory.resizable() if hasattr(memory, "resizable") else memory.is_shared()

    # --- asking -------------------------------------------------------------------------------------------------------

    def current(self, place: Place) -> Entry | None:
        """Returns the fill that gave exactly this place its values, all of them, and was the last to write there."""
        storage = self._storages.get(place.key)
        if storage is None:
            return None
        touching = [entry for entry in storage.entries if entry.place.meets(place)]
        if not touching or touching[-1].place.geometry != place.geometry or not place.is_dense:
            return None
        # An earlier one may wait below it: a row within the whole, but never the other way round (`forget`).
        return None if any(other[0].meets(place) for other in storage.foreign) else touching[-1]

    def all_of(self, place: Place) -> list[Entry] | None:
        """Returns the fills that gave a dense place its values, in order; None where something else wrote there too."""
        storage = self._storages.get(place.key)
        if storage is None or not place.is_dense or any(other[0].meets(place) for other in storage.foreign):
            return None
        touching = [entry for entry in storage.entries if entry.place.meets(place)]
        return touching if all(place.covers(entry.place) for entry in touching) else None

    def waiting(self, place: Place | None = None) -> list[Entry]:
        """Returns the fills that wait (in the storage of a place), in order; those of dead memory are dropped."""
        if place is not None:
            storage = self._storages.get(place.key)
            return [] if storage is None else [entry for entry in storage.entries if not entry.is_done]
        self._purge()
        found = (entry for storage in self._storages.values() for entry in storage.entries if not entry.is_done)
        return sorted(found, key=lambda entry: entry.order)

    def _purge(self) -> None:
        """Forgets what was known of memory that is gone."""
        for key in [key for key, storage in self._storages.items() if _is_gone(storage)]:
            for entry in self._storages.pop(key).entries:
                _leave(entry)

    def entries_of(self, place: Place) -> list[Entry]:
        """Returns the fills in a place's storage that still hold, done or waiting, in order."""
        storage = self._storages.get(place.key)
        return [] if storage is None else [entry for entry in storage.entries if entry.place.meets(place)]

    def foreign_of(self, place: Place) -> list[tuple[str, bool]]:
        """Returns (by what, whether random) of the writes that are no fills and still show in a place."""
        storage = self._storages.get(place.key)
        return [] if storage is None else [(what, random) for at, what, random in storage.foreign if at.meets(place)]

    def entries(self) -> list[Entry]:
        """Returns all fills that hold, in memory that is alive, in order."""
        found = (e for storage in self._storages.values() if not _is_gone(storage) for e in storage.entries)
        return sorted(found, key=lambda entry: entry.order)

    def is_written(self, place: Place) -> bool:
        """Tells whether every element of a place has been written (or will be), as far as that was seen."""
        if place.numel == 0:
            return True
        storage = self._storages.get(place.key)
        if storage is None:
            return False
        places = [entry.place for entry in storage.entries] + [at for at, _, _ in storage.foreign]
        if any(each.covers(place) for each in places):
            return True
        if storage.is_marked and bool((_bytes_of(storage) != _UNTOUCHED).any()):
            return True
        touching = [each for each in places if each.meets(place) and each.dtype == place.dtype]
        if not touching:
            return False
        mask = torch.zeros(max(each.end for each in (*touching, place)), dtype=torch.bool, device="cpu")
        for each in touching:
            mask.as_strided(each.memory.shape, each.memory.steps, each.memory.first).fill_(True)
        return bool(mask.as_strided(place.memory.shape, place.memory.steps, place.memory.first).all())


def _bytes_of(storage: _Storage) -> torch.Tensor:
    memory = torch.UntypedStorage._new_with_weak_ptr(storage.ref.cdata)
    return torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory)  # type: ignore[call-overload, no-any-return]


def _is_gone(storage: _Storage) -> bool:
    return bool(storage.ref.expired())  # type: ignore[no-untyped-call]


def _leave(entry: Entry) -> None:
    entry.draw.entries = [other for other in entry.draw.entries if other is not entry]


# --- from entries to fills -------------------------------------------------------------------------------------------

OwnerOf = Callable[[Place], "Owner | None"]


def keyed(entry: Entry, owner_of: OwnerOf, ordinal: Callable[[], str]) -> Key:
    """Returns the key of an entry's draw: the first parameter by name that holds it, else an ordinal."""
    draw = entry.draw
    if draw.key is None:
        best: tuple[int, Key] | None = None
        for other in draw.entries:
            owner = owner_of(other.place)
            index = None if owner is None else index_in(owner, other.place)
            if owner is not None and index is not None and (best is None or owner.rank < best[0]):
                best = owner.rank, Key(owner.name, *index, True)
        draw.key = best[1] if best is not None else Key(ordinal(), 0, row_major(entry.place.shape), False)
    return draw.key


def index_in(owner: Owner, place: Place) -> tuple[int, tuple[int, ...]] | None:
    """Returns the row-major index in an owner of a place's first element, and what a step along each dimension adds."""
    if is_sharded(owner.tensor):  # what is here of it, or nothing that could be called a part of the whole
        return (0, row_major(place.shape)) if place.geometry == owner.place.geometry else None
    indices = place.memory.within(owner.place.memory)
    return None if indices is None else (indices.first, indices.steps)


def fills_of(
    entries: Iterable[Entry], deferred: Deferred, owner_of: OwnerOf, ordinal: Callable[[], str]
) -> Iterator[tuple[Entry, Fill]]:
    """Yields entries with the fills that execute them; what later ones overwrite is cut away where it can be."""
    for entry in entries:
        later = [
            other.place
            for other in deferred.entries_of(entry.place)
            if other.order > entry.order and other.place.meets(entry.place)
        ]
        fill = fill_of(entry, deferred, later, owner_of, ordinal)
        if fill is not None:
            yield entry, fill


def fill_of(
    entry: Entry, deferred: Deferred, later: Sequence[Place], owner_of: OwnerOf, ordinal: Callable[[], str]
) -> Fill | None:
    """Returns the fill that executes an entry but for what is written ``later``; None if nothing is left of it."""
    place = entry.place
    if entry.fill is not None and not later and deferred.is_at(entry.fill.tensor, place):
        return entry.fill
    view = place.view()
    if view is None:
        return None
    owner = owner_of(place)
    if isinstance(entry.distribution, Constant):
        key = Key("", 0, row_major(place.shape), True)
    elif entry.fill is not None:
        key = key_as_given(entry.fill)
    else:
        key = keyed(entry, owner_of, ordinal)
    name, tensor = (key.name, view) if owner is None else (owner.name, owner.tensor)
    target = view
    if owner is not None and owner.place.geometry == place.geometry:
        target = owner.tensor
    if owner is not None and is_sharded(owner.tensor):
        if target is tensor:
            stream = "" if key.name == name else key.name
            parts = tuple(_parts_left(boxes_of(tensor), place, tensor, later))
            return Fill(name, tensor, entry.distribution, entry.rule, entry.info, tuple(tensor.shape), parts, stream)
        name, tensor = key.name, view
    boxes = tuple(_boxes(place, target, key, later))
    if not boxes and place.numel:
        return None
    stream = "" if key.name == name else key.name
    return Fill(name, tensor, entry.distribution, entry.rule, entry.info, place.shape, boxes, stream)


def key_as_given(fill: Fill) -> Key:
    """Returns where the numbers of a fill stand that came with a name; a part of a parameter says so itself."""
    (box,) = fill.boxes if fill.is_part else (Box(fill.tensor, 0, row_major(fill.shape)),)
    return Key(fill.stream_name, box.first_index, box.steps, True)


def _boxes(place: Place, target: torch.Tensor, key: Key, later: Sequence[Place]) -> Iterator[Box]:
    """Yields what is left of a place where others write after it: stretches of memory, as long as it is contiguous."""
    is_run = place.memory.in_order and key.steps == row_major(place.shape)
    if not later or not is_run or not all(each.is_dense for each in later):
        yield Box(target, key.first_index, key.steps)
        return
    size = target.element_size()
    for stretch in place.memory.minus((each.start // size, -(-each.end // size)) for each in later):
        piece = place.view(stretch)
        assert piece is not None, "the caller holds the storage"
        yield Box(piece, key.first_index + stretch[0] - place.memory.first, (1,))


def _parts_left(boxes: Sequence[Box], place: Place, tensor: torch.Tensor, later: Sequence[Place]) -> Iterable[Box]:
    """Yields what is left of the parts of a distributed tensor that are here, where others write after them."""
    if later and len(boxes) == 1 and tuple(boxes[0].tensor.shape[1:]) == tuple(tensor.shape[1:]):  # rows of the whole
        (box,) = boxes
        return _boxes(place, box.tensor, Key("", box.first_index, row_major(place.shape), True), later)
    return boxes


class Owners:
    """Finds the parameter or buffer that holds a place."""

    def __init__(self, named: Iterable[tuple[torch.Tensor, str]], deferred: Deferred) -> None:
        self._in: dict[int, list[Owner]] = {}
        for rank, (tensor, name) in enumerate(named):
            place = deferred.place_of(tensor)
            if place is not None:
                self._in.setdefault(place.key, []).append(Owner(rank, name, tensor, place))

    def of(self, place: Place) -> Owner | None:
        """Returns the first owner by name that holds all of the place."""
        for owner in self._in.get(place.key, ()):
            held = owner.place
            if held.dtype == place.dtype and held.start <= place.start and place.end <= held.end:
                return owner
        return None

    def __iter__(self) -> Iterator[Owner]:
        return iter(sorted((owner for owners in self._in.values() for owner in owners), key=lambda owner: owner.rank))
