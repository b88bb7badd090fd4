"""Modules' own code in ``materialize``: children first, with the rules' values to read, and tables made anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])


def on_meta(factory: Any, *args: Any) -> Any:
    with torch.device("meta"):
        return factory(*args)


# --- parents after their children -------------------------------------------------------------------------------------


@backends
def test_multihead_attention_starts_as_its_constructor_starts_it(backend: str) -> None:
    model = on_meta(nn.MultiheadAttention, 64, 4)
    fastinit.materialize(model, backend=backend, seed=0)
    assert (model.out_proj.bias == 0).all() and (model.in_proj_bias == 0).all()


@backends
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_transformer_starts_as_its_constructor_starts_it(backend: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Transformer(64, 4, 1, 1, 128)
    model = on_meta(nn.Transformer, 64, 4, 1, 1, 128)
    fastinit.materialize(model, backend=backend, seed=0)
    expected = plain.state_dict()
    for name, tensor in model.state_dict().items():
        # Every kind of layer has a bound of its own: the default's is 1 / 8 for width 64, Xavier's is larger.
        assert tensor.abs().max().item() == pytest.approx(expected[name].abs().max().item(), rel=0.1, abs=1e-7), name


class Down(nn.Module):
    """A parent that sets what belongs to its child, as constructors do."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.constant_(self.down.weight, 0.25)
        nn.init.zeros_(self.down.bias)


@backends
def test_what_a_parent_sets_in_its_child_stands(backend: str) -> None:
    model = on_meta(Down)
    fastinit.materialize(model, backend=backend, seed=0)
    assert (model.down.weight == 0.25).all() and (model.down.bias == 0).all()


class Outer(nn.Module):
    """A parent without tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.inner.weight, 3)


@backends
def test_a_parent_without_tensors_is_asked_too(backend: str) -> None:
    model = on_meta(nn.Sequential, on_meta(Outer))
    fastinit.materialize(model, backend=backend, seed=0)
    assert (model[0].inner.weight == 3).all() and model[0].inner.bias.std() > 0


def test_a_parent_is_not_asked_where_rules_reach_everything() -> None:
    model = on_meta(Outer)
    model.reset_parameters = lambda: pytest.fail("nothing is left for it")
    fastinit.materialize(model, dict(type="Constant", val=1, layer="Linear"), seed=0)


# --- tables that are made anew ----------------------------------------------------------------------------------------


def table() -> torch.Tensor:
    return torch.arange(4.0)


def _register(module: nn.Module) -> None:
    module.register_buffer("table", table())


def _under_a_device(module: nn.Module) -> None:
    with torch.device("cpu"):
        module.table = table()


WAYS = {
    "assigned": lambda module: setattr(module, "table", table()),
    "on the weight's device": lambda module: setattr(module, "table", torch.arange(4.0, device=module.l.weight.device)),
    "on its own device": lambda module: setattr(module, "table", torch.arange(4.0, device=module.table.device)),
    "registered": _register,
    "under a device": _under_a_device,
    "copied": lambda module: module.table.copy_(table()),
}


@backends
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cfg", [None, dict(type="Normal", layer="Linear")], ids=["alone", "with a rule"])
def test_tables_that_own_code_makes_anew_are_taken(way: str, cfg: Any, backend: str) -> None:
    class Rope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 4)
            self.register_buffer("table", torch.arange(4.0))

        def reset_parameters(self) -> None:
            WAYS[way](self)

    model = on_meta(Rope)
    fastinit.materialize(model, cfg, backend=backend, seed=0)
    assert model.table.tolist() == [0, 1, 2, 3] and not model.l.weight.is_meta


def test_a_table_that_is_made_on_the_meta_device_is_refused() -> None:
    class Rope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(4.0))

        def reset_parameters(self) -> None:
            self.table = torch.arange(4.0, device="meta")

    model = on_meta(Rope)
    with pytest.raises(RuntimeError, match="'table' has no values.*replaced it"):
        fastinit.materialize(model, seed=0)
    assert model.table.is_meta


@backends
def test_tensors_without_elements_need_no_values(backend: str) -> None:
    model = on_meta(nn.Module)
    model.register_buffer("cache", torch.empty(0, device="meta"))
    model.register_parameter("none", nn.Parameter(torch.empty(0, 4, device="meta")))
    fastinit.materialize(model, backend=backend, seed=0)
    assert model.cache.shape == (0,) and model.none.shape == (0, 4) and not model.none.is_meta


# --- what rules fill can be read --------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(3))
        self.twice = nn.Parameter(torch.empty(3))

    def reset_parameters(self) -> None:
        self.twice.data.copy_(self.scale * 2)
        with torch.no_grad():
            nn.init.zeros_(self.scale)
            self.scale.add_(5)
            self.scale.data[0] = 9


@backends
def test_own_code_reads_what_a_rule_has_filled_and_cannot_change_it(backend: str) -> None:
    model = on_meta(Scaled)
    report = fastinit.materialize(model, dict(type="Constant", val=3, param="scale"), backend=backend, seed=0)
    assert model.scale.tolist() == [3, 3, 3] and model.twice.tolist() == [6, 6, 6]
    assert report.provenance == {
        "scale": "ConstantInit: val=3 (init_cfg)",
        "twice": "`reset_parameters` of Scaled",
    }


def test_draws_for_what_a_rule_reaches_do_not_move_the_generator() -> None:
    def made(cfg: Any) -> torch.Tensor:
        model = on_meta(nn.Sequential, on_meta(nn.Linear, 4, 4), on_meta(nn.Linear, 4, 4))
        fastinit.materialize(model, cfg, backend="torch", seed=0)
        return model[1].bias.detach()

    weight = dict(type="Constant", val=1, param="0.weight")
    both = [weight, dict(type="Constant", val=1, param="0.bias")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
    assert torch.equal(made(both), layer.bias) and not torch.equal(made(weight), layer.bias)


# --- an init that nobody calls ----------------------------------------------------------------------------------------


class WithInit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 7)


def test_a_models_own_init_that_is_not_run_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="`_init_weights` of WithInit is not run.*capture"):
        fastinit.materialize(on_meta(WithInit), seed=0)


def zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ByAFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = zeroed(nn.Linear(4, 4))


class BehindTorchsBack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.l.weight.data.uniform_(-1, 1)


class ByAMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.make_last()

    def make_last(self) -> None:
        with torch.no_grad():
            self.l.bias[0] = 3


class ByItsBase(ByAMethod):
    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Linear(4, 4)


@pytest.mark.parametrize("kind", [ByAFunction, BehindTorchsBack, ByAMethod, ByItsBase], ids=lambda kind: kind.__name__)
def test_a_constructors_own_init_that_is_not_run_is_warned_about(kind: type[nn.Module]) -> None:
    where = rf"init in the constructor of {kind.__name__} \(test_own_code.py:\d+\) is not run"
    with pytest.warns(UserWarning, match=where):
        fastinit.materialize(on_meta(lambda: nn.Sequential(kind())), seed=0)


def test_layers_that_timm_took_out_of_a_model_are_warned_about() -> None:
    taken = type("FeatureListNet", (nn.ModuleDict,), {"__module__": "timm.models._features"})
    with pytest.warns(UserWarning, match="init of the model whose layers FeatureListNet holds is not run"):
        fastinit.materialize(on_meta(lambda: nn.Sequential(taken({"l": nn.Linear(4, 4)}))), seed=0)


class Plain(nn.Module):
    """Makes layers, ties them, and has a `reset_parameters`, which is run."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.l.weight
        self.scale = nn.Parameter(torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)


