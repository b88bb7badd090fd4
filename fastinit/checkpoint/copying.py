"""From files into tensors: copies are noted, checked together, and made in one batch, with no second one in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from ..plans import byte_span, may_overlap
from ..sharding import boxes_of, is_sharded, why_not
from .batches import Stretch, Turned, places, run
from .current import current, reading
from .stored import StoredTensor, in_memory

_PLAIN_TYPES = (torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter))


class Failed(NamedTuple):
    """A copy that torch refused when it was made."""

    key: str
    destination: torch.Tensor
    source: torch.Tensor
    error: Exception


class _NotRead(Exception):  # noqa: N818 (it never leaves this module)
    """Something could not be read, as its argument says; other errors of a copy are mismatches."""


class _Copy(NamedTuple):
    destination: torch.Tensor
    source: torch.Tensor
    key: str


class Copies:
    """Copies that are noted and not made yet.

    They are as good as made one after the other: of two into the same memory, the later one counts.
    """

    def __init__(self) -> None:
        self._noted: list[_Copy] = []

    def __len__(self) -> int:
        return len(self._noted)

    def add(self, destination: torch.Tensor, source: torch.Tensor, key: str = "") -> None:
        """Notes a copy; ``key`` is what it is called in messages.

        Raises:
            RuntimeError: it cannot be made, as far as that shows before.
        """
        if nn.parameter.is_lazy(destination):
            raise RuntimeError("it has no shape yet, and nothing that would take one from what is loaded")
        if is_sharded(destination):
            if isinstance(source, StoredTensor) and source.is_in_file:
                if destination.shape != source.geometry.shape:
                    raise RuntimeError(f"shapes {tuple(destination.shape)} and {source.geometry.shape}")
                if (reason := why_not(destination)) is not None:
                    raise RuntimeError(reason)
        else:
            dtype = source.geometry.dtype if type(source) is StoredTensor else source.dtype
            into = destination.dtype
            if dtype != into and is_memory(destination) and (problem := _why_not_turned(dtype, into)):
                raise RuntimeError(problem)
        self._noted.append(_Copy(destination, source, key))

    def make(self, *, all_or_nothing: bool = False) -> list[Failed]:
        """Makes what was noted; files and places are checked before anything is written.

        Returns:
            Copies that torch refused: into tensors of other classes that can show only then. With ``all_or_nothing``
            there is one at most, and what can be known not to fail has not been written.

        Raises:
            OSError, RuntimeError: something cannot be read. If the message says so, a part has been written.
        """
        noted, self._noted = self._noted, []
        failed: list[Failed] = []
        has_begun = False
        with torch.no_grad():
            with torch._C.DisableTorchFunction(), reading():
                _check(noted)
            batch = _Batch()
            try:
                for copy in noted:
                    if batch.takes(copy):
                        continue
                    if batch.meets(copy):
                        has_begun = True
                        batch.run()
                    try:
                        _copy_by_torch(copy)
                    except Exception as error:
                        if isinstance(error, _NotRead):
                            raise
                        failed.append(Failed(copy.key, copy.destination, copy.source, error))
                        if all_or_nothing:
                            return failed
                    has_begun = True
                has_begun = has_begun or bool(batch)
                batch.run()
            except _NotRead as failure:
                raise _told(failure.args[0], has_begun) from failure.args[0]
        return failed


def copy_into(destination: torch.Tensor, source: StoredTensor) -> torch.Tensor:
    """Overwrites a tensor with one from a file, as ``destination.copy_(source)`` would; returns ``destination``.

    Raises:
        OSError: the file cannot be read, or was changed meanwhile.
        RuntimeError: the shapes or dtypes do not go together.
    """
    opened, place = current(), source.place
    if opened is not None and opened.is_copied(destination, place):
        return destination
    copies = Copies()
    copies.add(destination, source)
    for failed in copies.make():
        raise failed.error
    if opened is not None:
        opened.note(destination, place)
    return destination


def _check(copies: Iterable[_Copy]) -> None:
    """Raises OSError or RuntimeError unless all that is to be read is where it was."""
    checked: set[int] = set()
    for copy in copies:
        source = copy.source
        if not isinstance(source, StoredTensor):
            continue
        if type(source) is not StoredTensor:  # made of what is in the file: that shows whether it can be
            in_memory(source)
            continue
        if source.tensor is not None:
            continue
        storage = source.storage_in_file
        if storage.is_in_one_file:
            n_elements = storage.n_bytes // source.dtype_in_file.itemsize
            if not 0 <= source.offset_in_storage <= n_elements - _span(source):
                raise RuntimeError(f"{storage.file.path}: {copy.key!r} does not lie within its bytes of the file")
        watched = storage.file if storage.is_in_one_file else storage
        if id(watched) not in checked:
            checked.add(id(watched))
            storage.check()


def _span(tensor: torch.Tensor) -> int:
    """Returns over how many elements of memory a tensor reaches."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0


