"""Numbers of a config that are arithmetic as text: their names, values and errors, on models. (Grammar: test_expressions.py.)"""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings

import needs
import pytest
import torch
from helpers import assert_same_tensors, same_bits, tensors
from torch import nn

import fastinit

BACKENDS = ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))]
LAYER = r"re:layers\.(?P<i>\d+)\..*"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(8, 8)
        self.wo = nn.Linear(8, 8, bias=False)
        self.w2 = nn.Linear(16, 8, bias=False)
        self.norm = nn.LayerNorm(8)


class Net(nn.Module):
    def __init__(self, n_layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([Block() for _ in range(n_layers)])
        self.experts = nn.Parameter(torch.zeros(4, 16, 8))
        self.conv = nn.Conv2d(3, 6, 5)


def values_of(cfg: dict, model: nn.Module | None = None) -> dict[str, dict]:
    """Returns the distribution's numbers of each parameter that a rule reaches."""
    rows = fastinit.plan(model or Net(), cfg).rows
    return {row.parameter: {name: value for name, value in row.values.items() if name != "kind"} for row in rows}


def error_of(cfg: object, model: nn.Module | None = None) -> str:
    with pytest.raises((TypeError, ValueError)) as raised:
        fastinit.plan(model or Net(), cfg)
    return str(raised.value)


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_group_of_the_pattern_is_the_number_that_it_captured() -> None:
    cfg = dict(type="Normal", param=r"re:layers\.(?P<i>\d+)\..*(wo|w2)\.weight", std="0.02 / sqrt(2 * (i + 1))")
    assert values_of(cfg) == {
        f"layers.{i}.{name}.weight": {"mean": 0.0, "std": 0.02 / math.sqrt(2 * (i + 1))}
        for i in range(3)
        for name in ("wo", "w2")
    }


def test_vars_are_numbers_by_name() -> None:
    cfg = dict(type="Constant", param="embed.weight", val="depth * width", vars=dict(depth=32, width=0.5))
    assert values_of(cfg) == {"embed.weight": {"value": 16.0}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("fan_in", 75),
        ("fan_out", 150),
        ("shape[0]", 6),
        ("shape[-1]", 5),
        ("ndim", 4),
        ("n_elements", 450),
        ("pi", math.pi),
        ("e", math.e),
    ],
)
def test_facts_of_the_shape_have_names(text: str, value: float) -> None:
    assert values_of(dict(type="Constant", param="conv.weight", val=text)) == {"conv.weight": {"value": value}}


def test_fans_leave_out_batch_dims_of_the_rule() -> None:
    cfg = dict(type="Xavier", param="experts", gain="sqrt((fan_in + fan_out) / 2)", batch_dims=1)
    assert values_of(cfg)["experts"]["std"] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (dict(type="Constant", val="1 / shape[0]"), dict(val=1 / 8)),
        (dict(type="Normal", mean="-1 / 2", std="ndim / 4"), dict(mean=-0.5, std=0.5)),
        (
            dict(type="TruncNormal", mean="1 - 1", std="1 / fan_in", a="-3 / fan_in", b="3 / fan_in"),
            dict(mean=0.0, std=1 / 8, a=-3 / 8, b=3 / 8),
        ),
        (dict(type="Uniform", a="-1 / sqrt(fan_in)", b="1 / sqrt(fan_in)"), dict(a=-(8**-0.5), b=8**-0.5)),
        (dict(type="Xavier", gain="1 / ndim", distribution="uniform"), dict(gain=0.5, distribution="uniform")),
        (dict(type="Kaiming", a="sqrt(5)", nonlinearity="leaky_relu"), dict(a=math.sqrt(5), nonlinearity="leaky_relu")),
        (dict(type="Caffe2Xavier"), dict()),
    ],
    ids=lambda cfg: cfg.get("type", ""),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_type_gives_what_the_number_gives(texts: dict, numbers: dict, backend: str) -> None:
    models = [nn.Linear(8, 8) for _ in range(2)]
    for model, cfg in zip(models, (dict(texts, bias="shape[0] / 16"), dict(numbers, type=texts["type"], bias=0.5))):
        fastinit.initialize(model, dict(cfg, layer="Linear"), backend=backend, seed=0)
    assert_same_tensors(tensors(models[0]), tensors(models[1]))


def test_a_bias_is_by_its_own_shape() -> None:
    found = values_of(dict(type="Constant", layer=["Linear", "Conv2d"], val=0, bias="shape[0] + ndim"))
    assert {name: each["value"] for name, each in found.items() if name.endswith("bias")} == {
        **{f"layers.{i}.wq.bias": 9.0 for i in range(3)},
        "conv.bias": 7.0,
    }


def test_numbers_of_a_layer_rule_differ_with_the_shapes() -> None:
    found = values_of(dict(type="Normal", layer="Linear", std="fan_in ** -0.5"))
    assert found["layers.0.wo.weight"]["std"] == 8**-0.5 and found["layers.0.w2.weight"]["std"] == 0.25


