"""Geometry: what elements at regular steps cover, whether they overlap, and which part of a tensor they are.

A leaf that knows shapes and steps only. One form, ``Strided``, stands for memory (counted in the elements of a storage)
and for the row-major index of a tensor alike; no step is negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch


class Region(NamedTuple):
    """A rectangle of a tensor."""

    starts: tuple[int, ...]
    """Its first index along each dimension."""
    shape: tuple[int, ...]

    @staticmethod
    def whole(shape: Sequence[int]) -> Region:
        """Returns all of a tensor."""
        return Region((0,) * len(shape), tuple(shape))

    @staticmethod
    def of(part: Strided, shape: Sequence[int]) -> Region | None:
        """Returns the rectangle of a tensor of a shape that has these row-major indices; None: it is none."""
        if len(part.shape) != len(shape) or 0 in part.shape:
            return None
        if any(size > 1 and step != plain for size, step, plain in zip(part.shape, part.steps, row_major(shape))):
            return None
        starts = tuple(part.first // step % size for step, size in zip(row_major(shape), shape))
        fits = all(start + size <= end for start, size, end in zip(starts, part.shape, shape))
        return Region(starts, part.shape) if fits else None

    def indices(self, shape: Sequence[int]) -> Strided:
        """Returns the row-major indices of its elements in the tensor, which has this shape."""
        steps = row_major(shape)
        return Strided(sum(start * step for start, step in zip(self.starts, steps)), self.shape, steps)


class Strided(NamedTuple):
    """Elements at regular steps, in an order: that of a tensor of ``shape``."""

    first: int
    """Where the first element is."""
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    """How far apart neighbours along each dimension are."""

    @staticmethod
    def whole(shape: Sequence[int]) -> Strided:
        """Returns the row-major indices of all elements of a tensor."""
        return _whole(shape if isinstance(shape, tuple) else tuple(shape))

    @staticmethod
    def of(tensor: torch.Tensor) -> Strided:
        """Returns the memory of a strided tensor, in elements from the beginning of its storage."""
        first, steps = int(tensor.storage_offset()), tensor.stride()
        whole = _whole(tensor.shape)
        if not first and steps == whole.steps:  # as of nearly all, which share one object a shape
            return whole
        return Strided(first, whole.shape, steps)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """From the first element to the last, both included, and with what lies between them."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.steps))

    @property
    def overlaps_itself(self) -> bool:
        """Whether two elements may be one and the same, as ``may_overlap`` has it."""
        return 0 not in self.shape and may_overlap(self.shape, self.steps)

    @property
    def is_dense(self) -> bool:
        """Whether the elements are all of the span, each once, in whatever order."""
        if self.steps == row_major(self.shape) or 0 in self.shape:
            return True
        expected = 1  # sorted, each step is the product of the sizes before
        for step, size in sorted((step, size) for step, size in zip(self.steps, self.shape) if size > 1):
            if step != expected:
                return False
            expected *= size
        return True

    @property
    def in_order(self) -> bool:
        """Whether the elements are all of the span in row-major order."""
        steps = row_major(self.shape)
        return self.steps == steps or self.canonical.steps == steps or 0 in self.shape

    @property
    def canonical(self) -> Strided:
        """The same with row-major steps along dimensions of one element, where any would do, so that they compare."""
        if 1 not in self.shape:
            return self
        steps = zip(self.shape, self.steps, row_major(self.shape))
        return Strided(self.first, self.shape, tuple(plain if size == 1 else step for size, step, plain in steps))

    def within(self, whole: Strided) -> Strided | None:
        """Returns which part of a tensor these elements of memory are.

        Args:
            whole: the memory of the tensor.

        Returns:
            The row-major indices of the elements in the tensor, in the form of ``canonical``. None where one of them is
            not the tensor's, where the tensor overlaps itself, or where a step goes forth along one dimension of the
            tensor and back along another (as it does at the end of a row, in memory across the rows of a matrix).
        """
        if self == whole or 0 in self.shape:
            return Strided.whole(self.shape)
        if whole.in_order:  # memory and index run alike
            first = self.first - whole.first
            return self.canonical._replace(first=first) if 0 <= first <= whole.numel - self.span else None
        if whole.overlaps_itself:
            return None
        return self._carried(self.first - whole.first, merged(whole.shape, whole.steps, row_major(whole.shape)))

    def laid_out(self, shape: Sequence[int], steps: Sequence[int]) -> Strided | None:
        """Returns the memory, from a tensor's first element on, of the elements whose row-major indices these are.

        Args:
            shape, steps: of the tensor.

        Returns:
            None where a step goes forth along one dimension of the tensor and back along another.
        """
        if tuple(steps) == row_major(shape):
            return self
        if 0 in self.shape:
            return Strided.whole(self.shape)
        return self._carried(self.first, merged(shape, row_major(shape), steps))

    def _carried(self, first: int, dims: list[tuple[int, ...]]) -> Strided | None:
        """Returns the same elements at other steps.

        Args:
            first: where the first is, from the beginning of the tensor.
            dims: size, step and other step along each dimension of the tensor.
        """
        dims.sort(key=lambda dim: -dim[1])  # no step spans as much as the next larger one
        begin = _decomposed(first, dims)
        if begin is None:
            return None
        last = begin
        steps: list[int] = []
        for size, step, plain in zip(self.shape, self.steps, row_major(self.shape)):
            if size == 1:
                steps.append(plain)
                continue
            ahead = _decomposed(step, dims)
            if ahead is None:
                return None
            last = [at + (size - 1) * count for at, count in zip(last, ahead)]
            steps.append(sum(count * other for count, (_, _, other) in zip(ahead, dims)))
        if any(at >= size for at, (size, _, _) in zip(last, dims)):
            return None
        return Strided(sum(at * other for at, (_, _, other) in zip(begin, dims)), self.shape, tuple(steps))

    def minus(self, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns what is left of elements in order when spans are taken out of them.

        Args:
            spans: (first, behind the last) of each, in any order; they may overlap and reach beyond this.

        Returns:
            (first, behind the last) of the stretches that are left, in order.
        """
        at, end = self.first, self.first + self.span
        left = []
        for start, stop in sorted(spans):
            if at < min(start, end):
                left.append((at, min(start, end)))
            at = max(at, stop)
        return [*left, (at, end)] if at < end else left


def _decomposed(distance: int, dims: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Returns how many steps along each dimension lead that far; None if none do. The largest steps come first."""
    if distance < 0:
        return None
    counts = []
    for _, step, *_ in dims:
        count, distance = divmod(distance, step)
        counts.append(count)
    return None if distance else counts


def merged(shape: Sequence[int], *steps: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the loops that visit elements in order: (size, step in the first of ``steps``, in the second, ...).

    Dimensions that can be walked as one, by all of the steps, are one; those of one element are left out.
    """
    found: list[tuple[int, ...]] = []
    for dim in zip(shape, *steps):
        size, *inner = dim
        if size == 1:
            continue
        if found and list(found[-1][1:]) == [size * step for step in inner]:
            found[-1] = (found[-1][0] * size, *inner)
        else:
            found.append(dim)
    return found


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns what a step along each dimension adds to the row-major index."""
    return _row_major(tuple(shape))


@lru_cache(maxsize=4096)  # asked for several times with every fill of a model, which has few shapes
def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1] * len(shape)
    for dim in range(len(shape) - 1, 0, -1):
        steps[dim - 1] = steps[dim] * shape[dim]
    return tuple(steps)


@lru_cache(maxsize=4096)  # as ``_row_major``
def _whole(shape: tuple[int, ...]) -> Strided:
    plain = tuple(shape)  # it may be a torch.Size
    return Strided(0, plain, _row_major(plain))


def may_overlap(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Tells whether two elements may share memory: a dimension does not step over all that the smaller ones span.

    "No" is certain. A "yes" may be wrong of elements that are interleaved in such a way that none meets another.
    """
    span = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape) if size > 1):
        if step < span:
            return True
        span += (size - 1) * step
    return False


def byte_span(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the addresses of a strided tensor's first byte and of the byte behind its last."""
    start = tensor.data_ptr()
    n_elements = tensor.numel() if tensor.is_contiguous() else Strided.of(tensor).span
    return start, start + n_elements * tensor.element_size()
