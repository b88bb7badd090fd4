"""``initialize`` against the real mmengine: the same bits and the same draws from the same config and seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine_parity import initialize_both
from torch import nn


class Linear2(nn.Linear):
    """A direct subclass, which the name of its base selects."""


class Linear3(Linear2):
    """A subclass of a subclass, which ``Linear`` does not select."""


class ToyConv(nn.Module):
    """A module with parameters that are not called weight and bias."""

    def __init__(self):
        super().__init__()
        self.custom_weight = nn.Parameter(torch.ones(2, 2))
        self.weight = torch.ones(3, 5)  # a plain tensor
        self.bias = None


def toy() -> nn.Module:
    """A model with every layer that the configs of OpenMMLab name, and what they do not reach."""
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict(
        {
            "conv1": nn.Conv1d(3, 4, 3),
            "conv2": nn.Conv2d(3, 8, (3, 5), groups=1),
            "deconv": nn.ConvTranspose2d(8, 4, 3, bias=False),
            "bn": nn.BatchNorm2d(8),
            "ln": nn.LayerNorm(7),
            "gn": nn.GroupNorm(2, 4),
            "linear": nn.Linear(9, 5),
            "sub": Linear2(5, 7),
            "subsub": Linear3(7, 5),
            "embedding": nn.Embedding(11, 3),
            "attention": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(3, 4),
            "nested": nn.Sequential(shared, nn.ReLU(), nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm1d(3)), shared),
            "again": nn.Sequential(shared),
            "toy": ToyConv(),
            "frozen": nn.Linear(3, 3).requires_grad_(False),
        }
    )
    model["tied"] = nn.Linear(3, 11, bias=False)
    model["tied"].weight = model["embedding"].weight
    model["linear"].weight.data = torch.zeros(9, 5).t()  # not contiguous
    model["bf16"] = nn.Linear(16, 16).to(torch.bfloat16)
    model["f64"] = nn.Linear(16, 16).double()
    return model


EVERY_TYPE = [
    dict(type="Constant", val=3),
    dict(type="Constant", val=-0.0, bias=2.5),
    dict(type="Constant", val=True, bias=True),
    dict(type="Constant", val=np.float32(0.1), bias_prob=0.01),
    dict(type="Constant", val=torch.tensor(0.3)),
    dict(type="Xavier"),
    dict(type="Xavier", gain=0.3, distribution="uniform", bias=1),
    dict(type="Xavier", gain=np.float32(1.3), bias_prob=np.float64(0.2)),
    dict(type="Normal"),
    dict(type="Normal", mean=-1, std=0.01, bias=-2),
    dict(type="Normal", mean=np.float32(0.1), std=np.float32(0.7)),
    dict(type="Normal", std=0),
    dict(type="Uniform"),
    dict(type="Uniform", a=-0.5, b=0.25, bias_prob=0.5),
    dict(type="Uniform", a=2, b=2),
    dict(type="Kaiming"),
    dict(type="Kaiming", a=0.2, mode="fan_in", nonlinearity="leaky_relu", distribution="uniform", bias=1),
    dict(type="Kaiming", mode="FAN_IN", nonlinearity="tanh"),
    dict(type="Caffe2Xavier"),
    dict(type="Caffe2Xavier", bias=4, bias_prob=0.1),
]
LAYERS = [
    "Linear",
    ["Conv1d", "Conv2d", "ConvTranspose2d"],
    "_ConvNd",
    ["Linear", "Linear3", "Embedding"],
    "Module",
    ["ToyConv", "NotThere"],
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("cfg", EVERY_TYPE, ids=str)
def test_every_type_and_argument_fills_the_same_bits(cfg, layer):
    initialize_both(toy, {**cfg, "layer": layer})


@pytest.mark.parametrize(
    "cfg",
    [
        dict(type="TruncNormal"),
        dict(type="TruncNormal", std=0.02, bias=1),
        dict(type="TruncNormal", mean=1, std=0.5, a=-1, b=1.5),
        dict(type="TruncNormal", std=0.5, a=1, b=float("inf")),
        dict(type="TruncNormal", mean=5, std=0.1),
        dict(type="TruncNormal", a=1, b=1),
    ],
    ids=str,
)
def test_truncated_normals_in_float32_and_float64_follow_mmengines_formula(cfg):
    initialize_both(lambda: nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 7).double()), {**cfg, "layer": "Linear"})


@pytest.mark.parametrize("kind", ["Constant", "Normal", "Uniform"])
def test_norms_are_filled_through_the_name_of_their_base_class(kind):
    val = {"val": 5} if kind == "Constant" else {}
    initialize_both(toy, dict(type=kind, layer=["_BatchNorm", "LayerNorm", "GroupNorm"], bias=0.5, **val))


OVERRIDES = [
    dict(type="Constant", val=1, layer="Conv2d", override=dict(name="linear")),
    dict(type="Constant", val=1, bias=7, layer="Conv2d", override=dict(type="Constant", name="linear", val=3)),
    dict(type="Normal", std=0.1, override=[dict(name="linear"), dict(type="Uniform", name="nested", a=1, b=2)]),
    dict(type="Xavier", layer="Conv2d", bias_prob=0.1, override=dict(name="conv2", bias=2, type="Normal")),
    dict(type="Constant", val=2, layer="Linear", override=dict(type="Constant", name="nested", val=5, layer="Conv2d")),
    dict(type="Constant", val=2, override=None, layer="Linear"),
    dict(type="Constant", val=2, override=[], layer="Linear"),
    dict(type="Kaiming", layer="Conv2d", override=dict(name="nested")),  # reaches a norm: no fans
    dict(type="Constant", val=1, override=dict(name="nope")),
    dict(type="Constant", val=1, override=dict(name="linear", val=3)),
    dict(type="Constant", val=1, override=dict(type="Constant", val=3)),
    dict(type="Constant", val=1, override={}),
    dict(type="Constant", val=1, override="linear"),
    dict(type="Constant", val=1, override=(dict(name="linear"),)),
    dict(type="Constant", val=1, override=dict(name="training")),
    dict(type="Constant", val=1, override=dict(name=3)),
    dict(type="Constant", val=1, override=dict(name="linear", type="Constant", val=2, override=dict(name="x"))),
]


@pytest.mark.parametrize("cfg", OVERRIDES, ids=str)
def test_overrides_act_and_fail_as_in_mmengine(cfg):
    initialize_both(toy, cfg)


def test_children_are_filled_before_their_parent():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(20))
            self.child = nn.Linear(5, 5)

    def make():
        return nn.Sequential(Parent(), nn.Sequential(Parent()))

    initialize_both(make, dict(type="Normal", layer=["Parent", "Linear"]))
    initialize_both(make, dict(type="Normal", override=dict(name="1")))


def test_a_list_is_applied_in_order_and_a_later_rule_wins():
    model = initialize_both(
        toy,
        [
            dict(type="Normal", std=0.5, layer=["Linear", "Conv2d"]),
            dict(type="Constant", val=1, layer="_BatchNorm"),
            dict(type="Uniform", layer="Linear", override=dict(type="Kaiming", name="conv2")),
        ],
    )
    assert 0 <= model["linear"].weight.min() < model["linear"].weight.max() < 1


@pytest.mark.parametrize(
    "kind",
    [
        "Normal",
        "mmengine.Normal",
        "mmengine.model.NormalInit",
        "mmengine.model.weight_init.NormalInit",
    ],
)
def test_a_type_may_be_a_name_a_scoped_name_or_an_import_path(kind):
    initialize_both(toy, dict(type=kind, std=0.3, layer="Linear"))


def test_a_type_may_be_a_class_of_mmengine():
    from mmengine.model import NormalInit

    initialize_both(toy, dict(type=NormalInit, std=0.3, layer="Linear", override=dict(name="conv2")))


def test_a_scope_key_is_accepted():
    initialize_both(toy, dict(type="Normal", layer="Linear", _scope_="mmengine"))


def test_configdicts_are_read_and_left_as_they_are():
    from mmengine.config import ConfigDict

    initialize_both(
        toy,
        [ConfigDict(type="Normal", layer="Linear", override=ConfigDict(name="conv2", type="Constant", val=2, bias=1))],
    )


def test_a_zero_element_weight_is_left_alone():
    initialize_both(lambda: nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 3)), dict(type="Kaiming", layer="Linear"))
    initialize_both(lambda: nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 3)), dict(type="Xavier", layer="Linear"))
    initialize_both(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(0, 0)), dict(type="Xavier", layer="Linear"))
    for mode in ("fan_in", "fan_out"):
        initialize_both(
            lambda: nn.Sequential(nn.Linear(3, 0), nn.Linear(3, 3)), dict(type="Kaiming", layer="Linear", mode=mode)
        )


def test_channels_last_weights_are_drawn_in_the_same_order():
    initialize_both(
        lambda: nn.Conv2d(16, 32, 3).to(memory_format=torch.channels_last), dict(type="Normal", layer="Conv2d")
    )


BAD = [
    dict(type="Foo", layer="Linear"),
    dict(type="ConstantInit", val=1, layer="Linear"),
    dict(type="foo.Constant", val=1, layer="Linear"),
    dict(layer="Linear"),
    dict(type=3, layer="Linear"),
    dict(type="Constant", layer="Linear"),
    dict(type="Constant", val=1, layer="Linear", lbias_prob=0.1),
    dict(type="Constant", val=1, layer="Linear", bias="0"),
    dict(type="Constant", val=1, layer="Linear", bias=None),
    dict(type="Constant", val=1, layer="Linear", bias_prob=1),
    dict(type="Constant", val=1, layer="Linear", bias_prob=0.0),
    dict(type="Constant", val=1, layer=("Linear",)),
    dict(type="Constant", val=1, layer=3),
    dict(type="Constant", val="x", layer="Linear"),
    dict(type="Caffe2Xavier", a=1, layer="Linear"),
    dict(type="Xavier", distribution="norml", layer="Linear"),
    dict(type="Xavier", distribution="norml", layer="NotThere"),
    dict(type="Kaiming", distribution="norml", layer="Linear"),
    dict(type="Kaiming", mode="fan", layer="Linear"),
    dict(type="Kaiming", nonlinearity="softmax", layer="Linear"),
    dict(type="Kaiming", layer="LayerNorm"),
    dict(type="Normal", std=-1, layer="Linear"),
    dict(type="Normal", std=-1, layer="NotThere"),
    dict(type="Normal", std=float("nan"), layer="Linear"),
    dict(type="Uniform", a=1, b=0, layer="Linear"),
    dict(type="Uniform", a=float("-inf"), b=float("inf"), layer="Linear"),
    dict(type="TruncNormal", std=0, layer="Linear"),
    dict(type="TruncNormal", std=-1, layer="Linear"),
    dict(type="TruncNormal", a=1, b=0, layer="Linear"),
    "Constant config",
    (dict(type="Constant", val=1, layer="Linear"),),
    None,
    [],
]


@pytest.mark.parametrize("cfg", BAD, ids=str)
def test_bad_input_raises_mmengines_error_type_and_writes_nothing(cfg):
    initialize_both(toy, cfg)


@pytest.mark.parametrize("cfg", [cfg for cfg in BAD if isinstance(cfg, dict)], ids=str)
def test_an_invalid_second_rule_prevents_the_writes_of_the_first(cfg):
    import fastinit

    model = nn.ModuleDict({"linear": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    good = dict(type="Normal", layer="Linear")
    try:
        fastinit.initialize(model, [good, cfg])
    except Exception:
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
        assert torch.equal(state, torch.get_rng_state())
    else:
        assert cfg["layer"] == "NotThere"


# --- random trees and random configs ---------------------------------------------------------------------------------

LAYER_SPECS = st.sampled_from(
    [
        ("linear", lambda: nn.Linear(5, 7)),
        ("linear_no_bias", lambda: nn.Linear(17, 16, bias=False)),
        ("sub", lambda: Linear2(4, 4)),
        ("conv", lambda: nn.Conv2d(2, 3, 3)),
        ("conv1", lambda: nn.Conv1d(4, 2, 5, groups=2)),
        ("deconv", lambda: nn.ConvTranspose1d(2, 4, 3)),
        ("bn", lambda: nn.BatchNorm2d(6)),
        ("bn_plain", lambda: nn.BatchNorm1d(6, affine=False)),
        ("ln", lambda: nn.LayerNorm(9)),
        ("embedding", lambda: nn.Embedding(6, 5, padding_idx=0)),
        ("mha", lambda: nn.MultiheadAttention(4, 2)),
        ("prelu", nn.PReLU),
        ("double", lambda: nn.Linear(3, 20).double()),
        ("dropout", nn.Dropout),
    ]
)
TREES = st.recursive(LAYER_SPECS, lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=8)


def build(tree, made=None):
    """Builds a tree of modules; a spec that occurs a third time is the module of its second: shared."""
    made = {} if made is None else made
    if isinstance(tree, list):
        return nn.Sequential(*(build(each, made) for each in tree))
    name, factory = tree
    made.setdefault(name, [])
    if len(made[name]) < 2:
        made[name].append(factory())
    return made[name][-1]


NAMES = ["Linear", "Linear2", "Conv2d", "_ConvNd", "_BatchNorm", "LayerNorm", "Embedding", "Module", "Nothing"]
NUMBERS = st.floats(-3, 3, width=32) | st.integers(-2, 2)
SHARED = {
    "bias": NUMBERS,
    "bias_prob": st.floats(0.01, 0.99),
}
OWN = {
    "Constant": {"val": NUMBERS},
    "Normal": {"mean": NUMBERS, "std": NUMBERS},
    "Uniform": {"a": NUMBERS, "b": NUMBERS},
    # A negative std is an error of ours in any case; mmengine fills nonsense where a >= b makes up for it.
    "TruncNormal": {"mean": NUMBERS, "std": st.floats(0, 3, width=32), "a": NUMBERS, "b": NUMBERS},
    "Xavier": {"gain": NUMBERS, "distribution": st.sampled_from(["normal", "uniform", "norml"])},
    "Kaiming": {
        "a": NUMBERS,
        "mode": st.sampled_from(["fan_in", "fan_out"]),
        "nonlinearity": st.sampled_from(["relu", "leaky_relu", "tanh", "sigmoid", "linear"]),
        "distribution": st.sampled_from(["normal", "uniform"]),
    },
    "Caffe2Xavier": {},
}


@st.composite
def initializers(draw):
    kind = draw(st.sampled_from(list(OWN)))
    arguments = {**OWN[kind], **SHARED}
    chosen = draw(st.sets(st.sampled_from(sorted(arguments)))) | ({"val"} if kind == "Constant" else set())
    return {"type": kind, **{name: draw(arguments[name]) for name in sorted(chosen)}}


@st.composite
def rules(draw):
    rule = draw(initializers())
    if draw(st.booleans()):
        rule["layer"] = draw(st.sampled_from(NAMES) | st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
    if draw(st.integers(0, 3)) == 0:
        names = st.sampled_from(["0", "1", "2", "9"])
        entry = st.fixed_dictionaries({"name": names}) | st.builds(
            lambda name, cfg: {"name": name, **cfg}, names, initializers()
        )
        rule["override"] = draw(entry | st.lists(entry, max_size=2))
    return rule


@given(tree=st.lists(TREES, min_size=1, max_size=4), cfg=rules() | st.lists(rules(), max_size=4))
def test_random_configs_on_random_trees_give_the_same_bits_or_the_same_error(tree, cfg):
    initialize_both(lambda: build(tree), cfg, one_mistake=False)
