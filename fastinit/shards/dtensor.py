"""Shards: which parts of a full tensor are here, of the distributed tensors (DTensor) of torch.distributed.

How a placement cuts a dimension is asked of torch itself, which knows uneven and strided shards; here that becomes
boxes. Dimensions are cut independently, so what is here of a tensor is the product of what is here of each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import torch

from ..plans import Box, Distribution, Fill, Region

PLAIN = (torch.nn.Parameter, torch.Tensor)
"""The types of nearly all tensors: torch's own, whose elements are what their memory holds."""

Interval = tuple[int, int]
"""First index and the index behind the last."""


def _dtensor() -> Any:
    """Returns the class of distributed tensors, a class without instances where it has not been imported."""
    # Public since torch 2.5. A tensor can only be one if somebody has imported it.
    module = sys.modules.get("torch.distributed.tensor") or sys.modules.get("torch.distributed._tensor")
    return getattr(module, "DTensor", ())


def is_sharded(tensor: object) -> bool:
    """Tells whether a tensor is distributed: its shape is that of the whole, and its memory here a part or a copy."""
    if type(tensor) in PLAIN:  # as nearly all are
        return False
    return isinstance(tensor, _dtensor())


def local_part(tensor: Any) -> torch.Tensor:
    """Returns the memory that is here of a distributed tensor."""
    return tensor._local_tensor  # type: ignore[no-any-return]


def mesh_of(tensor: Any) -> Any:
    """Returns the device mesh of a distributed tensor."""
    return tensor._spec.mesh


def why_not_shards(tensor: Any) -> str | None:
    """Returns why the parts of a tensor cannot be filled, None if they can or if it is not distributed."""
    if not is_sharded(tensor):
        return None
    for placement in tensor._spec.placements:
        if not (placement.is_replicate() or _is_cut(placement)):
            return (
                f"it is placed as {placement}: each rank holds a summand of the values. Redistribute it to Shard or "
                f"Replicate before"
            )
    shape, local = local_shape(tensor), tuple(local_part(tensor).shape)
    if shape != local and local_part(tensor).numel():
        return f"its part here has shape {local}, where the placements {tensor._spec.placements} give {shape}"
    return None


def _is_cut(placement: Any) -> bool:
    # _StridedShard, which is no Shard in newer releases, has a dimension too.
    return placement.is_shard() or hasattr(placement, "split_factor")


def intervals_of(tensor: Any) -> list[tuple[Interval, ...]]:
    """Returns for each dimension of a distributed tensor which indices of the whole are here."""
    mesh, placements = mesh_of(tensor), tensor._spec.placements
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this rank is not part of the mesh
        return [() for _ in tensor.shape]
    return parts_of(tuple(tensor.shape), tuple(mesh.shape), tuple(placements), tuple(coordinate))


def parts_of(
    shape: Sequence[int], mesh_shape: Sequence[int], placements: Sequence[Any], coordinate: Sequence[int]
) -> list[tuple[Interval, ...]]:
    """Returns for each dimension of a shape which indices are at a coordinate of a mesh."""
    cuts: list[list[tuple[Any, int, int]]] = [[] for _ in shape]
    for placement, n, at in zip(placements, mesh_shape, coordinate):
        if _is_cut(placement):
            cuts[placement.dim % len(shape)].append((_along_first(placement), n, at))
    return [_cut(size, tuple(each)) for size, each in zip(shape, cuts)]


def _along_first(placement: Any) -> Any:
    """Returns a placement that cuts dimension 0 as the given one cuts its own."""
    if hasattr(placement, "split_factor"):
        return type(placement)(0, split_factor=placement.split_factor)
    return type(placement)(0)