@contextmanager
def _not_read() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _NotRead(error) from error


def partly_loaded(error: Exception) -> Exception:
    """Returns a failure that says besides that something has been written already."""
    line = "The model may be partly loaded"
    if line in str(error) or not isinstance(error, (OSError, RuntimeError)):
        return error
    return (OSError if isinstance(error, OSError) else RuntimeError)(f"{error}. {line}")


def _told(error: Exception, has_begun: bool) -> Exception:
    """Returns a failure to read as the user gets it; the load that goes on is told."""
    if has_begun:
        error = partly_loaded(error)
    opened = current()
    if opened is not None:
        opened.failure = error
    return error


@lru_cache(maxsize=1024)
def _why_not_turned(dtype: torch.dtype, into: torch.dtype) -> str | None:
    """Returns why torch does not copy values of one dtype into another, None if it does."""
    if dtype == into:
        return None
    try:
        with warnings.catch_warnings():  # that complex numbers lose their imaginary part
            warnings.simplefilter("ignore")
            torch.empty(1, dtype=into, device="cpu").copy_(torch.zeros(1, dtype=torch.uint8, device="cpu").to(dtype))
    except Exception as error:
        return f"values of {dtype} are not turned into {into}: {error}"
    return None


# --- copies that are torch's -----------------------------------------------------------------------------------------


def _copy_by_torch(copy: _Copy) -> None:
    """Makes one copy on its own: of tensors in memory, out of folders, into tensors that are more than memory."""
    destination, source, _ = copy
    if not isinstance(source, StoredTensor):
        destination.copy_(source)
        return
    if source.tensor is None and not source.storage_in_file.is_in_one_file and source.dtype == source.dtype_in_file:
        if destination.shape != source.shape:
            raise RuntimeError(f"shapes {tuple(destination.shape)} and {tuple(source.shape)}")
        with _not_read():
            source.storage_in_file.load_into(destination)
        torch.autograd.graph.increment_version(destination)
        return
    with _not_read():
        values = _fresh(source) if source.is_in_file else in_memory(source)
    destination.copy_(values)


def _fresh(source: StoredTensor) -> torch.Tensor:
    """Returns the values of a tensor in memory that ends with it."""
    with torch._C.DisableTorchFunction():
        values = torch.empty(source.shape, dtype=source.dtype, device="cpu")
        _run([(values, source)])
    return values


# --- the batch -------------------------------------------------------------------------------------------------------


