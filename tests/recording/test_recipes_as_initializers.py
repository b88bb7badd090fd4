"""A recipe is an initializer among others: in ``plan``, in lists of rules, in a BaseModule, in ``materialize``."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from capturing import cpp
from helpers import same_bits
from torch import nn

import fastinit
from fastinit.config.initializers import NormalInit
from fastinit.contract import streams
from fastinit.execution import runner
from fastinit.recording.recipes import Recipe


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4))


def recorded(backend: str = "cpp") -> tuple[nn.Module, Recipe]:
    """Returns a model, and what made it."""
    with fastinit.capture(backend=backend, seed=0) as recipe:
        model = layer()
    return model, recipe


@cpp
def test_a_plan_of_a_recipe_lists_what_was_recorded() -> None:
    plan = fastinit.plan(layer(), recorded()[1], backend="cpp", seed=0)
    assert [(row.parameter, row.rule.partition(" in ")[2]) for row in plan.rows] == [
        ("0.weight", "layer"),
        ("0.bias", "layer"),
    ]
    assert plan.unreached == ()


@cpp
def test_a_plan_of_a_recipe_writes_nothing() -> None:
    model = layer()
    before = model[0].weight.detach().clone()
    fastinit.plan(model, recorded()[1], backend="cpp", seed=0)
    assert same_bits(model[0].weight, before)


@cpp
def test_a_rule_after_a_recipe_wins() -> None:
    (made, recipe), model = recorded(), layer()
    fastinit.initialize(model, [recipe, dict(type="Constant", val=3, param="0.bias")], backend="cpp", seed=0)
    assert same_bits(model[0].weight, made[0].weight) and (model[0].bias == 3).all()


@cpp
def test_a_recipe_after_a_rule_wins() -> None:
    (made, recipe), model = recorded(), layer()
    fastinit.initialize(model, [dict(type="Constant", val=3, layer="Linear"), recipe], backend="cpp", seed=0)
    assert same_bits(model[0].weight, made[0].weight) and same_bits(model[0].bias, made[0].bias)


@cpp
def test_a_base_module_takes_a_recipe_for_its_config() -> None:
    made, recipe = recorded()
    model = fastinit.Sequential(nn.Linear(4, 4), init_cfg=recipe)
    with fastinit.use(backend="cpp", seed=0):
        model.init_weights()
    assert same_bits(model[0].weight, made[0].weight) and same_bits(model[0].bias, made[0].bias)


@cpp
def test_a_base_module_within_another_takes_a_recipe_under_its_own_names() -> None:
    recipe = recorded()[1]
    model = fastinit.Sequential(fastinit.Sequential(nn.Linear(4, 4), init_cfg=recipe), nn.Linear(4, 4))
    with fastinit.use(backend="cpp", seed=0):
        model.init_weights()
    assert sorted(model.last_init_report.provenance) == ["0.0.bias", "0.0.weight"]


@cpp
def test_a_recipe_runs_again_on_a_model_with_memory_of_torch() -> None:
    recipe, model = recorded("torch")[1], layer()
    fastinit.initialize(model, recipe, seed=0)
    torch.manual_seed(0)
    assert same_bits(model[0].weight, layer()[0].weight)


@pytest.mark.parametrize("door", [fastinit.plan, fastinit.initialize], ids=["plan", "initialize"])
def test_a_recipe_that_matches_nothing_is_warned_of(door) -> None:  # type: ignore[no-untyped-def]
    with pytest.warns(UserWarning, match="^init_cfg: the recipe holds no parameter of ModuleDict$"):
        door(nn.ModuleDict({"a": nn.Linear(2, 2)}), recorded("torch")[1])


@pytest.mark.parametrize("door", [fastinit.plan, fastinit.initialize], ids=["plan", "initialize"])
def test_a_recipe_that_matches_nothing_is_an_error_under_strict(door) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError, match=r"^init_cfg: the recipe holds no parameter of ModuleDict \(an error under"):
        door(nn.ModuleDict({"a": nn.Linear(2, 2)}), recorded("torch")[1], strict=True)


@cpp
def test_materialize_plans_its_recipe_and_its_config_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[str] = []
    for kind in (Recipe, NormalInit):
        original = kind.plan_items

        def plan_items(self, module, scope, rule, original=original):  # type: ignore[no-untyped-def]
            planned.append(type(self).__name__)
            return original(self, module, scope, rule)

        monkeypatch.setattr(kind, "plan_items", plan_items)
    with fastinit.capture() as recipe, torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    fastinit.materialize(model, dict(type="Normal", layer="Linear"), recipe=recipe, backend="cpp", seed=0)
    assert planned == ["Recipe", "NormalInit"]


def test_a_module_is_no_initializer_though_it_can_be_called() -> None:
    with pytest.raises(TypeError, match="^init_cfg must be a dict"):
        fastinit.initialize(layer(), nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^init_cfg\[0\]: a rule must be a dict or an initializer"):
        fastinit.initialize(layer(), [nn.Linear(2, 2)])


# --- streams that collide ---------------------------------------------------------------------------------------------


def tied_then_separate() -> tuple[nn.Module, Recipe]:
    """Returns a model whose ``b`` has the values of ``a`` by a copy, and its recipe: ``b`` has the stream of ``a``."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.empty(4).normal_())
            self.b = nn.Parameter(self.a.detach().clone())

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = Pair()
    return model, recipe


