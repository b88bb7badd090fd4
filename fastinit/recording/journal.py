"""The journal: what a block computes on tensors without memory, kept so that it can run again on tensors that have it.

Fills need no journal: a parameter that only they wrote gets them again by name. What other operators wrote
(a decomposition, ``torch.tensor(2.65)``, a table made by ``arange``, a change of a part) is computed again from the
operators that led to it, with the same numbers wherever they draw.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Union

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from ..execution.owners import stream_of
from ..execution.pending_by_memory import ByMemory
from ..execution.places import Place
from ..execution.runner import execute
from ..execution.scope import Scope
from ..execution.version_counters import tensors_in
from ..execution.writes import PendingFill, Stream
from ..plans import Box, Constant, Distribution, Fill, Strided, is_drawn
from ..plans.arithmetic import Chain
from .draws import draw, is_random


@dataclass(frozen=True, eq=False)
class Ref:
    """A tensor that had no memory when it was seen: where it lies in its storage."""

    place: Place
    is_conj: bool
    is_neg: bool

    @property
    def storage_id(self) -> int:
        """The identity of its storage."""
        return self.place.storage_id


@dataclass(frozen=True, eq=False)
class KeptFill:
    """A fill that an operator has read or written over."""

    place: Place
    distribution: Distribution
    steps: Sequence[tuple[Any, tuple[Any, ...], Mapping[str, Any]]]
    """Operations that follow it (``Chain``)."""
    stream: Stream | None
    """None: nothing is drawn."""
    seed: int | None
    """That of the block within the recorded one that asked for it, if it was given one."""
    rule: str
    info: str
    problem: str = ""

    @property
    def storage_ids(self) -> set[int]:
        """The storages that it touches."""
        return {self.place.storage_id}

    @property
    def writes(self) -> set[int]:
        """The storages that it writes."""
        return self.storage_ids


@dataclass(frozen=True, eq=False)
class KeptOperator:
    """One operator with its arguments, in which a ``Ref`` stands for each tensor without memory."""

    func: Any
    args: Any
    kwargs: Any
    results: tuple[Ref | None, ...]
    """Its results, None for one that is an argument or a view of one."""
    storage_ids: set[int]
    """The storages that it touches."""
    writes: set[int]
    """Those that it writes or makes."""
    problem: str = ""
    """Why it cannot run again."""


Kept = Union[KeptFill, KeptOperator]


@dataclass
class Journal:
    """What was kept, in order."""

    entries: list[Kept] = field(default_factory=list)
    n_bytes: dict[int, int] = field(default_factory=dict)
    """Storage -> its size, had it memory."""
    _known: set[PendingFill] = field(default_factory=set)
    """Fills that are among the entries, as they were."""
    _noted: dict[int, int] = field(default_factory=dict)
    """Storage -> the order of the last write when its fills were last looked at."""
    _writers: dict[int, list[int]] = field(default_factory=dict)
    """Storage -> the positions of the entries that write it, in order."""

    def __post_init__(self) -> None:
        entries, self.entries = self.entries, []
        for entry in entries:
            self._append(entry)

    def _append(self, entry: Kept) -> None:
        for storage_id in entry.writes:
            self._writers.setdefault(storage_id, []).append(len(self.entries))
        self.entries.append(entry)

    def note_fills(self, tensor: torch.Tensor, pending: ByMemory) -> None:
        """Keeps the fills in the storage of a tensor without memory, before an operator reads or changes it."""
        if not tensor.is_meta:
            return
        place = pending.book.place_of(tensor)
        if place is not None:
            self.note_fills_at(place, pending)

    def note_fills_at(self, place: Place, pending: ByMemory) -> None:
        """As ``note_fills``."""
        after, self._noted[place.storage_id] = self._noted.get(place.storage_id, 0), pending.book.n_writes
        for each in pending.book.fills_in(place, after):
            self._known.add(each)
            stream = None
            if is_drawn(each.distribution):
                stream = stream_of(each, pending.owners(each.scope))
            steps = tuple(each.values.steps) if isinstance(each.values, Chain) else ()
            seed = each.scope.seed.given if each.scope.outer is not None else None
            kept = KeptFill(each.place, each.distribution, steps, stream, seed, each.rule, each.info)
            self.n_bytes.setdefault(place.storage_id, _size_of(place))
            self._append(kept)

    def knows(self, fill: PendingFill) -> bool:
        """Tells whether a fill is among the entries."""
        return fill in self._known

    def keep(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
        written: Iterable[Any],
        problem: str = "",
    ) -> bool:
        """Keeps an operator if it has touched tensors without memory; tells whether it has.

        Args:
            func: the operator, which has run.
            args, kwargs: its arguments.
            result: what it returned.
            written: the arguments that it has written.
            problem: why it cannot run again.
        """
        inputs = list(tensors_in((*args, *kwargs.values())))
        outputs = list(tensors_in((result,)))
        if not any(tensor.is_meta for tensor in (*inputs, *outputs)):
            return False
        touched, writes, problems = set[int](), set[int](), list[str]()

        def ref_of(tensor: torch.Tensor) -> Any:
            if not tensor.is_meta:
                return tensor.detach().clone()  # its owner may change it
            storage = _storage_of(tensor)
            if storage is None:
                problems.append(f"`{func}` takes a tensor of {type(tensor).__name__}")
                return None
            place, size = storage
            self.n_bytes.setdefault(place.storage_id, size)
            self.n_bytes[place.storage_id] = max(size, self.n_bytes[place.storage_id])
            touched.add(place.storage_id)
            return Ref(place, tensor.is_conj(), tensor.is_neg())

        def kept(value: Any) -> Any:
            if isinstance(value, torch.Generator):
                problems.append(f"`{func}` draws from a generator of its own")
            return ref_of(value) if isinstance(value, torch.Tensor) else value

        kept_args, kept_kwargs = tree_map(kept, tuple(args)), tree_map(kept, dict(kwargs))
        before = set(touched)
        refs = [ref_of(tensor) if tensor.is_meta else None for tensor in outputs]
        results = tuple(ref if ref is not None and ref.storage_id not in before else None for ref in refs)
        writes.update(ref.storage_id for ref in results if ref is not None)
        for tensor in tensors_in(tuple(written)):
            if tensor.is_meta and (found := _storage_of(tensor)) is not None:
                writes.add(found[0].storage_id)
        problem = problem or next(iter(problems), "")
        self._append(KeptOperator(func, kept_args, kept_kwargs, results, touched, writes, problem))
        return True

    def leading_to(self, storage_ids: Iterable[int]) -> list[Kept]:
        """Returns the entries, in order, that have part in what storages hold in the end."""
        wanted: set[int] = set()
        found: list[int] = []
        later: list[int] = []  # a heap: positions behind which all are found, each negative

        def want(storage_id: int, before: int) -> None:
            """Puts the last entry before a position that writes a storage on the heap."""
            writers = self._writers.get(storage_id, ())
            if at := bisect_left(writers, before):
                heappush(later, -writers[at - 1])

        for storage_id in storage_ids:
            wanted.add(storage_id)
            want(storage_id, len(self.entries))
        while later:
            position = -heappop(later)
            if found and found[-1] == position:
                continue
            found.append(position)
            wanted |= self.entries[position].storage_ids
            for storage_id in (self.entries[position].storage_ids | self.entries[position].writes) & wanted:
                want(storage_id, position)
        return [self.entries[position] for position in reversed(found)]

    def pruned(self, storage_ids: Iterable[int]) -> Journal:
        """Returns what has part in what storages hold, without all else."""
        entries = self.leading_to(storage_ids)
        touched = {storage_id for entry in entries for storage_id in entry.storage_ids | entry.writes}
        return Journal(entries, {storage_id: self.n_bytes[storage_id] for storage_id in touched})


def _storage_of(tensor: torch.Tensor) -> tuple[Place, int] | None:
    """Returns the place of a tensor without memory, and the size that its storage would have."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return None
    try:
        storage = tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None
    return Place(tensor, StorageWeakRef(storage)), storage.nbytes()  # type: ignore[no-untyped-call]


