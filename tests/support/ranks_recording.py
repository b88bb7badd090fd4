"""Checks on several ranks: init code that is captured before, while and after a model is cut."""

from __future__ import annotations

import os
import warnings

import torch
from ranks import check, gathered, mesh_of, must_equal, raises, same
from ranks_models import fsdp, llama
from torch import nn

import fastinit
from fastinit.shards import dtensor as sharding


@check(2, 4)
def init_code_after_sharding_is_captured(rank, world):
    model, plain = llama(), llama()
    fsdp(model, mesh_of(world))

    def code(m):
        for name, parameter in m.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.normal_(parameter, 1, 0.1)
        nn.init.trunc_normal_(m.lm_head.weight, std=0.02)
        m.model.embed_tokens.weight.data.mul_(2).add_(1)
        m.model.norm.weight.data.zero_()

    for each in (model, plain):
        with fastinit.capture(each, backend="cpp", seed=2) as recipe, torch.no_grad():
            code(each)
        assert recipe.report.unkeyed == ()
        assert recipe.report.launches == {"cpu": 1}
    must_equal(model, dict(plain.named_parameters()))


@check(2, 3, 4)
def orthogonal_init_code_goes_by_name_on_shards(rank, world):
    from torch.distributed.fsdp import fully_shard

    def plain():
        return nn.Sequential(nn.Linear(10, 24), nn.Conv1d(8, 12, 3), nn.Linear(6, 9), nn.LSTM(5, 6))

    def code(m):
        nn.init.orthogonal_(m[0].weight, 2)
        nn.init.dirac_(m[1].weight, groups=2)
        nn.init.sparse_(m[2].weight, 0.3)
        nn.init.eye_(m[3].weight_ih_l0)
        nn.init.orthogonal_(m[3].weight_hh_l0)
        for name, parameter in m.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)

    model, whole = plain(), plain()
    fully_shard(model, mesh=mesh_of(world))
    for each in (model, whole):
        with fastinit.capture(each, backend="cpp", seed=2, strict=True), torch.no_grad():
            code(each)
    must_equal(model, dict(whole.named_parameters()))


@check(2, 3)
def a_recipe_of_orthogonal_parts_runs_on_shards(rank, world):
    from torch.distributed.fsdp import fully_shard

    def factory():
        lstm = nn.LSTM(6, 5)
        for gate in lstm.weight_hh_l0.chunk(4):
            nn.init.orthogonal_(gate)
        nn.init.orthogonal_(lstm.weight_ih_l0[:, 1:5].t(), 2)
        nn.init.sparse_(lstm.weight_ih_l0[3:12], 0.5)
        return lstm

    with fastinit.capture() as recorded, torch.device("meta"):
        model = factory()
    assert not recorded.unknown and not recorded.computed
    fully_shard(model, mesh=mesh_of(world))
    fastinit.materialize(model, recipe=recorded, backend="cpp", seed=0)
    must_equal(model, dict(fastinit.build(factory, backend="cpp", seed=0).named_parameters()))


@check(2)
def models_whose_parameters_carry_their_init_functions(rank, world):
    """As torchtitan's do: made and cut on the meta device, given memory, then initialized parameter by parameter."""
    from torch.distributed.fsdp import fully_shard

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm = nn.Linear(8, 12), nn.LayerNorm(12)
            self.param_init = {"up.weight": lambda p: nn.init.trunc_normal_(p, std=0.02), "up.bias": nn.init.zeros_}
            self.param_init |= {"norm.weight": nn.init.ones_, "norm.bias": nn.init.zeros_}

        def init_states(self):
            for name, parameter in self.named_parameters():
                self.param_init[name](parameter)

    with torch.device("meta"):
        model, plain = nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())
    for part in (*model, model):
        fully_shard(part)
    for each in (model, plain):
        each.to_empty(device="cpu")
        with fastinit.capture(each, backend="cpp", seed=3) as recipe, torch.no_grad():
            for block in each:
                block.init_states()
        assert recipe.report.unreached == recipe.report.unkeyed == ()
    must_equal(model, dict(plain.named_parameters()))


