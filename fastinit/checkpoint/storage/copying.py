"""From files into tensors: copies are noted, checked together, and made in one batch, with no second one in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from ...execution.allocation import allocate_like
from ...shards.dtensor import is_sharded, why_not_shards
from .current import current, loading, reading
from .files import File
from .placing import Batch, is_memory
from .stored import Storage, StoredTensor, in_memory

_CPU = torch.device("cpu")


class Failed(NamedTuple):
    """A copy that torch refused when it was made."""

    name: str
    destination: torch.Tensor
    source: torch.Tensor
    error: Exception


class _NotRead(Exception):  # noqa: N818 (it never leaves this module)
    """Something could not be read, as its argument says; other errors of a copy are mismatches."""


class _Copy(NamedTuple):
    destination: torch.Tensor
    source: torch.Tensor
    name: str


class Copies:
    """Copies that are noted and not made yet.

    They are as good as made one after the other: of two into the same memory, the later one counts.
    """

    def __init__(self) -> None:
        self._noted: list[_Copy] = []

    def __len__(self) -> int:
        return len(self._noted)

    def add(self, destination: torch.Tensor, source: torch.Tensor, name: str = "") -> None:
        """Notes a copy; ``name`` is what messages call it.

        Raises:
            RuntimeError: it cannot be made, as far as that shows before.
        """
        if nn.parameter.is_lazy(destination):
            raise RuntimeError("it has no shape yet, and nothing that would take one from what is loaded")
        if is_sharded(destination):
            if type(source) is StoredTensor and not source.is_read:
                if destination.shape != source.geometry.shape:
                    raise RuntimeError(f"shapes {tuple(destination.shape)} and {source.geometry.shape}")
                if (reason := why_not_shards(destination)) is not None:
                    raise RuntimeError(reason)
        else:
            dtype = source.geometry.dtype if type(source) is StoredTensor else getattr(source, "dtype", None)
            into = destination.dtype
            if (
                dtype is not None
                and dtype != into
                and is_memory(destination)
                and (problem := _why_not_turned(dtype, into))
            ):
                raise RuntimeError(problem)
        self._noted.append(_Copy(destination, source, name))

    def make(self, *, all_or_nothing: bool = False) -> list[Failed]:
        """Makes what was noted; files and places are checked before anything is written.

        Returns:
            Copies that torch refused: into tensors of other classes that can show only then. With ``all_or_nothing``
            there is one at most, and plain memory has not been written.

        Raises:
            OSError, RuntimeError: something cannot be read. If the message says so, a part has been written.
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
                    with _not_read():
                        is_taken = batch.takes(copy.destination, copy.source)
                    if is_taken:
                        continue
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


def check(copies: Iterable[tuple[torch.Tensor, object, str]]) -> None:
    """Finds out whether all that copies would read can be read; nothing is written.

    Args:
        copies: (destination, what a state dict has for it, its name) of each.

    Raises:
        OSError, RuntimeError: something is not where it was, or damaged.
    """
    with torch._C.DisableTorchFunction():
        _check(_Copy(to, value, key) for to, value, key in copies if isinstance(value, StoredTensor))


def _check(copies: Iterable[_Copy]) -> None:
    """Raises OSError or RuntimeError unless all that is to be read is where it was."""
    unchanged: set[File] = set()
    for copy in copies:
        source = copy.source
        if not isinstance(source, StoredTensor):
            continue
        if type(source) is not StoredTensor:  # computed from what is in the file: only that shows whether it can be
            in_memory(source)
            continue
        if source.is_read:
            continue
        storage = source.storage_in_file
        n_elements = storage.n_bytes // source.dtype_in_file.itemsize
        if not 0 <= source.offset_in_storage <= n_elements - _span(source):
            raise RuntimeError(f"{storage.path}: {copy.name!r} does not lie within its bytes of the file")
        storage.check(copy.destination, unchanged)


def _span(tensor: torch.Tensor) -> int:
    """Returns over how many elements of memory a tensor reaches."""
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
    batch = Batch()
    try:
        with torch.no_grad():
            for storage, memory in zip(storages, memories):
                whole = storage.whole()
                values = whole.over(memory.untyped_storage())
                if not batch.takes(values, whole):
                    _fill(values, whole)
            _run(batch)
    except _NotRead as failure:
        raise failure.args[0] from failure.args[0].__cause__
    for storage, memory in zip(storages, memories):
        storage.memory = memory.untyped_storage()


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