def _size_of(place: Place) -> int:
    memory = torch.UntypedStorage._new_with_weak_ptr(place.storage_id)
    return place.end if memory is None else int(memory.nbytes())


@dataclass(frozen=True, eq=False)
class Computed:
    """A parameter or buffer that operators have computed."""

    ref: Ref
    info: str
    """What wrote it last."""


def compute(
    journal: Journal, wanted: Sequence[tuple[Computed, torch.Tensor]], scope: Scope, device: torch.device
) -> None:
    """Runs the entries of a journal again, with memory, and copies what they compute into tensors.

    Args:
        journal: of the block.
        wanted: what is wanted, and the tensors that get it, of the same shapes.
        scope: of the call that asks for it: its seed and backend count for the draws.
        device: where it is computed.
    """
    entries = journal.leading_to(each.ref.storage_id for each, _ in wanted)
    last: dict[int, int] = {}
    for position, entry in enumerate(entries):
        last.update(dict.fromkeys(entry.storage_ids | entry.writes, position))
    memory = _Memory(journal.n_bytes, device)
    outputs: dict[int, list[tuple[Computed, torch.Tensor]]] = {}
    for each, tensor in wanted:
        outputs.setdefault(each.ref.storage_id, []).append((each, tensor))
    with torch.no_grad():
        for position, entry in enumerate(entries):
            if isinstance(entry, KeptFill):
                _fill(entry, memory, scope)
            else:
                _run(entry, memory, scope)
            for storage_id in entry.storage_ids | entry.writes:
                if last[storage_id] == position:  # nothing needs it any more
                    for each, tensor in outputs.get(storage_id, ()):
                        # Along a dimension that was expanded there is one element.
                        once = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
                        tensor.detach()[once].copy_(memory.tensor(each.ref)[once])
                    memory.free(storage_id)


