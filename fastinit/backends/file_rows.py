"""Reads rows of a file into memory by the native core, which converts them on the way.

A thread of torch's pool that converted would share the work with torch's other threads, which read, too; and block by
block from Python, the interpreter takes as long as the conversion.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ..contract.records import DTYPES, RAW
from . import cpp_backend


class Rows(NamedTuple):
    """Rows of equal length in a file, and where they go. Steps are from row to row, in bytes."""

    n_rows: int
    n_columns: int
    """Elements in a row, which lie one after the other, in the file and in memory."""
    file_step: int
    memory_step: int
    dtype_in_file: torch.dtype
    dtype: torch.dtype


@lru_cache(maxsize=256)
def reads(dtype_in_file: torch.dtype, dtype: torch.dtype) -> bool:
    """Returns whether the native core reads values of one dtype into memory of another, as ``copy_`` would."""
    if cpp_backend._native is None or dtype == torch.bool:  # bytes other than 0 and 1 must become 1
        return False
    if dtype_in_file == dtype:
        return True
    codes = DTYPES.get(dtype_in_file, RAW), DTYPES.get(dtype, RAW)
    return RAW not in codes and bool(cpp_backend._native.converts(*codes))


def read(fd: int, offset: int, rows: Rows, address: int, mapping: int = 0) -> bool:
    """Reads rows, in this thread and without Python's lock.

    Args:
        fd: the file.
        offset: in the file, of the first element, in bytes.
        rows: of dtypes that it reads.
        address: of the first element in memory, which the caller keeps alive.
        mapping: the address of the file's first byte, if the rows shall be copied out of a mapping of the file. It must
            have all of them, on multiples of their elements' size.

    Returns:
        False if the file ends before.

    Raises:
        OSError: the system cannot read.
    """
    assert cpp_backend._native is not None, "ask reads first"
    is_same = rows.dtype_in_file == rows.dtype
    codes = (RAW, RAW) if is_same else (DTYPES[rows.dtype_in_file], DTYPES[rows.dtype])
    complete: bool = cpp_backend._native.read_rows(
        fd,
        offset,
        (rows.n_rows, rows.n_columns),
        (rows.file_step, rows.memory_step),
        codes,
        (rows.dtype_in_file.itemsize, rows.dtype.itemsize),
        address,
        mapping,
    )
    return complete
