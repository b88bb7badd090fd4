"""Mistakes in a config: the place, what was expected, what was given, what to do. (Types: test_initialize_parity.)"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers import assert_same_tensors, tensors
from torch import nn

import fastinit


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.feat = nn.Conv2d(3, 4, 3)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.scale = nn.Parameter(torch.ones(2))
        self.index = nn.Parameter(torch.zeros(2, 2, dtype=torch.int64), requires_grad=False)


GOOD = dict(type="Normal", layer="Conv2d")


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (dict(type="Foo"), KeyError, r"init_cfg[1]: Foo is not in the fastinit::weight initializer registry."),
        (dict(val=1), KeyError, 'init_cfg[1]: `cfg` must contain the key "type"'),
        (
            dict(type="Constant", val=1, lbias_prob=0.1),
            TypeError,
            "unexpected keyword argument 'lbias_prob'. ConstantInit takes val, bias, bias_prob, layer, param",
        ),
        (
            dict(type="Kaiming", meen=1),
            TypeError,
            "'meen'. KaimingInit takes a, mode, nonlinearity, distribution, batch_dims, fan_axes, fan, bias, bias_prob, layer, param",
        ),
        (dict(type="Pretrained", layer="Linear", checkpoint="x"), TypeError, "PretrainedInit takes checkpoint, prefix"),
        (dict(type="Constant"), TypeError, "init_cfg[1]: ConstantInit.__init__() missing 1 required positional"),
        (
            dict(type="Constant", val=1, bias="0"),
            TypeError,
            "init_cfg[1]: bias must be a number, but got a <class 'str'>",
        ),
        (dict(type="Constant", val="x", layer="Conv2d"), TypeError, "parameter 'feat.weight': val must be a number"),
        (dict(type="Constant", val=1, layer=[]), ValueError, "init_cfg[1]: layer is an empty list"),
        (
            dict(type="Constant", val=1, layer=[nn.Linear(1, 1)]),
            TypeError,
            "layer must be a str or a list of str, but it holds ",
        ),
        (dict(type="Xavier", layer="LayerNorm"), ValueError, "'head.1.weight': Fan in and fan out can not be computed"),
        (
            dict(type="Xavier", layer="Linear", distribution="norml"),
            AssertionError,
            "'uniform' or 'normal', but got 'norml'",
        ),
        (
            dict(type="Kaiming", layer="Linear", mode={}),
            TypeError,
            "mode must be one of ['fan_in', 'fan_out'], but got {}",
        ),
        (dict(type="Kaiming", layer="Linear", nonlinearity="softmax"), ValueError, "The gains that are known: linear,"),
        (
            dict(type="Xavier", layer="Linear", gain="x"),
            TypeError,
            "'head.0.weight': gain must be a number, but got 'x'",
        ),
        (dict(type="Xavier", layer="Linear", gain=1 + 2j), TypeError, "gain must be a real number, but got (1+2j)"),
        (dict(type="Normal", layer="Linear", std=torch.ones(2)), TypeError, "std must be one number, but got 2"),
        (dict(type="Normal", layer="Linear", std=float("inf")), RuntimeError, "std=inf) is not finite"),
        (
            dict(type="Xavier", layer="Linear", distribution=np.array(["normal", "uniform"])),
            AssertionError,
            "distribution must be 'uniform' or 'normal', but got array",
        ),
        *(
            (
                dict(type="Normal", layer="Linear", bias_prob=number),
                ValueError,
                "bias_prob must be a probability between",
            )
            for number in (1.5, -0.1, 1.0, float("nan"))
        ),
        ({"type": "Normal", 3: 4}, TypeError, "the keys of a rule must be texts, but it has 3"),
        (dict(type="Caffe2Xavier", mode="fan_in"), TypeError, "Caffe2XavierInit is Kaiming with"),
        (
            dict(type="Normal", layer="Linear", override=dict(type="Normal", name=["feat", "head"])),
            TypeError,
            "`name` of an override must be the name of one attribute, but got ['feat', 'head']",
        ),
        (dict(type="Kaiming", layer="Linear", mode="fan"), ValueError, "Mode fan not supported, please use one of"),
        (
            dict(type="Normal", layer="Linear", std=-1),
            RuntimeError,
            "'head.0.weight': normal expects std >= 0.0, but found",
        ),
        (
            dict(type="Uniform", layer="Linear", a=1, b=0),
            RuntimeError,
            "uniform expects low <= high, but found low=1.0",
        ),
        (dict(type="TruncNormal", layer="Linear", a=1, b=0), RuntimeError, "trunc_normal expects bounds a <= b"),
        (dict(type="TruncNormal", layer="Linear", std=0), ZeroDivisionError, "trunc_normal expects std > 0.0"),
        (
            dict(type="Normal", param="index"),
            RuntimeError,
            "the backend 'torch' cannot fill the parameter 'index' ((2, 2), ",
        ),
        (dict(type="Normal", std=1 + 1j, param="scale"), TypeError, "std must be a real number, but got (1+1j)"),
        (
            dict(type="Normal", override=[dict(name="feat"), dict(name="nope")]),
            RuntimeError,
            "init_cfg[1].override[1]: module did not have attribute nope, but init_cfg is {'type': 'Normal'}. It must be a "
            "direct attribute of Net, one of: feat, head",
        ),
        (dict(type="Normal", override=dict(name="head.0")), RuntimeError, "init_cfg[1].override: module did not have"),
        (dict(type="Normal", override=dict(name="scale")), AttributeError, "write a rule with param='scale'"),
        (dict(type="Normal", override=dict(type="Normal")), ValueError, '`override` must contain the key "name"'),
        (dict(type="Normal", override=dict(name="feat", std=2)), ValueError, 'override: `override` need "type" key'),
        (dict(type="Normal", override="feat"), TypeError, "init_cfg[1]: override must be a dict or a list of dict"),
        (dict(type="Normal", override=["feat"]), TypeError, "init_cfg[1].override[0]: override must be a dict"),
        (
            dict(type="Normal", std=10**400, layer="Linear"),
            OverflowError,
            "init_cfg[1]: parameter 'head.0.weight': int",
        ),
        (dict(type="Constant", val=2**70, param="index"), RuntimeError, "cannot fill the parameter 'index'"),
        ("Normal", TypeError, "init_cfg[1]: a rule must be a dict or an initializer, but got 'Normal'"),
        (None, TypeError, "init_cfg[1]: a rule must be a dict"),
        (nn.Linear, TypeError, "init_cfg[1]: a rule must be a dict"),
    ],
    ids=str,
)
def test_the_message_names_the_place_and_nothing_is_written(rule, error, message):
    net = Net()
    before, state = tensors(net), torch.get_rng_state()
    with pytest.raises(error) as raised:
        fastinit.initialize(net, [GOOD, rule])
    assert type(raised.value).__bases__ == (fastinit.Error, error)
    text = raised.value.args[0]
    assert message in text and text.startswith("init_cfg[1]")
    assert_same_tensors(tensors(net), before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(error):
        fastinit.plan(net, [GOOD, rule])


def test_a_single_dict_is_called_init_cfg():
    with pytest.raises(KeyError, match="^'init_cfg: Foo is not in"):
        fastinit.initialize(Net(), dict(type="Foo"))


@pytest.mark.parametrize("module", [torch.zeros(3), None, [nn.Linear(2, 2)]], ids=["tensor", "None", "list"])
@pytest.mark.parametrize("call", [fastinit.initialize, fastinit.plan], ids=["initialize", "plan"])
def test_arguments_that_are_not_modules_are_refused(call, module):
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, but got"):
        call(module, GOOD)


@pytest.mark.parametrize("option", [dict(prefix=None), dict(prefix=1), dict(backend=["torch"])], ids=str)
def test_options_of_the_wrong_type_are_named(option):
    (name,) = option
    wanted = "a str or a map of names" if name == "prefix" else "a str"
    with pytest.raises(TypeError, match=f"^{name} must be {wanted}, but got"):
        fastinit.initialize(Net(), GOOD, **option)


@pytest.mark.parametrize("kind", ["sparse", "inference"])
def test_tensors_that_cannot_be_filled_are_refused_before_any_write(kind):
    net = Net()
    if kind == "sparse":
        net.bad = nn.Parameter(torch.eye(3).to_sparse())
    else:
        with torch.inference_mode():
            net.bad = nn.Parameter(torch.zeros(3))
    before = net.feat.weight.clone()
    with pytest.raises(RuntimeError, match=r"^init_cfg\[1\]: the backend 'torch' cannot fill the parameter 'bad'"):
        fastinit.initialize(net, [GOOD, dict(type="Normal", param="bad")])
    assert torch.equal(net.feat.weight, before)


def test_none_means_absent():
    for absent in (dict(param=None), dict(layer=None, override=dict(name="feat")), dict(override=None)):
        cfg = {**dict(type="Constant", val=1, layer="Conv2d"), **absent}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(fastinit.plan(Net(), cfg).rows) == 2


def test_values_that_are_not_configs_are_refused():
    for cfg in ("Normal", (GOOD,), 3):
        with pytest.raises(TypeError, match="init_cfg must be a dict or a list of dict, but got <class"):
            fastinit.initialize(Net(), cfg)


@pytest.mark.parametrize(
    ("dtype", "rule", "works"),
    [
        (torch.float16, dict(type="Constant", val=1e6), False),
        (torch.float16, dict(type="Uniform", a=-1e5, b=1e5), False),
        (torch.int8, dict(type="Constant", val=3), True),
        (torch.bool, dict(type="Constant", val=1), True),
        (torch.int64, dict(type="TruncNormal"), False),
        (torch.complex64, dict(type="Normal"), True),
        (torch.complex64, dict(type="Constant", val=1j), True),
        (torch.complex64, dict(type="TruncNormal"), False),
        (torch.float32, dict(type="Constant", val=1j), False),
        (torch.float8_e4m3fn, dict(type="Constant", val=0.5), True),
        (torch.float8_e4m3fn, dict(type="TruncNormal", std=0.1), True),
    ],
    ids=str,
)
def test_values_out_of_range_for_a_dtype_are_refused_before_any_write(dtype, rule, works):
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(4)), "b": nn.Parameter(torch.zeros(4, dtype=dtype), False)})
    rules = [dict(type="Constant", val=5, param="a"), dict(**rule, param="b")]
    if works:
        fastinit.initialize(model, rules)
        assert (model["b"].to(torch.complex64) != 0).any()
    else:
        with pytest.raises(RuntimeError, match=r"init_cfg\[1\]: the backend 'torch' cannot fill the parameter 'b'"):
            fastinit.initialize(model, rules)
        assert (model["a"] == 0).all()
