"""Pieces: what of a strided part of a tensor lies in a rectangle of it, where a distributed tensor is here.

A part may go over the tensor's dimensions as over one (a flat view), or along one of them in several steps (every third
row of each head). It is cut until every piece lies within the rectangle and walks straight along its dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import InitOverflowError
from .geometry import Strided, merged, row_major
from .items import Box

# More are a sign that a part has no pattern that this finds, and each of them costs a record.
MAX_PIECES = 1 << 16


class _Loop(NamedTuple):
    """One dimension of a piece."""

    size: int
    counts: tuple[int, ...]
    """How far a step leads along each dimension of the tensor."""
    number_step: int
    """What a step adds to the index in the stream."""


class _Piece(NamedTuple):
    """A part of a tensor: loops from a first element."""

    begin: tuple[int, ...]
    """Index of the first element in the tensor."""
    number: int
    """The first element's index in the stream."""
    loops: tuple[_Loop, ...]

    def end(self, dim: int) -> int:
        """The last index along a dimension, as if the tensor went on beyond its end."""
        return self.begin[dim] + sum((loop.size - 1) * loop.counts[dim] for loop in self.loops)

    def with_loop(self, at: int, *loops: _Loop) -> _Piece:
        """Returns the piece with other loops in the place of one."""
        return self._replace(loops=(*self.loops[:at], *loops, *self.loops[at + 1 :]))

    def split(self, at: int, n: int, shape: Sequence[int]) -> tuple[_Piece, _Piece]:
        """Returns the first ``n`` steps of a loop, and the others."""
        loop = self.loops[at]
        begin = _carried([here + n * count for here, count in zip(self.begin, loop.counts)], shape)
        rest = self._replace(begin=begin, number=self.number + n * loop.number_step)
        return self.with_loop(at, loop._replace(size=n)), rest.with_loop(at, loop._replace(size=loop.size - n))

    def steepest(self, dim: int) -> int:
        """Returns which loop with several steps leads farthest along a dimension."""
        return max(
            (at for at, loop in enumerate(self.loops) if loop.size > 1 and loop.counts[dim]),
            key=lambda at: self.loops[at].counts[dim],
        )

    def within(self, box: Box, corner: Sequence[int]) -> Box:
        """Returns the box of the piece, in the memory of a rectangle that begins at the index ``corner``."""
        tensor = box.tensor
        strides = tensor.stride()
        offset = sum((here - there) * stride for here, there, stride in zip(self.begin, corner, strides))
        steps = [sum(count * stride for count, stride in zip(loop.counts, strides)) for loop in self.loops]
        view = tensor.as_strided([loop.size for loop in self.loops], steps, tensor.storage_offset() + offset)
        return Box(view, self.number, tuple(loop.number_step for loop in self.loops))


def boxes_in(box: Box, part: Strided, numbers: Strided, shape: Sequence[int]) -> Iterator[Box]:
    """Yields the boxes of what a rectangle of a tensor holds of a part of it.

    Args:
        box: the rectangle, and the memory that holds it.
        part: the row-major indices of the part's elements in the tensor.
        numbers: those of the values that they get, in the tensor that the stream is for; of the part's shape.
        shape: of the tensor.

    Raises:
        OverflowError: there are more than ``MAX_PIECES``.
    """
    if 0 in part.shape or not box.tensor.numel():
        return
    corner = box.index(shape)
    bounds = [(first, first + size) for first, size in zip(corner, box.tensor.shape)]
    loops = tuple(
        _Loop(size, _index(step, shape), number_step)
        for size, step, number_step in merged(part.shape, part.steps, numbers.steps)
    )
    left, n = [_Piece(_index(part.first, shape), numbers.first, loops)], 0
    while left:
        piece = left.pop()
        pieces = _straightened(piece, shape) or _cut(piece, bounds, shape)
        if pieces:
            left += pieces[::-1]
            n += 1
            if n > MAX_PIECES:
                raise InitOverflowError(f"more than {MAX_PIECES} pieces")
        elif all(first <= piece.begin[dim] and piece.end(dim) < stop for dim, (first, stop) in enumerate(bounds)):
            yield piece.within(box, corner)


def _index(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the index along each dimension of a row-major one."""
    found = []
    for step in row_major(shape):
        count, index = divmod(index, step)
        found.append(count)
    return tuple(found)


def _carried(index: list[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Returns an index that goes beyond the ends of dimensions as that of the element there."""
    return _index(sum(at * step for at, step in zip(index, row_major(shape))), shape)


def _straightened(piece: _Piece, shape: Sequence[int]) -> list[_Piece]:
    """Returns the pieces of one that goes on in the next row where a dimension ends; none if it does not."""
    for dim in range(len(shape) - 1, 0, -1):
        beyond = piece.end(dim) - shape[dim] + 1
        if beyond <= 0:
            continue
        at = piece.steepest(dim)
        loop = piece.loops[at]
        count = loop.counts[dim]
        period, odd = divmod(shape[dim], count)
        is_alone = piece.end(dim) - (loop.size - 1) * count == piece.begin[dim] < count
        if is_alone and not odd and loop.size % period == 0:
            step = _carried([period * each for each in loop.counts], shape)
            outer = _Loop(loop.size // period, step, period * loop.number_step)
            return [piece.with_loop(at, outer, loop._replace(size=period))]
        if is_alone and not odd and loop.size > period:
            n = loop.size - loop.size % period
        else:  # up to the end of the row, as far as this loop alone can tell
            n = min(max(-(-(shape[dim] - piece.begin[dim]) // count), 1), loop.size - 1)
        return list(piece.split(at, n, shape))
    return []


def _cut(piece: _Piece, bounds: Sequence[tuple[int, int]], shape: Sequence[int]) -> list[_Piece]:
    """Returns the pieces of a straight one that lies across a bound; none if it lies within all, or outside of one."""
    ends = [piece.end(dim) for dim in range(len(bounds))]
    if any(stop <= here or end < first for (first, stop), here, end in zip(bounds, piece.begin, ends)):
        return []
    for dim, bound in enumerate(bounds):
        for at in bound:
            if piece.begin[dim] < at <= ends[dim]:
                loop = piece.steepest(dim)
                n = -(-(at - piece.begin[dim]) // piece.loops[loop].counts[dim])
                return list(piece.split(loop, min(n, piece.loops[loop].size - 1), shape))
    return []
