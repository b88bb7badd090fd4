"""Numbers of a config that are arithmetic as text: what is wrong with them is told, and where."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import assert_same_tensors, tensors
from number_texts_model import LAYER, Net, error_of
from torch import nn

import fastinit


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            dict(type="Normal", param=LAYER + "wo.weight", std="0.02 / sqrt(2 * (i + 1)"),
            "init_cfg[1]: NormalInit: std must be a number, but got '0.02 / sqrt(2 * (i + 1)': expected ')' or an "
            "operator, but the text ends\n"
            "    0.02 / sqrt(2 * (i + 1)\n"
            "                           ^",
        ),
        (
            dict(type="Normal", param=LAYER + r"wo\.weight", std="0.02 / sqrt(2 * (j + 1))", vars=dict(n=1)),
            "init_cfg[1]: NormalInit: parameter 'layers.0.wo.weight': std must be a number, but got "
            "'0.02 / sqrt(2 * (j + 1))': unknown name 'j'. Names here: i, n, fan_in, fan_out, ndim, n_elements, "
            "shape[k], pi, e. In a rule, vars=dict(j=...) gives it a value\n"
            "    0.02 / sqrt(2 * (j + 1))\n"
            "                     ^",
        ),
        (
            dict(type="Xavier", layer="Linear", gain="i"),
            "init_cfg[1]: XavierInit: parameter 'layers.0.wq.weight': gain must be a number, but got 'i': unknown name "
            "'i'. Names here: fan_in, fan_out, ndim, n_elements, shape[k], pi, e. A pattern such as "
            r"param='re:layers\.(?P<i>\d+)\..*' adds its groups. In a rule, vars=dict(i=...) gives it a value"
            "\n    i\n    ^",
        ),
        (
            dict(type="Normal", param=LAYER + r"wo\.weight", std="fan_in / i"),
            "init_cfg[1]: NormalInit: parameter 'layers.0.wo.weight': std must be a number, but got 'fan_in / i': "
            "division by 0 (fan_in = 8, i = 0)\n    fan_in / i\n           ^",
        ),
        (
            dict(type="Uniform", param=LAYER + r"wo\.weight", b="exp(1000 * i) * shape[0]"),
            "init_cfg[1]: UniformInit: parameter 'layers.1.wo.weight': b must be a number, but got "
            "'exp(1000 * i) * shape[0]': the result is too large for a float64 (i = 1, shape[0] = 8)\n"
            "    exp(1000 * i) * shape[0]\n    ^",
        ),
        (
            dict(type="Constant", param="*norm.weight", val="1 + fan_in"),
            "init_cfg[1]: ConstantInit: parameter 'layers.0.norm.weight': val must be a number, but got '1 + fan_in': "
            "fan_in needs two dimensions or more, but the shape is (8,)\n    1 + fan_in\n        ^",
        ),
        (
            dict(type="Constant", param="embed.weight", val="shape[2]"),
            "init_cfg[1]: ConstantInit: parameter 'embed.weight': val must be a number, but got 'shape[2]': shape[2] "
            "does not exist, as the shape is (10, 8)\n    shape[2]\n    ^",
        ),
        (
            dict(type="Constant", param=r"re:layers\.0\.(?P<which>.*)\.weight", val="which"),
            "init_cfg[1]: ConstantInit: parameter 'layers.0.wq.weight': val must be a number, but got 'which': the "
            "group 'which' captured 'wq', which is no number\n    which\n    ^",
        ),
        (
            dict(type="Constant", param=r"re:embed\.(?P<i>\d)?weight", val="i"),
            "init_cfg[1]: ConstantInit: parameter 'embed.weight': val must be a number, but got 'i': the group 'i' "
            "took no part in the match\n    i\n    ^",
        ),
        (
            dict(type="Constant", param=r"re:layers\.(?P<e>\d)\.wo\.weight", val="e"),
            "init_cfg[1]: ConstantInit: parameter 'layers.0.wo.weight': val must be a number, but got 'e': 'e' is a "
            "group of the pattern and has another meaning, too: rename the group\n    e\n    ^",
        ),
        (
            dict(type="Constant", layer="Linear", val=0, bias="1 / (ndim - 1)"),
            "init_cfg[1]: ConstantInit: parameter 'layers.0.wq.bias': bias must be a number, but got '1 / (ndim - 1)': "
            "division by 0 (ndim = 1)\n    1 / (ndim - 1)\n      ^",
        ),
        (
            dict(type="Constant", layer="Linear", val=0, bias="1 +"),
            "init_cfg[1]: bias must be a number, but got '1 +': expected a number, a name or '(', but the text ends\n"
            "    1 +\n       ^",
        ),
        (
            dict(type="Constant", layer="Linear", val=0, bias=" -1"),
            "init_cfg[1]: bias must be a number, but got a <class 'str'>; write -1 without quotes",
        ),
        (
            dict(type="Normal", override=[dict(name="embed"), dict(name="layers", type="Normal", std="x")]),
            "init_cfg[1].override[1]: NormalInit: parameter 'layers.0.wq.weight': std must be a number, but got 'x': "
            "unknown name 'x'. Names here: fan_in, fan_out, ndim, n_elements, shape[k], pi, e. A pattern such as "
            r"param='re:layers\.(?P<i>\d+)\..*' adds its groups. In a rule, vars=dict(x=...) gives it a value"
            "\n    x\n    ^",
        ),
        (
            dict(type="Normal", layer="Linear", vars=[1]),
            "init_cfg[1]: vars must be a dict of names and numbers, but got [1] of <class 'list'>",
        ),
        (
            dict(type="Normal", layer="Linear", vars={"a b": 1}),
            "init_cfg[1]: the keys of vars must be names, but it has 'a b'",
        ),
        (
            dict(type="Normal", layer="Linear", vars=dict(fan_in=1)),
            "init_cfg[1]: vars can not define 'fan_in', which has a meaning of its own in expressions",
        ),
        (
            dict(type="Normal", layer="Linear", vars=dict(n="2")),
            "init_cfg[1]: vars['n'] must be a number, but got '2' of <class 'str'>",
        ),
        (
            dict(type="Normal", layer="Linear", vars=dict(n=float("inf"))),
            "init_cfg[1]: vars['n'] must be finite, but got inf",
        ),
    ],
    ids=str,
)
def test_the_message_names_rule_parameter_argument_and_place(rule: dict, message: str) -> None:
    model = Net()
    before, state = tensors(model), torch.get_rng_state()
    with pytest.raises((TypeError, ValueError)) as raised:
        fastinit.initialize(model, [dict(type="Normal", layer="Conv2d"), rule])
    assert str(raised.value) == message
    assert_same_tensors(tensors(model), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (
            dict(type="Normal", param=LAYER + r"wo\.weight", std="0.01 - i"),
            RuntimeError,
            "init_cfg: NormalInit: parameter 'layers.1.wo.weight': std='0.01 - i' is -0.99: normal expects std >= 0.0, "
            "but found std -0.99",
        ),
        (
            dict(type="TruncNormal", param=LAYER + r"wo\.weight", std="i"),
            ZeroDivisionError,
            "init_cfg: TruncNormalInit: parameter 'layers.0.wo.weight': std='i' is 0: trunc_normal expects std > 0.0",
        ),
        (
            dict(type="Uniform", param=LAYER + r"wo\.weight", a="i", b="1.5 * 1"),
            RuntimeError,
            "init_cfg: UniformInit: parameter 'layers.2.wo.weight': a='i' is 2, b='1.5 * 1' is 1.5: uniform expects "
            "low <= high",
        ),
    ],
)
def test_a_number_that_no_distribution_has_is_shown_with_its_text(rule: dict, error: type, message: str) -> None:
    model = Net()
    before = tensors(model)
    with pytest.raises(error) as raised:
        fastinit.initialize(model, rule)
    assert type(raised.value).__bases__ == (fastinit.Error, error) and str(raised.value).startswith(message)
    assert_same_tensors(tensors(model), before)


@pytest.mark.parametrize(
    ("text", "error"), [("1 +", TypeError), ("x", TypeError), ("1 / 0", ValueError), ("1e300 ** 2", ValueError)]
)
def test_texts_that_are_wrong_are_type_errors_and_those_without_a_value_are_value_errors(
    text: str, error: type
) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        fastinit.plan(Net(), dict(type="Normal", layer="Linear", std=text))
    assert type(raised.value).__bases__ == (fastinit.Error, error)


@pytest.mark.parametrize("where", [0, 3000, 999_990])
def test_a_long_text_is_shown_in_part(where: int) -> None:
    text = "1" * where + "!" + "1" * (10**6 - where)
    message = error_of(dict(type="Normal", layer="Linear", std=text))
    assert "it has 1,000,001 characters, and 400 is the most" in message and len(message) < 500


def test_a_fault_far_right_is_shown_with_what_is_around_it() -> None:
    text = "1 + " * 60 + "!! + 2"
    lines = error_of(dict(type="Normal", layer="Linear", std=text)).split("\n")
    assert lines[1].strip() == "1 + " * 10 + "!! + 2" and lines[2].index("^") == lines[1].index("!")


def test_a_text_cannot_control_the_terminal() -> None:
    message = error_of(dict(type="Normal", layer="Linear", std="1 +\n\x1b[2J\u202e\ud800"))
    assert all(each.isprintable() or each == "\n" for each in message)
    assert message.split("\n")[1:] == ["    1 + ?[2J??", "        ^"]


def test_a_wrong_text_is_an_error_even_if_the_rule_matches_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "NormalInit: std must be a number" in error_of(dict(type="Normal", layer="LSTM", std="1 +"))


def test_a_text_for_an_argument_that_is_no_number_stays_an_error() -> None:
    with pytest.raises(ValueError, match="batch_dims must be the number of leading dimensions"):
        fastinit.plan(Net(), dict(type="Xavier", layer="Linear", batch_dims="1 + 0"))


def test_a_base_modules_config_names_its_place() -> None:
    root = fastinit.Sequential(
        fastinit.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Normal", layer="Linear", std="x"))
    )
    with pytest.raises(TypeError, match=r"^0\.init_cfg: NormalInit: parameter '0\.0\.weight': std must be a number"):
        root.init_weights()


def test_functional_inits_say_what_is_wrong() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"std must be a number, but got '1 / \(ndim - 2\)': division by 0"):
        fastinit.normal_init(layer, std="1 / (ndim - 2)")


@pytest.mark.parametrize("kind", ["Normal", "TruncNormal"])
def test_a_text_is_never_a_format_of_anything(kind: str) -> None:
    message = error_of(dict(type=kind, layer="Linear", std="{x.y}"))
    assert f"{kind}Init: std must be a number, but got '{{x.y}}': '{{' has no meaning here" in message
