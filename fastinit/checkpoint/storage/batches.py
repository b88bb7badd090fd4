"""One batch of reads: stretches of files into memory, in file order.

A stretch is read directly into its destination if the bytes are the values. Rows of another dtype, or with gaps between
them, are read by the native core, which converts them. Otherwise (other dtypes and layouts, a GPU, no native core)
torch copies them out of a small staging buffer. With access "map" both copy out of a mapping. All threads share a
batch, in jobs of some megabytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch

from ...backends import file_rows
from ...backends.file_rows import Rows
from ...backends.fresh_memory import back, back_tensor
from ...progress import advance, expect, showing
from .files import File

# With one thread, pread reaches 2.5 GB/s in pieces of 256 KiB, 4.4 in 4 MiB and 5 in 16 MiB; with two threads 9 to 9.6
# from 4 MiB on, as fast as this machine's memory (measured with a warm cache).
PIECE_BYTES = 8 << 20
# Each piece of a mapping must be released: loading 2.4 GB took 0.35 s in pieces of 8 MiB, 0.32 in 32 or more,
# and 0.29 when nothing was released. Unreleased pages count as memory, so this is the bound for all threads together.
MAPPED_PIECE_BYTES = 32 << 20
# Spreads the fixed cost of a job (a future, a wakeup) over this many small tensors.
_MAX_PARTS = 4096
# Gaps between tensors of an archive (headers, padding) up to this size are read, too: that is cheaper than another
# system call of about 0.5 us, in which memory moves some kilobytes.
_MAX_GAP_BYTES = 4096
# Gaps between rows (a rank's part of a matrix) up to this size are read, too: that takes as long as a system call and
# a separate piece.
_MAX_APART_BYTES = 64 << 10
# The system is advised to read further ahead if a batch takes this much of a file, and at least half of the range it
# spans: 512 MiB, uncached, took 0.28 s instead of 0.46 (medians of 8; disk of a virtual machine). Do not give a mapping
# the same advice (MADV_SEQUENTIAL): two threads in one took 20 s. Reading past the page cache (O_DIRECT, 2 to 8
# threads, 2 to 32 MiB at a time) was no faster (2 GiB in 1.2 to 2.2 s both ways), and leaves the next process nothing.
_FAR_BYTES = 64 << 20
# How many elements of a file one thread converts at a time without the native core; with it, pieces of more are jobs of
# their own. torch shares 32,768 and more among its own threads, which then compete with those that read: 268 MB of
# float32 into bfloat16 took 0.25 s in pieces of 8 MiB, 0.09 in these, whose bytes stay in the thread's cache. The
# native core took 0.05 s for 400 MB, where these took 0.17.
_BLOCK_ELEMENTS = 31 << 10
# Smaller destinations are not looked at for whether their memory is fresh: that would take as long as it saves.
_LARGE_BYTES = 1 << 16
# Of tensors in a staging buffer; as in torch's own allocator.
_ALIGNMENT = 64
# How many buffers one preadv may fill; POSIX promises 16.
_MAX_BUFFERS = min(max(os.sysconf("SC_IOV_MAX"), 16), 1024) if hasattr(os, "sysconf") else 16


class Stretch(NamedTuple):
    """Bytes of a file to be read directly into memory."""

    file: File
    offset: int
    n_bytes: int
    address: int
    """Of the destination, which the caller keeps alive."""


class Turned(NamedTuple):
    """Bytes of a file that torch copies into ``destination``, converting them."""

    file: File
    offset: int
    n_bytes: int
    destination: torch.Tensor
    shape: Sequence[int]
    """Of the values in the file, from ``offset`` on."""
    strides: Sequence[int]
    dtype_in_file: torch.dtype
    dtype: torch.dtype
    """The dtype that the values are rounded to before the copy."""
    is_mapped: bool = False
    """torch copies them out of a mapping of the file."""

    @property
    def rows(self) -> Rows | None:
        """It as the native core reads it; None for torch."""
        return rows_of(self.destination, self.shape, self.strides, self.dtype_in_file, self.dtype)

    @property
    def n_read(self) -> int:
        """How many bytes of the file are copied: without gaps that are stepped over."""
        item_bytes = self.dtype_in_file.itemsize
        if (rows := self.rows) is None or rows.file_step - rows.n_columns * item_bytes <= _MAX_GAP_BYTES:
            return self.n_bytes
        return rows.n_rows * rows.n_columns * item_bytes

    @property
    def is_for_one_thread(self) -> bool:
        """Whether it is large enough for a job of its own that converts, and lies so that a thread can."""
        if self.n_bytes <= _BLOCK_ELEMENTS * self.dtype_in_file.itemsize or self.destination.device.type != "cpu":
            return False
        is_flat = len(self.shape) == 1 and self.strides[0] == 1 and self.destination.is_contiguous()
        return is_flat or self.rows is not None

    def copy_from(self, storage: torch.UntypedStorage, first_byte: int, **options: bool) -> None:
        """Copies the values out of memory in which they begin at a byte."""
        values = torch.empty(0, dtype=self.dtype_in_file, device="cpu")
        values.set_(storage, first_byte // self.dtype_in_file.itemsize, self.shape, self.strides)  # type: ignore[call-overload]
        self.destination.copy_(values.to(self.dtype), **options)


@dataclass
class _Job:
    """One thread's unit of work: neighbouring parts of one file."""

    file: File
    parts: list[tuple[int, int, int]] = field(default_factory=list)
    """(offset in the file, bytes, address; if negative, -1 - position in the staging buffer)."""
    turned: list[tuple[int, Turned]] = field(default_factory=list)
    """(position in the staging buffer, piece)."""
    alone: Turned | None = None
    """The only piece, if it needs no staging buffer of its length: it is mapped, or converted while it is read."""
    n_bytes: int = 0
    n_staged: int = 0
    is_pinned: bool = False


