"""Tells whether torch should copy values out of a mapping of a file, or out of what ``pread`` brings."""

from __future__ import annotations

import ctypes
import time

import torch

from .files import File

# Below this, trying takes longer than it can save.
WORTH_TRYING_BYTES = 32 << 20
_BLOCK_BYTES = 256 << 10
_N_BLOCKS = 8
# Values that torch copies out of a mapping are copied once, those that are read twice.
_PASSES_SAVED = 2


def is_faster(file: File, offset: int, n_bytes: int) -> bool:
    """Returns whether values should be copied out of a mapping, by moving the next two megabytes both ways.

    It depends on the machine: where a page fault maps a large piece of the page cache, a mapping takes less CPU time
    than ``pread``; where each page is a fault of its own, perhaps through a hypervisor, it takes four times as much.

    Args:
        file: opened for mapping.
        offset: of bytes that will be needed soon; it is tried there.
        n_bytes: how many bytes of the file will be needed, some of them perhaps several times.

    Raises:
        OSError: the file cannot be read, or was changed.
    """
    length = _BLOCK_BYTES * _N_BLOCKS
    if file.access != "auto" or n_bytes < WORTH_TRYING_BYTES or file.size < length:
        return file.access == "map"
    offset = min(offset, file.size - length)
    buffer = torch.zeros(length, dtype=torch.uint8, device="cpu")
    address = buffer.data_ptr()
    memory = memoryview((ctypes.c_char * length).from_address(address)).cast("B")
    file.read_into([memory], offset)  # from the disk, which is not what is compared
    file.check()
    base = file.mapped().data_ptr() + offset
    file.forget(offset, offset + length)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for index in range(_N_BLOCKS):
        at = index * _BLOCK_BYTES
        is_mapped = index % 2 == 1
        began = time.thread_time()  # without what others do meanwhile
        if is_mapped:
            ctypes.memmove(address, base + at, _BLOCK_BYTES)
        else:
            file.read_into([memory[:_BLOCK_BYTES]], offset + at)
        seconds[is_mapped].append(time.thread_time() - began)
    file.forget(offset, offset + length)
    return min(seconds[True]) <= _PASSES_SAVED * min(seconds[False])