def test_bilinear_layers_have_the_fans_of_torch() -> None:
    model = nn.Bilinear(5, 7, 3)
    assert values_of(dict(type="Constant", layer="Bilinear", val="fan_in * 1000 + fan_out"), model)["weight"] == {
        "value": 35.0 * 1000 + 21.0
    }


def test_an_integer_parameter_takes_a_whole_number() -> None:
    model = nn.Module()
    model.index = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    fastinit.initialize(model, dict(type="Constant", param="index", val="shape[0] * 2"))
    assert model.index.tolist() == [6, 6, 6]


def test_a_text_that_is_a_number_is_that_number() -> None:
    assert values_of(dict(type="Normal", param="embed.weight", std="1e-3"))["embed.weight"]["std"] == 1e-3


def test_the_first_pattern_that_matches_gives_the_groups() -> None:
    patterns = [r"re:layers\.0\.(?P<i>.)2\.weight", r"re:layers\.(?P<i>\d)\.w2\.weight"]
    found = error_of(dict(type="Constant", param=patterns, val="i"))
    assert "parameter 'layers.0.w2.weight': val must be a number, but got 'i': the group 'i' captured 'w'" in found
    assert values_of(dict(type="Constant", param=patterns[::-1], val="i"))["layers.2.w2.weight"] == {"value": 2.0}


def test_a_tied_parameter_has_the_groups_of_the_name_that_matched() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "h1": nn.ModuleDict({"head": nn.Linear(2, 3)})})
    model["h1"]["head"].weight = model["embed"].weight
    cfg = dict(type="Constant", param=r"re:h(?P<i>\d)\.head\.weight", val="i + 1")
    assert values_of(cfg, model) == {"embed.weight": {"value": 2.0}}


def test_a_glob_captures_nothing() -> None:
    assert "unknown name 'g0'. Names here: fan_in" in error_of(dict(type="Constant", param="*.w2.*", val="g0"))


def test_a_parameters_exact_name_captures_nothing() -> None:
    model = nn.ParameterDict({"re:(?P<i>1)": nn.Parameter(torch.zeros(2)), "1": nn.Parameter(torch.zeros(2))})
    assert "unknown name 'i'" in error_of(dict(type="Constant", param="re:(?P<i>1)", val="i"), model)


def test_names_are_relative_to_the_module_that_owns_the_config() -> None:
    class Owner(fastinit.BaseModule):
        def __init__(self) -> None:
            super().__init__(dict(type="Constant", param=r"re:(?P<i>\d)\.weight", val="i + 1"))
            self.add_module("0", nn.Linear(2, 2))
            self.add_module("1", nn.Linear(2, 2))

    root = fastinit.Sequential(Owner(), Owner())
    root.init_weights()
    assert [float(owner.get_submodule(i).weight.detach().unique()) for owner in root for i in "01"] == [1, 2, 1, 2]


def test_an_override_inherits_expressions_and_vars() -> None:
    cfg = dict(type="Constant", val="n * fan_in", vars=dict(n=2), override=dict(name="layers"))
    model = Net()
    for block in model.layers:
        del block.norm
    assert values_of(cfg, model)["layers.0.w2.weight"] == {"value": 32.0}


# --- everywhere that a config goes ------------------------------------------------------------------------------------


def llama() -> nn.Module:
    transformers = needs.module("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=32, num_attention_heads=4, vocab_size=128
    )
    return transformers.LlamaForCausalLM(config)


LLAMA = [
    dict(type="Normal", param="*", std="0.5 / sqrt(shape[-1])"),
    dict(type="Constant", param="*norm.weight", val=1),
    dict(
        type="Normal",
        param=r"re:model\.layers\.(?P<i>\d+)\..*(o_proj|down_proj)\.weight",
        std="base / sqrt(2 * (i + 1))",
        vars=dict(base=0.02),
    ),
]