class _Batch:
    """Copies out of files into plain memory, none of which has been made."""

    def __init__(self) -> None:
        self._copies: list[tuple[torch.Tensor, StoredTensor]] = []
        self._sharded: list[torch.Tensor] = []
        self._memory: set[int | None] = set()

    def __bool__(self) -> bool:
        return bool(self._copies)

    def takes(self, copy: _Copy) -> bool:
        """Takes a copy, if it is one for a batch."""
        destination, source, _ = copy
        if not isinstance(source, StoredTensor):
            return False
        with torch._C.DisableTorchFunction():
            if not source.is_in_file:
                return False
            if is_sharded(destination):
                for box in boxes_of(destination):
                    self._copies.append((box.tensor, source.part(box.offset, tuple(box.tensor.shape))))
                    self._memory.add(_memory_of(box.tensor))
                self._sharded.append(destination)
                return True
            if destination.shape != source.shape or not _is_plain(destination):
                return False
            self._copies.append((destination, source))
            self._memory.add(_memory_of(destination))
        return True

    def meets(self, copy: _Copy) -> bool:
        """Tells whether another copy may read or write what this batch writes."""
        if not self._copies:
            return False
        with torch._C.DisableTorchFunction():
            touched = {_memory_of(copy.destination)}
            if not isinstance(copy.source, StoredTensor):
                touched.add(_memory_of(copy.source))
        return None in touched or not touched.isdisjoint(self._memory)

    def run(self) -> None:
        """Makes the copies."""
        copies, sharded = self._copies, self._sharded
        self._copies, self._sharded, self._memory = [], [], set()
        with torch._C.DisableTorchFunction(), _not_read():
            try:
                for independent in _independent(copies):
                    _run(independent)
            finally:
                for tensor in sharded:
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


def _span_in_memory(tensor: torch.Tensor) -> tuple[int, int]:
    if tensor.is_contiguous():
        start = tensor.data_ptr()
        return start, start + tensor.nbytes
    return byte_span(tensor)


def _independent(
    copies: list[tuple[torch.Tensor, StoredTensor]],
) -> Iterator[list[tuple[torch.Tensor, StoredTensor]]]:
    """Yields copies in batches whose order within does not matter: first all that share memory with no other."""
    spans = sorted((*_span_in_memory(destination), index) for index, (destination, _) in enumerate(copies))
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
        if is_one_place and all(copies[index][0].nbytes == stop - start for _, _, index in group):
            alone.append(last)  # each writes all of it: a tied weight under all of its names
        else:
            in_turn.extend(index for _, _, index in group)
    yield [copies[index] for index in alone]
    for index in sorted(in_turn):
        yield [copies[index]]


def _run(copies: Iterable[tuple[torch.Tensor, StoredTensor]]) -> None:
    """Makes copies whose order does not matter."""
    pieces: list[Stretch | Turned] = []
    straight: list[torch.Tensor] = []
    for destination, source in copies:
        n_elements, item_bytes = destination.numel(), source.dtype_in_file.itemsize
        if not n_elements:
            continue
        storage = source.storage_in_file
        file, first = storage.file, storage.offset + source.offset_in_storage * item_bytes
        in_same_order = _in_same_order(destination, source)
        if (
            in_same_order
            and destination.device.type == "cpu"
            and destination.dtype == source.dtype == source.dtype_in_file
        ):
            pieces.append(Stretch(file, first, n_elements * item_bytes, destination.data_ptr()))
            straight.append(destination)
            continue
        # Not `.data`: a write to this is counted in the version of the destination.
        view, shape, steps = destination.detach(), tuple(source.shape), source.stride()
        if in_same_order:
            view, shape, steps = view.as_strided((n_elements,), (1,)), (n_elements,), (1,)
        for part, size, at in places(item_bytes, view, shape, steps, 0):
            n_bytes = (1 + sum((n - 1) * step for n, step in zip(size, steps))) * item_bytes
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
    # Steps along dimensions of one element lead nowhere.
    steps = [
        (ours, theirs, size)
        for size, ours, theirs in zip(destination.shape, destination.stride(), source.stride())
        if size > 1
    ]
    if any(ours != theirs for ours, theirs, _ in steps):
        return False
    expected = 1  # dense: sorted by step, each step is the product of the sizes before
    for step, _, size in sorted(steps):
        if step != expected:
            return False
        expected *= size
    return True
