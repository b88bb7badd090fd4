"""Checks on several ranks: they agree on a seed or all get an error."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from helpers import named_fill
from ranks import check, empty, gathered, mesh_of, must_equal, raises, same
from torch import nn

import fastinit
from fastinit import plans


@check(2, 3, 4)
def ranks_agree_on_a_seed_or_all_raise(rank, world):
    from torch.distributed.tensor import Shard

    def make(**parts):
        module = nn.Module()
        module.weight = nn.Parameter(empty(mesh_of(world), [Shard(0)], (9, 4)))
        return module

    cfg = dict(type="Normal", param="weight")
    torch.manual_seed(rank)  # as loops over ranks do
    drawn = make()
    report = fastinit.initialize(drawn, cfg, backend="cpp")
    torch.manual_seed(0)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    assert report.seed == seed
    must_equal(drawn, {"weight": named_fill("weight", (9, 4), plans.Normal(0, 1), seed=seed)})

    other = make()
    before = gathered(other.weight).clone()
    raises(RuntimeError, "were given the seeds", lambda: fastinit.initialize(other, cfg, backend="cpp", seed=rank % 2))
    raises(
        RuntimeError,
        "were given the seeds",
        lambda: fastinit.initialize(other, cfg, backend="cpp", seed=0 if rank else None),
    )
    std = dict(cfg, std=1 + (rank == world - 1))
    raises(RuntimeError, "different fills", lambda: fastinit.initialize(other, std, backend="cpp", seed=0))

    def captured():
        with fastinit.capture(other, backend="cpp", seed=rank % 2):
            nn.init.normal_(other.weight)

    raises(RuntimeError, "were given the seeds", captured)
    assert same(gathered(other.weight), before)
    with fastinit.use(backend="cpp", seed=4):
        fastinit.initialize(other, cfg)
    must_equal(other, {"weight": named_fill("weight", (9, 4), plans.Normal(0, 1), seed=4)})


@check(4)
def a_disagreement_on_a_square_of_ranks_is_raised_on_all(rank, world):
    from torch.distributed.tensor import Shard

    module = nn.Module()
    module.weight = nn.Parameter(empty(mesh_of(2, 2), [Shard(0), Shard(1)], (8, 8)))
    for odd in range(4):
        seed = 1 if rank == odd else 0
        raises(
            RuntimeError,
            "do not agree",
            lambda: fastinit.initialize(module, dict(type="Normal", param="weight"), backend="cpp", seed=seed),
        )


@check(2)
def a_call_on_one_rank_alone_does_not_wait_for_others(rank, world):
    if rank == 0:
        fastinit.initialize(nn.Linear(3, 3), dict(type="Normal", layer="Linear"), backend="cpp")
        fastinit.build(nn.Linear, 3, 3, backend="cpp")


def sharded(mesh):
    from torch.distributed.tensor import Shard

    module = nn.Module()
    module.weight = nn.Parameter(empty(mesh, [Shard(0), *[Shard(1)] * (mesh.ndim - 1)], (8, 8)))
    module.other = nn.Parameter(torch.full((3,), 7.0))
    return module


NORMAL = dict(type="Normal", param="weight")


@check(2, 4, 8)
def a_rank_that_fails_is_heard_by_the_others(rank, world):
    mesh = mesh_of(2, world // 2) if world > 2 else mesh_of(world)
    module = sharded(mesh)
    before = gathered(module.weight).clone()

    def failing(cfg, error, text, **options):
        def call():
            fastinit.initialize(module, cfg if rank == world - 1 else NORMAL, backend="cpp", seed=0, **options)

        if rank == world - 1:
            raises(error, text, call)
        else:
            raises(RuntimeError, f"rank {world - 1} failed with {error.__name__}", call)
        assert same(gathered(module.weight), before)

    failing(dict(type="Nrmal", param="weight"), KeyError, "Did you mean")
    failing(dict(type="Normal", std=-1, param="weight"), RuntimeError, "std")
    failing(dict(type="Normal", param="nothing"), RuntimeError, "strict", strict=True)

    def matches_nothing():
        cfg = dict(NORMAL, param="other") if rank == 0 else NORMAL
        fastinit.initialize(module, cfg, backend="cpp", seed=0)

    raises(RuntimeError, "different fills", matches_nothing)
    assert same(gathered(module.weight), before)


@check(2)
def a_rank_that_fails_in_a_captured_block_is_heard(rank, world):
    module = sharded(mesh_of(world))
    before = gathered(module.weight).clone()

    def block():
        with fastinit.capture(module, backend="cpp", seed=0):
            nn.init.normal_(module.weight)
            if rank == 1:
                raise ValueError("mine")

    raises(ValueError, "mine", block) if rank == 1 else raises(RuntimeError, "rank 1 failed with ValueError", block)
    assert same(gathered(module.weight), before)


@check(2)
def a_rank_that_fails_in_materialize_is_heard(rank, world):
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        module = nn.Linear(8, 8)
    fully_shard(module, mesh=mesh_of(world))

    def call():
        cfg = dict(type="Normal" if rank == 0 else "Nrmal", layer="Linear")
        fastinit.materialize(module, cfg, backend="cpp", seed=0)

    raises(RuntimeError, "rank 1 failed", call) if rank == 0 else raises(KeyError, "Did you mean", call)
    assert module.weight.is_meta
    fastinit.materialize(module, dict(type="Normal", layer="Linear"), backend="cpp", seed=0)
    must_equal(module, {"weight": named_fill("weight", (8, 8), plans.Normal(0, 1), seed=0)})


@check(2)
def a_mistake_on_all_ranks_is_every_ranks_own_error(rank, world):
    module = sharded(mesh_of(world))
    raises(KeyError, "Did you mean", lambda: fastinit.initialize(module, dict(type="Nrmal"), backend="cpp", seed=0))


@check(2, 4)
def ranks_outside_a_mesh_have_no_part_and_no_vote(rank, world):
    from torch.distributed.device_mesh import DeviceMesh

    module = sharded(DeviceMesh("cpu", list(range(world // 2))))
    report = fastinit.initialize(module, [NORMAL, dict(NORMAL, param="other")], backend="cpp", seed=0)
    assert same(module.other, named_fill("other", (3,), plans.Normal(0, 1), seed=0))
    if rank < world // 2:
        must_equal(module, {"weight": named_fill("weight", (8, 8), plans.Normal(0, 1), seed=0)})
    assert report.unreached == () and len(report.rows) == 2


@check(4, 8)
def meshes_that_cross_agree_on_a_drawn_seed(rank, world):
    from torch.distributed.tensor import Shard

    torch.manual_seed(rank)
    mesh = mesh_of(2, world // 2)
    module = nn.Module()
    for name in ("dp", "tp"):
        module.register_parameter(name, nn.Parameter(empty(mesh[name], [Shard(0)], (8, 8))))
    seed = fastinit.initialize(module, dict(type="Normal", param="*"), backend="cpp").seed
    seeds = [None] * world
    torch.distributed.all_gather_object(seeds, seed)
    assert len(set(seeds)) == 1
    for name in ("dp", "tp"):
        must_equal(module, {name: named_fill(name, (8, 8), plans.Normal(0, 1), seed=seed)})


@check(4)
def the_same_seed_given_on_all_ranks_holds_on_meshes_that_cross(rank, world):
    from torch.distributed.tensor import Shard

    mesh = mesh_of(2, 2)
    module = nn.Module()
    for name in ("dp", "tp"):
        module.register_parameter(name, nn.Parameter(empty(mesh[name], [Shard(0)], (8, 8))))
    fastinit.initialize(module, dict(type="Normal", param="*"), backend="cpp", seed=3)
    must_equal(module, {"tp": named_fill("tp", (8, 8), plans.Normal(0, 1), seed=3)})
    cfg = dict(type="Normal", std=1 + (rank == 3), param="*")
    raises(RuntimeError, "do not agree", lambda: fastinit.initialize(module, cfg, backend="cpp", seed=3))


@check(2)
def a_process_group_that_is_gone_is_told_with_the_tensors(rank, world):
    from torch.distributed.tensor import Shard

    mesh = mesh_of(world, 1)
    module = nn.Module()
    for name in ("weight", "other"):
        module.register_parameter(name, nn.Parameter(empty(mesh, [Shard(0), Shard(0)], (8, 8))))
    cfg = dict(type="Normal", param="*")
    plan = fastinit.plan(module, cfg, backend="cpp", seed=0)
    kept, before = fastinit.Plan.load(saved(plan)), module.weight.to_local().clone()
    torch.distributed.destroy_process_group(mesh.get_group(1))

    def block():
        with fastinit.capture(module, backend="cpp", seed=0):
            nn.init.normal_(module.weight)

    def late():  # whose names are known when the fill is to run
        with fastinit.capture(backend="cpp", seed=0):
            nn.init.normal_(module.weight)

    calls = {
        "2 tensors: weight, other. Call this before": [
            lambda: fastinit.initialize(module, cfg, backend="cpp", seed=0),
            lambda: fastinit.initialize(module, dict(type="Nrmal", param="*"), backend="cpp", seed=0),
            lambda: fastinit.verify(module, plan),
            lambda: fastinit.digest(module),
            block,
        ],
        "2 tensors: weight (8, 8) torch.float32 Normal(": [lambda: fastinit.initialize(module, kept)],
        "1 tensors: (8, 8) torch.float32 Normal(": [late],
    }
    for text, each in calls.items():
        for call in each:
            raises(fastinit.Error, text, call)
            raises(fastinit.Error, "is gone (", call)
            assert same(module.weight.to_local(), before), text
    assert fastinit.plan(module, cfg, backend="cpp", seed=0).rows, "a plan needs no other rank"


def saved(plan):
    path = Path(tempfile.mkdtemp()) / "plan.json"
    plan.save(path)
    return path
