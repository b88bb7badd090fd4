"""Copies from files into tensors: collected, checked together, run as one batch, without a second copy in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from ...errors import InitOSError, InitRuntimeError
from ...execution.allocation import allocate_like
from ...shards.dtensor import is_sharded, why_not_shards
from .batches import run
from .current import current, loading, reading
from .files import File
from .placing import Batch, is_memory
from .stored import Storage, StoredTensor, in_memory

_CPU = torch.device("cpu")


class Failed(NamedTuple):
    """A copy that torch refused."""

    name: str
    destination: torch.Tensor
    source: torch.Tensor
    error: Exception


class _NotRead(Exception):  # noqa: N818 (it never leaves this module)
    """A read failed, with the error in its argument; other errors of a copy are mismatches."""


class _Copy(NamedTuple):
    destination: torch.Tensor
    source: torch.Tensor
    name: str


class Copies:
    """Pending copies.

    The result is as if they ran one after the other: of two copies into the same memory, the later one wins.
    """

    def __init__(self) -> None:
        self._noted: list[_Copy] = []

    def __len__(self) -> int:
        return len(self._noted)

    def add(self, destination: torch.Tensor, source: torch.Tensor, name: str = "") -> None:
        """Adds a copy; ``name`` is for messages.

        Raises:
            RuntimeError: it cannot be made, as far as shapes, dtypes and placements show.
        """
        if nn.parameter.is_lazy(destination):
            raise InitRuntimeError("it has no shape yet, and its module takes none from the checkpoint")
        if is_sharded(destination):
            if type(source) is StoredTensor and not source.is_read:
                if destination.shape != source.geometry.shape:
                    raise InitRuntimeError(f"shapes {tuple(destination.shape)} and {source.geometry.shape}")
                if (reason := why_not_shards(destination)) is not None:
                    raise InitRuntimeError(reason)
        else:
            dtype = source.geometry.dtype if type(source) is StoredTensor else getattr(source, "dtype", None)
            into = destination.dtype
            if (
                dtype is not None
                and dtype != into
                and is_memory(destination)
                and (problem := _why_not_turned(dtype, into))
            ):
                raise InitRuntimeError(problem)
        self._noted.append(_Copy(destination, source, name))

    def make(self, *, all_or_nothing: bool = False) -> list[Failed]:
        """Runs the pending copies; all files are checked before anything is written.

        Returns:
            The copies that torch refused, which for tensor subclasses only shows now. With ``all_or_nothing`` there is
            at most one, and plain memory has not been written.

        Raises:
            OSError, RuntimeError: a read failed. The message says so if something has been written.
        """
        noted, self._noted = self._noted, []
        failed: list[Failed] = []
        has_begun = False
        with torch.no_grad():
            with torch._C.DisableTorchFunction(), reading():
                _check(noted)
            batch = Batch()
            try:
                for copy in noted:
                    try:
                        if batch.takes(copy.destination, copy.source):
                            continue
                    except Exception as error:
                        raise _NotRead(error) from error
                    if batch.meets(copy.destination, copy.source):
                        has_begun = True
                        _run(batch)
                    try:
                        _copy_alone(copy)
                    except Exception as error:
                        if isinstance(error, _NotRead):
                            raise
                        failed.append(Failed(copy.name, copy.destination, copy.source, error))
                        if all_or_nothing:
                            return failed
                    has_begun = True
                has_begun = has_begun or bool(batch)
                _run(batch)
            except _NotRead as failure:
                raise _reported(failure.args[0], has_begun) from failure.args[0]
        return failed


def copy_into(destination: torch.Tensor, source: StoredTensor) -> torch.Tensor:
    """Overwrites a tensor with one from a file, as ``destination.copy_(source)`` would; returns ``destination``.

    Raises:
        OSError: the file cannot be read, or was changed meanwhile.
        RuntimeError: the shapes or dtypes do not match.
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


def check(copies: Iterable[tuple[torch.Tensor, object, str]]) -> None:
    """Checks that everything these copies would read can be read; writes nothing.

    Args:
        copies: (destination, value in the state dict, name) of each.

    Raises:
        OSError, RuntimeError: a file was changed, or is damaged.
    """
    with torch._C.DisableTorchFunction():
        _check(_Copy(to, value, key) for to, value, key in copies if isinstance(value, StoredTensor))