def run(pieces: Iterable[Stretch | Turned]) -> None:
    """Reads all pieces, in file order; their destinations must not overlap.

    No thread is still working on any of them when this returns or raises.

    Raises:
        OSError: a file cannot be read, or was changed meanwhile; some destinations may have been written.
    """
    jobs = _jobs(pieces)
    _hurry(jobs)
    total = sum(job.n_bytes for job in jobs)
    with showing("load", total):
        expect(total)
        _run(jobs)


def _run(jobs: Sequence[_Job]) -> None:
    if len(jobs) == 1:  # not worth a thread
        _finish(jobs[0], _read(jobs[0]))
        advance(jobs[0].n_bytes)
        return
    n_ahead = 2 * torch.get_num_threads()
    waiting: deque[tuple[_Job, Future[torch.Tensor | None]]] = deque()
    try:
        for job in jobs:
            if job.alone is not None and job.alone.is_mapped:  # nothing to read: torch's threads share the copy
                _finish(job, None)
                continue
            if len(waiting) >= n_ahead:  # bounds the staging memory
                done, future = waiting.popleft()
                _finish(done, future.result())
                advance(done.n_bytes)
            waiting.append((job, pool().submit(_read, job)))
        while waiting:
            done, future = waiting.popleft()
            _finish(done, future.result())
            advance(done.n_bytes)
    finally:
        for _, future in waiting:
            future.cancel()
        wait([future for _, future in waiting])


