"""Splits the records of a launch among the thread blocks of a GPU: the list of csrc/fill.h's Work.

Memory that is 16-byte aligned and starts on a block of random words goes in whole trips of the kernel's main loop,
without masks; edges, odd strides and odd starts go block by block. numpy handles all records at once, because a model
may have 20,000 tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import records as lowering
from .records import Records

RUN, ROWS, BLOCKS = range(3)
"""Values of csrc/fill.h's Path."""

# csrc/fill.h's Work, field by field.
WORK = np.dtype(
    [
        ("first", np.int64),
        ("n", np.int32),
        ("fill", np.int32),
        ("path", np.int32),
        ("reserved", np.int32),
    ]
)

# At most so many pieces of work, plus one per path of each record. That is some eighty for each thread block that the
# largest GPUs run at a time, so that all end together, and a piece takes a hundred times as long as its start.
_PIECES = 1 << 15
# A piece has so many trips where that leaves a quarter of the pieces, twenty for each thread block: in a millisecond's
# work they end as evenly, and most of the host's time goes into the list.
_TRIPS = 16
# Elements of a block of four random words.
_BLOCK_ELEMENTS = 4
_LOW = np.uint64(0xFFFFFFFF)


class Trips(NamedTuple):
    """The size of one trip through a kernel's main loop."""

    elements: int
    constant_bytes: int


class _Segments(NamedTuple):
    """Parts of records that take the same path."""

    fill: Any
    path: Any
    first: Any
    count: Any
    """Trips, or blocks."""
    step: Any
    """How far a trip or a block advances ``first``."""


def device_work(records: Records, trips: Trips) -> np.ndarray[Any, np.dtype[np.void]]:
    """Returns the pieces of work that fill the records, each element once; sets the records' ``blocks_per_row``.

    Args:
        records: from :func:`lowering.lowered`; constants may get another ``first_index``, which does not matter.
        trips: of the kernel that will run them.
    """
    parts = _Geometry(records, trips).segments()
    return _pieces(_Segments(*(np.concatenate(column) for column in zip(*parts))), trips)


