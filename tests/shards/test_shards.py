"""Shards: the same weights however many ranks hold them. Real processes run the checks of shard_ranks.py."""

from __future__ import annotations

import importlib
import itertools
from functools import lru_cache

import needs
import numpy as np
import pytest
import ranks
import ranks_memory
import shard_ranks
import torch
from helpers import same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.contract import records as lowering
from fastinit.shards import dtensor as sharding

pytestmark = needs.mark(needs.CPP)
FSDP2 = needs.torch_from(2, 6)  # which has fully_shard; the checks import the public names of DTensor, since 2.5, too

outcomes = lru_cache(ranks.outcomes)


def of_check(world, name):
    lightning = [needs.mark(needs.package("lightning", 2, 3))] if name.startswith("lightning_") else []
    return pytest.param(world, name, marks=lightning)


@needs.mark(FSDP2)
@pytest.mark.parametrize(
    ("world", "name"),
    [
        of_check(world, name)
        for world in (1, 2, 3, 4, 8)
        for name, (_, worlds) in shard_ranks.CHECKS.items()
        if world in worlds
    ],
)
def test_on_several_ranks(world, name):
    problem = outcomes(world)[name]
    assert not problem, problem


@needs.mark(FSDP2, needs.LINUX)
def test_a_rank_needs_memory_for_its_shards_only():
    for growth, here in ranks_memory.memory(4, "shards"):
        assert here == 16 * 2048 * 2048 * 4 // 4 and growth < 1.1 * here + (8 << 20), (growth, here)
    for growth, here in ranks_memory.memory(4, "whole"):  # what the check is there to find
        assert growth > 2 * here


# --- the geometry, without processes ---------------------------------------------------------------------------------


# Public since torch 2.5.
PLACEMENT_TYPES = (
    f"torch.distributed.{'tensor' if needs.torch_from(2, 5).why_not() is None else '_tensor'}.placement_types"
)


@st.composite
def meshes(draw):
    """Draws (shape, shape of the mesh, placements)."""
    placement_types = importlib.import_module(PLACEMENT_TYPES)
    Replicate, Shard = placement_types.Replicate, placement_types.Shard
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    mesh_shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    placements = []
    for i in range(len(mesh_shape)):
        dim = draw(st.integers(0, len(shape) - 1))
        strided = ["strided"] if hasattr(placement_types, "_StridedShard") else []
        kind = draw(st.sampled_from(["shard", "shard", "negative", "replicate", *strided]))
        if kind == "strided":  # as FSDP2 places what tensor parallelism has cut along the same dimension
            behind = [n for n, p in zip(mesh_shape[i + 1 :], placements[i + 1 :])]
            placements.append(
                placement_types._StridedShard(dim, split_factor=draw(st.integers(1, 4)) if not behind else 1)
            )
        else:
            placements.append(
                {"shard": Shard(dim), "negative": Shard(dim - len(shape)), "replicate": Replicate()}[kind]
            )
    return shape, mesh_shape, placements


@given(meshes())
def test_the_parts_of_all_ranks_tile_the_whole_and_carry_its_values(case):
    shape, mesh_shape, placements = case
    whole = torch.empty(shape)
    cpp_backend.run([plans.Fill.whole("w", whole, plans.Normal(0, 1), "", "")], 7)
    n_replicas = int(np.prod([n for n, p in zip(mesh_shape, placements) if p.is_replicate()], initial=1))
    seen = torch.zeros(shape, dtype=torch.int64)
    for coordinate in itertools.product(*map(range, mesh_shape)):
        parts = sharding.parts_of(shape, mesh_shape, placements, coordinate)
        index = np.ix_(*[np.concatenate([np.arange(*each) for each in dim] or [np.arange(0)]) for dim in parts])
        index = tuple(torch.from_numpy(np.ascontiguousarray(each)).long() for each in index)
        seen[index] += 1
        # What the kernels write into the part that is here, box by box, is what the whole has there.
        local = torch.empty([sum(end - start for start, end in dim) for dim in parts])
        boxes = []
        for combination in itertools.product(*map(sharding._with_positions, parts)):
            view = local[tuple(slice(at, at + end - start) for start, end, at in combination)]
            boxes.append(plans.Box.at(view, [start for start, _, _ in combination], shape))
        fill = plans.Fill("w", local, plans.Normal(0, 1), "", "", shape, tuple(boxes))
        assert sum(records["n_elements"].sum() for records in [lowering.lowered([fill], 7)]) == local.numel()
        cpp_backend.run([fill], 7)
        assert same_bits(local, whole[index].reshape(local.shape))
    assert (seen == n_replicas).all()


