"""Places: strided views of memory, known by storage and geometry, that keep no memory alive."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..plans import Strided, row_major
from ..shards.dtensor import PLAIN, is_sharded, local_part


@lru_cache(maxsize=4096)  # the layers of a model are alike
def _laid_out(shape: tuple[int, ...], steps: tuple[int, ...], dtype: torch.dtype) -> tuple[Strided, int, bool, int]:
    """Returns the memory of a tensor at the beginning of a storage; how many elements it has, whether it is dense, and
    how many bytes it spans."""
    memory = Strided(0, tuple(shape), steps)
    memory = Strided.whole(memory.shape) if steps == row_major(memory.shape) else memory  # they share one object
    return memory, memory.numel, memory.is_dense, memory.span * dtype.itemsize


class Place:
    """A strided view of a storage, without keeping the storage alive."""

    __slots__ = ("dtype", "end", "is_dense", "memory", "numel", "ref", "start", "storage_id")

    def __init__(self, tensor: torch.Tensor, ref: StorageWeakRef) -> None:
        self.ref = ref
        self.storage_id: int = ref.cdata
        """The identity of the storage, for as long as ``ref`` is held."""
        self.dtype = dtype = tensor.dtype
        memory, self.numel, self.is_dense, n_bytes = _laid_out(tensor.shape, tensor.stride(), dtype)
        self.start = 0
        """Of the first byte, in the storage."""
        if first := int(tensor.storage_offset()):
            memory, self.start = Strided(first, memory.shape, memory.steps), first * dtype.itemsize
        self.memory: Strided = memory
        self.end: int = self.start + n_bytes
        """Behind the last byte."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.memory.shape

    @property
    def geometry(self) -> tuple[torch.dtype, Strided]:
        """What two places of one storage have in common exactly where they are the same elements in the same order."""
        return self.dtype, self.memory

    def meets(self, other: Place) -> bool:
        """Tells whether the spans of bytes have one in common."""
        return self.start < other.end and other.start < self.end

    def has_span_of(self, other: Place) -> bool:
        """Tells whether the span of bytes holds all of another's."""
        return self.start <= other.start and other.end <= self.end

    def covers(self, other: Place) -> bool:
        """Tells for sure that every byte of ``other`` is one of this place."""
        if self.is_dense:
            return self.has_span_of(other)
        return self.geometry == other.geometry

    def touches(self, other: Place) -> bool:
        """Tells whether the places have an element in common; of different dtypes, whether their spans meet."""
        if not self.meets(other) or self.dtype != other.dtype or (self.is_dense and other.is_dense):
            return self.meets(other)
        if self.geometry == other.geometry:
            return True
        first = min(self.memory.first, other.memory.first)
        span = max(each.memory.first + each.memory.span for each in (self, other)) - first
        mask = torch.zeros(span, dtype=torch.bool, device="cpu")
        mask.as_strided(self.memory.shape, self.memory.steps, self.memory.first - first).fill_(True)
        return bool(mask.as_strided(other.memory.shape, other.memory.steps, other.memory.first - first).any())

    def is_filled_by(self, others: Sequence[Place]) -> bool:
        """Tells whether every element is one of those of other places, as far as they are of its dtype."""
        others = [other for other in others if other.dtype == self.dtype]
        if self.is_dense and all(other.is_dense for other in others):
            own = self.memory
            return not Strided(own.first, (own.span,), (1,)).minus(
                (other.memory.first, other.memory.first + other.memory.span) for other in others
            )
        first = min(each.memory.first for each in (*others, self))
        mask = torch.zeros(
            max(each.memory.first + each.memory.span for each in (*others, self)) - first,
            dtype=torch.bool,
            device="cpu",
        )
        for each in others:
            mask.as_strided(each.memory.shape, each.memory.steps, each.memory.first - first).fill_(True)
        return bool(mask.as_strided(self.memory.shape, self.memory.steps, self.memory.first - first).all())

    def view(self, flat: tuple[int, int] | None = None) -> torch.Tensor | None:
        """Returns a tensor on the place (or on ``flat``, a stretch of elements), None where the storage is gone."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage_id)
        if storage is None:
            return None
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        if flat is None:
            return empty.set_(storage, *self.memory)  # type: ignore[call-overload, no-any-return]
        return empty.set_(storage, flat[0], (flat[1] - flat[0],), (1,))  # type: ignore[call-overload, no-any-return]

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor still has its memory in this storage (``p.data = ...`` gives it another)."""
        tensor = local_part(tensor) if is_sharded(tensor) else tensor
        return bool(tensor.untyped_storage()._cdata == self.storage_id)


def storage_of(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.UntypedStorage] | None:
    """Returns what is here of a tensor, with its storage; None if it has no plain memory."""
    if type(tensor) not in PLAIN:
        if not isinstance(tensor, torch.Tensor):  # a number: torch.func makes such arguments of tensors
            return None
        if is_sharded(tensor):
            tensor = local_part(tensor)
        if is_traceable_wrapper_subclass(tensor) or is_lazy(tensor):
            return None
    if tensor.layout != torch.strided or tensor.is_nested:
        return None
    try:
        return tensor, tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None
