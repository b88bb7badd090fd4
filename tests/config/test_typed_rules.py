"""fastinit.rules: constructors give the dicts that one writes, and follow the initializers' signatures."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
import rule_types
import typed_rules
from torch import nn

import fastinit
from fastinit import rules

TYPES = sorted(fastinit.WEIGHT_INITIALIZERS.module_dict)
STUB = ast.parse(rule_types.STUB.read_text())


def test_the_types_are_those_of_the_initializers() -> None:
    assert rule_types.STUB.read_text() == rule_types.generated(), "run python tools/rule_types.py"


def test_the_types_have_the_names_of_the_module() -> None:
    names = {each.name for each in STUB.body if isinstance(each, (ast.FunctionDef, ast.ClassDef))}
    names |= {
        each.target.id for each in STUB.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    assert {name for name in names if not name.startswith("_")} == set(rules.__all__)
    assert all(hasattr(rules, name) for name in rules.__all__)


@pytest.mark.parametrize("name", TYPES)
def test_a_constructor_and_a_dict_have_the_keys_of_the_stub(name: str) -> None:
    (function,) = (each for each in STUB.body if isinstance(each, ast.FunctionDef) and each.name == name)
    (keys,) = (each for each in STUB.body if isinstance(each, ast.ClassDef) and each.name == f"{name}Rule")
    given = list(inspect.signature(getattr(rules, name)).parameters)
    assert [each.arg for each in function.args.kwonlyargs] == given
    assert [each.target.id for each in keys.body] == ["type", *given]  # type: ignore[attr-defined]
    assert list(getattr(rules, f"{name}Rule").__annotations__) == ["type", *given]


# A value for each key, other than its default where it has one.
VALUES: dict[str, Any] = dict(
    a=0.5, b=0.75, batch_dims=1, bias=1, bias_prob=0.5, blocks=2, bounds="sigma", checkpoint="a.pth", distribution="uniform",
    fan="layer", fan_axes=(1, 0), gain=2, groups=2, key="k", layer="Linear", mean=1, nonlinearity="tanh", param="*",
    prefix="p", revise_keys=[("a", "b")], scale=3, sparsity=0.5, std=0.5, strict=True, assign=True, dtype="bfloat16",
    access="read", weights_only=False, allow=[int], map_location="cpu", val=3, vars=dict(k=1),
)  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_initializers_take_what_the_constructors_take(name: str) -> None:
    needed = {
        each.name: VALUES[each.name]
        for each in inspect.signature(getattr(rules, name)).parameters.values()
        if each.default is each.empty
    }
    for key, parameter in inspect.signature(getattr(rules, name)).parameters.items():
        if key != "override":
            value = VALUES[key] if key != "mode" else "fan_out" if parameter.default == "fan_in" else "fan_in"
            rule = getattr(rules, name)(**{**needed, key: value})
            assert rule == dict(type=name, **{**needed, key: value})
            fastinit.WEIGHT_INITIALIZERS.build(rule)


@pytest.mark.parametrize("name", ["Caffe2Xavier", "Lecun", "Glorot", "He"])
def test_what_an_initializer_sets_itself_is_none_of_its_keys(name: str) -> None:
    key = "mode"
    with pytest.raises(TypeError, match="an unexpected keyword argument 'mode'. It takes "):
        getattr(rules, name)(mode="fan_in")
    with pytest.raises(TypeError):
        fastinit.WEIGHT_INITIALIZERS.build({"type": name, key: "fan_in"})


@pytest.mark.parametrize("index", range(len(typed_rules.SAME)))
def test_a_rule_is_a_plain_dict(index: int) -> None:
    rule, same = typed_rules.SAME[index]
    assert type(rule) is dict and rule == same


def test_rules_are_run_as_dicts_are() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3), "head": nn.Linear(4, 2)})
    plan = fastinit.plan(model, typed_rules.config)
    assert [row.rule for row in plan.rows] == ["init_cfg[0]"] * 4 + ["init_cfg[1]"] * 2 + ["init_cfg[2]"] * 2
    assert {row.description for row in plan.rows} >= {"dirac(groups=2)", "constant(0)"}


def test_a_wrong_argument_is_told_with_those_that_exist() -> None:
    with pytest.raises(TypeError, match="^Zeros: got an unexpected keyword argument 'val'. It takes bias, ") as raised:
        rules.Zeros(val=0)  # type: ignore[call-arg]
    assert isinstance(raised.value, fastinit.Error) and raised.value.hint.startswith("It takes bias, bias_prob, layer")


def test_a_rule_for_an_own_class_has_its_registered_name() -> None:
    fastinit.WEIGHT_INITIALIZERS.register_module("Own", module=typed_rules.DepthScaledInit)
    assert rules.rule(typed_rules.DepthScaledInit, 3) == dict(type="Own", depth=3)


def test_a_wrong_argument_of_an_own_class_is_told() -> None:
    with pytest.raises(TypeError, match=r"^DepthScaledInit: missing a required argument: 'depth'. It takes \(depth"):
        rules.rule(typed_rules.DepthScaledInit, layer="Linear")  # type: ignore[call-arg]