def _check(copies: Iterable[_Copy]) -> None:
    """Raises OSError or RuntimeError unless everything can be read."""
    unchanged: set[File] = set()
    for copy in copies:
        source = copy.source
        if not isinstance(source, StoredTensor):
            continue
        if type(source) is not StoredTensor:  # computing it is the only check
            in_memory(source)
            continue
        if source.is_read:
            continue
        storage = source.storage_in_file
        n_elements = storage.n_bytes // source.dtype_in_file.itemsize
        if not 0 <= source.offset_in_storage <= n_elements - _span(source):
            raise InitRuntimeError(
                f"{storage.path}: {copy.name!r} does not lie within its bytes of the file", place=storage.path
            )
        storage.check(copy.destination, unchanged)


def _span(tensor: torch.Tensor) -> int:
    """Returns how many elements of memory a tensor spans."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0


def _run(batch: Batch) -> None:
    with _not_read():
        batch.run()


@contextmanager
def _not_read() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _NotRead(error) from error


def partly_loaded(error: Exception) -> Exception:
    """Returns the error, extended to say that something has been written already."""
    line = "The model may be partly loaded"
    if line in str(error) or not isinstance(error, (OSError, RuntimeError)):
        return error
    kind = InitOSError if isinstance(error, OSError) else InitRuntimeError
    return kind(f"{error}. {line}", of=error)


def _reported(error: Exception, has_begun: bool) -> Exception:
    """Returns a read error as the user gets it, and records it in the current load."""
    if has_begun:
        error = partly_loaded(error)
    opened = current()
    if opened is not None:
        opened.failure = error
    return error


@lru_cache(maxsize=1024)
def _why_not_turned(dtype: torch.dtype, into: torch.dtype) -> str | None:
    """Returns why torch cannot copy values of one dtype into another, None if it can."""
    if dtype == into:
        return None
    try:
        with warnings.catch_warnings():  # about the imaginary part of complex numbers
            warnings.simplefilter("ignore")
            torch.empty(1, dtype=into, device="cpu").copy_(torch.zeros(1, dtype=torch.uint8, device="cpu").to(dtype))
    except Exception as error:
        return f"values of {dtype} cannot be converted to {into}: {error}"
    return None


# --- copies outside a batch ------------------------------------------------------------------------------------------


def read(storages: Sequence[Storage]) -> None:
    """Reads storages into fresh memory, in one batch.

    Raises:
        OSError, RuntimeError: something cannot be read; none of the storages has memory then.
    """
    memories = allocate_like([torch.empty(each.n_bytes, dtype=torch.uint8, device="meta") for each in storages], _CPU)
    unchanged: set[File] = set()
    for storage in storages:
        storage.check(None, unchanged)
    run([each for storage, memory in zip(storages, memories) for each in storage.reads(memory)])
    for storage, memory in zip(storages, memories):
        storage.memory = memory.untyped_storage()


def fill(destination: torch.Tensor, source: StoredTensor) -> None:
    """Reads a tensor into fresh memory of its shape and dtype, piece by piece.

    Raises:
        OSError, RuntimeError: something cannot be read.
    """
    try:
        with torch.no_grad():
            _fill(destination, source)
    except _NotRead as failure:
        raise failure.args[0] from failure.args[0].__cause__


def _copy_alone(copy: _Copy) -> None:
    """Makes a copy that no batch takes: between tensors in memory, or into tensors that are more than memory."""
    destination, source, _ = copy
    if type(source) is StoredTensor and not source.is_read:
        if destination.shape == source.shape:
            _fill(destination, source)
        else:  # torch broadcasts it, or says why not
            destination.copy_(_fresh(source))
        return
    if isinstance(source, StoredTensor):
        with _not_read():
            source = in_memory(source)
    destination.copy_(source)


def _fill(destination: torch.Tensor, source: StoredTensor) -> None:
    """Reads a tensor into one of its shape, piece by piece; of many files, one after the other is open."""
    storage = source.storage_in_file
    with _not_read():
        pieces = list(storage.pieces(destination, source))
    for _, of_one_file in groupby(pieces, key=lambda piece: piece[1].storage_in_file.path):
        with nullcontext() if storage.opens_few_files else loading():
            for view, part in of_one_file:
                _fill_piece(view, part)
    if is_sharded(destination):
        torch.autograd.graph.increment_version(destination)


def _fill_piece(view: torch.Tensor, part: StoredTensor) -> None:
    batch = Batch()
    with _not_read():
        if batch.takes(view, part):
            batch.run()
            return
        values = _fresh(part) if type(part) is StoredTensor else in_memory(part)
    view.copy_(values)


def _fresh(source: StoredTensor) -> torch.Tensor:
    """Returns the values of a tensor in memory of their own, which is not kept."""
    with torch._C.DisableTorchFunction():
        values = torch.empty(source.shape, dtype=source.dtype, device="cpu")
    _fill(values, source)
    return values
