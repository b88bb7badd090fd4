"""Coverage: which tensors items write in full, and which only a part of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, product

import torch

from .geometry import Region, Strided
from .items import Fill, Item, tensors_of


def written_in_full(items: Iterable[Item]) -> set[torch.Tensor]:
    """Returns the tensors that items are known to write: one that is filled in parts only if these cover it."""
    written: set[torch.Tensor] = set()
    parts: dict[torch.Tensor, list[Region]] = {}
    for item in items:
        if not isinstance(item, Fill):
            written.update(tensors_of(item))
        elif item.region is None:  # all of it, or a part that is no rectangle: of that it is not told what it leaves
            written.add(item.tensor)
        else:
            parts.setdefault(item.tensor, []).append(item.region)
    written.update(tensor for tensor, regions in parts.items() if covers(regions, tuple(tensor.shape)))
    return written


def covers(regions: Sequence[Region], shape: Sequence[int]) -> bool:
    """Tells whether every element of a tensor is in a region: between two of their bounds, all elements are alike."""
    bounds = [{0, size} for size in shape]
    for region in regions:
        for of_dim, start, size in zip(bounds, region.starts, region.shape):
            of_dim |= {start, start + size}
    cells = product(*(pairwise(sorted(of_dim)) for of_dim in bounds))
    return all(any(_holds(region, cell) for region in regions) for cell in cells)


def covered(parts: Sequence[Strided], n_elements: int) -> bool:
    """Tells whether every element of a tensor is in one of the parts, which are row-major indices."""
    if any(part.numel == n_elements and not part.overlaps_itself for part in parts):
        return True
    if all(part.is_dense for part in parts):
        return not Strided.whole((n_elements,)).minus((part.first, part.first + part.span) for part in parts)
    seen = torch.zeros(n_elements, dtype=torch.bool, device="cpu")
    for part in parts:
        seen.as_strided(part.shape, part.steps, part.first).fill_(True)
    return bool(seen.all())


def _holds(region: Region, cell: Sequence[tuple[int, int]]) -> bool:
    return all(
        start <= first and end <= start + size for (first, end), start, size in zip(cell, region.starts, region.shape)
    )
