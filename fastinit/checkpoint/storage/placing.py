"""A batch of copies into plain memory: orders the dependent ones, and turns copies into reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ...plans import Strided, byte_span, may_overlap
from ...shards.dtensor import is_sharded, local_part
from .batches import Stretch, Turned, is_apart, piece_bytes, places, rows_of, run
from .current import current
from .files import File
from .stored import StoredTensor

_PLAIN_TYPES = (torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter))


class _Copy(NamedTuple):
    """The copies that fill one tensor."""

    memory: torch.Tensor
    pieces: list[tuple[torch.Tensor, StoredTensor]]
    """(a part of the memory, the tensor in one file that goes there); the parts do not overlap."""


class Batch:
    """Pending copies into plain memory, which can only fail by their files."""

    def __init__(self) -> None:
        self._in_memory: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Run first, in this order."""
        self._used: set[int | None] = set()
        """The storages that they read and write."""
        self._copies: list[_Copy] = []
        self._counted: list[torch.Tensor] = []
        """Distributed tensors, whose versions are not those of their memory and must be incremented, too."""
        self._written: set[int | None] = set()
        """The storages that copies out of files write."""

    def __bool__(self) -> bool:
        return bool(self._copies or self._in_memory)

    def takes(self, destination: torch.Tensor, source: torch.Tensor) -> bool:
        """Adds a copy if a batch can make it, and returns whether it did."""
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
        """Returns whether another copy may touch memory that this batch writes, or write memory that it reads."""
        if not self:
            return False
        with torch._C.DisableTorchFunction():
            touched = {_memory_of(destination)}
            if not isinstance(source, StoredTensor):
                touched.add(_memory_of(source))
        return None in touched or not (touched.isdisjoint(self._written) and touched.isdisjoint(self._used))

    def run(self) -> None:
        """Runs the copies."""
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
    """Returns the address of a tensor's storage, None if there is none (sparse, wrappers of other tensors)."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def is_memory(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor is plain CPU or CUDA memory: no subclass, not sparse, not quantized."""
    return (
        type(tensor) in _PLAIN_TYPES
        and tensor.layout == torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor is plain memory into which every copy of its shape succeeds."""
    if not is_memory(tensor) or (tensor.is_inference() and not torch.is_inference_mode_enabled()):
        return False
    return tensor.is_contiguous() or not may_overlap(tensor.shape, tensor.stride())


def _independent(copies: list[_Copy]) -> Iterator[list[_Copy]]:
    """Yields groups of copies whose order does not matter; first, all that share no memory with others."""
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
            alone.append(last)  # each writes all of it: a tied weight under several names
        else:
            in_turn.extend(index for _, _, index in group)
    yield [copies[index] for index in alone]
    for index in sorted(in_turn):
        yield [copies[index]]


class _Converted(NamedTuple):
    """A copy whose bytes in the file are not the values in memory."""

    destination: torch.Tensor
    source: StoredTensor
    file: File
    first: int
    """Byte of the file at which its first element is."""
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """From its first byte in the file to its last."""
        return Strided(0, self.shape, self.steps).span * self.source.dtype_in_file.itemsize

    def pieces(self, is_mapped: bool) -> Iterator[Turned]:
        """Cuts it into pieces of some megabytes."""
        source, item_bytes = self.source, self.source.dtype_in_file.itemsize
        is_in_rows = rows_of(self.destination, self.shape, self.steps, source.dtype_in_file, source.dtype) is not None
        is_mapped = (
            is_mapped
            and not is_in_rows
            and self.destination.device.type == "cpu"
            and self.first % item_bytes == 0
            and not is_apart(item_bytes, self.shape, self.steps)
        )
        limit = piece_bytes(is_mapped)
        for part, size, at in places(
            item_bytes, self.destination, self.shape, self.steps, 0, limit, is_in_rows=is_in_rows
        ):
            n_bytes = Strided(at, tuple(size), tuple(self.steps)).span * item_bytes
            first = self.first + at * item_bytes
            types = source.dtype_in_file, source.dtype
            yield Turned(self.file, first, n_bytes, part, size, self.steps, *types, is_mapped)


def run_copies(copies: Iterable[tuple[torch.Tensor, StoredTensor]]) -> None:
    """Runs copies whose order does not matter."""
    pieces: list[Stretch | Turned] = []
    straight: list[torch.Tensor] = []
    converted: dict[int, list[_Converted]] = {}
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
            and destination.dtype == source.geometry.dtype == source.dtype_in_file
            and destination.dtype != torch.bool  # bytes other than 0 and 1 must become 1, as in torch's copy
        ):
            pieces.append(Stretch(file, first, n_elements * item_bytes, destination.data_ptr()))
            straight.append(destination)
            continue
        # Not `.data`: writes must increment the version of the destination.
        view, (shape, steps, _) = destination.detach(), source.geometry
        if in_same_order:
            view, shape, steps = view.as_strided((n_elements,), (1,)), (n_elements,), (1,)
        converted.setdefault(id(file), []).append(_Converted(view, source, file, first, shape, steps))
    opened = current()
    try:
        if opened is not None:
            opened.files.update((id(of_one[0].file), of_one[0].file) for of_one in converted.values())
            opened.files.update((id(piece.file), piece.file) for piece in pieces)
        for of_one in converted.values():
            pieces += [piece for each in of_one for piece in each.pieces(each.file.access == "map")]
        run(pieces)
    finally:
        for destination in straight:
            torch.autograd.graph.increment_version(destination)


def _in_same_order(destination: torch.Tensor, source: torch.Tensor) -> bool:
    """Returns whether two tensors of one shape are dense and in the same order in memory."""
    if destination.is_contiguous() and source.is_contiguous():
        return True
    ours, theirs = Strided.of(destination), Strided.of(source)
    return ours.is_dense and ours.canonical.steps == theirs.canonical.steps
