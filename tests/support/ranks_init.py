"""Checks on several ranks: models are sharded, recorded, built and initialized."""

from __future__ import annotations

import torch
from ranks import check, gathered, mesh_of, must_equal, raises
from ranks_models import from_meta, fsdp, llama, tensor_parallel
from torch import nn

import fastinit


@check(1, 2, 3, 4)
def a_meta_model_of_transformers_is_materialized_after_fsdp2(rank, world):
    mesh = mesh_of(world)
    for recipe in (True, False):
        report = from_meta(mesh, lambda model: fsdp(model, mesh), recipe)
        assert report.launches == {"cpu": 1}


@check(4)
def fsdp2_and_tensor_parallel_on_one_mesh(rank, world):
    mesh = mesh_of(2, 2)

    def shard(model):
        tensor_parallel(model, mesh["tp"])
        fsdp(model, mesh["dp"])

    for recipe in (True, False):
        from_meta(mesh, shard, recipe)


@check(4)
def replicated_groups_of_shards(rank, world):
    mesh = mesh_of(2, 2)
    from_meta(mesh, lambda model: fsdp(model, mesh))


@check(2, 4)
def a_sharded_model_with_memory_is_initialized(rank, world):
    cfg = [
        dict(type="Normal", std=0.3, param="*.weight"),
        dict(type="TruncNormal", std=0.02, layer="Embedding"),
        dict(type="Constant", val=1, param="*norm*"),
    ]
    model, plain = llama(), llama()
    fsdp(model, mesh_of(world))
    fastinit.initialize(model, cfg, backend="cpp", seed=5)
    fastinit.initialize(plain, cfg, backend="cpp", seed=5)
    must_equal(model, dict(plain.named_parameters()))


@check(2, 3)
def a_tree_of_base_modules(rank, world):
    from torch.distributed.fsdp import fully_shard

    class Head(fastinit.BaseModule):
        def __init__(self):
            super().__init__(dict(type="Normal", std=0.1, layer="Linear"))
            self.cls, self.reg = nn.Linear(8, 6), nn.Linear(8, 4)

        def init_weights(self):
            super().init_weights()
            nn.init.trunc_normal_(self.reg.weight, std=0.02)
            self.cls.weight.data.mul_(0.5)
            fastinit.constant_init(self.reg, 3, bias=2) if False else nn.init.constant_(self.reg.bias, 2)

    def tree():
        return fastinit.Sequential(nn.Linear(8, 8), Head(), init_cfg=dict(type="Xavier", layer="Linear"))

    model, plain = tree(), tree()
    for part in (model[1], model):
        fully_shard(part, mesh=mesh_of(world))
    for each in (model, plain):
        with fastinit.use(backend="cpp", seed=1):
            each.init_weights()
    assert model.last_init_report.unkeyed == plain.last_init_report.unkeyed == ()
    must_equal(model, dict(plain.named_parameters()))
    assert (gathered(model[1].reg.bias) == 2).all()


@check(2)
def flattened_parameters_are_refused_with_what_to_do(rank, world):
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    for kwargs in (dict(), dict(use_orig_params=True)):
        model = FullyShardedDataParallel(nn.Sequential(nn.Linear(4, 4)), device_id=torch.device("cpu"), **kwargs)
        cfg = dict(type="Normal", layer="Linear")
        raises(RuntimeError, "fully_shard", lambda: fastinit.initialize(model, cfg, backend="cpp", seed=0))
        raises(RuntimeError, "fully_shard", lambda: fastinit.plan(model, cfg))


@check(2)
def wrappers_are_looked_through(rank, world):
    model, plain = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    wrapped = nn.parallel.DistributedDataParallel(model)
    for each in (wrapped, plain):
        fastinit.initialize(each, dict(type="Normal", layer="Linear"), backend="cpp", seed=0)
    must_equal(model, dict(plain.named_parameters()))