def depth_scaled(model: nn.Module) -> list[tuple[nn.Parameter, float]]:
    layers = model.model.layers
    return [
        (weight, 0.02 / math.sqrt(2 * (i + 1)))
        for i, layer in enumerate(layers)
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_llamas_residual_layers_are_scaled_by_depth(backend: str) -> None:
    model = llama()
    fastinit.initialize(model, LLAMA, backend=backend, seed=0)
    for weight, std in depth_scaled(model):
        assert float(weight.std()) == pytest.approx(std, rel=0.06)


def test_a_materialized_llama_has_the_values_of_an_initialized_one() -> None:
    model = llama()
    fastinit.initialize(model, LLAMA, backend="cpp", seed=0)
    with torch.device("meta"):
        other = llama()
    fastinit.materialize(other, LLAMA, backend="cpp", seed=0)
    theirs = dict(other.named_parameters())
    assert all(same_bits(parameter, theirs[name]) for name, parameter in model.named_parameters())


def test_the_torch_backend_draws_what_torch_draws_with_the_number() -> None:
    model = Net()
    fastinit.initialize(model, dict(type="Normal", param=LAYER + r"w2\.weight", std="0.02 / (i + 1)"), seed=3)
    torch.manual_seed(3)
    for i in range(3):
        assert same_bits(model.layers[i].w2.weight.detach(), torch.empty(8, 16).normal_(0, 0.02 / (i + 1)))


def test_plans_json_has_the_numbers() -> None:
    rows = json.loads(fastinit.plan(llama(), LLAMA).to_json())["rows"]
    found = {row["parameter"]: row["values"]["std"] for row in rows if row["rule"] == "init_cfg[2]"}
    assert len(found) == 64
    assert found["model.layers.31.mlp.down_proj.weight"] == 0.02 / 8


def test_provenance_shows_the_text() -> None:
    model = nn.Linear(4, 4)
    report = fastinit.initialize(model, dict(type="Normal", layer="Linear", std="1 / fan_in", bias="ndim - 1"))
    assert report.provenance["weight"] == "NormalInit: mean=0, std=1 / fan_in, bias=ndim - 1"


def test_initializer_objects_take_texts() -> None:
    model = Net()
    fastinit.NormalInit(std="0 * fan_in", mean="i", param=LAYER + r"w2\.weight")(model)
    assert [float(block.w2.weight.detach().unique()) for block in model.layers] == [0, 1, 2]


def test_a_copy_of_an_initializer_keeps_its_texts() -> None:
    made = fastinit.ConstantInit("n + 1", param="embed.weight", vars=dict(n=1))
    for each in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert values_of(each) == {"embed.weight": {"value": 2.0}}


@pytest.mark.parametrize(
    ("function", "texts", "numbers"),
    [
        ("constant_init", dict(val="1 / shape[0]"), dict(val=0.25)),
        ("xavier_init", dict(gain="1 / ndim"), dict(gain=0.5)),
        ("normal_init", dict(mean="2 - 1", std="1 / fan_in"), dict(mean=1.0, std=0.125)),
        ("trunc_normal_init", dict(std="1 / fan_in", a="-1 / 4", b="1 / 4"), dict(std=0.125, a=-0.25, b=0.25)),
        ("uniform_init", dict(a="-1 / fan_in", b="1 / fan_in"), dict(a=-0.125, b=0.125)),
        ("kaiming_init", dict(a="sqrt(5)"), dict(a=math.sqrt(5))),
        ("caffe2_xavier_init", dict(), dict()),
    ],
)
def test_functional_inits_take_texts(function: str, texts: dict, numbers: dict) -> None:
    models = [nn.Linear(8, 4) for _ in range(2)]
    for model, given in zip(models, (dict(texts, bias="shape[0]"), dict(numbers, bias=4))):
        torch.manual_seed(0)
        getattr(fastinit.weight_init, function)(model, **given)
    assert_same_tensors(tensors(models[0]), tensors(models[1]))


def test_a_new_type_takes_texts_for_its_arguments_of_type_float() -> None:
    class Half(fastinit.BaseInit):
        def __init__(self, size: float = 1, kind: str = "one", other: float | str = 0, **kwargs: object) -> None:
            super().__init__(**kwargs)
            self.size, self.kind, self.other = size, kind, other

        def weight_distribution(self, shape):
            assert (self.kind, self.other) == ("a kind", 2.0)
            return fastinit.plans.Constant(self.size / 2)

    cfg = dict(type=Half, param="embed.weight", size="shape[0]", kind="a kind", other="ndim")
    assert values_of(cfg) == {"embed.weight": {"value": 5.0}}


# --- errors -----------------------------------------------------------------------------------------------------------


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
            "shape[k], pi, e\n"
            "    0.02 / sqrt(2 * (j + 1))\n"
            "                     ^",
        ),
        (
            dict(type="Xavier", layer="Linear", gain="i"),
            "init_cfg[1]: XavierInit: parameter 'layers.0.wq.weight': gain must be a number, but got 'i': unknown name "
            "'i'. Names here: fan_in, fan_out, ndim, n_elements, shape[k], pi, e. A pattern such as "
            r"param='re:layers\.(?P<i>\d+)\..*' adds its groups" + "\n    i\n    ^",
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
            r"param='re:layers\.(?P<i>\d+)\..*' adds its groups" + "\n    x\n    ^",
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
    assert type(raised.value) is error and str(raised.value).startswith(message)
    assert_same_tensors(tensors(model), before)


@pytest.mark.parametrize(
    ("text", "error"), [("1 +", TypeError), ("x", TypeError), ("1 / 0", ValueError), ("1e300 ** 2", ValueError)]
)
def test_texts_that_are_wrong_are_type_errors_and_those_without_a_value_are_value_errors(
    text: str, error: type
) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        fastinit.plan(Net(), dict(type="Normal", layer="Linear", std=text))
    assert type(raised.value) is error


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
