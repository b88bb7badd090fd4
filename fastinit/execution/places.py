"""Places: strided views of memory, known by storage and geometry, that keep no memory alive."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..plans import may_overlap
from ..shards.dtensor import is_sharded, local_part

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Place:
    """A strided view of a storage, without keeping the storage alive. Offsets and strides are in elements."""

    __slots__ = ("dtype", "end", "is_dense", "numel", "offset", "ref", "shape", "start", "storage_id", "stride")

    def __init__(self, tensor: torch.Tensor, ref: StorageWeakRef) -> None:
        self.ref = ref
        self.storage_id: int = ref.cdata
        """The identity of the storage, for as long as ``ref`` is held."""
        self.dtype = tensor.dtype
        self.offset = int(tensor.storage_offset())
        self.shape = tuple(tensor.shape)
        self.stride = tensor.stride()
        self.numel = tensor.numel()
        size = tensor.element_size()
        if tensor.is_contiguous():  # as nearly all are
            last, self.is_dense = self.numel - 1, True
        else:
            last = sum((n - 1) * stride for n, stride in zip(self.shape, self.stride)) if self.numel else -1
            # Elements of one tensor may share memory (expand); then the span is smaller than the number of elements.
            self.is_dense = last + 1 == self.numel and not may_overlap(self.shape, self.stride)
        self.start = self.offset * size
        """Of the first byte, in the storage."""
        self.end = self.start + (last + 1) * size
        """Behind the last byte."""

    @property
    def geometry(self) -> tuple[object, ...]:
        """What two places of one storage have in common exactly where they are the same elements in the same order."""
        return self.dtype, self.offset, self.shape, self.stride

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
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage_id)
        if storage is None:
            return None
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        if flat is None:
            return empty.set_(storage, self.offset, self.shape, self.stride)  # type: ignore[call-overload, no-any-return]
        return empty.set_(storage, flat[0], (flat[1] - flat[0],), (1,))  # type: ignore[call-overload, no-any-return]

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor still has its memory in this storage (``p.data = ...`` gives it another)."""
        tensor = local_part(tensor) if is_sharded(tensor) else tensor
        return bool(tensor.untyped_storage()._cdata == self.storage_id)


def storage_of(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.UntypedStorage] | None:
    """Returns what is here of a tensor, with its storage; None if it has no plain memory."""
    if type(tensor) not in _PLAIN:
        if is_sharded(tensor):
            tensor = local_part(tensor)
        if is_traceable_wrapper_subclass(tensor) or is_lazy(tensor):
            return None
    if tensor.layout != torch.strided:
        return None
    try:
        return tensor, tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None
