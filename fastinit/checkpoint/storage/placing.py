"""A batch of copies into plain memory: which depend on each other, and what is read for them from where to where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ...plans import Strided, byte_span, may_overlap
from ...shards.dtensor import is_sharded, local_part
from .batches import Stretch, Turned, places, run
from .current import current
from .stored import StoredTensor

_PLAIN_TYPES = (torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter))


class _Copy(NamedTuple):
    """What makes all values of one stretch of memory."""

    memory: torch.Tensor
    pieces: list[tuple[torch.Tensor, StoredTensor]]
    """(a part of the memory, what is for it in one file), none of which overlap."""


class Batch:
    """Copies into plain memory, which cannot fail but for their files, and none of which has been made."""

    def __init__(self) -> None:
        self._in_memory: list[tuple[torch.Tensor, torch.Tensor]] = []
        """These are made first, in their order."""
        self._used: set[int | None] = set()
        """The storages that they read and write."""
        self._copies: list[_Copy] = []
        self._counted: list[torch.Tensor] = []
        """Distributed tensors: their versions, which are not those of their memory, must count it, too."""
        self._written: set[int | None] = set()
        """The storages that copies out of files write."""

    def __bool__(self) -> bool:
        return bool(self._copies or self._in_memory)

    def takes(self, destination: torch.Tensor, source: torch.Tensor) -> bool:
        """Takes a copy, if it is one for a batch."""
        with torch._C.DisableTorchFunction():
            if not isinstance(source, StoredTensor):
                return self._takes_in_memory(destination, source)
            if type(source) is not StoredTensor or source.is_read or not source.storage_in_file.opens_few_files:
                return False
            memory = local_part(destination) if is_sharded(destination) else destination
            if destination.shape != source.geometry.shape or not _is_plain(memory):
                return False
            pieces = list(source.storage_in_file.pieces(destination, source))
            if not all(type(part) is StoredTensor for _, part in pieces):  # conjugated, of a subclass, ...
                return False
            self._copies.append(_Copy(memory, pieces))
            self._written.add(_memory_of(memory))
            if memory is not destination:
                self._counted.append(destination)
        return True

    def _takes_in_memory(self, destination: torch.Tensor, source: torch.Tensor) -> bool:
        if not (_is_plain(destination) and is_memory(source) and destination.shape == source.shape):
            return False
        used = {_memory_of(destination), _memory_of(source)}
        if None in used or not used.isdisjoint(self._written):
            return False
        self._in_memory.append((destination, source))
        self._used |= used
        return True

    def meets(self, destination: torch.Tensor, source: torch.Tensor) -> bool:
        """Tells whether another copy may read or write what this batch writes, or write what it reads."""
        if not self:
            return False
        with torch._C.DisableTorchFunction():
            touched = {_memory_of(destination)}
            if not isinstance(source, StoredTensor):
                touched.add(_memory_of(source))
        return None in touched or not (touched.isdisjoint(self._written) and touched.isdisjoint(self._used))

    def run(self) -> None:
        """Makes the copies."""
        in_memory, copies, counted = self._in_memory, self._copies, self._counted
        self.__init__()  # type: ignore[misc]
        with torch._C.DisableTorchFunction():
            for destination, source in in_memory:
                destination.copy_(source)
            try:
                for independent in _independent(copies):
                    run_copies(piece for copy in independent for piece in copy.pieces)
            finally:
                for tensor in counted:
                    torch.autograd.graph.increment_version(tensor)


def _memory_of(tensor: torch.Tensor) -> int | None:
    """Returns where a tensor's storage begins, None where that cannot be told (sparse, wrappers of other tensors)."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def is_memory(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is nothing but memory here: no subclass, not sparse, quantized or on another device."""
    return (
        type(tensor) in _PLAIN_TYPES
        and tensor.layout == torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor is memory, and every copy of its shape into it succeeds."""
    if not is_memory(tensor) or (tensor.is_inference() and not torch.is_inference_mode_enabled()):
        return False
    return tensor.is_contiguous() or not may_overlap(tensor.shape, tensor.stride())


def _independent(copies: list[_Copy]) -> Iterator[list[_Copy]]:
    """Yields copies in batches whose order within does not matter: first all that share memory with no other."""
    spans = sorted((*byte_span(copy.memory), index) for index, copy in enumerate(copies))
    together: list[list[tuple[int, int, int]]] = []
    end = 0
    for span in spans:
        if together and span[0] < end:
            together[-1].append(span)
        else:
            together.append([span])
        end = max(end, span[1])
    in_turn: list[int] = []
    alone: list[int] = []
    for group in together:
        start, stop, last = group[-1]
        is_one_place = all(span[:2] == (start, stop) for span in group)
        if is_one_place and all(copies[index].memory.nbytes == stop - start for _, _, index in group):
            alone.append(last)  # each writes all of it: a tied weight under all of its names
        else:
            in_turn.extend(index for _, _, index in group)
    yield [copies[index] for index in alone]
    for index in sorted(in_turn):
        yield [copies[index]]


def run_copies(copies: Iterable[tuple[torch.Tensor, StoredTensor]]) -> None:
    """Makes copies whose order does not matter."""
    pieces: list[Stretch | Turned] = []
    straight: list[torch.Tensor] = []
    for destination, source in copies:
        n_elements, item_bytes = destination.numel(), source.dtype_in_file.itemsize
        if not n_elements:
            continue
        stretch = source.storage_in_file.stretch
        assert stretch is not None, "pieces are in one file each"
        file, first = stretch[0], stretch[1] + source.offset_in_storage * item_bytes
        in_same_order = _in_same_order(destination, source)
        if (
            in_same_order
            and destination.device.type == "cpu"
            and destination.dtype == source.dtype == source.dtype_in_file
            and destination.dtype != torch.bool  # a file may have other bytes than 0 and 1, out of which torch makes 1
        ):
            pieces.append(Stretch(file, first, n_elements * item_bytes, destination.data_ptr()))
            straight.append(destination)
            continue
        # Not `.data`: a write to this is counted in the version of the destination.
        view, shape, steps = destination.detach(), tuple(source.shape), source.stride()
        if in_same_order:
            view, shape, steps = view.as_strided((n_elements,), (1,)), (n_elements,), (1,)
        for part, size, at in places(item_bytes, view, shape, steps, 0):
            n_bytes = Strided(at, tuple(size), tuple(steps)).span * item_bytes
            pieces.append(
                Turned(file, first + at * item_bytes, n_bytes, part, size, steps, source.dtype_in_file, source.dtype)
            )
    opened = current()
    if opened is not None:
        opened.files.update((id(piece.file), piece.file) for piece in pieces)
    try:
        run(pieces)
    finally:
        for destination in straight:
            torch.autograd.graph.increment_version(destination)


def _in_same_order(destination: torch.Tensor, source: torch.Tensor) -> bool:
    """Tells whether the elements of both, of one shape, lie together and in the same order."""
    if destination.is_contiguous() and source.is_contiguous():
        return True
    ours, theirs = Strided.of(destination), Strided.of(source)
    return ours.is_dense and ours.canonical.steps == theirs.canonical.steps
