"""Checks on several ranks: they agree on a seed or all get an error."""

from __future__ import annotations

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
