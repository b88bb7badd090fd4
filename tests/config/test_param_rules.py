"""Rules that select parameters by name, and fans of stacked weights."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

import fastinit


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.k_proj = nn.Linear(4, 4)
        self.gate = nn.Parameter(torch.zeros(4))
        self.register_buffer("weight", torch.zeros(4))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.experts = nn.Parameter(torch.zeros(64, 32, 16))


def model() -> nn.ModuleDict:
    made = nn.ModuleDict(
        {"embed": nn.Embedding(9, 4), "layers": nn.ModuleList([Block(), Block()]), "head": nn.Linear(4, 9)}
    )
    made["head"].weight = made["embed"].weight
    return made


def reached(pattern, made=None):
    made = made or model()
    plan = fastinit.plan(made, dict(type="Constant", val=1, param=pattern))
    assert all(row.description == "constant(1)" for row in plan.rows)
    return [row.parameter for row in plan.rows]


def test_a_star_crosses_dots():
    assert reached("*.q_proj.weight") == [
        "layers.0.attention.q_proj.weight",
        "layers.1.attention.q_proj.weight",
    ]
    assert reached("layers.1*bias") == ["layers.1.attention.q_proj.bias", "layers.1.attention.k_proj.bias"]


def test_a_glob_matches_the_whole_name_and_minds_case():
    with pytest.warns(UserWarning, match="matches param 'q_proj.weight'"):
        assert reached("q_proj.weight") == []
    with pytest.warns(UserWarning, match="matches param"):
        assert reached("*.Q_proj.weight") == []


def test_a_regular_expression_matches_the_whole_name():
    assert reached(r"re:layers\.\d\.attention\.[qk]_proj\.bias") == [
        f"layers.{layer}.attention.{which}_proj.bias" for layer in (0, 1) for which in "qk"
    ]
    with pytest.warns(UserWarning):
        assert reached("re:embed") == []


def test_one_or_a_list_of_patterns_fills_each_parameter_once_in_the_models_order():
    assert reached(["head.bias", "embed.*", "*.weight"])[0] == "embed.weight"
    assert len(reached(["*", "*"])) == len(list(model().parameters()))


def test_parameters_under_any_name_are_reached_and_buffers_are_not():
    assert reached("*.attention.gate") == ["layers.0.attention.gate", "layers.1.attention.gate"]
    with pytest.warns(UserWarning):
        assert reached("layers.0.attention.weight") == []


def test_any_alias_of_a_tied_parameter_selects_it_under_its_first_name():
    assert reached("head.weight") == ["embed.weight"]
    assert reached(["head.weight", "embed.weight"]) == ["embed.weight"]


def test_a_later_rule_wins():
    made = model()
    rules = [
        dict(type="Constant", val=1, param="*"),
        dict(type="Constant", val=2, layer="Linear", bias=3),
        dict(type="Constant", val=4, param="*.k_proj.*"),
    ]
    fastinit.initialize(made, rules)
    attention = made["layers"][1].attention
    values = [attention.gate, attention.q_proj.weight, attention.q_proj.bias, attention.k_proj.bias]
    assert [float(value.detach().unique()) for value in values] == [1, 2, 3, 4]


def test_wrappers_do_not_show_in_the_names():
    wrapped = nn.ModuleDict({"layers": nn.ModuleList([torch.compile(Block()), nn.DataParallel(Block())])})
    assert reached("layers.?.experts", wrapped) == ["layers.0.experts", "layers.1.experts"]
    assert reached("experts", nn.DataParallel(Block())) == ["experts"]


def test_an_attribute_named_module_is_not_a_wrapper():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert reached("module.weight", Holder()) == ["module.weight"]


def test_names_are_relative_to_the_module_that_owns_the_config():
    class Owner(fastinit.BaseModule):
        def __init__(self):
            super().__init__(dict(type="Constant", val=7, param="attention.gate"))
            self.attention = Attention()

    root = fastinit.Sequential(Owner(), Owner())
    root.init_weights()
    assert root[1].attention.gate.tolist() == [7] * 4
    assert [row.parameter for row in root.last_init_report.rows] == ["0.attention.gate", "1.attention.gate"]


@pytest.mark.parametrize(
    "beside", [dict(layer="Linear"), dict(bias=0), dict(bias_prob=0.1), dict(override=dict(name="x"))], ids=str
)
def test_other_selectors_cannot_be_combined_with_param(beside):
    with pytest.raises(ValueError, match=r"^init_cfg\[0\]: .*can ?not be combined with"):
        fastinit.initialize(model(), [dict(type="Constant", val=1, param="*", **beside)])


def test_initializer_objects_refuse_the_combination_too():
    with pytest.raises(ValueError, match="can not be combined with"):
        fastinit.NormalInit(param="*", layer="Linear")


def test_param_is_refused_in_an_override():
    cfg = dict(type="Constant", val=1, override=dict(type="Constant", val=1, name="head", param="*"))
    with pytest.raises(ValueError, match=r"^init_cfg\.override: `param` is not allowed in an override"):
        fastinit.initialize(model(), cfg)


@pytest.mark.parametrize(
    ("param", "error"), [([], ValueError), (3, TypeError), (["*", 3], TypeError), ("re:(", ValueError)]
)
def test_a_param_that_selects_nothing_sensible_is_refused(param, error):
    with pytest.raises(error, match=r"^init_cfg: "):
        fastinit.initialize(model(), dict(type="Constant", val=1, param=param))


def test_a_rule_that_matches_nothing_warns_once_with_the_nearest_names():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastinit.initialize(
            model(),
            [
                dict(type="Normal", param="*.qproj.weight"),
                dict(type="Normal", layer="Embeding"),
                dict(type="Normal", param="nothing.like.it.at.all"),
            ],
        )
    assert [str(warning.message) for warning in caught] == [
        "init_cfg[0] (NormalInit): no parameter of ModuleDict matches param '*.qproj.weight'; it fills nothing. Did you "
        "mean '*.q_proj.weight'?",
        "init_cfg[1] (NormalInit): no module of ModuleDict matches layer 'Embeding'; it fills nothing. Did you mean "
        "'Embedding'?",
        "init_cfg[2] (NormalInit): no parameter of ModuleDict matches param 'nothing.like.it.at.all'; it fills nothing. "
        "There are embed.weight, head.weight, layers.{0,1}.experts, layers.{0,1}.attention.gate, "
        "layers.{0,1}.attention.q_proj.weight, layers.{0,1}.attention.q_proj.bias, ...",
    ]
    assert all(warning.filename == __file__ for warning in caught)


def test_a_rule_that_is_planned_twice_warns_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # what follows foreign code is planned before it runs, to check it, and again after it
        fastinit.initialize(model(), [lambda module: None, dict(type="Normal", layer="Nothing")])
    assert len(caught) == 1


def test_the_same_warning_comes_once_for_a_whole_tree():
    blocks = [fastinit.Sequential(nn.ReLU(), init_cfg=dict(type="Normal", layer="Linear")) for _ in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastinit.ModuleList(blocks, init_cfg=dict(type="Normal", layer="Linear")).init_weights()
    assert [str(warning.message).partition(";")[0] for warning in caught] == [
        "init_cfg (NormalInit): no module of ModuleList matches layer 'Linear'",
        "0.init_cfg (NormalInit): no module of Sequential matches layer 'Linear'",  # 1 and 2 are of the same class
    ]


def test_a_rule_without_any_selection_warns():
    with pytest.warns(UserWarning, match=re.escape("init_cfg (NormalInit): neither `layer`, `param` nor `override`")):
        fastinit.initialize(model(), dict(type="Normal"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.initialize(model(), dict(type="Normal", override=dict(name="head")))


@pytest.mark.parametrize("cfg", [dict(layer=["MultiheadAttention", "LSTM"]), dict(override=dict(name="1"))], ids=str)
def test_a_rule_whose_modules_have_nothing_to_fill_warns(cfg):
    made = nn.Sequential(nn.LSTM(2, 2), nn.ReLU(), nn.MultiheadAttention(4, 2))
    with pytest.warns(
        UserWarning, match=r"no (LSTM or MultiheadAttention|ReLU) in \w+ has a tensor `weight` or `bias`"
    ):
        assert fastinit.plan(made, dict(type="Normal", **cfg)).rows == ()


@pytest.mark.parametrize(
    ("cfg", "kind", "number"),
    [
        (dict(type="Kaiming", mode="fan_in", nonlinearity="linear"), "normal", (1 / 16) ** 0.5),
        (dict(type="Kaiming", mode="fan_out", nonlinearity="linear"), "normal", (1 / 32) ** 0.5),
        (dict(type="Xavier"), "normal", (2 / 48) ** 0.5),
        (dict(type="Xavier", distribution="uniform"), "uniform", (6 / 48) ** 0.5),
        (dict(type="Caffe2Xavier"), "uniform", (3 / 16) ** 0.5),
    ],
)
def test_batch_dims_gives_stacked_experts_the_fans_of_one(cfg, kind, number):
    (row, _) = fastinit.plan(model(), dict(**cfg, param="*.experts", batch_dims=1)).rows
    assert row.shape == (64, 32, 16) and row.values["kind"] == kind
    assert row.values["std" if kind == "normal" else "high"] == pytest.approx(number, rel=1e-12)


def test_batch_dims_equals_the_plan_of_one_expert():
    one = nn.Linear(16, 32, bias=False)
    stacked = nn.Bilinear(5, 7, 3)  # its weight is (3, 5, 7)
    for cfg in (dict(type="Kaiming"), dict(type="Xavier", gain=2)):
        (alone,) = fastinit.plan(one, dict(**cfg, layer="Linear")).rows
        (row, *_) = fastinit.plan(model(), dict(**cfg, param="*.experts", batch_dims=1)).rows
        assert row.values == alone.values
        fastinit.plan(stacked, dict(**cfg, layer="Bilinear", batch_dims=1))


@pytest.mark.parametrize(
    ("batch_dims", "error"), [(-1, ValueError), (True, ValueError), (1.0, ValueError), (2, ValueError)]
)
def test_batch_dims_must_leave_two_dimensions(batch_dims, error):
    with pytest.raises(error, match="batch_dims"):
        fastinit.plan(model(), dict(type="Xavier", param="*.experts", batch_dims=batch_dims))


def test_types_without_fans_take_no_batch_dims():
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch_dims'.* NormalInit takes mean, std, bias"):
        fastinit.plan(model(), dict(type="Normal", param="*", batch_dims=1))


# --- names that are patterns, classes as layers, computed weights -----------------------------------------------------


def test_a_parameters_exact_name_selects_it_alone_even_if_it_is_a_pattern():
    model = nn.Module()
    names = ("a[0]", "a0", "x*y", "xzy", "re:w")
    model.pd = nn.ParameterDict({name: nn.Parameter(torch.zeros(2)) for name in names})
    for name in ("a[0]", "x*y", "re:w"):
        report = fastinit.initialize(model, dict(type="Constant", val=1, param=f"pd.{name}"))
        assert [row.parameter for row in report.rows] == [f"pd.{name}"]


@pytest.mark.parametrize("layer", [nn.Linear, [nn.Linear], ["Conv2d", nn.Linear]], ids=str)
def test_a_layer_may_be_a_class(layer):
    model = nn.Sequential(nn.Linear(2, 2))
    fastinit.initialize(model, dict(type="Constant", val=3.0, layer=layer))
    assert (model[0].weight == 3).all()


class Scaled(nn.Linear):
    """As equalized learning rates have it."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_parameter("raw", self._parameters.pop("weight"))

    @property
    def weight(self):
        return self.raw * 0.1


class Hooked(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.register_parameter("raw", self._parameters.pop("weight"))
        self.weight = self.raw * 0.1


@pytest.mark.parametrize("kind", [Scaled, Hooked])
def test_a_weight_that_is_computed_warns_whatever_computes_it(kind):
    with pytest.warns(UserWarning, match="'0.weight' is computed from other parameters"):
        fastinit.initialize(nn.Sequential(kind()), dict(type="Constant", val=1.0, layer="Linear"))


class Transposed(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.register_parameter("raw", self._parameters.pop("weight"))

    @property
    def weight(self):
        return self.raw.T


class Loose(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.zeros(2)


@pytest.mark.parametrize("kind", [Transposed, Loose])
def test_a_weight_that_is_a_view_or_a_plain_tensor_lasts_and_does_not_warn(kind):
    module = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.initialize(nn.Sequential(module), dict(type="Constant", val=1.0, layer=["Linear", "Loose"]))
    assert (module.weight == 1).all()
