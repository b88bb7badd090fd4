"""Checks on several ranks: the digest of shards is that of the whole, on every rank."""

from __future__ import annotations

from typing import Any

import torch
from ranks import check, empty, mesh_of, raises
from ranks_fills import shapes_and_placements
from ranks_models import fsdp, llama, tensor_parallel
from torch import distributed, nn

import fastinit
from fastinit.shards.dtensor import boxes_of, is_sharded, local_part


def seeded_llama() -> nn.Module:
    torch.manual_seed(0)
    return llama()


def flip(tensor: torch.Tensor, at: int) -> None:
    """Flips the lowest bit of one element of the memory that is here."""
    local_part(tensor).view(-1).view(torch.int32)[at] ^= 1


@check(1, 2, 3, 4)
def digest_of_a_llama_under_fsdp2(rank: int, world: int) -> None:
    expected = fastinit.digest(seeded_llama())
    model = seeded_llama()
    fsdp(model, mesh_of(world))
    assert any(is_sharded(p) for p in model.parameters())
    assert fastinit.digest(model) == expected
    assert fastinit.digest(model.state_dict()) == expected


@check(1, 2, 3, 4)
def digest_of_a_llama_under_tensor_parallelism(rank: int, world: int) -> None:
    expected = fastinit.digest(seeded_llama())
    model = seeded_llama()
    tensor_parallel(model, mesh_of(world))
    assert fastinit.digest(model) == expected


@check(4)
def digest_of_a_llama_under_tensor_parallelism_and_fsdp2(rank: int, world: int) -> None:
    expected = fastinit.digest(seeded_llama())
    mesh = mesh_of(2, 2)
    model = seeded_llama()
    tensor_parallel(model, mesh["tp"])
    fsdp(model, mesh["dp"])
    assert fastinit.digest(model) == expected


def digest_of_every_placement(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor

    for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.complex128):
        wholes, parts = {}, {}
        for i, (shape, placements) in enumerate(shapes_and_placements(mesh)):
            torch.manual_seed(i)
            wholes[f"p{i}"] = whole = torch.randint(0, 100, shape).to(dtype)
            part = empty(mesh, placements, shape, dtype)
            for box in boxes_of(part):
                at = box.index(shape)
                box.tensor.copy_(whole[tuple(slice(i, i + n) for i, n in zip(at, box.tensor.shape))])
            assert isinstance(part, DTensor)
            parts[f"p{i}"] = part
        diff = fastinit.digest(wholes).diff(fastinit.digest(parts))
        assert not diff, f"{dtype}: {diff}: {[parts[name]._spec for name in diff.values]}"


@check(1, 2, 3, 4)
def digest_of_every_placement_on_a_line(rank: int, world: int) -> None:
    digest_of_every_placement(mesh_of(world))


@check(4)
def digest_of_every_placement_on_a_grid(rank: int, world: int) -> None:
    digest_of_every_placement(mesh_of(2, 2))


@check(3)
def a_bit_that_is_flipped_on_one_rank_is_found_on_all(rank: int, world: int) -> None:
    model = seeded_llama()
    fsdp(model, mesh_of(world))
    before = fastinit.digest(model)
    name = "model.layers.1.mlp.up_proj.weight"
    if rank == world - 1:
        flip(model.get_parameter(name), -1)
    assert before.diff(fastinit.digest(model)).values == (name,)


@check(2, 4)
def replicas_that_differ_are_an_error_on_all_ranks(rank: int, world: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    mesh = mesh_of(world) if world == 2 else mesh_of(2, 2)
    placements = [Replicate()] if world == 2 else [Replicate(), Shard(0)]
    parts = {name: empty(mesh, placements, (8, 4)) for name in ("same", "other")}
    fastinit.digest(parts)
    if rank == world - 1:
        flip(parts["other"], 0)
    raises(RuntimeError, "'other': the ranks hold different values", lambda: fastinit.digest(parts))


@check(2)
def partial_placements_have_no_digest(rank: int, world: int) -> None:
    from torch.distributed.tensor import DTensor, Partial

    part = DTensor.from_local(torch.ones(4), mesh_of(world), [Partial()], run_check=False)
    raises(RuntimeError, "'w' has no digest: it is placed as", lambda: fastinit.digest({"w": part}))


@check(2)
def a_problem_of_one_rank_ends_the_others(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    parts = {"w": empty(mesh_of(world), [Shard(0)], (8, 4)), "b": torch.empty(2, device="meta" if rank else "cpu")}
    text = "'b' is on the meta device" if rank else "the ranks do not agree: rank 1: 'b' is on the meta device"
    raises(RuntimeError, text, lambda: fastinit.digest(parts))


@check(2)
def other_distributed_tensors_on_one_rank_are_an_error(rank: int, world: int) -> None:
    from torch.distributed.tensor import Shard

    part = {f"w{rank}": empty(mesh_of(world), [Shard(0)], (8, 4))}
    raises(RuntimeError, "rank 0 and rank 1 have different distributed tensors", lambda: fastinit.digest(part))


@check(4)
def a_tensor_of_another_mesh_is_named(rank: int, world: int) -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

    first, second = DeviceMesh("cpu", [0, 1]), DeviceMesh("cpu", [2, 3])
    module = nn.Module()
    module.w = nn.Parameter(empty(first if rank < 2 else second, [Shard(0)], (8, 4)))
    assert fastinit.digest(module) == fastinit.digest({"w": torch.full((8, 4), 7.0)})
    module.w = nn.Parameter(empty(first, [Shard(0)], (8, 4)))
    if rank > 1:
        raises(RuntimeError, "'w' is distributed over", lambda: fastinit.digest(module))
    else:
        fastinit.digest(module)
    distributed.barrier()
