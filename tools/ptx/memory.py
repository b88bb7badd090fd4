"""Memory: the host's buffers, and the private memories of threads and blocks."""

from __future__ import annotations

import bisect
import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .types import U8, U64, Array, PtxError


class Tensor(Protocol):
    """The methods of a torch CPU tensor that give its memory."""

    def data_ptr(self) -> int: ...  # noqa: D102
    def numel(self) -> int: ...  # noqa: D102
    def element_size(self) -> int: ...  # noqa: D102


@dataclass
class _Buffer:
    """A range of addresses that kernels may use."""

    start: int
    end: int
    name: str
    data: Array | None
    """Its bytes; None: reserved, stores are dropped."""
    writes: Array | None
    """How often each byte was written, at most 255; None: not counted."""
    owner: object
    """The owner, kept alive."""

    def units(self, array: Array, size: int) -> tuple[Array, int]:
        """Returns a byte-wise array as rows of ``size`` at aligned addresses, and the first row's offset."""
        first = -self.start % size
        return array[first : first + (array.size - first) // size * size].reshape(-1, size), first


class Memory:
    """Global memory: buffers at their own addresses, so that kernels use the host's pointers.

    Args:
        track: whether to count how often each byte is written.
    """

    def __init__(self, track: bool = False) -> None:
        self._buffers: list[_Buffer] = []
        self._starts: list[int] = []
        # The same for numpy, rebuilt when they change.
        self._start_array, self._end_array = np.zeros(0, U64), np.zeros(0, U64)
        self._track = track

    def add(self, array: Array | Tensor, addr: int | None = None, name: str | None = None) -> int:
        """Registers an array or a torch tensor for kernels, and returns its address.

        Args:
            array: contiguous.
            addr: its address for kernels; None: its own.
            name: for messages.

        Raises:
            ValueError: it is not contiguous, or overlaps another.
        """
        if isinstance(array, np.ndarray):
            if not array.flags.c_contiguous:
                raise ValueError("not contiguous")
            at, data = array.ctypes.data, array.reshape(-1).view(U8)
        else:
            at, size = array.data_ptr(), array.numel() * array.element_size()
            data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(at))
        start = at if addr is None else addr
        writes = np.zeros(data.size, U8) if self._track else None
        return self._insert(_Buffer(start, start + data.size, name or f"buffer at {start:#x}", data, writes, array))

    def reserve(self, addr: int, size: int, name: str = "a range") -> int:
        """Registers addresses without memory: kernels may store there, which is dropped, but not load.

        For tensors too large for memory, with ``add(window, addr=...)`` inside.
        """
        return self._insert(_Buffer(addr, addr + size, f"reserved {name}", None, None, None))

    def writes(self, array: Array | Tensor) -> Array:
        """Returns how often each byte of a registered array was written, at most 255."""
        at = array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()
        writes = self._buffers[self._starts.index(at)].writes
        assert writes is not None, "Memory(track=True) counts"
        return writes

    def holds(self, address: int) -> bool:
        """Tells whether a buffer starts there."""
        return address in self._starts

    def load(self, addresses: Array, dtype: np.dtype[Any], n: int) -> Array:
        """Loads n values from each address, (addresses, n).

        Raises:
            PtxError: misaligned, outside all buffers, or reserved.
        """
        size = dtype.itemsize * n
        parts: list[tuple[slice | Array, Array]] = []
        for threads, buffer, offsets in self._places(addresses, size, "load"):
            if buffer.data is None:
                raise PtxError(f"load from {buffer.name}")
            units, first = buffer.units(buffer.data, size)
            parts.append((threads, units.view(dtype)[(offsets - first) // size]))
        if len(parts) == 1:
            return parts[0][1]
        found = np.empty((addresses.size, n), dtype)
        for threads, values in parts:
            found[threads] = values
        return found

    def store(self, addresses: Array, values: Array) -> None:
        """Stores the rows of values, (addresses, n).

        Raises:
            PtxError: misaligned, or outside all buffers.
        """
        size = values.itemsize * values.shape[1]
        for threads, buffer, offsets in self._places(addresses, size, "store"):
            if buffer.data is None:
                continue
            units, first = buffer.units(buffer.data, size)
            at = (offsets - first) // size
            units.view(values.dtype)[at] = values[threads]
            if buffer.writes is not None:
                counts, _ = buffer.units(buffer.writes, size)
                if (at[1:] > at[:-1]).all():  # usually each unit occurs once
                    counts[at] += counts[at] < 255
                else:
                    at, times = np.unique(at, return_counts=True)
                    counts[at] = np.minimum(counts[at] + times[:, None], 255)

    def _insert(self, buffer: _Buffer) -> int:
        if buffer.start == buffer.end:
            return buffer.start
        place = bisect.bisect(self._starts, buffer.start)
        self._buffers.insert(place, buffer)
        neighbours = self._buffers[max(0, place - 1) : place + 2]
        for before, after in itertools.pairwise(neighbours):
            if before.end > after.start:
                del self._buffers[place]
                raise ValueError(f"{before.name} and {after.name} overlap")
        self._starts.insert(place, buffer.start)
        self._start_array = np.array(self._starts, U64)
        self._end_array = np.array([each.end for each in self._buffers], U64)
        return buffer.start

    def _places(self, addresses: Array, size: int, what: str) -> Iterator[tuple[slice | Array, _Buffer, Array]]:
        """Yields (threads, buffer, offsets in it) for accesses of ``size`` bytes."""
        odd = addresses & U64(size - 1)
        if odd.any():
            raise PtxError(f"misaligned {what} of {size} bytes at {int(addresses[odd != 0][0]):#x}")
        lowest, highest = int(addresses.min()), int(addresses.max())
        place = bisect.bisect(self._starts, lowest) - 1
        if place >= 0 and highest + size <= self._buffers[place].end:
            buffer = self._buffers[place]
            yield slice(None), buffer, (addresses - U64(buffer.start)).astype(np.intp)
            return
        places = np.searchsorted(self._start_array, addresses, "right").astype(np.intp) - 1
        outside = places < 0
        if self._buffers:
            ends = self._end_array[places]
            outside |= (addresses >= ends) | (ends - addresses < size)
        if outside.any():
            where, n = int(addresses[outside][0]), int(outside.sum())
            raise PtxError(f"{what} of {size} bytes outside of every registered buffer, at {where:#x} ({n} threads)")
        for place in np.unique(places):
            threads = np.flatnonzero(places == place)
            buffer = self._buffers[place]
            yield threads, buffer, (addresses[threads] - U64(buffer.start)).astype(np.intp)


class OwnMemory:
    """Memory private to each thread (.local), block (.shared) or launch (.param): a row for each.

    Args:
        n_rows: number of owners.
        n_bytes: of each.
        space: its state space, for messages.
    """

    def __init__(self, n_rows: int, n_bytes: int, space: str) -> None:
        self.bytes = np.zeros((n_rows, n_bytes), U8)
        self._space = space

    def load(self, rows: Array, addresses: Array, dtype: np.dtype[Any], n: int) -> Array:
        """Loads n values from each address, (threads, n).

        Raises:
            PtxError: misaligned, or out of bounds.
        """
        places = self._places(addresses, dtype.itemsize * n)
        return np.ascontiguousarray(self.bytes[rows[:, None], places]).view(dtype)

    def store(self, rows: Array, addresses: Array, values: Array) -> None:
        """Stores the rows of values, (threads, n).

        Raises:
            PtxError: misaligned, or out of bounds.
        """
        places = self._places(addresses, values.itemsize * values.shape[1])
        self.bytes[rows[:, None], places] = values.view(U8)

    def _places(self, addresses: Array, size: int) -> Array:
        if int(addresses.max()) + size > self.bytes.shape[1] or (addresses & U64(size - 1)).any():
            raise PtxError(f".{self._space} access of {size} bytes is out of bounds or misaligned")
        return addresses.astype(np.intp)[:, None] + np.arange(size)