@check(2)
def draws_that_are_sharded_before_they_have_names_are_warned_of(rank, world):
    def sharded():
        model = llama()
        fsdp(model, mesh_of(world))
        return model

    def told(run):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
        return [str(each.message) for each in found if "by order and not by name" in str(each.message)]

    def named_in_time():
        with fastinit.capture(backend="cpp", seed=3) as recipe:
            model = llama()
            recipe.bind(model)
            fsdp(model, mesh_of(world))
        must_equal(model, dict(fastinit.build(llama, backend="cpp", seed=3).named_parameters()))

    (message,) = told(lambda: fastinit.build(sharded, backend="cpp", seed=3))
    assert "recipe.bind(model) before" in message
    assert not told(named_in_time)


@check(2)
def a_recipe_runs_on_shards_with_memory(rank, world):
    with fastinit.capture() as recipe, torch.device("meta"):
        whole = llama()
    assert set(recipe.fills) == {name for name, _ in whole.named_parameters()}
    model = llama()
    fsdp(model, mesh_of(world))
    fastinit.initialize(model, recipe, backend="cpp", seed=3)
    must_equal(model, dict(fastinit.build(llama, backend="cpp", seed=3).named_parameters()))


@check(2, 3)
def slices_of_shards_are_drawn_in_place(rank, world):
    from torch.distributed.fsdp import fully_shard

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(6, 15)
            for i in range(3):
                nn.init.xavier_normal_(self.qkv.weight[5 * i : 5 * i + 5])
            nn.init.uniform_(self.qkv.weight[3:13, 1:4], 2, 3)
            nn.init.normal_(self.qkv.bias[7:])
            self.table = nn.Embedding(12, 4, padding_idx=10)  # a row within the last rank's

    built = fastinit.build(Fused, backend="cpp", seed=0)
    with fastinit.capture() as recorded, torch.device("meta"):
        plain = Fused()
    fastinit.materialize(plain, recipe=recorded, backend="cpp", seed=0)
    must_equal(plain, dict(built.named_parameters()))
    for recipe in (True, False):
        with fastinit.capture() as recorded, torch.device("meta"):
            model = Fused()
        fully_shard(model, mesh=mesh_of(world))
        if recipe:
            fastinit.materialize(model, recipe=recorded, backend="cpp", seed=0)
        else:
            model.to_empty(device="cpu")
            fastinit.initialize(model, recorded, backend="cpp", seed=0)
        must_equal(model, dict(built.named_parameters()))


@check(1, 2)
def computed_values_are_refused_for_shards_with_all_names(rank, world):
    from torch.distributed.fsdp import fully_shard

    def make():
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
        with torch.no_grad():
            for layer in model:
                layer.weight.copy_(torch.linspace(0, 1, 16).view(4, 4))
        return model

    with fastinit.capture() as recipe, torch.device("meta"):
        model = make()
    fully_shard(model, mesh=mesh_of(world))
    for text in ("recipe: 2 distributed tensors are computed, which", "0.weight (`copy_`", "1.weight (`copy_`"):
        raises(RuntimeError, text, lambda: fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0))
    assert model[0].weight.is_meta


@check(2)
def a_bound_model_may_be_sharded_within_the_block(rank, world):
    with fastinit.capture(backend="cpp", seed=3, strict=True) as recipe:
        model = llama()
        recipe.bind(model)
        fsdp(model, mesh_of(world))
    must_equal(model, dict(fastinit.build(llama, backend="cpp", seed=3).named_parameters()))


@check(2)
def lightning_shards_models_before_materialize(rank, world):
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    os.environ.update(
        LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="localhost", MASTER_PORT="0"
    )

    def parallelize(model, mesh):
        fsdp(model, mesh["data_parallel"])
        return model

    fabric = Fabric(accelerator="cpu", devices=world, strategy=ModelParallelStrategy(parallelize_fn=parallelize))
    fabric.launch()
    with fastinit.capture() as recipe, fabric.init_module(empty_init=True):
        model = llama()
    model = fabric.setup(model)
    assert sharding.is_sharded(next(model.parameters()))
    fastinit.initialize(model, recipe, backend="cpp", seed=3)
    built = dict(fastinit.build(llama, backend="cpp", seed=3).named_parameters())
    for name, parameter in model.module.named_parameters():
        assert same(gathered(parameter), built[name].detach()), name