def _jobs(pieces: Iterable[Stretch | Turned]) -> list[_Job]:
    order: dict[int, int] = {}
    ordered = sorted(pieces, key=lambda piece: (order.setdefault(id(piece.file), len(order)), piece.offset))
    jobs: list[_Job] = []
    for piece in ordered:
        limit = _job_bytes(piece.file)
        begin = 0
        while begin < piece.n_bytes:
            if isinstance(piece, Turned) and (piece.is_mapped or piece.is_for_one_thread):
                whole = [(piece.offset, piece.n_bytes, -1)]
                n_bytes = piece.n_bytes if piece.is_mapped else piece.n_read
                jobs.append(_Job(piece.file, whole, alone=piece, n_bytes=n_bytes))
                break
            job = jobs[-1] if jobs else None
            is_full = job is None or job.n_bytes >= limit or len(job.parts) >= _MAX_PARTS
            if job is None or is_full or job.file is not piece.file or job.alone is not None:
                job = _Job(piece.file)
                jobs.append(job)
            if isinstance(piece, Stretch):
                # A job takes as much as it has room for; the next continues.
                n_bytes = min(piece.n_bytes - begin, limit - job.n_bytes)
                job.parts.append((piece.offset + begin, n_bytes, piece.address + begin))
            else:
                n_bytes, at = piece.n_bytes, job.n_staged
                job.parts.append((piece.offset, n_bytes, -1 - at))
                job.turned.append((at, piece))
                job.n_staged = -(-(at + n_bytes) // _ALIGNMENT) * _ALIGNMENT
                job.is_pinned = job.is_pinned or piece.destination.device.type == "cuda"
            job.n_bytes += n_bytes
            begin += n_bytes
    return jobs


def _hurry(jobs: list[_Job]) -> None:
    """Requests read-ahead for files of which these jobs, in file order, read a large part."""
    for _, group in groupby(jobs, key=lambda job: id(job.file)):
        of_one = list(group)
        (first, _, _), (last, n_last, _) = of_one[0].parts[0], of_one[-1].parts[-1]
        n_bytes = sum(job.n_bytes for job in of_one)
        if n_bytes >= max(_FAR_BYTES, (last + n_last - first) // 2):
            of_one[0].file.hurry()


def _job_bytes(file: File) -> int:
    return max(MAPPED_PIECE_BYTES // torch.get_num_threads(), PIECE_BYTES) if file.access == "map" else PIECE_BYTES


def _read(job: _Job) -> torch.Tensor | None:
    """Runs a job's reads in any thread; returns the staging buffer, if it needs one."""
    if job.alone is not None:
        if not job.alone.is_mapped and not _read_rows(job.alone):
            _read_in_blocks(job.alone)
        return None
    staging, first = None, 0
    if job.turned:
        staging = torch.empty(job.n_staged, dtype=torch.uint8, device="cpu", pin_memory=job.is_pinned)
        first = staging.data_ptr()
    parts = [(offset, n, place if place >= 0 else first - 1 - place) for offset, n, place in job.parts]
    job.file.check()
    back([(place, place + n) for _, n, place in parts if n >= _LARGE_BYTES], n_threads=1)
    if job.file.access == "map":
        base = job.file.mapped().data_ptr()
        for offset, n_bytes, address in parts:
            ctypes.memmove(address, base + offset, n_bytes)
        job.file.forget(parts[0][0], parts[-1][0] + parts[-1][1])
    else:
        _scatter(job.file, parts)
    return staging


def _read_rows(piece: Turned) -> bool:
    """Has the native core read and convert a piece; returns whether it can."""
    if (rows := piece.rows) is None:
        return False
    file, destination = piece.file, piece.destination
    file.check()
    if destination.is_contiguous():
        address = destination.data_ptr()
        back([(address, address + destination.nbytes)], n_threads=1)
    end = piece.offset + piece.n_bytes
    is_mapped = file.access == "map" and piece.offset % piece.dtype_in_file.itemsize == 0 and end <= file.size
    mapping = file.mapped().data_ptr() if is_mapped else 0
    if not file_rows.read(file.fd, piece.offset, rows, destination.data_ptr(), mapping):
        raise file.too_short(end)
    if is_mapped:
        file.forget(piece.offset, end)
    torch.autograd.graph.increment_version(destination)
    return True


def _read_in_blocks(piece: Turned) -> None:
    """Reads and converts a piece through a buffer that stays in the thread's cache."""
    piece.file.check()
    destination, (n_elements,), item_bytes = piece.destination, piece.shape, piece.dtype_in_file.itemsize
    block = torch.empty(_BLOCK_ELEMENTS, dtype=piece.dtype_in_file, device="cpu")
    memory, address = memory_at(block.data_ptr(), block.nbytes), destination.data_ptr()
    back([(address, address + destination.nbytes)], n_threads=1)
    # Both belong to a thread.
    with torch.no_grad(), torch.inference_mode(destination.is_inference()):
        for begin in range(0, n_elements, _BLOCK_ELEMENTS):
            n = min(_BLOCK_ELEMENTS, n_elements - begin)
            piece.file.read_into([memory[: n * item_bytes]], piece.offset + begin * item_bytes)
            destination.narrow(0, begin, n).copy_(block.narrow(0, 0, n).to(piece.dtype))


def _scatter(file: File, parts: Sequence[tuple[int, int, int]]) -> None:
    """Reads parts (offset, bytes, address), sorted by offset, with one system call for neighbours."""
    gap = memoryview(bytearray(_MAX_GAP_BYTES))  # receives the gaps, and is never read
    buffers: list[memoryview] = []
    start = at = parts[0][0]
    for offset, n_bytes, address in parts:
        between = offset - at
        if buffers and (not 0 <= between <= _MAX_GAP_BYTES or len(buffers) + 2 > _MAX_BUFFERS):
            file.read_into(buffers, start)
            buffers, start, between = [], offset, 0
        if between:
            buffers.append(gap[:between])
        buffers.append(memory_at(address, n_bytes))
        at = offset + n_bytes
    file.read_into(buffers, start)


def _finish(job: _Job, staging: torch.Tensor | None) -> None:
    """Copies what reading alone could not. Runs in the caller's thread: torch has its own threads."""
    if job.alone is not None and job.alone.is_mapped:
        piece = job.alone
        job.file.check()
        back_tensor(piece.destination)
        piece.copy_from(job.file.mapped().untyped_storage(), piece.offset)
        job.file.forget(piece.offset, piece.offset + piece.n_bytes)
    if staging is not None:
        for at, piece in job.turned:
            # torch's pinned allocator reuses the buffer only after the GPU has copied from it.
            piece.copy_from(staging.untyped_storage(), at, non_blocking=job.is_pinned)


# One view of the whole address space: slicing it costs an eighth of making a view for each destination.
_ALL_MEMORY = memoryview((ctypes.c_char * sys.maxsize).from_address(0)).cast("B")


def memory_at(address: int, n_bytes: int) -> memoryview:
    """Returns writable memory at an address; the caller keeps it alive."""
    return _ALL_MEMORY[address : address + n_bytes]


def pool() -> ThreadPoolExecutor:
    """Returns the pool of reading threads, as many as torch uses."""
    return _pool_of(os.getpid(), torch.get_num_threads())


@lru_cache(maxsize=1)  # threads do not survive a fork
def _pool_of(process: int, n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="fastinit-read")


def piece_bytes(is_mapped: bool) -> int:
    """Returns how many bytes of a file a converted piece may span."""
    return MAPPED_PIECE_BYTES if is_mapped else PIECE_BYTES


def rows_of(
    destination: torch.Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype_in_file: torch.dtype,
    dtype: torch.dtype,
) -> Rows | None:
    """Returns a tensor in a file as rows for the native core, None if only torch can copy it.

    Args:
        destination: where it goes.
        shape, strides: of the values in the file, in elements.
        dtype_in_file, dtype: of the values in the file, and what they are rounded to before the copy.
    """
    into = destination.dtype
    if (
        destination.device.type != "cpu"
        or dtype not in (dtype_in_file, into)
        or not file_rows.reads(dtype_in_file, into)
    ):
        return None
    sizes = [(size, there, here) for size, there, here in zip(shape, strides, destination.stride()) if size > 1] or [
        (1, 1, 1)
    ]
    *outer, (n_columns, there, here) = sizes
    if (there, here) != (1, 1) or len(outer) > 1:
        return None
    n_rows, there, here = outer[0] if outer else (1, n_columns, n_columns)
    if there < n_columns:  # rows that overlap in the file, as of an expanded tensor
        return None
    return Rows(n_rows, n_columns, there * dtype_in_file.itemsize, here * into.itemsize, dtype_in_file, into)


def places(
    item_bytes: int,
    view: torch.Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    first: int,
    limit: int,
    *,
    is_in_rows: bool,
) -> Iterator[tuple[torch.Tensor, Sequence[int], int]]:
    """Cuts a tensor in a file along its longest strides until each part spans at most ``limit`` bytes of the file.

    Rows with large gaps between them are parts of their own, unless the native core reads them (``is_in_rows``).

    Yields:
        (part of ``view``, its shape, index of its first element in the file).
    """
    n_elements_at_once = max(1, limit // item_bytes)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides))
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    longest = max(dims, key=lambda dim: strides[dim], default=-1)
    size, step = (shape[longest], strides[longest]) if longest >= 0 else (1, 0)
    below = span - (size - 1) * step  # the span of one index along it
    apart = not is_in_rows and is_apart(item_bytes, shape, strides)
    if step == 0 or (span <= n_elements_at_once and not apart):
        yield view, shape, first
        return
    n = 1 if apart else max(1, 1 + (n_elements_at_once - below) // step)
    for start in range(0, size, n):
        length = min(n, size - start)
        part = (*shape[:longest], length, *shape[longest + 1 :])
        narrow = view.narrow(longest, start, length)
        yield from places(item_bytes, narrow, part, strides, first + start * step, limit, is_in_rows=is_in_rows)


def is_apart(item_bytes: int, shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Returns whether the gaps between the rows of a tensor in a file are too large to be read with them."""
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides))
    size, step = max(
        ((size, step) for size, step in zip(shape, strides) if size > 1), key=lambda row: row[1], default=(1, 0)
    )
    return (step - (span - (size - 1) * step)) * item_bytes > _MAX_APART_BYTES
