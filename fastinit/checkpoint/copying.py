"""From a file into tensors: in pieces, in parallel, without a second copy of what is loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from ..provenance import version_of
from ..sharding import boxes_of, is_sharded, why_not
from .files import PIECE_BYTES, File, memory_of, pool, read_all
from .stored import StoredTensor, in_memory

# Out of a mapping, every piece costs a start of torch's threads and an unmapping: loading 2.4 GB took 0.35 s in pieces
# of 8 MiB, 0.32 in 32 or more, and 0.29 where nothing was unmapped. Pages that are not let go count as memory.
MAPPED_PIECE_BYTES = 32 << 20


class Loading:
    """What must be known across the copies of one load."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        """Why a file could not be read. Modules take an error of ``copy_`` for a mismatch and go on."""
        self.files: dict[int, File] = {}
        self.is_rehearsal = False
        """Nothing is copied: only what does not fit is to be found."""
        self._copied: dict[int, tuple[torch.Tensor, tuple[object, ...]]] = {}

    def is_copied(self, destination: torch.Tensor, source: StoredTensor) -> bool:
        """Tells whether the same bytes went there before, and nobody wrote since: tied weights have many names."""
        found = self._copied.get(id(destination))
        return found is not None and found[1] == _mark(destination, source)

    def note(self, destination: torch.Tensor, source: StoredTensor) -> None:
        """Notes a copy."""
        if source.storage_in_file.is_in_one_file:
            self.files[id(source.storage_in_file.file)] = source.storage_in_file.file
        self._copied[id(destination)] = destination, _mark(destination, source)


def _mark(destination: torch.Tensor, source: StoredTensor) -> tuple[object, ...]:
    place = id(source.storage_in_file), source.offset_in_storage, source.stride(), source.dtype
    return *place, version_of(destination)


_current: ContextVar[Loading | None] = ContextVar("fastinit_loading", default=None)


@contextmanager
def loading() -> Iterator[Loading]:
    """Opens a load for the block; mappings that it made end with it."""
    opened = Loading()
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)
        for file in opened.files.values():
            file.unmap()
        vars(opened).clear()  # a traceback, or a function that refers to itself, may keep it for long


def copy_into(destination: torch.Tensor, source: StoredTensor) -> torch.Tensor:
    """Overwrites a tensor with one from a file, as ``destination.copy_(source)`` would; returns ``destination``.

    Where both lie in memory in the same order, the bytes go from the file (mapped or read, as the file says) to their
    place, in pieces; a GPU gets them through pinned memory. Any other copy is torch's.

    Raises:
        OSError: the file cannot be read, or was changed meanwhile.
    """
    in_one_file = source.storage_in_file.is_in_one_file
    if is_sharded(destination) and in_one_file:
        return _copy_into_parts(destination, source)
    current = _current.get()
    if current is not None and (current.is_rehearsal or current.is_copied(destination, source)):
        return destination
    try:
        with torch.no_grad():
            if not in_one_file and source.tensor is None:
                if destination.shape != source.shape:
                    raise RuntimeError(f"shapes {tuple(destination.shape)} and {tuple(source.shape)}")
                _load_from_folder(destination, source, current)
                torch.autograd.graph.increment_version(destination)
            elif source.tensor is not None or not in_one_file or not _in_same_order(destination, source):
                _copy_whole(destination, source)
            elif destination.numel():
                source.storage_in_file.file.check()
                _copy_pieces(destination, source)
    except OSError as error:
        if current is not None:
            current.failure = error
        raise
    if current is not None:
        current.note(destination, source)
    return destination


def _load_from_folder(destination: torch.Tensor, source: StoredTensor, current: Loading | None) -> None:
    try:
        source.storage_in_file.load_into(destination, source.dtype)  # type: ignore[attr-defined]
    except Exception as error:  # of whatever kind: it is no mismatch
        if current is not None:
            current.failure = error
        raise


def _copy_into_parts(destination: torch.Tensor, source: StoredTensor) -> torch.Tensor:
    """Reads what is here of a distributed tensor, and nothing else where it lies together in a mapped file."""
    if destination.shape != source.shape or (reason := why_not(destination)) is not None:
        shapes = f"shapes {tuple(destination.shape)} and {tuple(source.shape)}"
        raise RuntimeError(reason if destination.shape == source.shape else shapes)
    for box in boxes_of(destination):
        copy_into(box.tensor, source.part(box.offset, tuple(box.tensor.shape)))
    torch.autograd.graph.increment_version(destination)
    return destination


def _in_same_order(destination: torch.Tensor, source: StoredTensor) -> bool:
    plain = type(destination) in (torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter))
    if not plain or destination.layout != torch.strided or destination.device.type not in ("cpu", "cuda"):
        return False
    if destination.shape != source.shape or destination.is_quantized or destination.is_conj() or destination.is_neg():
        return False
    # Steps along dimensions of one element lead nowhere.
    steps = [
        (ours, theirs)
        for size, ours, theirs in zip(destination.shape, destination.stride(), source.stride())
        if size > 1
    ]
    if any(ours != theirs for ours, theirs in steps):
        return False
    expected = 1  # dense: sorted by step, each step is the product of the sizes before
    for step, size in sorted((step, size) for size, step in zip(destination.shape, destination.stride()) if size > 1):
        if step != expected:
            return False
        expected *= size
    return True


def _copy_whole(destination: torch.Tensor, source: StoredTensor) -> None:
    """Leaves the copy to torch; from a mapping where there is one, so that nothing is read twice."""
    storage = source.storage_in_file
    if (
        source.tensor is None
        and storage.is_in_one_file
        and storage.file.access == "map"
        and source.can_be_mapped
        and source.numel()
    ):
        storage.file.check()
        values = source.over(storage.file.mapped().untyped_storage(), storage.offset)
        destination.copy_(values.to(source.dtype))
        storage.file.forget(storage.offset, storage.offset + storage.n_bytes)
        return
    destination.copy_(in_memory(source))


def _copy_pieces(destination: torch.Tensor, source: StoredTensor) -> None:
    file, n_elements, item_bytes = source.storage_in_file.file, destination.numel(), source.dtype_in_file.itemsize
    first = source.storage_in_file.offset + source.offset_in_storage * item_bytes
    # Not `.data`: a write to this is counted in the version of the destination.
    flat = destination.detach().as_strided((n_elements,), (1,))
    if file.access == "map" and flat.device.type == "cpu" and source.can_be_mapped:
        mapped = file.mapped()[first : first + n_elements * item_bytes].view(source.dtype_in_file)
        for start, end in _pieces(n_elements, MAPPED_PIECE_BYTES // item_bytes):
            file.check()
            flat[start:end].copy_(mapped[start:end].to(source.dtype))
            file.forget(first + start * item_bytes, first + end * item_bytes)
    elif flat.device.type == "cpu" and flat.dtype == source.dtype == source.dtype_in_file:
        read_all([(file, first, memory_of(flat.data_ptr(), n_elements * item_bytes))])
        torch.autograd.graph.increment_version(destination)
    else:
        pinned = flat.device.type == "cuda"

        def read_piece(piece: tuple[int, int]) -> torch.Tensor:
            values = torch.empty(piece[1] - piece[0], dtype=source.dtype_in_file, pin_memory=pinned)
            file.read_into(memory_of(values.data_ptr(), values.nbytes), first + piece[0] * item_bytes)
            return values

        pieces = _pieces(n_elements, PIECE_BYTES // item_bytes)
        # torch's allocator of pinned memory gives a piece out again when the GPU has taken it.
        for (start, end), values in zip(pieces, _ahead(read_piece, pieces)):
            flat[start:end].copy_(values.to(source.dtype), non_blocking=pinned)


def _pieces(n_elements: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, n_elements)) for start in range(0, n_elements, step)]


def _ahead(
    function: Callable[[tuple[int, int]], torch.Tensor], pieces: list[tuple[int, int]]
) -> Iterator[torch.Tensor]:
    """Yields the results in order; threads work on the next ones meanwhile, never more than two for each of them."""
    if len(pieces) == 1:
        yield function(pieces[0])
        return
    waiting: deque[Future[torch.Tensor]] = deque()
    for piece in pieces:
        if len(waiting) >= 2 * torch.get_num_threads():
            yield waiting.popleft().result()
        waiting.append(pool().submit(function, piece))
    while waiting:
        yield waiting.popleft().result()
