"""muP: how standard deviations and learning rates go with the width; compared with the package ``mup``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coordinate_check
import needs
import pytest
import torch
from mup_models import MODELS, WIDTHS
from torch import nn

import fastinit
from fastinit import mup
from fastinit.mup import wide_config

KEPT = [line for line in (Path(__file__).parents[1] / "data" / "mup.txt").read_text().splitlines() if line[0] != "#"]


def scaling_of(kind: str) -> mup.Scaling:
    make = MODELS[kind]
    with torch.device("meta"):
        return mup.scaling(make(WIDTHS["base"]), make(WIDTHS["target"]), delta=make(WIDTHS["delta"]))


def mlp(width: int, inner: int | None = None) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(8, width), nn.Linear(width, inner or width), nn.Linear(inner or width, 10))


# --- the package's own numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_factors_are_those_of_the_package(kind: str) -> None:
    expected = [line.split()[1:] for line in KEPT if line.split()[0] == kind]
    assert len(expected) == len(list(MODELS[kind](64).parameters()))
    rows = {row.name: row for row in scaling_of(kind).rows}
    for name, base, shape, *numbers in expected:
        row = rows[name]
        assert ["x".join(map(str, each)) for each in (row.base_shape, row.shape)] == [base, shape]
        # An output layer's factor stands beside its weight; the package's layer has it for its bias, too.
        assert [row.std, row.adam, row.sgd, row.output] == list(map(float, numbers)), name


@pytest.mark.parametrize("kind", MODELS)
def test_a_config_draws_with_the_packages_standard_deviations(kind: str) -> None:
    make, scaling = MODELS[kind], scaling_of(kind)
    init_cfg = [dict(type="Constant", val=0, param="*"), dict(type="Normal", std=0.3, param="*weight")]
    config = scaling.config(lambda: make(64), init_cfg)
    target = make(256)
    plan = fastinit.plan(target, json.loads(json.dumps(config)), strict="complete")
    found = {row.parameter: row.values.get("std") for row in plan.rows}
    expected = {line.split()[1]: 0.3 * float(line.split()[4]) for line in KEPT if line.split()[0] == kind}
    assert found == {name: std if name.endswith("weight") else None for name, std in expected.items()}


# --- kinds of parameters ---------------------------------------------------------------------------------------------


def kinds(base: mup.Model, target: mup.Model, **options: Any) -> dict[str, str]:
    return {row.name: row.kind for row in mup.scaling(base, target, **options).rows}


def test_the_dimensions_that_differ_tell_the_kind() -> None:
    assert kinds(mlp(64), mlp(128)) == {
        "0.weight": "input",
        "0.bias": "input",
        "1.weight": "matrix",
        "1.bias": "input",
        "2.weight": "output",
        "2.bias": "fixed",
    }


def test_an_embedding_is_an_input_and_an_output_if_it_is_tied() -> None:
    def tied(width: int) -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(9, width), "head": nn.Linear(width, 9, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    scaling = mup.scaling(lambda: tied(8), lambda: tied(32))
    assert [row.kind for row in scaling.rows] == ["tied"] and scaling.output_multipliers == {"embed.weight": 0.25}
    assert kinds(lambda: nn.Embedding(9, 8), lambda: nn.Embedding(9, 16)) == {"weight": "input"}


def test_a_third_model_tells_widths_that_are_the_same_in_base_and_target() -> None:
    base, target = mlp(64, 64), mlp(64, 256)
    assert kinds(base, target)["0.weight"] == "fixed"
    rows = {row.name: row for row in mup.scaling(base, target, delta=mlp(72, 80)).rows}
    assert rows["0.weight"].kind == "input" and rows["0.weight"].sgd == 1
    assert (rows["1.weight"].kind, rows["1.weight"].std, rows["1.weight"].sgd) == ("matrix", 1, 4)


def test_inputs_of_a_transposed_layer_are_its_first_dimension() -> None:
    def layer(inputs: int, outputs: int) -> Callable[[], nn.Module]:
        return lambda: nn.ConvTranspose1d(inputs, outputs, 3, bias=False)

    (row,) = mup.scaling(layer(8, 8), layer(16, 64)).rows
    assert (row.std, row.adam, row.sgd) == (2**-0.5, 0.5, 4)
    assert kinds(layer(8, 5), layer(16, 5)) == {"weight": "output"}


def test_stacked_experts_need_no_axis_where_all_widths_grow_alike() -> None:
    def experts(inner: int, outer: int) -> Callable[[], nn.Module]:
        return lambda: nn.ParameterDict({"w": nn.Parameter(torch.empty(4, inner, outer))})

    (row,) = mup.scaling(experts(8, 16), experts(32, 64)).rows
    assert (row.kind, row.std, row.adam, row.sgd) == ("matrix", 0.5, 0.25, 1)
    with pytest.raises(ValueError, match=r"known which the inputs are: give fan_in=\{'w': dimension\}"):
        mup.scaling(experts(8, 16), experts(32, 32))
    (row,) = mup.scaling(experts(8, 16), experts(32, 32), fan_in={"w": -1}).rows
    assert (row.std, row.sgd) == (0.5**0.5, 2)


# --- configs and groups ----------------------------------------------------------------------------------------------


def test_a_models_own_init_is_scaled() -> None:
    (weight, bias) = mup.scaling(lambda: nn.Linear(64, 64), lambda: nn.Linear(256, 256)).config(
        lambda: nn.Linear(64, 64)
    )
    assert (weight["type"], weight["param"], weight["a"]) == ("Uniform", "weight", -weight["b"])
    assert weight["b"] == pytest.approx(1 / 16)  # kaiming_uniform_(a=sqrt(5)) of the base model: 1 / sqrt(64)
    assert bias["param"] == "bias" and bias["b"] == pytest.approx(1 / 8)


def test_orthogonal_matrices_are_left_as_they_are() -> None:
    scaling = mup.scaling(mlp(16), mlp(64))
    config = scaling.config(mlp(16), [dict(type="Normal", std=1, param="*"), dict(type="Orthogonal", param="1.weight")])
    assert {"type": "Orthogonal", "param": "1.weight", "gain": 1.0} in config
    with pytest.raises(ValueError, match="0.weight: muP does not say what orthogonal"):
        scaling.config(mlp(16), [dict(type="Normal", std=1, param="*"), dict(type="Orthogonal", param="0.weight")])


def test_truncated_normals_keep_their_bounds_in_standard_deviations() -> None:
    scaling = mup.scaling(mlp(16), mlp(64))
    config = scaling.config(mlp(16), dict(type="TruncNormal", std=0.5, a=-1, b=2, param="*"))
    (rule,) = (rule for rule in config if rule["param"] == "1.weight")
    assert rule == {"type": "TruncNormal", "param": "1.weight", "mean": 0.0, "std": 0.25, "a": -0.5, "b": 1.0}


def test_patterns_match_the_parameters_of_a_rule_and_no_others() -> None:
    def deep(width: int) -> Callable[[], nn.Module]:
        return lambda: nn.ModuleDict(
            {"layers": nn.ModuleList([nn.Linear(width, width) for _ in range(12)]), "head": nn.Linear(width, 3)}
        )

    config = mup.scaling(deep(8), deep(32)).config(deep(8), dict(type="Normal", std=1, param="*"))
    assert {"type": "Normal", "param": "layers.*.weight", "mean": 0.0, "std": 0.5} in config
    rows = fastinit.plan(deep(32)(), config, strict="complete").rows
    assert len(rows) == len({row.parameter for row in rows})


def test_groups_have_a_rate_each_and_decay_as_in_the_base_model() -> None:
    scaling, model = mup.scaling(mlp(64), mlp(256)), mlp(256)()
    groups = scaling.param_groups(model, 0.1, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (0.1, 0.3, 5),
        (0.025, 1.2, 1),
    ]
    assert {id(each) for group in groups for each in group["params"]} == set(map(id, model.parameters()))
    assert [group["lr"] for group in scaling.param_groups(model, 0.1, "sgd")] == [0.4, 0.1]
    decoupled = scaling.param_groups(model, 0.1, weight_decay=0.3, is_decoupled=True)
    assert [group["weight_decay"] for group in decoupled] == [0.3, 0.3]
    torch.optim.AdamW(groups)


def test_the_table_is_plain_data() -> None:
    document = json.loads(mup.scaling(mlp(64), mlp(256)).to_json())
    assert document["fastinit_mup"] == 1 and document["rows"][2]["name"] == "1.weight"
    assert document["rows"][2]["adam"] == 0.25


def test_attention_goes_with_the_width_of_heads() -> None:
    assert mup.attention_scale(64, 64) == 1 / math.sqrt(64)
    assert mup.attention_scale(256, 64) == mup.attention_scale(64, 64) / 4


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "target", "message"),
    [
        (mlp(8), lambda: nn.Linear(8, 8), "base model must have the names of the other: it lacks .'bias', 'weight'."),
        (lambda: nn.Conv1d(8, 8, 3), lambda: nn.Linear(8, 8), "'weight' has another number of dimensions"),
        (lambda: nn.Conv1d(8, 8, 3), lambda: nn.Conv1d(16, 16, 5), "become wider .* muP has rules for two"),
        (lambda: nn.Linear(0, 8), lambda: nn.Linear(8, 8), "'weight' has no elements in the base model"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(base: mup.Model, target: mup.Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mup.scaling(base, target)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="target must be a module, or a function that returns one, but got 3"):
        mup.scaling(mlp(8), lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"fan_in names \['v'\], which the models have not"):
        mup.scaling(mlp(8), mlp(16), fan_in={"v": 0})
    with pytest.raises(ValueError, match=r"dimension 0 of '0.weight' differs in the target .* not in delta"):
        mup.scaling(mlp(8), mlp(16), delta=mlp(8))


def test_a_config_needs_values_for_every_parameter() -> None:
    scaling = mup.scaling(mlp(8), mlp(16))
    with torch.device("meta"):
        model = mlp(8)()
    with pytest.raises(ValueError, match="does not say what '0.bias' starts as: nothing fills it"):
        scaling.config(model, dict(type="Normal", param="*weight"))
    with pytest.raises(ValueError, match="what '0.weight' starts as: not one rule fills it"):
        scaling.config(model, [dict(type="Normal", param="*"), dict(type="Normal", param="0.weight[2:]")])
    with pytest.raises(ValueError, match="1.weight: muP does not say what constant.1. becomes where .8, 8. becomes"):
        scaling.config(model, dict(type="Constant", val=1, param="*"))


def test_groups_are_for_the_models_that_were_compared() -> None:
    scaling = mup.scaling(mlp(8), mlp(16))
    with pytest.raises(ValueError, match=r"lacks \['2.bias', '2.weight'\], and has \[\]"):
        scaling.param_groups(nn.Sequential(*list(mlp(16)())[:2]), 0.1)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="optimizer must be one of adam, sgd, but got 'lion'"):
        scaling.multipliers("lion")


# --- training --------------------------------------------------------------------------------------------------------


@needs.mark(needs.CPP)
def test_activations_stay_in_size_under_mup_and_grow_without() -> None:
    """The coordinate check of docs/mup.md, on a small scale: slopes of log |change| over log width."""
    found = {is_mup: coordinate_check.measured(is_mup, widths=(64, 256), steps=3, seeds=2) for is_mup in (True, False)}
    slopes = {is_mup: coordinate_check.slopes(each) for is_mup, each in found.items()}
    assert max(abs(slope) for slope in slopes[True].values()) < 0.35, slopes
    assert slopes[False]["attention"] > 0.8 and slopes[False]["feed-forward"] > 0.7, slopes
    assert slopes[False]["logits"] > 0.4, slopes


def test_orthogonal_matrices_whose_sides_grow_unevenly_keep_the_factor_of_their_elements() -> None:
    scaling = mup.scaling(mlp(64, 64), mlp(256, 4096))
    config = scaling.config(
        mlp(64, 64), [dict(type="Normal", std=1, param="*"), dict(type="Orthogonal", param="1.weight")]
    )
    row = next(row for row in scaling.rows if row.name == "1.weight")
    gain = next(rule["gain"] for rule in config if rule["type"] == "Orthogonal")
    longer = max(row.shape) / max(row.base_shape)
    assert gain / longer**0.5 == pytest.approx(row.std)


class SharedTable(nn.Module):
    """An output layer whose weight is a parameter of another name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(50, width))
        self.a, self.b, self.head = (nn.Linear(width, n, bias=False) for n in (width, width, 50))
        self.head.weight = self.table