@pytest.mark.parametrize("kind", [Plain, partial(nn.Transformer, 8, 2, 1, 1, 8)], ids=["own", "of torch"])
def test_constructors_that_only_make_layers_are_not_warned_about(kind: Callable[[], nn.Module]) -> None:
    model = on_meta(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.materialize(model, seed=0)


@pytest.mark.parametrize("way", ["rules", "recipe"])
def test_a_models_own_init_is_not_missed_where_all_parameters_have_values(way: str) -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = WithInit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if way == "rules":
            fastinit.materialize(model, dict(type="Constant", val=1, layer="Linear"), seed=0)
        else:
            fastinit.materialize(model, recipe=recipe, seed=0)
    assert (model.l.weight == (1 if way == "rules" else 7)).all()


# --- what has values already ------------------------------------------------------------------------------------------


class _PartlyThere(nn.Module):
    """Modules of which one tensor has no memory, and others have values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        nn.init.constant_(self.norm.weight, 7)
        self.linear.bias = nn.Parameter(self.linear.bias.to("meta"))
        self.norm.running_var = self.norm.running_var.to("meta")


@backends
def test_code_leaves_alone_what_has_values(backend: str) -> None:
    model = _PartlyThere()
    weight = model.linear.weight.detach().clone()
    plan = fastinit.plan(model, device="cpu", backend=backend, seed=0)
    assert torch.equal(model.linear.weight, weight) and (model.norm.weight == 7).all()  # to plan changes nothing
    assert [row.parameter for row in plan.rows] == ["linear.bias", "norm.running_var"]
    report = fastinit.materialize(model, backend=backend, seed=0)
    assert torch.equal(model.linear.weight, weight) and (model.norm.weight == 7).all()
    assert (model.norm.running_var == 1).all()
    assert 0 < model.linear.bias.abs().max() <= 8**-0.5  # by the fan of a weight that it may read
    assert set(report.provenance) == {"linear.bias"}


@backends
@needs.mark(needs.built_for_torch("transformers"))
def test_a_loaded_model_gets_its_tables_and_keeps_its_weights(backend: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    source = LlamaForCausalLM(config)
    model = on_meta(LlamaForCausalLM, config)
    model.load_state_dict({name: each.clone() for name, each in source.state_dict().items()}, assign=True)
    fastinit.materialize(model, backend=backend, seed=1)
    loaded = dict(model.named_parameters())
    for name, each in source.named_parameters():
        assert torch.equal(loaded[name], each), name
    for name, table in source.named_buffers():
        assert torch.equal(model.get_buffer(name), table), name
