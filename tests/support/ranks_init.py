"""Checks on several ranks: models are sharded, recorded, built and initialized."""

from __future__ import annotations

import warnings

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


@check(1, 2)
def draws_that_auto_leaves_to_torch_are_warned_of_once_a_call(rank, world):
    from torch.distributed.fsdp import fully_shard

    def sharded(device="cpu"):
        with torch.device(device):
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        fully_shard(model, mesh=mesh_of(world))
        return model

    def fill(model):
        with fastinit.capture(model):
            for parameter in model.parameters():
                nn.init.normal_(parameter)

    def tree(model):
        fastinit.Sequential(model, init_cfg=cfg[:1]).init_weights()

    cfg = [dict(type="Xavier", layer="Linear"), dict(type="Normal", param="1.weight")]
    first = "init_cfg[0]: the parameter '0.weight' is distributed over ranks, and 'auto' has torch draw it on 'cpu'"
    told = {
        first: [
            lambda: fastinit.initialize(sharded(), cfg, seed=0),
            lambda: fastinit.materialize(sharded("meta"), cfg),
            lambda: fastinit.plan(sharded(), cfg),
            lambda: fastinit.plan(sharded("meta"), cfg, device="cpu"),
        ],
        "in fill: a tensor of shape (4, 4) is distributed over ranks": [lambda: fill(sharded())],
        "init_cfg[0]: the parameter '0.0.weight' is distributed": [lambda: tree(sharded())],
    }
    for text, calls in told.items():
        for call in calls:
            found = warned(call)
            assert len(found) == 1, found
            message = found[0]
            assert text in message and "pass backend='cpp' for the same values on every mesh" in message, message
    for backend in ("cpp", "torch"):  # who says it means it
        assert not warned(lambda backend=backend: fastinit.initialize(sharded(), cfg, backend=backend, seed=0))
    assert not warned(lambda: fastinit.initialize(sharded(), dict(type="Ones", param="*")))
    assert not warned(lambda: fastinit.initialize(sharded(), fastinit.plan(sharded(), cfg, backend="cpp", seed=0)))
    assert not warned(lambda: fastinit.plan(sharded("meta"), cfg)), "it may be filled on a GPU"


def warned(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in found if issubclass(each.category, fastinit.InitWarning)]


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


@check(2)
def shards_that_have_values_keep_them(rank, world):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fully_shard(model, mesh=mesh_of(world))
    weight = model[0].weight
    sevens = torch.full_like(weight.to_local(), 7, device="cpu")
    how = dict(run_check=False, shape=weight.shape, stride=weight.stride())
    loaded = DTensor.from_local(sevens, weight.device_mesh, weight.placements, **how)
    model[0]._parameters["weight"] = nn.Parameter(loaded)
    fastinit.plan(model, device="cpu", backend="cpp", seed=0)
    assert (model[0].weight.to_local() == 7).all()  # to plan changes nothing
    fastinit.materialize(model, backend="cpp", seed=0)
    assert (model[0].weight.to_local() == 7).all()
    assert model[0].bias.to_local().abs().sum() > 0 and model[1].weight.to_local().abs().sum() > 0
