"""Numbers of a config that are arithmetic as text: their names, values and errors, on models. (Grammar: test_expressions.py.)"""

from __future__ import annotations

import copy
import json
import math
import pickle

import needs
import pytest
import torch
from helpers import assert_same_tensors, same_bits, tensors
from number_texts_model import BACKENDS, LAYER, Net, error_of, values_of
from torch import nn

import fastinit
from fastinit.config.matching import selected_parameters

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


def test_the_text_of_a_bias_is_not_evaluated_for_weights() -> None:
    cfg = dict(type="Constant", layer="Linear", val="1 / (ndim - 1)", bias="1 / (2 - ndim)")
    assert values_of(cfg, nn.Linear(2, 2)) == {"weight": {"value": 1.0}, "bias": {"value": 1.0}}


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
    assert [each.captured for each in selected_parameters(model, ["re:(?P<i>1)", "1"])] == [(), ()]


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
    assert report.provenance["weight"] == "NormalInit: mean=0, std=1 / fan_in, bias=ndim - 1 (init_cfg)"


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


def test_planning_leaves_an_initializers_texts_as_they_are() -> None:
    made = fastinit.ConstantInit("shape[0]", param="weight")
    found = [values_of(made, nn.Linear(2, size))["weight"]["value"] for size in (3, 5)]
    assert found == [3.0, 5.0] and made.val == "shape[0]"


def test_a_class_whose_annotations_are_types_takes_texts() -> None:
    class Half(fastinit.BaseInit):
        def __init__(self, size=1, **kwargs):
            super().__init__(**kwargs)
            self.size = size

        def weight_distribution(self, shape):
            return fastinit.plans.Constant(self.size / 2)

    Half.__init__.__annotations__["size"] = float  # as in a file without `from __future__ import annotations`
    assert values_of(dict(type=Half, param="embed.weight", size="shape[0]")) == {"embed.weight": {"value": 5.0}}


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
