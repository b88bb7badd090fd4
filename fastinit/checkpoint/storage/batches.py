"""One batch of reads: stretches of files into memory, in file order.

A stretch is read directly into its destination if the bytes are the values; otherwise (another dtype, another layout, a
GPU) into a small staging buffer, from which torch copies. All threads share a batch, in jobs of some megabytes.
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

from ...backends.fresh_memory import back
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
# the same advice (MADV_SEQUENTIAL): two threads in one took 20 s.
_FAR_BYTES = 64 << 20
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


@dataclass
class _Job:
    """One thread's unit of work: neighbouring parts of one file."""

    file: File
    parts: list[tuple[int, int, int]] = field(default_factory=list)
    """(offset in the file, bytes, address; if negative, -1 - position in the staging buffer)."""
    turned: list[tuple[int, Turned]] = field(default_factory=list)
    """(position in the staging buffer, piece)."""
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
    if len(jobs) == 1:  # not worth a thread
        _finish(jobs[0], _read(jobs[0]))
        return
    n_ahead = 2 * torch.get_num_threads()
    waiting: deque[tuple[_Job, Future[torch.Tensor | None]]] = deque()
    try:
        for job in jobs:
            if len(waiting) >= n_ahead:  # bounds the staging memory
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
    """Copies converted values out of the staging buffer. Runs in the caller's thread: torch has its own threads."""
    if staging is None:
        return
    storage = staging.untyped_storage()
    for at, piece in job.turned:
        values = torch.empty(0, dtype=piece.dtype_in_file, device="cpu")
        values.set_(storage, at // piece.dtype_in_file.itemsize, piece.shape, piece.strides)  # type: ignore[call-overload]
        # torch's pinned allocator reuses the buffer only after the GPU has copied from it.
        piece.destination.copy_(values.to(piece.dtype), non_blocking=job.is_pinned)


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


def places(
    item_bytes: int, view: torch.Tensor, shape: Sequence[int], strides: Sequence[int], first: int
) -> Iterator[tuple[torch.Tensor, Sequence[int], int]]:
    """Cuts a tensor in a file along its longest strides until each part spans at most one piece of the file.

    Yields:
        (part of ``view``, its shape, index of its first element in the file).
    """
    n_elements_at_once = max(1, PIECE_BYTES // item_bytes)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides))
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    longest = max(dims, key=lambda dim: strides[dim], default=-1)
    size, step = (shape[longest], strides[longest]) if longest >= 0 else (1, 0)
    below = span - (size - 1) * step  # the span of one index along it
    is_apart = (step - below) * item_bytes > _MAX_APART_BYTES
    if step == 0 or (span <= n_elements_at_once and not is_apart):
        yield view, shape, first
        return
    n = 1 if is_apart else max(1, 1 + (n_elements_at_once - below) // step)
    for start in range(0, size, n):
        length = min(n, size - start)
        part = (*shape[:longest], length, *shape[longest + 1 :])
        yield from places(item_bytes, view.narrow(longest, start, length), part, strides, first + start * step)
