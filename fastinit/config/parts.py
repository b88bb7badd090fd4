"""Parts of parameters: what ``param="*.qkv.weight[2048:3072]"`` and ``blocks=3`` select of a tensor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple, Union

from ..errors import InitTypeError, InitValueError
from ..plans import Region

_BOUNDS = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*")
# A glob may end in a class of characters, [ab]; names hold no colon, so that one with a colon is a part.
_TRAILING = re.compile(r"(?s)(.+)\[([^\[\]]*:[^\[\]]*)\]")

Bound = Union[int, None]


class Part(NamedTuple):
    """A rectangle of a tensor, as a pattern of ``param`` gives it behind the name."""

    text: str
    """As the user wrote it, e.g. ``[:, 0:64]``."""
    bounds: tuple[tuple[Bound, Bound], ...]
    """First index and the index behind the last, along the first dimensions; as Python's slices have them."""

    def of(self, shape: Sequence[int]) -> Region:
        """Returns the part of a tensor of a shape.

        Raises:
            ValueError: the tensor has fewer dimensions, or ends before the part does.
        """
        if len(self.bounds) > len(shape):
            raise InitValueError(
                f"the part {self.text} has {len(self.bounds)} dimensions, but the shape is {tuple(shape)}",
                hint=": give at most one start:stop for each of its dimensions",
            )
        starts, sizes = [0] * len(shape), list(shape)
        for dim, (size, (start, stop)) in enumerate(zip(shape, self.bounds)):
            begin, end = (_from_start(bound, size, default) for bound, default in ((start, 0), (stop, size)))
            if not 0 <= begin < end <= size:
                raise InitValueError(
                    f"the part {self.text} goes from {begin} to {end} along dimension {dim}, which has the indices 0 "
                    f"to {size - 1} (the shape is {tuple(shape)})"
                )
            starts[dim], sizes[dim] = begin, end - begin
        return Region(tuple(starts), tuple(sizes))


def _from_start(bound: Bound, size: int, default: int) -> int:
    if bound is None:
        return default
    return bound + size if bound < 0 else bound


def split(pattern: str, is_regex: bool) -> tuple[str, Part | None]:
    """Returns a pattern without the part that it ends in, and the part.

    Args:
        pattern: a glob or a regular expression.
        is_regex: which of the two. Brackets at the end of a regular expression that are no part are its own.

    Raises:
        ValueError: a glob ends in brackets with a colon that are no part.
    """
    found = _TRAILING.fullmatch(pattern)
    if found is None:
        return pattern, None
    name, inner = found.groups()
    bounds = [_BOUNDS.fullmatch(each) for each in inner.split(",")]
    if None in bounds:
        if is_regex:
            return pattern, None
        raise InitValueError(
            f"param {pattern!r} ends in [{inner}], which is no part of a parameter",
            hint=": write [start:stop] with whole "
            "numbers for its first dimension, [:, start:stop] for the second; one index is a part, too: [3:4]",
        )
    numbers = (each.groups() for each in bounds if each is not None)
    return name, Part(f"[{inner}]", tuple((_whole(start), _whole(stop)) for start, stop in numbers))


def _whole(text: str | None) -> Bound:
    return None if text is None else int(text)


def checked_blocks(blocks: Any) -> tuple[int, ...]:
    """Returns the argument ``blocks`` as numbers of blocks along the first dimensions; () for one block.

    Raises:
        TypeError, ValueError: it is none.
    """
    numbers = [blocks] if isinstance(blocks, int) and not isinstance(blocks, bool) else blocks
    is_list = isinstance(numbers, (list, tuple)) and all(type(each) is int for each in numbers)
    if not is_list:
        raise InitTypeError(f"blocks must be a whole number, or a list of one for each dimension, but got {blocks!r}")
    if not numbers or min(numbers) < 1:
        raise InitValueError(f"blocks are one or more along each dimension, but got {blocks!r}")
    return () if max(numbers) == 1 else tuple(numbers)


def blocks_of(region: Region, blocks: Sequence[int]) -> list[Region]:
    """Returns the equal blocks that a region is cut into, in row-major order.

    Raises:
        ValueError: it has fewer dimensions, or a size is no multiple of the number of blocks.
    """
    shape = region.shape
    if len(blocks) > len(shape):
        raise InitValueError(f"blocks={list(blocks)} are along {len(blocks)} dimensions, but the shape is {shape}")
    numbers = (*blocks, *[1] * (len(shape) - len(blocks)))
    for dim, (size, n) in enumerate(zip(shape, numbers)):
        if size % n:
            raise InitValueError(
                f"{n} equal blocks cannot be cut from dimension {dim} of the shape {shape}: {size} is no multiple of "
                f"{n}",
                hint=". For parts of different sizes write rules with param='...[start:stop]'",
            )
    sizes = tuple(size // n for size, n in zip(shape, numbers))
    return [
        Region(tuple(start + at * size for start, at, size in zip(region.starts, index, sizes)), sizes)
        for index in product(*map(range, numbers))
    ]
