"""Checks that boxes tile a tensor: each element is in exactly one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product

Box = tuple[Sequence[int], Sequence[int]]
"""Index of the first element, and size, along each dimension."""

# Meshes cut a tensor along at most three dimensions; each further one doubles the corners of a box.
MAX_CUT_DIMENSIONS = 5


def why_not_tiled(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Returns why boxes do not tile a tensor of a shape, None if they do. Empty boxes are ignored.

    Exact, and n log n in the number of boxes. Each box is 1 within and 0 outside, and the sum of all must be 1 within
    the tensor. Such functions are equal if and only if their differences along all dimensions are, which are +1 or -1
    at the corners of a box and 0 everywhere else: all corners but those of the tensor itself must cancel.
    """
    for first, size in boxes:
        if len(first) != len(shape) or len(size) != len(shape):
            return f"a chunk has {len(first)} and {len(size)} dimensions, and the tensor {len(shape)}"
        if any(start + length > whole for start, length, whole in zip(first, size, shape)):
            return f"its chunk of {_text(size)} at {_text(first)} does not lie within {_text(shape)}"
    boxes = [box for box in boxes if 0 not in box[1]]
    n_expected, n_held = math.prod(shape), sum(math.prod(size) for _, size in boxes)
    if n_held < n_expected:
        return f"its {len(boxes):,} chunks hold {n_held:,} elements, and a tensor of {_text(shape)} has {n_expected:,}"
    if n_held > n_expected:
        return f"its chunks overlap: they hold {n_held:,} elements, and a tensor of {_text(shape)} has {n_expected:,}"
    if len(boxes) < 2:
        return None
    cut = [dim for dim, whole in enumerate(shape) if any(size[dim] != whole for _, size in boxes)]
    if len(cut) > MAX_CUT_DIMENSIONS:
        return f"it is cut along {len(cut)} dimensions, of which {MAX_CUT_DIMENSIONS} can be checked"
    corners = [corner for box in boxes for corner in _corners(box, cut, 1)]
    corners += _corners(([0] * len(shape), shape), cut, -1)
    # Sorted rather than counted in a dict, where a file could force collisions.
    corners.sort()
    at: tuple[int, ...] | None = None
    total = 0
    for corner, sign in corners:
        if corner != at:
            if total:
                break
            at = corner
        total += sign
    return "its chunks overlap, and leave gaps" if total else None


def _corners(box: Box, dims: Iterable[int], sign: int) -> list[tuple[tuple[int, ...], int]]:
    first, size = box
    ends = [((first[dim], 1), (first[dim] + size[dim], -1)) for dim in dims]
    return [
        (tuple(place for place, _ in corner), sign * math.prod(side for _, side in corner)) for corner in product(*ends)
    ]


def _text(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers)) or "()"