@lru_cache(maxsize=65536)  # the layers of a model are alike
def _cut(size: int, cuts: tuple[tuple[Any, int, int], ...]) -> tuple[Interval, ...]:
    if not cuts:
        return ((0, size),) if size else ()
    if len(cuts) == 1 and not hasattr(cuts[0][0], "split_factor"):  # torch.chunk's rule, without a list of indices
        _, n, at = cuts[0]
        length = -(-size // n)
        start = min(at * length, size)
        return ((start, min(start + length, size)),) if start < size else ()
    indices = torch.arange(size, device="cpu")
    for placement, n, at in cuts:
        if not indices.numel():  # which torch 2.1 does not split
            return ()
        pieces, _ = placement._split_tensor(indices, n, with_padding=False, contiguous=False)
        indices = pieces[at] if at < len(pieces) else indices[:0]
    found: list[Interval] = []
    breaks = [0, *((indices.diff() != 1).nonzero().flatten() + 1).tolist(), indices.numel()]
    for start, end in pairwise(breaks):
        if start < end:
            found.append((int(indices[start]), int(indices[end - 1]) + 1))
    return tuple(found)


def local_shape(tensor: Any) -> tuple[int, ...]:
    """Returns the shape of what is here, by the placements."""
    return tuple(sum(end - start for start, end in parts) for parts in intervals_of(tensor))


def boxes_of(tensor: Any, region: Region | None = None) -> tuple[Box, ...]:
    """Returns the boxes of a distributed tensor, or of a region of it, that are here; none where nothing is."""
    local, parts = local_part(tensor).detach(), [_with_positions(each) for each in intervals_of(tensor)]
    if region is not None:
        bounds = zip(parts, region.starts, region.shape)
        parts = [_within(each, start, start + size) for each, start, size in bounds]
    boxes = []
    for combination in product(*parts):
        view = local
        for dim, (start, end, position) in enumerate(combination):
            if end - start != local.shape[dim]:
                view = view.narrow(dim, position, end - start)
        boxes.append(Box.at(view, [start for start, _, _ in combination], tensor.shape))
    return tuple(boxes)


def _with_positions(intervals: Sequence[Interval]) -> list[tuple[int, int, int]]:
    """Returns the intervals with where each begins in the part that is here."""
    found, position = [], 0
    for start, end in intervals:
        found.append((start, end, position))
        position += end - start
    return found


def _within(intervals: Sequence[tuple[int, int, int]], first: int, stop: int) -> list[tuple[int, int, int]]:
    """Returns what of intervals with positions lies between two indices."""
    cut = [(max(start, first), min(end, stop), start, position) for start, end, position in intervals]
    return [(begin, end, position + begin - start) for begin, end, start, position in cut if begin < end]


def part_fill(
    name: str, tensor: torch.Tensor, region: Region, distribution: Distribution, rule: str, info: str
) -> Fill:
    """Returns the fill of a region of a parameter, with the values that these elements have of the whole's stream."""
    shape = tuple(tensor.shape)
    if region.shape == shape or why_not_shards(tensor) is not None:
        return shard_fill(name, tensor, distribution, rule, info)
    if is_sharded(tensor):
        boxes = boxes_of(tensor, region)
    else:
        view = tensor.detach()
        for dim, (start, size) in enumerate(zip(region.starts, region.shape)):
            view = view.narrow(dim, start, size)
        boxes = (Box.at(view, region.starts, shape),)
    numbers = region.indices(shape)
    return Fill(name, tensor, distribution, rule, info, region.shape, boxes, numbers=numbers, region=region)


def shard_fill(name: str, tensor: torch.Tensor, distribution: Distribution, rule: str, info: str) -> Fill:
    """Returns the fill of a parameter, wherever its parts are."""
    if not is_sharded(tensor) or why_not_shards(tensor) is not None:  # an error that `Session.check` tells
        return Fill.whole(name, tensor, distribution, rule, info)
    return Fill(name, tensor, distribution, rule, info, tuple(tensor.shape), boxes_of(tensor))


def like(tensor: Any, local: torch.Tensor) -> Any:
    """Returns a distributed tensor like ``tensor`` with other memory here."""
    return type(tensor).from_local(
        local, mesh_of(tensor), tensor._spec.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