def colliding(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Gives some names one stream."""

    def streams_of(asked: object) -> streams.Words:
        return original([names[0] if name in names else name for name in asked])  # type: ignore[attr-defined]

    original = streams.streams_of
    monkeypatch.setattr(runner, "streams_of", streams_of)


@cpp
def test_parameters_of_one_stream_by_a_recipe_are_no_collision() -> None:
    model, recipe = tied_then_separate()
    assert recipe.fills["b"][0].stream == "a"
    fastinit.initialize(model, recipe, backend="cpp", seed=1)
    assert same_bits(model.a, model.b)


@cpp
def test_two_streams_that_collide_are_an_error_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"c": nn.Linear(4, 1, bias=False), "d": nn.Linear(4, 1, bias=False)})
    before = model["c"].weight.detach().clone()
    colliding(monkeypatch, "c.weight", "d.weight")
    with pytest.raises(RuntimeError, match="names 'd.weight' and 'c.weight' have the same random stream"):
        fastinit.initialize(model, dict(type="Normal", layer="Linear"), backend="cpp", seed=0)
    assert same_bits(model["c"].weight, before)


@cpp
def test_the_stream_that_a_recipe_gives_a_parameter_collides_with_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = tied_then_separate()
    model.register_parameter("c", nn.Parameter(torch.zeros(4)))
    colliding(monkeypatch, "a", "c")
    rules = [recipe, dict(type="Constant", val=1, param="a"), dict(type="Normal", param="c")]
    with pytest.raises(RuntimeError, match="names 'c' and 'a' have the same random stream"):
        fastinit.initialize(model, rules, backend="cpp", seed=0)
    assert (model.c == 0).all()


@cpp
def test_the_name_of_a_parameter_with_anothers_stream_collides_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = tied_then_separate()
    model.register_parameter("c", nn.Parameter(torch.zeros(4)))
    colliding(monkeypatch, "b", "c")
    fastinit.initialize(model, [recipe, dict(type="Normal", param="c")], backend="cpp", seed=0)
    assert same_bits(model.a, model.b) and not same_bits(model.c, model.b)


# --- the integrations -------------------------------------------------------------------------------------------------


def test_importing_fastinit_brings_the_integration_of_mmengine_without_mmengine() -> None:
    code = "import sys, fastinit; assert callable(fastinit.integrations.mmengine.enable); assert 'mmengine' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_recipe_that_covers_less_than_the_model_warns_and_is_refused_under_strict() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        recorded_one = layer()
    assert len(recipe.fills) == len(list(recorded_one.parameters()))
    larger = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    told = "2 parameters are not in the recipe.*: 1.weight, 1.bias. They keep what they"
    for call in (fastinit.plan, fastinit.initialize):
        with pytest.warns(UserWarning, match=told):
            call(larger, recipe, seed=0)
        with pytest.raises(RuntimeError, match="2 parameters are not in the recipe"):
            call(larger, recipe, seed=0, strict=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(larger, [recipe, dict(type="Normal", layer="Linear")], seed=0)
            call(nn.Sequential(nn.Linear(4, 4)), recipe, seed=0)


def loaded(folder: Path) -> nn.Module:
    """Returns a model of which a block has loaded one parameter from a file."""
    torch.save({"weight": torch.ones(4, 4, device="cpu")}, folder / "a.pth")
    model = nn.Linear(4, 4)
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=folder / "a.pth", assign=True))
    return model


def test_what_a_recipe_does_not_copy_again_is_told_by_the_plan_as_by_the_call(tmp_path: Path) -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = loaded(tmp_path)
    for call in (fastinit.plan, fastinit.initialize):
        with pytest.warns(
            UserWarning, match=r"not in the recipe.*: weight \(PretrainedInit: load from .*a\.pth\)\. They"
        ):
            call(nn.Linear(4, 4), recipe)
    model = nn.Linear(4, 4, device="meta")
    for materialize in (partial(fastinit.plan, device="cpu"), fastinit.materialize):
        with pytest.raises(
            RuntimeError, match=r"1 tensors were given values by code .* again: weight \(PretrainedInit: "
        ):
            materialize(model, recipe)


def test_the_plan_of_a_function_tells_what_it_loads(tmp_path: Path) -> None:
    told = r"plan: 1 parameters get values from code that a plan cannot know: weight \(PretrainedInit: load from .*a\.pth\)"
    with pytest.warns(fastinit.InitWarning, match=told):
        plan = fastinit.plan(lambda: loaded(tmp_path))
    assert plan.unreached == ("weight",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.plan(lambda: loaded(tmp_path), dict(type="Normal", layer="Linear"))


class Transposed(nn.Module):
    """Parameters and buffers in other orders than their draws'."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4).t())
        self.a = nn.Parameter(torch.randn(6, 4))
        self.register_buffer("t", self.a.detach().t())
        self.c = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        nn.init.ones_(self.c.weight[:, 1])


@cpp
def test_parts_of_tensors_in_another_order_are_done_again() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = Transposed()
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    built = fastinit.build(Transposed, backend="cpp", seed=0)
    for found, expected in zip(model.state_dict().values(), built.state_dict().values()):
        assert found.stride() == expected.stride() and same_bits(found, expected)


@cpp
def test_a_part_that_no_view_has_in_another_order_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4, 5))
            nn.init.ones_(self.w.data.view(-1)[2:8])

    with fastinit.capture() as recipe, torch.device("meta"):
        model = Flat()
    model.w.data = torch.empty(5, 4, device="meta").t()
    with pytest.raises(RuntimeError, match="a part of 'w' was recorded that no view has .* make it contiguous"):
        fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