def test_patterns_match_no_other_name_of_a_shared_parameter() -> None:
    scaling = mup.scaling(lambda: SharedTable(64), lambda: SharedTable(256))
    init_cfg = [
        dict(type="Normal", std=1.0, param=["a.weight", "b.weight"]),
        dict(type="Normal", std=7.0, param="table"),
    ]
    config = scaling.config(lambda: SharedTable(64), init_cfg)
    rows = fastinit.plan(SharedTable(256), config).rows
    assert {row.parameter: row.values["std"] for row in rows} == {"table": 7.0, "a.weight": 0.5, "b.weight": 0.5}


def test_patterns_leave_out_names_with_signs_of_globs() -> None:
    assert wide_config.patterns_of(["0.w[a]", "1.w[a]"], ["0.w[a]", "1.w[a]"]) == ["0.w[a]", "1.w[a]"]


def test_experts_stacked_in_a_linear_class_need_their_inputs_told() -> None:
    class GroupedLinear(nn.Module):
        def __init__(self, out: int, inputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4, out, inputs))

    with pytest.raises(ValueError, match="give fan_in="):
        mup.scaling(lambda: GroupedLinear(64, 128), lambda: GroupedLinear(128, 1024))


def test_code_of_a_config_cannot_be_scaled() -> None:
    def halve(module: nn.Module) -> None:
        module[0].weight.data.mul_(0.5)

    scaling = mup.scaling(mlp(16), mlp(64))
    with pytest.raises(ValueError, match="what code does to the base model is not known"):
        scaling.config(mlp(16), [dict(type="Normal", std=1, param="*"), halve])


def test_the_table_asks_for_the_patterns_of_like_layers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(width: int) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(20)))

    calls: list[object] = []
    before = mup.patterns_of
    monkeypatch.setattr(mup, "patterns_of", lambda *args: calls.append(args) or before(*args))
    str(mup.scaling(deep(4), deep(8)))
    assert len(calls) == 1


@pytest.mark.parametrize("use", ["groups", "config", "a plan"])
def test_a_model_of_another_width_is_refused(use: str) -> None:
    def mlp(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.Linear(width, width))

    scaling = fastinit.mup.scaling(lambda: mlp(64), lambda: mlp(256))
    cfg = dict(type="Normal", std=0.1, layer="Linear")
    with pytest.raises(
        ValueError, match=r"has '0.weight' of shape \(128, 8\), and \((256|64), 8\) was compared; 4 differ"
    ):
        if use == "groups":
            scaling.param_groups(mlp(128), 0.1)
        else:
            scaling.config((lambda: mlp(128)) if use == "config" else fastinit.plan(mlp(128), cfg), cfg)
