"""Splits the records of a digest among the thread blocks of a GPU: a list of csrc/fill.h's Work.

Memory that is aligned goes in units of 16 bytes; edges, odd strides and indices that pass a multiple of 2^32 go element
by element.
"""

from __future__ import annotations

import numpy as np

from .gpu_work import WORK
from .records import Column, Records

UNITS, ELEMENTS = range(2)
"""The paths of kernels/digests.py. ``first`` is an element, ``n`` counts units or elements."""

_UNIT_BYTES = 16
# Units or elements of a piece; more where that would be more pieces than _PIECES. A piece takes a hundred times
# as long as its start, and the largest GPUs have twenty pieces for each thread block that they run at a time.
_AT_ONCE = 1 << 13
_PIECES = 1 << 15


def digest_work(records: Records) -> Records:
    """Returns the pieces of work that cover all elements of the records once."""
    numbers = np.arange(len(records))
    n, width = records["n_elements"], records["element_bytes"].astype(np.int64)
    per_unit = _UNIT_BYTES // width
    head, n_units = _units(records, per_unit)
    tail = head + n_units * per_unit
    return np.concatenate(
        [
            _pieces(numbers, head, n_units, per_unit, UNITS),
            _pieces(numbers, np.zeros_like(n), head, np.ones_like(n), ELEMENTS),
            _pieces(numbers, tail, n - tail, np.ones_like(n), ELEMENTS),
        ]
    )


def _units(records: Records, per_unit: Column) -> tuple[Column, Column]:
    """Returns of each record how many elements come before its first unit, and how many units it has."""
    n, width = records["n_elements"], records["element_bytes"].astype(np.int64)
    size, stride, step = records["size"], records["stride"], records["index_stride"]
    is_one_row = (size[:, :-1] == 1).all(axis=1)
    beyond = (records["data"] % np.uint64(_UNIT_BYTES)).astype(np.int64)
    head = np.where(is_one_row, np.minimum(-beyond % _UNIT_BYTES // width, n), 0)
    are_rows_aligned = (beyond == 0) & (size[:, -1] % per_unit == 0)
    are_rows_aligned &= ((stride[:, :-1] * width[:, None] % _UNIT_BYTES == 0) | (size[:, :-1] == 1)).all(axis=1)
    first = records["first_index"]
    last = first + ((size - 1) * step).sum(axis=1).astype(np.uint64)
    can = (stride[:, -1] == 1) & (first >> np.uint64(32) == last >> np.uint64(32)) & (beyond % width == 0)
    can &= is_one_row | are_rows_aligned
    return np.where(can, head, 0), np.where(can, (n - head) // per_unit, 0)


def _pieces(numbers: Column, first: Column, count: Column, elements: Column, path: int) -> Records:
    """Returns the pieces of stretches of ``count`` units of so many elements each."""
    at_once = max(_AT_ONCE, -(-int(count.sum()) // _PIECES))
    n_pieces = -(-count // at_once)
    which = np.repeat(numbers, n_pieces)
    # The number of each piece within its stretch.
    number = np.arange(len(which)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    work = np.zeros(len(which), WORK)
    work["first"] = first[which] + number * at_once * elements[which]
    work["n"] = np.minimum(count[which] - number * at_once, at_once)
    work["fill"], work["path"] = which, path
    return work