def _pieces(segments: _Segments, trips: Trips) -> np.ndarray[Any, np.dtype[np.void]]:
    """Cuts segments into pieces of equal size."""
    blocks_per_trip = trips.elements // _BLOCK_ELEMENTS
    in_trips = np.where(segments.path == BLOCKS, -(-segments.count // blocks_per_trip), segments.count)
    n_trips = int(in_trips.sum())
    per_piece = max(1, min(_TRIPS, 4 * n_trips // _PIECES), -(-n_trips // _PIECES))
    size = np.where(segments.path == BLOCKS, per_piece * blocks_per_trip, per_piece)
    n_pieces = -(-segments.count // size)
    # Whole arrays as long as the list are few: in fresh memory each costs more than its arithmetic.
    some = np.flatnonzero(n_pieces)
    first, count, step, size, n_pieces = (
        column[some] for column in (segments.first, segments.count, segments.step, size, n_pieces)
    )
    of_segment = np.zeros(len(some), WORK)
    of_segment["first"] = size * step  # from piece to piece, for now
    of_segment["n"] = size
    of_segment["fill"] = segments.fill[some]
    of_segment["path"] = segments.path[some]
    work = np.repeat(of_segment, n_pieces)
    if len(work):
        behind = np.cumsum(n_pieces)
        last = first + (n_pieces - 1) * size * step  # where each segment's last piece begins
        work["n"][behind - 1] = count - (n_pieces - 1) * size
        work["first"][behind - n_pieces] = first - np.concatenate([[0], last[:-1]])
        np.cumsum(work["first"], out=work["first"])
    return work


class _Geometry:
    """Which paths the records' shapes allow."""

    def __init__(self, records: Records, trips: Trips) -> None:
        last = lowering.MAX_DIMS - 1
        self.records = records
        self.is_constant = records["distribution"] == lowering.CONSTANT
        is_double = (records["dtype"] == lowering.DOUBLE) & ~self.is_constant
        self.bytes = records["element_bytes"].astype(np.int64)
        # Contiguous copies: in the records, neighbouring numbers are half a kilobyte apart.
        self.n = records["n_elements"].copy()
        self.row = records["size"][:, last].copy()
        self.is_one_row = self.n == self.row
        self.step = records["index_stride"][:, last]
        self.per_block = np.where(is_double, 2, _BLOCK_ELEMENTS)
        self.per_unit = np.maximum(16 // self.bytes, 1)
        self.per_trip = np.where(self.is_constant, trips.constant_bytes // self.bytes, trips.elements)
        self.is_dense = (records["stride"][:, last] == 1) & (self.step == 1)
        # Elements before the first 16-byte aligned one; at an address that the element's size does not divide, none is.
        behind = (-(records["data"] % np.uint64(16)).astype(np.int64)) % 16
        self.lead = behind // self.bytes
        self.is_dense &= behind % self.bytes == 0
        # A range too small to be scaled exactly needs two products, and only the path over blocks has both.
        low, high, scale = (records["params"][:, i] for i in range(3))
        is_uniform = (records["distribution"] == lowering.UNIFORM) & ~is_double
        self.is_dense &= ~is_uniform | (scale > 0) | (low == high)
        records["first_index"] = np.where(
            self.is_constant & self.is_one_row, (-self.lead % _BLOCK_ELEMENTS).astype(np.uint64), records["first_index"]
        )
        self.index_lead = (records["first_index"] % self.per_block.astype(np.uint64)).astype(np.int64)
        self.is_run = self.is_dense & self.is_one_row & ((self.index_lead + self.lead) % self.per_block == 0)
        if self.is_one_row.all() and (self.step == 1).all():  # nearly always
            self.is_rows = self.blocks_per_row = np.zeros_like(self.n, np.bool_)
        else:
            self.is_rows = self._rows_are_aligned()
            self.blocks_per_row = self._blocks_per_row()
        self.n_blocks = np.where(
            self.is_one_row & (self.step == 1),
            -(-(self.index_lead + self.n) // self.per_block),
            self.n // self.row * self.blocks_per_row,
        )
        records["blocks_per_row"] = np.where(self.is_one_row, 0, self.blocks_per_row)

    def _outer_strides_divide(self, field: str, divisor: Any) -> Any:
        outer = self.records["size"][:, :-1] > 1
        return ~(outer & (self.records[field][:, :-1] % divisor[:, None] != 0)).any(axis=1)

    def _rows_are_aligned(self) -> Any:
        return (
            (self.is_dense & ~self.is_one_row & ~self.is_constant)
            & (self.lead == 0)
            & (self.row % self.per_unit == 0)
            & self._outer_strides_divide("stride", self.per_unit)
            & self._rows_begin_on_blocks()
        )

    def _rows_begin_on_blocks(self) -> Any:
        return (self.index_lead == 0) & self._outer_strides_divide("index_stride", self.per_block)

    def _blocks_per_row(self) -> Any:
        on_blocks = -(-self.row // self.per_block)
        anywhere = (self.row + self.per_block - 2) // self.per_block + 1
        return np.where(self.step != 1, self.row, np.where(self._rows_begin_on_blocks(), on_blocks, anywhere))

    def segments(self) -> Iterator[_Segments]:
        """Yields segments that together cover the records."""
        fill = np.arange(len(self.n))
        in_trips = self.is_run | self.is_rows
        lead = np.where(self.is_run, np.minimum(self.lead, self.n), 0)
        n_trips = np.where(in_trips, (self.n - lead) // self.per_trip, 0)
        end = lead + n_trips * self.per_trip
        # In blocks of the record: before the trips, and after them.
        before = np.where(n_trips > 0, (self.index_lead + lead) // self.per_block, 0)
        behind = np.where(n_trips > 0, (self.index_lead + end) // self.per_block, 0)
        zero, one = np.zeros_like(fill), np.ones_like(fill)
        yield _Segments(fill, zero + BLOCKS, zero, before, one)
        yield _Segments(fill, zero + BLOCKS, behind, self.n_blocks - behind, one)

        # The counter's low half must not overflow within a run.
        key_offset = self.records["key"][:, 1]
        counter = key_offset + (self.records["first_index"] + lead.astype(np.uint64)) // self.per_block.astype(
            np.uint64
        )
        blocks_per_trip = self.per_trip // self.per_block
        overflows = (
            self.is_run & ~self.is_constant & ((counter & _LOW).astype(np.int64) + n_trips * blocks_per_trip > 1 << 32)
        )
        path = np.where(self.is_rows, ROWS, RUN)
        whole = np.where(overflows, 0, n_trips)
        yield _Segments(fill, path, lead, whole, self.per_trip)
        for i in np.flatnonzero(overflows):
            yield from self._around_overflows(
                i, int(lead[i]), int(n_trips[i]), int(counter[i]), int(blocks_per_trip[i])
            )

    def _around_overflows(self, i: Any, lead: int, n_trips: int, counter: int, per_trip: int) -> Iterator[_Segments]:
        """Yields a run's trips between overflows, and block by block each trip in which the counter overflows."""

        def segment(path: int, first: int, count: int, step: int) -> _Segments:
            return _Segments(*(np.array([number]) for number in (i, path, first, count, step)))

        step, per_block = int(self.per_trip[i]), int(self.per_block[i])
        done = 0
        while done < n_trips:
            left = (1 << 32) - (counter + done * per_trip) % (1 << 32)  # blocks until the overflow
            count = min(n_trips - done, left // per_trip)
            yield segment(RUN, lead + done * step, count, step)
            done += count
            if done < n_trips and left % per_trip:
                yield segment(BLOCKS, (int(self.index_lead[i]) + lead + done * step) // per_block, per_trip, 1)
                done += 1
