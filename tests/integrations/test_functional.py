"""The functional inits against mmengine's: the same signatures, bits, draws and errors."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import same_bits
from mmengine_parity import FASTINIT, MMENGINE, run_both
from torch import nn

import fastinit

NAMES = [
    "constant_init",
    "xavier_init",
    "normal_init",
    "trunc_normal_init",
    "uniform_init",
    "kaiming_init",
    "caffe2_xavier_init",
    "bias_init_with_prob",
    "trunc_normal_",
    "update_init_info",
]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_have_mmengines_order_names_and_defaults(name):
    def arguments(library):
        signature = inspect.signature(getattr(library, name))
        return [(each.name, each.default) for each in signature.parameters.values()]

    assert arguments(FASTINIT) == arguments(MMENGINE)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("constant_init", (3,), {}),
        ("constant_init", (3, 2), {}),
        ("xavier_init", (), {}),
        ("xavier_init", (2, 1, "uniform"), {}),
        ("xavier_init", (), dict(distribution="norml")),
        ("normal_init", (0.5, 2, 3), {}),
        ("normal_init", (), dict(std=-1)),
        ("trunc_normal_init", (0, 0.02, -1, 1, 2), {}),
        ("trunc_normal_init", (), dict(std=0)),
        ("uniform_init", (-1, 1, 2), {}),
        ("uniform_init", (1, -1), {}),
        ("kaiming_init", (), {}),
        ("kaiming_init", (0.1, "fan_in", "leaky_relu", 2, "uniform"), {}),
        ("kaiming_init", (), dict(mode="fan")),
        ("caffe2_xavier_init", (), {}),
        ("caffe2_xavier_init", (3,), {}),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(8, 4),
        lambda: nn.Conv2d(3, 8, 3, bias=False),
        lambda: nn.LayerNorm(5),
        lambda: nn.ReLU(),
        lambda: nn.BatchNorm2d(3, affine=False),
        lambda: nn.Sequential(nn.Linear(2, 2)),
        lambda: nn.Linear(4, 4).double().requires_grad_(False),
    ],
)
def test_functional_inits_match_mmengines_bits_and_draws(name, arguments, options, make):
    run_both(lambda _: make(), lambda library, module: getattr(library, name)(module, *arguments, **options))


@pytest.mark.parametrize("name", ["constant_init", "normal_init"])
def test_modules_with_a_weight_are_filled_and_others_are_unchanged(name):
    for library in (FASTINIT, MMENGINE):
        arguments = (3,) if name == "constant_init" else ()
        holder = SimpleNamespace(weight=torch.zeros(5), bias=None)
        getattr(library, name)(holder, *arguments)
        assert (holder.weight != 0).all()
        getattr(library, name)(torch.zeros(3), *arguments)
        getattr(library, name)(SimpleNamespace(), *arguments)


@pytest.mark.parametrize("shape", [(), (5,), (33, 7), (0, 3)], ids=str)
def test_trunc_normal_fills_any_tensor_returns_it_and_counts_its_version(shape):
    results = []
    for library in (FASTINIT, MMENGINE):
        torch.manual_seed(5)
        tensor = torch.zeros(shape, requires_grad=True)
        version = tensor._version
        assert library.trunc_normal_(tensor, 1.0, 0.5, -1.0, 1.5) is tensor
        assert tensor._version > version and tensor.grad_fn is None
        results.append((tensor.detach(), torch.get_rng_state()))
    assert same_bits(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_a_mean_far_outside_the_bounds_warns_as_in_mmengine():
    for library in (FASTINIT, MMENGINE):
        with pytest.warns(UserWarning, match="mean is more than 2 std from"):
            library.trunc_normal_(torch.empty(3), mean=5.0, std=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.trunc_normal_(torch.empty(3), mean=2.2, std=0.1)


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.99, 1e-300, 1 - 1e-12])
def test_bias_init_with_prob_is_mmengines_to_the_last_bit(probability):
    assert FASTINIT.bias_init_with_prob(probability) == MMENGINE.bias_init_with_prob(probability)


def test_bias_init_with_prob_at_its_ends():
    for library in (FASTINIT, MMENGINE):
        with pytest.raises(ZeroDivisionError):
            library.bias_init_with_prob(0.0)
        with pytest.warns(RuntimeWarning):
            assert library.bias_init_with_prob(1.0) == float("inf")


@pytest.mark.parametrize(
    "name",
    ["ConstantInit", "XavierInit", "NormalInit", "TruncNormalInit", "UniformInit", "KaimingInit", "Caffe2XavierInit"],
)
def test_initializer_objects_have_mmengines_attributes_and_info(name):
    def look(library, **options):
        made = getattr(library, name)(*((4,) if name == "ConstantInit" else ()), **options)
        ours = ("param", "batch_dims", "fan_axes", "fan", "bounds", "wholemodule")
        own = {key: value for key, value in vars(made).items() if key not in ours}
        return own, made._get_init_info(), made.wholemodule

    for options in ({}, dict(bias=2, layer="Linear"), dict(bias_prob=0.1, layer=["Linear", "Conv2d"])):
        assert look(FASTINIT, **options) == look(MMENGINE, **options)


def test_initializer_objects_can_be_called_as_in_mmengine():
    run_both(
        lambda _: nn.Sequential(nn.Linear(3, 3), nn.Conv1d(2, 2, 2)),
        lambda library, model: library.KaimingInit(layer="Conv1d", bias=3)(model),
    )


def test_initializer_objects_stand_beside_dicts():
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(2, 2, 2))
    report = fastinit.initialize(
        model, [fastinit.ConstantInit(2, layer="Linear"), dict(type="Constant", val=3, layer="Conv1d")]
    )
    assert [row.rule for row in report.rows] == ["init_cfg[0]"] * 2 + ["init_cfg[1]"] * 2
    fastinit.initialize(model, fastinit.ConstantInit(5, param="0.weight"))
    assert (model[0].weight == 5).all() and (model[1].weight == 3).all()


def test_names_are_importable_from_where_mmengines_users_import_them():
    import mmengine.model
    import mmengine.model.base_module
    import mmengine.model.weight_init

    import fastinit.base_module
    import fastinit.weight_init

    wanted = [
        "BaseModule Sequential ModuleList ModuleDict BaseInit ConstantInit XavierInit NormalInit TruncNormalInit",
        "UniformInit KaimingInit Caffe2XavierInit PretrainedInit initialize update_init_info bias_init_with_prob",
        "constant_init xavier_init normal_init trunc_normal_init uniform_init kaiming_init caffe2_xavier_init",
    ]
    for name in " ".join(wanted).split():
        assert hasattr(mmengine.model, name) and hasattr(fastinit, name)
        for module in ("weight_init", "base_module"):
            theirs = getattr(getattr(mmengine.model, module), name, None)
            if theirs is not None and getattr(theirs, "__module__", "").endswith(module):
                assert hasattr(getattr(fastinit, module), name)
