"""The memory book: storage by storage, what was requested and what was written, as long as memory is watched.

A later fill of the same bytes replaces an earlier one. A fill keeps hold of memory only weakly: one of a tensor that is
gone by the time it would run never runs. Random numbers belong to a ``Draw``, which gets its stream when it has to run,
as late as that: in a constructor no parameter has a name yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, takewhile
from operator import attrgetter
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..plans import Distribution, Fill, is_drawn
from ..plans.arithmetic import Chain
from .done import Done
from .history import then
from .ledger import Ledger
from .places import Place, storage_of
from .scope import Scope
from .spans import Spans
from .writes import OtherWrite, PendingFill, State, Write


class _Storage(Spans[Write]):
    """What is known of one storage: the writes that still show, by their spans of bytes."""

    __slots__ = ("is_exposed", "is_fresh", "is_marked", "ref", "requested")

    def __init__(self, ref: StorageWeakRef) -> None:
        super().__init__()
        self.ref = ref
        self.requested: dict[PendingFill, None] | None = None
        """The fills that were pending when last looked at, in order; None as long as the writes are few."""
        self.is_exposed = False
        """Other code has an address of the memory: a fill there must not stay pending."""
        self.is_fresh = False
        """It holds nothing before it is filled."""
        self.is_marked = False
        """Every byte was _UNTOUCHED when the memory was exposed."""

    def note(self, write: Write) -> None:
        """Adds a write."""
        self.add(write.place.start, write.place.end, write)

    def at(self, place: Place) -> list[Write]:
        """Returns the writes that still show in a place, in order."""
        return self.meeting(place.start, place.end)

    def pending(self) -> list[PendingFill]:
        """Returns the pending fills, in order."""
        among: Iterable[Write] = self if self.requested is None else self.requested
        found = [write for write in among if isinstance(write, PendingFill) and write.state is State.PENDING]
        if not self.are_few:
            self.requested = dict.fromkeys(found)
        return found


# Fills of temporary tensors cost a kilobyte each, and looking for those that are gone a microsecond for each storage.
_PURGE_EVERY = 4096
# Written into fresh memory before other code gets its address, to see whether it wrote there. No float, bool or index
# is likely to consist of it.
_UNTOUCHED = 0xFB


class MemoryBook:
    """What is known of the memory that is watched, in one outermost call."""

    def __init__(self) -> None:
        self._storages: dict[int, _Storage] = {}
        self._with_requests: dict[int, _Storage] = {}
        """Those of them that had pending fills when last looked at."""
        self._asked_by: dict[Done, list[PendingFill]] = {}
        self.n_writes = 0
        """The order of the latest write."""
        self.generation = 0
        """Counts what may have given parameters other memory or other names."""
        self.lock = threading.RLock()
        """Threads that are recorded together take turns."""
        self.protected: set[int] = set()
        """Storages that other code may read, and whose memory it is not to change."""
        self.paused_by: int | None = None
        """The thread that does fastinit's own work, if one does."""
        self._on_write: Callable[[Place], None] | None = None
        """Told of every write, while a ledger attributes them."""

    def paused(self, has_subclasses: bool = False) -> AbstractContextManager[None]:
        """Marks what this thread does in the block as fastinit's own work, which is not watched.

        Args:
            has_subclasses: it calls functions of tensor subclasses.
        """
        return _Pause(self, has_subclasses)

    @property
    def is_paused(self) -> bool:
        """Whether what this thread does is fastinit's own work."""
        return self.paused_by is not None and self.paused_by == threading.get_ident()

    @property
    def is_sensing(self) -> bool:
        """Whether a ledger is told of writes."""
        return self._on_write is not None

    @contextmanager
    def sensing(self, ledger: Ledger) -> Iterator[None]:
        """Tells a ledger of every write in the block."""

        def wrote(place: Place) -> None:
            memory = torch.UntypedStorage._new_with_weak_ptr(place.storage_id)
            if memory is not None and (address := memory.data_ptr()):
                ledger.touched(address, address + place.start, address + place.end)

        before, self._on_write = self._on_write, wrote
        try:
            yield
        finally:
            self._on_write = before

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        """Returns where a tensor lies, None if it has no plain memory."""
        found = storage_of(tensor)
        if found is None:
            return None
        here, memory = found
        known = self._storages.get(memory._cdata)
        return Place(here, known.ref if known is not None else StorageWeakRef(memory))  # type: ignore[no-untyped-call]

    def new_place(self, tensor: torch.Tensor) -> Place | None:
        """Returns where an ordinary tensor lies if nothing is known of its memory, and nobody can read that unseen."""
        memory = tensor.untyped_storage()
        number = memory._cdata
        if number in self._storages or number in self.protected or _is_others(memory) or tensor.is_meta:
            return None
        place = Place(tensor, StorageWeakRef(memory))  # type: ignore[no-untyped-call]
        return place if place.end <= memory.nbytes() else None

    def is_unknown(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor has plain memory of which nothing is known, and which other code may change."""
        found = storage_of(tensor)
        return found is not None and found[1]._cdata not in self._storages and found[1]._cdata not in self.protected

    def _storage(self, place: Place) -> _Storage:
        storage = self._storages.get(place.storage_id)
        if storage is None:
            storage = self._storages[place.storage_id] = _Storage(place.ref)
        return storage

    # --- noting -------------------------------------------------------------------------------------------------------

    def add(
        self,
        place: Place,
        values: Distribution | Chain,
        scope: Scope,
        rule: str,
        info: str,
        *,
        asked_by: Done | None = None,
        named: Fill | None = None,
        state: State = State.PENDING,
    ) -> PendingFill:
        """Notes a fill; what it covers is forgotten."""
        order = self._next_order()
        storage = self._storages.get(place.storage_id)
        if storage is None:  # as nearly always
            storage = self._storages[place.storage_id] = _Storage(place.ref)
        elif storage:
            self.forget(place)
        fill = PendingFill(place, info, order, values, scope, rule, asked_by, named, state)
        storage.add(place.start, place.end, fill)
        if state is State.PENDING:
            if storage.requested is not None:
                storage.requested[fill] = None
            self._with_requests[place.storage_id] = storage
        if asked_by is not None:
            self._asked_by.setdefault(asked_by, []).append(fill)
        if self._on_write is not None:
            self._on_write(place)
        return fill

    def wrote(self, place: Place, info: str, is_random: bool, *, changes: bool = False) -> None:
        """Notes a write that is no fill, to a place for which nothing is pending any more.

        Args:
            place: where.
            info: what the ledger says of it.
            is_random: what is there now was drawn.
            changes: it depends on what was there before, of which the ledger tells, too.
        """
        if changes:
            covered = [write for write in self.writes_at(place) if place.covers(write.place)]
            info = then(self.history(place, covered), info)
        self.forget(place)
        storage = self._storage(place)
        for write in storage.at(place):
            if isinstance(write, PendingFill) and not write.is_pending:
                # What is left of its values stays where it is, but they are no fill that could be repeated.
                write.leave()
                write.shows = False
                was_random = is_drawn(write.distribution)
                left = OtherWrite(write.place, write.info, write.order, was_random)
                storage.replace(left.place.start, left.place.end, write, left)
        storage.note(OtherWrite(place, info, self._next_order(), is_random, changes))
        self.touch(place)

    def touch(self, place: Place) -> None:
        """Tells the ledger that attributes writes, if one does, that a place is written."""
        if self._on_write is not None:
            self._on_write(place)

    def _next_order(self) -> int:
        if self.n_writes % _PURGE_EVERY == 0:
            self._purge()
        self.n_writes += 1
        return self.n_writes

    def forget(self, place: Place) -> None:
        """Drops the writes that a place covers: the bytes are about to be overwritten."""
        storage = self._storages.get(place.storage_id)
        if storage is None or not storage:
            return
        for write in storage.take_within(place.start, place.end, lambda write: place.covers(write.place)):
            if isinstance(write, PendingFill):
                write.leave()
                write.shows = False
                if storage.requested is not None:
                    storage.requested.pop(write, None)

    def expose(self, place: Place) -> None:
        """Notes that other code got an address of the memory."""
        storage = self._storage(place)
        storage.is_exposed = True
        if storage.is_fresh and not (storage.is_marked or storage):
            _bytes_of(storage).fill_(_UNTOUCHED)
            storage.is_marked = True

    def is_new(self, place: Place) -> None:
        """Notes that memory was made just now and holds nothing."""
        self._storage(place).is_fresh = True

    def _purge(self, storage_ids: Iterable[int] | None = None) -> None:
        """Forgets what was known of memory that is gone (of these storages)."""
        ids = self._storages if storage_ids is None else storage_ids
        for storage_id in [storage_id for storage_id in ids if _is_gone(storage_id)]:
            self._with_requests.pop(storage_id, None)
            for write in self._storages.pop(storage_id):
                if isinstance(write, PendingFill):
                    write.leave()

    # --- asking -------------------------------------------------------------------------------------------------------

    def is_exposed(self, place: Place) -> bool:
        """Tells whether the memory may be read unseen: by an address, or as memory of numpy's or of another process."""
        storage = self._storages.get(place.storage_id)
        if storage is not None and storage.is_exposed:
            return True
        memory = torch.UntypedStorage._new_with_weak_ptr(place.storage_id)
        return memory is not None and _is_others(memory)

    def writes_at(self, place: Place) -> list[Write]:
        """Returns the writes that still show in a place, in order."""
        storage = self._storages.get(place.storage_id)
        return [] if storage is None else storage.at(place)

    def history(self, place: Place, writes: Iterable[Write]) -> str:
        """Returns what gave a place its values, of writes in order; those to other elements do not count."""
        text = ""
        for write in writes:
            if not write.place.touches(place):
                continue
            is_part = not write.place.covers(place)
            keeps = is_part or (isinstance(write, OtherWrite) and write.changes)
            text = then(text if keeps else "", write.info, is_part=is_part)
        return text

    def is_only_write(self, write: Write) -> bool:
        """Tells whether a write is all that shows in its storage."""
        return self._storages[write.place.storage_id].is_only(write)

    def fills_in(self, place: Place, after: int = 0) -> list[PendingFill]:
        """Returns the fills that still show in the storage of a place, in order: those behind one of that order."""
        storage = self._storages.get(place.storage_id)
        if storage is None:
            return []
        found = list(takewhile(lambda write: write.order > after, reversed(storage)))
        return [write for write in found[::-1] if isinstance(write, PendingFill)]

    def fills_at(self, place: Place) -> list[PendingFill]:
        """Returns the fills that still show in a place, in order."""
        return [write for write in self.writes_at(place) if isinstance(write, PendingFill)]

    def others_at(self, place: Place) -> list[OtherWrite]:
        """Returns the writes that are no fills and still show in a place."""
        return [write for write in self.writes_at(place) if isinstance(write, OtherWrite)]

    def current(self, place: Place) -> PendingFill | None:
        """Returns the fill that gave exactly this place its values, all of them, and was the last to write there."""
        writes = self.writes_at(place)
        if not writes or not place.is_dense or any(isinstance(write, OtherWrite) for write in writes):
            return None
        last = writes[-1]
        assert isinstance(last, PendingFill)
        # An earlier one may be pending below it: a row within the whole, but never the other way round (``forget``).
        return last if last.place.geometry == place.geometry else None

    def all_of(self, place: Place) -> list[PendingFill] | None:
        """Returns the fills that gave a dense place its values, in order; None where something else wrote there too."""
        if not place.is_dense:
            return None
        writes = self.writes_at(place)
        fills = [write for write in writes if isinstance(write, PendingFill) and place.covers(write.place)]
        return fills if len(fills) == len(writes) else None

    def pending(self, place: Place | None = None) -> list[PendingFill]:
        """Returns the pending fills (in the storage of a place), in order; those of memory that is gone are dropped."""
        if place is not None:
            storage = self._storages.get(place.storage_id)
            return [] if storage is None else storage.pending()
        self._purge(self._with_requests)
        found = {key: fills for key, storage in self._with_requests.items() if (fills := storage.pending())}
        self._with_requests = {key: self._storages[key] for key in found}
        return sorted(chain.from_iterable(found.values()), key=_order_of)

    def asked_by(self, call: Done) -> list[PendingFill]:
        """Returns the fills that a call requested and that still show, in memory that is alive, in order."""
        fills = self._asked_by.get(call, ())
        return [fill for fill in fills if fill.shows and not _is_gone(fill.place.storage_id)]

    def fills(self) -> list[PendingFill]:
        """Returns all fills that still show, in memory that is alive, in order."""
        self._purge()
        storages = self._storages.values()
        fills = [write for storage in storages for write in storage if isinstance(write, PendingFill)]
        fills.sort(key=_order_of)
        return fills

    def is_written(self, place: Place) -> bool:
        """Tells whether every element of a place has been written (or will be), as far as that was seen."""
        if place.numel == 0:
            return True
        storage = self._storages.get(place.storage_id)
        if storage is None:
            return False
        writes = storage.at(place)
        if any(write.place.covers(place) for write in writes):
            return True
        if storage.is_marked and bool((_bytes_of(storage) != _UNTOUCHED).any()):
            return True
        return place.is_filled_by([write.place for write in writes])


class _Pause:
    """One block of ``MemoryBook.paused``.

    No generator: what an interrupt leaves of one ends at some later time, and this must end before what is around it.
    """

    __slots__ = ("_before", "_book", "_functions")

    def __init__(self, book: MemoryBook, has_subclasses: bool) -> None:
        self._book = book
        self._functions: Any = None if has_subclasses else torch._C.DisableTorchFunction()
        self._before: int | None = None

    def __enter__(self) -> None:
        self._book.lock.acquire()
        self._before = self._book.paused_by
        self._book.paused_by = threading.get_ident()
        if self._functions is not None:
            self._functions.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._functions is not None:
            self._functions.__exit__(*error)
        self._book.paused_by = self._before
        self._book.lock.release()


_order_of = attrgetter("order")
_TELLS_OWNER = hasattr(torch.UntypedStorage, "resizable")
_is_gone = torch.UntypedStorage._expired
"""Tells whether the storage of an identity has been freed; ``StorageWeakRef.expired`` without its three calls."""


def _is_others(memory: torch.UntypedStorage) -> bool:
    """Tells whether memory is another's than torch's, as numpy's is, who may read it unseen."""
    # torch before 2.2 does not tell; there memory of numpy's, made before the block, is taken for torch's own.
    return not memory.resizable() if _TELLS_OWNER else memory.is_shared()


def _bytes_of(storage: _Storage) -> torch.Tensor:
    memory = torch.UntypedStorage._new_with_weak_ptr(storage.ref.cdata)
    return torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory)  # type: ignore[call-overload, no-any-return]