class _Memory:
    """Storages with memory in the place of those without."""

    def __init__(self, n_bytes: Mapping[int, int], device: torch.device) -> None:
        self._n_bytes = n_bytes
        self.device = device
        self._storages: dict[int, torch.UntypedStorage] = {}

    def tensor(self, ref: Ref) -> torch.Tensor:
        """Returns the tensor that a reference stands for."""
        tensor = self.at(ref.place)
        tensor = torch._conj(tensor) if ref.is_conj else tensor
        return torch._neg_view(tensor) if ref.is_neg else tensor

    def at(self, place: Place) -> torch.Tensor:
        """Returns a tensor on a place."""
        storage = self._storages.get(place.storage_id)
        if storage is None:
            storage = torch.UntypedStorage(self._n_bytes[place.storage_id], device=self.device)  # type: ignore[no-untyped-call]
            self._storages[place.storage_id] = storage
        return torch.empty(0, dtype=place.dtype, device=self.device).set_(storage, *place.memory)  # type: ignore[call-overload, no-any-return]

    def adopt(self, ref: Ref, value: torch.Tensor) -> None:
        """Takes a result for what a reference stands for."""
        place = ref.place
        fits = Strided.of(value) == place.memory and value.dtype == place.dtype and value.device == self.device
        if fits and not (value.is_conj() or value.is_neg()):
            self._storages[place.storage_id] = value.untyped_storage()
        else:
            self.tensor(ref).copy_(value)

    def free(self, storage_id: int) -> None:
        """Lets the memory of a storage go."""
        self._storages.pop(storage_id, None)


def _fill(entry: KeptFill, memory: _Memory, scope: Scope) -> None:
    tensor = memory.at(entry.place)
    stream = entry.stream
    if isinstance(entry.distribution, Constant):
        tensor.fill_(entry.distribution.value)  # type: ignore[arg-type]
    else:
        shape = tuple(tensor.shape)
        name, indices = ("", Strided.whole(shape)) if stream is None else (stream.name, stream.indices)
        numbers = None if indices == Strided.whole(shape) else indices
        boxes = None if numbers is None else (Box(tensor, indices.first, indices.steps),)
        fill = Fill(name, tensor, entry.distribution, entry.rule, entry.info, shape, boxes, "", entry.seed, numbers)
        execute([fill], scope)
    for func, args, kwargs in entry.steps:
        func(tensor, *args, **kwargs)


def _run(entry: KeptOperator, memory: _Memory, scope: Scope) -> None:
    def back(value: Any) -> Any:
        if isinstance(value, Ref):
            return memory.tensor(value)
        if isinstance(value, torch.Tensor):
            return value.to(memory.device) if value.dim() else value
        return memory.device if isinstance(value, torch.device) and value.type == "meta" else value

    args, kwargs = tree_map(back, entry.args), tree_map(back, entry.kwargs)
    draws = is_random(entry.func)
    result = draw(entry.func, args, kwargs, scope.seed.generators) if draws else entry.func(*args, **kwargs)
    for ref, value in zip(entry.results, tensors_in((result,))):
        if ref is not None:
            memory.adopt(ref, value)
