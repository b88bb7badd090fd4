"""One fill of a parameter, known by shapes and names and without memory: what recipes and kept plans hold."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from ..errors import InitRuntimeError
from ..plans import Box, Distribution, Fill, Region, Strided
from ..plans.pieces import boxes_in
from ..shards.dtensor import boxes_of, is_sharded, shard_fill, why_not_shards


class RecordedFill(NamedTuple):
    """One fill of a parameter or of a part of it, without memory: it fits any tensor of that shape."""

    distribution: Distribution
    full_shape: tuple[int, ...]
    """Of the parameter."""
    part: Strided
    """The row-major indices, in the parameter, of the elements that are filled."""
    stream: str
    """The name whose stream gives the values, where it is not the parameter's own."""
    numbers: Strided
    """The row-major indices of the values in the tensor that the stream is for."""
    order: int
    """Its position in what was recorded."""
    rule: str
    info: str
    seed: int | None = None
    """Of the block within the recorded one that asked for it, where that was given one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part that is filled."""
        return self.part.shape

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the parameter."""
        return self.part == Strided.whole(self.full_shape)

    def fill(self, name: str, tensor: torch.Tensor) -> Fill:
        """Returns it as a fill of a tensor.

        Raises:
            RuntimeError: the shape is another, or a part does not fit the tensor's layout.
        """
        if tuple(tensor.shape) != self.full_shape:
            raise InitRuntimeError(
                f"{name!r} was recorded with shape {self.full_shape}, but is {tuple(tensor.shape)} here"
            )
        if is_sharded(tensor):
            if self.is_whole and self.numbers == self.part:
                fill = shard_fill(name, tensor, self.distribution, self.rule, self.info)
                return replace(fill, stream=self.stream, seed=self.seed)
            boxes: tuple[Box, ...] | None = self._boxes_in(name, tensor)
        else:
            is_plain = self.is_whole and self.numbers == self.part
            boxes = None if is_plain else (self._box_in(name, tensor),)
        numbers = None if self.numbers == Strided.whole(self.shape) else self.numbers
        how = self.distribution, self.rule, self.info
        region = None if self.is_whole else Region.of(self.part, self.full_shape)
        return Fill(name, tensor, *how, self.shape, boxes, self.stream, self.seed, numbers, region)

    def _box_in(self, name: str, tensor: torch.Tensor) -> Box:
        """Returns the part of a tensor that is here in one piece."""
        target = tensor
        if not self.is_whole:
            here = self.part.laid_out(self.full_shape, tensor.stride())
            if here is None:
                raise InitRuntimeError(
                    f"a part of {name!r} was recorded that no view has ({self.shape}, steps {self.part.steps}) "
                    f"where the tensor's strides are {tuple(tensor.stride())}",
                    hint=": make it contiguous before",
                )
            target = tensor.detach().as_strided(self.shape, here.steps, tensor.storage_offset() + here.first)
        return Box(target, self.numbers.first, self.numbers.steps)

    def _boxes_in(self, name: str, tensor: torch.Tensor) -> tuple[Box, ...]:
        """Returns what is here of the part, in the boxes that are here of a distributed tensor."""
        if (reason := why_not_shards(tensor)) is not None:
            raise InitRuntimeError(f"the distributed tensor {name!r} cannot be filled: {reason}")
        try:
            return tuple(
                piece for box in boxes_of(tensor) for piece in boxes_in(box, self.part, self.numbers, self.full_shape)
            )
        except OverflowError as error:
            raise InitRuntimeError(
                f"a part of {name!r} was recorded ({self.shape}, steps {self.part.steps}), and the tensor is "
                f"distributed here: {error}",
                hint=". Materialize before sharding",
            ) from None