@given(meshes())
def test_parts_match_torchs_own_split(case):
    shape, mesh_shape, placements = case
    values = torch.arange(int(np.prod(shape))).view(shape)
    for coordinate in itertools.product(*map(range, mesh_shape)):
        local = values
        for placement, n, at in zip(placements, mesh_shape, coordinate):
            if not placement.is_replicate() and local.numel():  # torch 2.1 splits no empty one
                moved = type(placement)(placement.dim % len(shape), **_factor(placement))
                local = moved._split_tensor(local, n, with_padding=False, contiguous=False)[0][at]
        parts = sharding.parts_of(shape, mesh_shape, placements, coordinate)
        mine = values
        for dim, intervals in enumerate(parts):
            mine = mine.index_select(
                dim, torch.tensor([i for each in intervals for i in range(*each)], dtype=torch.long)
            )
        assert mine.tolist() == local.tolist() or (mine.numel() == 0 == local.numel())


def _factor(placement):
    return {"split_factor": placement.split_factor} if hasattr(placement, "split_factor") else {}


# --- parts of a model ------------------------------------------------------------------------------------------------


def test_pipeline_stages_get_the_weights_that_they_have_in_the_whole():
    def layers(n):
        return nn.ModuleList(nn.Linear(4, 4) for _ in range(n))

    whole = nn.ModuleDict({"embed": nn.Embedding(6, 4), "layers": layers(4), "head": nn.Linear(4, 6, bias=False)})
    whole.head.weight = whole.embed.weight
    cfg = [dict(type="Normal", param="*weight"), dict(type="Uniform", param="*bias")]
    fastinit.initialize(whole, cfg, backend="cpp", seed=3)
    last = nn.ModuleDict({"layers": layers(2), "head": nn.Linear(4, 6, bias=False)})
    names = {"layers.0": "layers.2", "layers.1": "layers.3", "head.weight": "embed.weight"}
    plan = fastinit.plan(last, cfg, prefix=names, backend="cpp", seed=3)
    assert {row.parameter for row in plan.rows} >= {"layers.3.bias", "embed.weight"}
    fastinit.initialize(last, cfg, backend="cpp", seed=3, prefix=names)
    assert same_bits(last.head.weight, whole.head.weight)
    for i in (0, 1):
        assert same_bits(last.layers[i].weight, whole.layers[i + 2].weight)
        assert same_bits(last.layers[i].bias, whole.layers[i + 2].bias)
    stage = fastinit.build(lambda: nn.Sequential(nn.Linear(4, 4)), prefix={"": "stage"}, backend="cpp", seed=0)
    other = fastinit.build(lambda: nn.Sequential(nn.Linear(4, 4)), prefix="stage", backend="cpp", seed=0)
    assert same_bits(stage[0].weight, other[0].weight)
    with torch.device("meta"):
        meta = nn.ModuleDict({"layers": layers(2), "head": nn.Linear(4, 6, bias=False)})
    fastinit.materialize(meta, cfg, backend="cpp", seed=3, prefix=names)
    assert all(same_bits(a, b) for a, b in zip(meta.parameters(), last.parameters()))
    with fastinit.capture() as recipe, torch.device("meta"):
        nn_whole = nn.ModuleDict({"layers": layers(4)})
    with torch.device("meta"):
        part = nn.ModuleDict({"layers": layers(2)})
    fastinit.materialize(
        part, recipe=recipe, backend="cpp", seed=1, prefix={"layers.0": "layers.2", "layers.1": "layers.3"}
    )
    fastinit.materialize(nn_whole, recipe=recipe, backend="cpp", seed=1)
    assert same_bits(part.layers[1].weight, nn_whole.layers[3].weight)
    with pytest.raises(TypeError, match="prefix must be a str or a map"):
        fastinit.initialize(last, cfg, prefix=3)
