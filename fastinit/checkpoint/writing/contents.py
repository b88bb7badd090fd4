"""Contents: the tensors of a checkpoint that is going to be written, and where their values come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Union

import torch

from ...execution.runner import execute
from ...execution.scope import Scope
from ...plans import Box, Fill, Strided
from ...plans.pieces import boxes_in
from ...progress import advance


@dataclass(frozen=True, eq=False)
class Draw:
    """One fill of a tensor or of a part of it. Any range of its elements can be drawn."""

    fill: Fill
    part: Strided
    """The row-major indices, in the tensor, of the elements that are filled."""
    numbers: Strided
    """The row-major indices of their values in the tensor that the stream is for."""

    def at(self, memory: torch.Tensor, first: int, n_elements: int) -> Fill | None:
        """Returns the fill of a range of the tensor's elements, None if it fills none of them.

        Args:
            memory: of the range, with one dimension.
            first: row-major index of its first element.
            n_elements: of the whole tensor.
        """
        fill, here = self.fill, Box(memory, first, (1,))
        boxes: tuple[Box, ...] = (here,)
        if not (self.part.numel == n_elements and self.part.in_order and self.numbers == self.part):
            boxes = tuple(boxes_in(here, self.part, self.numbers, (n_elements,)))
        if not boxes:
            return None
        return Fill(
            fill.name, memory, fill.distribution, fill.rule, fill.info, fill.shape, boxes, fill.stream, fill.seed
        )


@dataclass(frozen=True, eq=False)
class Drawn:
    """Values that fills give, in their order."""

    draws: Sequence[Draw]


@dataclass(frozen=True, eq=False)
class Made:
    """Values that are only there as a whole: what code computes, matrices that are orthogonal, what is in memory."""

    make: Callable[[], torch.Tensor] = field(repr=False)
    """Returns them on the CPU, row-major, of the content's dtype."""


@dataclass(frozen=True, eq=False)
class Content:
    """One tensor of a checkpoint."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    origin: Union[Drawn, Made]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """What its values take."""
        return self.numel * self.dtype.itemsize


class Range(NamedTuple):
    """Some elements of a tensor, and the memory that is to get their values."""

    content: Content
    first: int
    """Row-major index of the first."""
    memory: torch.Tensor
    """With one dimension."""


class Values:
    """Brings the values of contents into memory, range by range, in one launch for all ranges that are drawn.

    Args:
        scope: whose seed counts.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._made: tuple[Content, torch.Tensor] | None = None
        """The last that was made as a whole: its ranges are asked for one after the other."""

    def put(self, ranges: Sequence[Range]) -> None:
        """Writes the values of ranges."""
        fills: list[Fill] = []
        for content, first, memory in ranges:
            if isinstance(content.origin, Drawn):
                found = (draw.at(memory, first, content.numel) for draw in content.origin.draws)
                fills += [fill for fill in found if fill is not None]
            else:
                memory.copy_(self._whole(content)[first : first + memory.numel()])
        execute(fills, self._scope)
        advance(sum(each.memory.nbytes for each in ranges))

    def _whole(self, content: Content) -> torch.Tensor:
        """Returns all values of a content in one dimension."""
        assert isinstance(content.origin, Made)
        if self._made is None or self._made[0] is not content:
            self._made = None  # so that its memory is free before the next is made
            self._made = content, content.origin.make().reshape(-1)
        return self._made[1]
