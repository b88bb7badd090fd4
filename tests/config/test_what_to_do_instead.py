"""Calls and rules that cannot mean what they say: the message says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import fastinit
from fastinit import rules


class Net(fastinit.BaseModule):
    def __init__(self) -> None:
        super().__init__(dict(type="Xavier", layer="Linear"))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


RULE = dict(type="Xavier", layer="Linear")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fastinit.initialize(Net, RULE), r"but got the class Net: make one, Net\(\.\.\.\)$"),
        (lambda: fastinit.initialize(lambda: Net(), RULE), "but got <class 'function'>: call it, and give what it returns"),
        (lambda: fastinit.initialize(RULE, Net()), r"\. The module comes first and the config behind it, as in init"),
        (lambda: fastinit.plan([RULE], Net()), r"\. The module comes first and the config behind it, as in init"),
        (lambda: fastinit.initialize(Net(), seed=3), r"init_weights\(\), with seed and backend by `with fastinit.use\("),
        (lambda: fastinit.initialize(nn.Linear(2, 2)), r"<class 'NoneType'>, e.g. dict\(type='Xavier', layer='Linear'\)"),
        (lambda: Net().init_weights(seed=3, backend="cpp"), "^init_weights takes no seed, backend: `with fastinit.use"),
        (lambda: rules.rule("Halved", by=3), r"but got 'Halved': write rules.rule\(MyInit, \.\.\.\), or dict\(type='Hal"),
        (lambda: rules.rule("Kaiming"), r"but got 'Kaiming': write rules.rule\(KaimingInit, \.\.\.\), or dict\("),
        (lambda: rules.rule(3), r"but got 3: write rules.rule\(MyInit, \.\.\.\)$"),
    ],
)  # fmt: skip
def test_a_call_with_wrong_arguments_names_the_right_one(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message) as raised:
        call()
    assert isinstance(raised.value, fastinit.Error) and raised.value.hint


def test_init_weights_with_unknown_arguments_initializes_nothing() -> None:
    net = Net()
    with pytest.raises(TypeError):
        net.init_weights(seed=3)  # type: ignore[arg-type]
    assert not net.is_init


def test_an_own_initializer_is_no_function_of_rules_and_the_error_says_what_is() -> None:
    @fastinit.WEIGHT_INITIALIZERS.register_module(name="Thirds", force=True)
    class ThirdsInit(fastinit.BaseInit):
        pass

    with pytest.raises(AttributeError, match=r"no attribute 'Thirds': rules.rule\(ThirdsInit, \.\.\.\) makes the rule"):
        _ = rules.Thirds  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"no attribute 'Kaimin'\. Did you mean 'Kaiming'\?"):
        _ = rules.Kaimin  # type: ignore[attr-defined]


# --- layer in an override --------------------------------------------------------------------------------------------


def overridden(**entry: Any) -> dict[str, Any]:
    return dict(type="Xavier", layer="Linear", override=dict(name="head", type="Constant", val=3, **entry))


def test_a_layer_in_an_override_is_told_to_have_no_effect() -> None:
    with pytest.warns(
        fastinit.InitWarning, match=r"^init_cfg\.override \(ConstantInit\): layer='Linear' has no effect"
    ):
        plan = fastinit.plan(Net(), overridden(layer="Linear"))
    assert {row.parameter for row in plan.rows if row.rule == "init_cfg.override"} >= {"head.1.weight"}


def test_a_layer_in_an_override_is_an_error_under_strict_before_anything_is_written() -> None:
    net = Net()
    before = net.head[0].weight.clone()
    with pytest.raises(
        RuntimeError, match=r"^init_cfg\.override: ConstantInit: layer=\['Linear', 'Conv2d'\] has no eff"
    ):
        fastinit.initialize(net, overridden(layer=["Linear", "Conv2d"]), strict=True)
    assert bool((net.head[0].weight == before).all())


def test_an_override_without_a_layer_has_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    fastinit.plan(Net(), overridden())
    fastinit.plan(Net(), dict(type="Normal", layer=["Linear", "LayerNorm"], override=dict(name="head", type="Ones")))
    assert not recwarn


def test_an_initializer_with_code_of_its_own_may_look_at_the_layer(recwarn: pytest.WarningsRecorder) -> None:
    class OwnInit(fastinit.BaseInit):
        def __call__(self, module: nn.Module) -> None:
            assert self.layer == ["Linear"]

    fastinit.initialize(Net(), dict(override=dict(name="head", type=OwnInit, layer="Linear"), **RULE))
    assert not recwarn


# --- expressions -----------------------------------------------------------------------------------------------------


class DepthInit(fastinit.BaseInit):
    def __init__(self, depth, mode="fan_in", **kwargs):  # type: ignore[no-untyped-def]
        super().__init__(**kwargs)
        self.depth, self.mode = depth, mode

    def weight_distribution(self, shape):  # type: ignore[no-untyped-def]
        return fastinit.plans.Normal(0, 2 * self.depth)


@pytest.mark.parametrize("selector", [dict(layer="Linear"), dict(param="weight")], ids=["layer", "param"])
def test_an_expression_for_an_argument_without_an_annotation_says_to_annotate_it(selector: dict[str, str]) -> None:
    with pytest.raises(
        TypeError, match=r"depth='1 / fan_in' is no number to DepthInit: .* `depth: float`, and"
    ) as raised:
        fastinit.plan(nn.Linear(4, 4), dict(type=DepthInit, depth="1 / fan_in", **selector))
    assert isinstance(raised.value, fastinit.Error) and raised.value.place == "init_cfg, parameter 'weight'"


def test_an_error_that_has_nothing_to_do_with_texts_is_left_as_it_is() -> None:
    with pytest.raises(TypeError, match="unsupported operand") as raised:
        fastinit.plan(nn.Linear(4, 4), dict(type=DepthInit, depth=None, mode="fan_out", layer="Linear"))
    assert isinstance(raised.value, fastinit.Error) and raised.value.hint is None


# --- names that are not there ----------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q_proj", "k_proj", "o_proj")})
        self.norm = nn.LayerNorm(4)


@pytest.mark.parametrize(
    ("param", "hint"),
    [
        ("*.wo.weight", "There are embed.weight, layers.{0..11}.attention.q_proj.weight, layers.{0..11}.attention.k_"),
        ("layers.*.wo.weight", "There are layers.{0..11}.attention.q_proj.weight, layers.{0..11}.attention.k_proj.wei"),
        (r"re:layers\.\d+\.attention\.wo\.weight", "There are layers.{0..11}.attention.q_proj.weight, "),
        ("layers.3.attention.qproj.weight", "Did you mean 'layers.3.attention.q_proj.weight'?"),
        ("layers.*.attention.q_proj.wieght", "Did you mean 'layers.*.attention.q_proj.weight'?"),
        (r"re:layers\.(?P<i>\d+)\.attention\.qproj\.weight", "Did you mean 'layers.*.attention.q_proj.weight'?"),
        ("*.attn.q_proj.weight", "Did you mean '*.attention.q_proj.weight'?"),
        ("model.layers.3.norm.weight", "Did you mean 'layers.3.norm.weight'?"),
        ("embeding.weight", "Did you mean 'embed.weight'?"),
    ],
)  # fmt: skip
def test_only_names_that_are_alike_where_they_differ_are_proposed(param: str, hint: str) -> None:
    made = nn.ModuleDict({"embed": nn.Embedding(4, 4), "layers": nn.ModuleList([Block() for _ in range(12)])})
    with pytest.raises(fastinit.Error) as raised:
        fastinit.plan(made, dict(type="Normal", param=param), strict=True)
    assert raised.value.hint is not None and raised.value.hint.startswith(hint)
