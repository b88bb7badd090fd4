"""Sums over whole distributed tensors, of what each rank has added up over its part.

A dimension of the mesh that cuts a tensor adds; along one that replicates it, the sums must be the same on all ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import InitRuntimeError, locating
from .agreement import check_groups
from .dtensor import mesh_of

_BITS = 64


def check_ranks(tensors: Mapping[str, Any], problem: str) -> None:
    """Makes sure that all ranks of the meshes are about to add up the same tensors; every rank must call it.

    Args:
        tensors: the distributed tensors of this rank, by name.
        problem: why this rank cannot; the others fail then, and do not wait for it. It is not raised on this one.

    Raises:
        RuntimeError: another rank has a problem, or other tensors.
    """
    by_mesh = _by_mesh(tensors)
    with locating("digest", is_place=False):
        check_groups(dict(by_mesh))
    found = problem and f"rank {torch.distributed.get_rank()}: {problem}"
    for mesh, names in by_mesh:
        lines = [
            f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} {_placed(tensors[name])}" for name in names
        ]
        text = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
        for dim in range(mesh.ndim):
            group = _group(mesh, dim)
            votes: list[Any] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(votes, (torch.distributed.get_rank(), text, found), group=group)
            told = [reason for _, _, reason in votes if reason]
            others = [rank for rank, other, _ in votes if other != votes[0][1]]
            if told and not found:
                found = told[0]
            elif others and not found:
                found = f"rank {votes[0][0]} and rank {others[0]} have different distributed tensors"
    if found and not problem:
        raise InitRuntimeError(f"digest: the ranks do not agree: {found}")


def whole_sums(tensors: Mapping[str, Any], parts: Mapping[str, int]) -> dict[str, int]:
    """Returns the sums, modulo 2^64, over whole distributed tensors; every rank of their meshes must call it.

    Args:
        tensors: by name, the same on all ranks (``check_ranks``).
        parts: the sums over what is here of each.

    Raises:
        RuntimeError: on all ranks: tensors that are replicated are not the same on all ranks; they are named.
    """
    wholes: dict[str, int] = {}
    unequal: list[str] = []
    for mesh, names in _by_mesh(tensors):
        placed = [_placed(tensors[name]) for name in names]
        values = torch.tensor([_signed(parts[name]) for name in names], dtype=torch.int64, device=_device(mesh))
        differ = torch.zeros_like(values)
        for dim in range(mesh.ndim):
            is_copy = torch.tensor([each[dim].is_replicate() for each in placed], device=values.device)
            values, found = _along(values, is_copy, _group(mesh, dim))
            differ = torch.maximum(differ, found)
        for dim in range(mesh.ndim):  # so that every rank hears of it
            torch.distributed.all_reduce(differ, torch.distributed.ReduceOp.MAX, group=_group(mesh, dim))
        unequal += [name for name, is_unequal in zip(names, differ.tolist()) if is_unequal]
        wholes |= {name: value % (1 << _BITS) for name, value in zip(names, values.tolist())}
    if unequal:
        more = f", and {len(unequal) - 1} more" if len(unequal) > 1 else ""
        raise InitRuntimeError(
            f"digest: {unequal[0]!r}{more}: the ranks hold different values of what is replicated among them. Compare "
            f"the digests of their local tensors (tensor.to_local())"
        )
    return wholes


def _along(values: torch.Tensor, is_copy: torch.Tensor, group: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the values, added up along a dimension of a mesh where it cuts, and 1 where copies differ."""
    op, all_reduce = torch.distributed.ReduceOp, torch.distributed.all_reduce
    added = values.masked_fill(is_copy, 0)
    all_reduce(added, op.SUM, group=group)
    extremes = torch.stack([values, ~values]).masked_fill(~is_copy, 0)  # the largest of ~x is ~ of the smallest x
    all_reduce(extremes, op.MAX, group=group)
    return torch.where(is_copy, values, added), (is_copy & (extremes[0] != ~extremes[1])).to(torch.int64)


def _by_mesh(tensors: Mapping[str, Any]) -> list[tuple[Any, list[str]]]:
    """Returns the meshes that this rank is part of, in an order that is the same on all ranks, with their tensors."""
    names: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        if mesh_of(tensor).get_coordinate() is not None:
            names.setdefault(mesh_of(tensor), []).append(name)
    return sorted(names.items(), key=lambda item: (-item[0].mesh.numel(), item[0].mesh.flatten().tolist()))


def _placed(tensor: Any) -> Sequence[Any]:
    return tensor._spec.placements  # type: ignore[no-any-return]


def _signed(number: int) -> int:
    return number - (1 << _BITS) if number >> (_BITS - 1) else number


def _device(mesh: Any) -> torch.device:
    """Returns where the mesh's process groups take tensors from."""
    kind = mesh.device_type
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def _group(mesh: Any, dim: int) -> Any:
    group = mesh.get_group(dim)
    if torch.distributed.get_backend(group) == "fake":  # one process that plans for many
        raise InitRuntimeError(f"digest: the process group of {mesh} is fake: the values of other ranks are nowhere")
    return group
