"""One batch of reads: stretches of files, each to its place in memory, in the order in which they lie in the files.

A stretch goes straight to its place where the bytes are the values; else through a little memory beside it, out of
which torch copies (another dtype, another layout, a GPU). All threads work on a batch, a job of some megabytes each.
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

from .files import File

# With one thread, pread reaches 2.5 GB/s in pieces of 256 KiB, 4.4 in 4 MiB and 5 in 16 MiB; with two threads 9 to 9.6
# from 4 MiB on, as fast as this machine's memory (measured with a warm cache).
PIECE_BYTES = 8 << 20
# Out of a mapping, every piece costs an unmapping: loading 2.4 GB took 0.35 s in pieces of 8 MiB, 0.32 in 32 or more,
# and 0.29 where nothing was unmapped. Pages that are not let go count as memory, so all threads together have so much.
MAPPED_PIECE_BYTES = 32 << 20
# What a job of small tensors costs beside its bytes (a future, a wakeup) is spread over so many of them at least.
_MAX_PARTS = 4096
# Between two tensors of an archive lie headers and padding: reading over them is cheaper than another system call
# (about 0.5 us, in which memory moves some kilobytes).
_MAX_GAP_BYTES = 4096
# Of rows that lie apart (a rank's part of a matrix), so much is read between two; that is what a system call and a
# piece of its own cost in time.
_MAX_APART_BYTES = 64 << 10
# The system is told to read further ahead where a batch takes so much of a file, and at least half of what is between:
# 512 MiB that no cache had came in 0.28 s and not in 0.46 (medians of 8; disk of a virtual machine). Telling a mapping
# the same (MADV_SEQUENTIAL) is no way: two threads in it took 20 s.
_FAR_BYTES = 64 << 20
# Every tensor in memory beside begins at a multiple of this, as torch's own allocator has it.
_ALIGNMENT = 64
# How many places one preadv may fill; 16 is what POSIX promises.
_MAX_BUFFERS = min(max(os.sysconf("SC_IOV_MAX"), 16), 1024) if hasattr(os, "sysconf") else 16


class Stretch(NamedTuple):
    """Bytes of a file that are the values of a place in memory."""

    file: File
    offset: int
    n_bytes: int
    address: int
    """Of the first byte in memory, which the caller keeps alive."""


class Turned(NamedTuple):
    """Bytes of a file that become the values of ``destination`` by a copy of torch."""

    file: File
    offset: int
    n_bytes: int
    destination: torch.Tensor
    shape: Sequence[int]
    """Of the values in the file, whose strides are ``strides``, from ``offset`` on."""
    strides: Sequence[int]
    dtype_in_file: torch.dtype
    dtype: torch.dtype
    """What the values are turned into before ``destination`` takes them."""


@dataclass
class _Job:
    """What one thread does at one time: neighbours in one file."""

    file: File
    parts: list[tuple[int, int, int]] = field(default_factory=list)
    """(offset in the file, bytes, address; within the memory beside, if negative: -1 - position)."""
    turned: list[tuple[int, Turned]] = field(default_factory=list)
    """With its position in the memory beside."""
    n_bytes: int = 0
    n_beside: int = 0
    is_pinned: bool = False


def run(pieces: Iterable[Stretch | Turned]) -> None:
    """Reads all pieces; their places must not overlap, as their order is the files'.

    When this returns or raises, no thread is working on any of them.

    Raises:
        OSError: a file cannot be read, or was changed meanwhile: some places may have been written.
    """
    jobs = _jobs(pieces)
    _hurry(jobs)
    if len(jobs) == 1:  # a thread would cost more than it gains
        _finish(jobs[0], _read(jobs[0]))
        return
    n_ahead = 2 * torch.get_num_threads()
    waiting: deque[tuple[_Job, Future[torch.Tensor | None]]] = deque()
    try:
        for job in jobs:
            if len(waiting) >= n_ahead:  # no more than this is in memory beside
                done, future = waiting.popleft()
                _finish(done, future.result())
            waiting.append((job, pool().submit(_read, job)))
        while waiting:
            done, future = waiting.popleft()
            _finish(done, future.result())
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
            job = jobs[-1] if jobs else None
            if job is None or job.file is not piece.file or job.n_bytes >= limit or len(job.parts) >= _MAX_PARTS:
                job = _Job(piece.file)
                jobs.append(job)
            if isinstance(piece, Stretch):
                # A job takes what it has room for, and the next goes on with the rest.
                n_bytes = min(piece.n_bytes - begin, limit - job.n_bytes)
                job.parts.append((piece.offset + begin, n_bytes, piece.address + begin))
            else:
                n_bytes, at = piece.n_bytes, job.n_beside
                job.parts.append((piece.offset, n_bytes, -1 - at))
                job.turned.append((at, piece))
                job.n_beside = -(-(at + n_bytes) // _ALIGNMENT) * _ALIGNMENT
                job.is_pinned = job.is_pinned or piece.destination.device.type == "cuda"
            job.n_bytes += n_bytes
            begin += n_bytes
    return jobs


def _hurry(jobs: list[_Job]) -> None:
    """Lets the system read far ahead in files of which these jobs, which are in their order, take a long part."""
    for _, group in groupby(jobs, key=lambda job: id(job.file)):
        of_one = list(group)
        (first, _, _), (last, n_last, _) = of_one[0].parts[0], of_one[-1].parts[-1]
        n_bytes = sum(job.n_bytes for job in of_one)
        if n_bytes >= max(_FAR_BYTES, (last + n_last - first) // 2):
            of_one[0].file.hurry()


def _job_bytes(file: File) -> int:
    return max(MAPPED_PIECE_BYTES // torch.get_num_threads(), PIECE_BYTES) if file.access == "map" else PIECE_BYTES


def _read(job: _Job) -> torch.Tensor | None:
    """Reads what a job is made of; returns the memory beside, with what must be turned. Runs in any thread."""
    beside, first = None, 0
    if job.turned:
        beside = torch.empty(job.n_beside, dtype=torch.uint8, device="cpu", pin_memory=job.is_pinned)
        first = beside.data_ptr()
    parts = [(offset, n, place if place >= 0 else first - 1 - place) for offset, n, place in job.parts]
    job.file.check()
    if job.file.access == "map":
        base = job.file.mapped().data_ptr()
        for offset, n_bytes, address in parts:
            ctypes.memmove(address, base + offset, n_bytes)
        job.file.forget(parts[0][0], parts[-1][0] + parts[-1][1])
    else:
        _scatter(job.file, parts)
    return beside


def _scatter(file: File, parts: Sequence[tuple[int, int, int]]) -> None:
    """Reads parts (offset, bytes, address), ordered by offset; neighbours with one system call."""
    gap = memoryview(bytearray(_MAX_GAP_BYTES))  # what lies between; nobody looks at it
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


def _finish(job: _Job, beside: torch.Tensor | None) -> None:
    """Copies what must be turned out of the memory beside. Runs in the caller's thread: torch has its own."""
    if beside is None:
        return
    storage = beside.untyped_storage()
    for at, piece in job.turned:
        values = torch.empty(0, dtype=piece.dtype_in_file, device="cpu")
        values.set_(storage, at // piece.dtype_in_file.itemsize, piece.shape, piece.strides)  # type: ignore[call-overload]
        # torch's allocator of pinned memory gives it out again when the GPU has taken the values.
        piece.destination.copy_(values.to(piece.dtype), non_blocking=job.is_pinned)


# One view of all addresses: a slice of it costs an eighth of a view made for each place. Nothing looks beyond slices.
_ALL_MEMORY = memoryview((ctypes.c_char * sys.maxsize).from_address(0)).cast("B")


def memory_at(address: int, n_bytes: int) -> memoryview:
    """Returns memory at an address, to be written; the caller keeps it alive."""
    return _ALL_MEMORY[address : address + n_bytes]


def pool() -> ThreadPoolExecutor:
    """Returns the threads that read, as many as torch uses."""
    return _pool_of(os.getpid(), torch.get_num_threads())


@lru_cache(maxsize=1)  # threads do not survive a fork
def _pool_of(process: int, n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="fastinit-read")


def places(
    item_bytes: int, view: torch.Tensor, shape: Sequence[int], strides: Sequence[int], first: int
) -> Iterator[tuple[torch.Tensor, Sequence[int], int]]:
    """Cuts a tensor whose values lie in a file along its longest steps, until each part spans a piece of it at most.

    Yields:
        (part of ``view``, its shape, index of its first element in the file).
    """
    n_elements_at_once = max(1, PIECE_BYTES // item_bytes)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides))
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    longest = max(dims, key=lambda dim: strides[dim], default=-1)
    size, step = (shape[longest], strides[longest]) if longest >= 0 else (1, 0)
    below = span - (size - 1) * step  # what one index of it spans
    is_apart = (step - below) * item_bytes > _MAX_APART_BYTES
    if step == 0 or (span <= n_elements_at_once and not is_apart):
        yield view, shape, first
        return
    n = 1 if is_apart else max(1, 1 + (n_elements_at_once - below) // step)
    for start in range(0, size, n):
        length = min(n, size - start)
        part = (*shape[:longest], length, *shape[longest + 1 :])
        yield from places(item_bytes, view.narrow(longest, start, length), part, strides, first + start * step)
