"""The types that mmengine has not: what they give, on torch the functions of torch.nn.init bit for bit, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn

import fastinit
from fastinit import plans
from fastinit.config import schemes


def weight(
    shape: tuple[int, ...], cfg: dict[str, Any], backend: str = "torch", dtype: torch.dtype = torch.float32
) -> Any:
    module = nn.Module()
    module.weight = nn.Parameter(torch.full(shape, 9.0).to(dtype))
    fastinit.initialize(module, dict(cfg, param="weight"), backend=backend, seed=0)
    return module.weight.detach()


def by_torch(function: Callable[..., Any], shape: tuple[int, ...], **numbers: Any) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return function(torch.empty(shape), **numbers)  # type: ignore[no-any-return]


FUNCTIONS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("uniform_", dict(a=-1.0, b=2.0), (5, 4)),
    ("normal_", dict(mean=1.0, std=2.0), (5, 4)),
    ("trunc_normal_", dict(std=0.5, a=-1.0, b=1.0), (50, 4)),
    ("trunc_normal_", dict(mean=1.0, a=1.5, b=2.0), (50, 4)),
    ("constant_", dict(val=3.0), (5, 4)),
    ("ones_", dict(), (5,)),
    ("zeros_", dict(), (5,)),
    ("eye_", dict(), (5, 4)),
    ("dirac_", dict(groups=2), (4, 3, 3)),
    ("xavier_uniform_", dict(gain=2.0), (5, 4)),
    ("xavier_normal_", dict(), (5, 4, 3)),
    ("kaiming_uniform_", dict(a=math.sqrt(5)), (5, 4)),
    ("kaiming_normal_", dict(mode="fan_out", nonlinearity="relu"), (5, 4)),
    ("orthogonal_", dict(gain=1.5), (5, 4)),
    ("orthogonal_", dict(), (3, 4, 2)),
    ("sparse_", dict(sparsity=0.3, std=0.1), (20, 4)),
]


@pytest.mark.parametrize(("name", "numbers", "shape"), FUNCTIONS)
def test_functions_of_torch_are_types_with_their_own_numbers(
    name: str, numbers: dict[str, Any], shape: tuple[int, ...]
) -> None:
    function = getattr(nn.init, name)
    expected = by_torch(function, shape, **numbers)
    assert same_bits(weight(shape, dict(type=f"torch.nn.init.{name}", **numbers)), expected)
    assert same_bits(weight(shape, dict(type=function, **numbers)), expected)
    with fastinit.use(allow_imports=False):  # nothing is imported for them
        assert same_bits(weight(shape, dict(type=f"torch.nn.init.{name}", **numbers)), expected)


@needs.mark(needs.CPP)
@pytest.mark.parametrize(("name", "numbers", "shape"), FUNCTIONS)
def test_functions_of_torch_are_types_of_contract_backends(
    name: str, numbers: dict[str, Any], shape: tuple[int, ...]
) -> None:
    one = weight(shape, dict(type=f"torch.nn.init.{name}", **numbers), "cpp")
    assert same_bits(one, weight(shape, dict(type=f"torch.nn.init.{name}", **numbers), "cpp"))
    expected = by_torch(getattr(nn.init, name), shape, **numbers)
    assert (one == expected).all() or abs(one.mean() - expected.mean()) < 8 * expected.std() / math.sqrt(one.numel())


OWN: list[tuple[dict[str, Any], Callable[..., Any], dict[str, Any], tuple[int, ...]]] = [
    (dict(type="Zeros"), nn.init.zeros_, {}, (3, 2)),
    (dict(type="Ones"), nn.init.ones_, {}, (3, 2)),
    (dict(type="Identity"), nn.init.eye_, {}, (3, 2)),
    (dict(type="Dirac"), nn.init.dirac_, {}, (3, 2, 3)),
    (dict(type="Sparse", sparsity=0.5), nn.init.sparse_, dict(sparsity=0.5), (30, 2)),
    (dict(type="Orthogonal", gain=2), nn.init.orthogonal_, dict(gain=2), (3, 2, 4)),
]


@pytest.mark.parametrize(("cfg", "function", "numbers", "shape"), OWN, ids=[cfg["type"] for cfg, *_ in OWN])
def test_types_have_the_numbers_of_torch(
    cfg: dict[str, Any], function: Callable[..., Any], numbers: dict[str, Any], shape: tuple[int, ...]
) -> None:
    assert same_bits(weight(shape, cfg), by_torch(function, shape, **numbers))


def test_planning_draws_nothing_from_torchs_generator() -> None:
    layer, before = nn.Linear(3, 2), torch.get_rng_state()
    fastinit.plan(layer, dict(type="Sparse", layer="Linear", sparsity=0.4), backend="torch")
    assert torch.equal(torch.get_rng_state(), before)


def test_stacked_orthogonal_matrices_are_drawn_one_after_another() -> None:
    stack = weight((3, 5, 4), dict(type="Orthogonal", batch_dims=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert all(same_bits(one, nn.init.orthogonal_(torch.empty(5, 4))) for one in stack)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_makes_narrow_orthogonal_matrices_through_float32(dtype: torch.dtype) -> None:
    expected = by_torch(nn.init.orthogonal_, (5, 4)).to(dtype)
    assert same_bits(weight((5, 4), dict(type="Orthogonal"), dtype=dtype), expected)


def test_torch_fills_memory_in_another_order_as_it_fills_that_in_order() -> None:
    module = nn.Conv2d(4, 5, 3).to(memory_format=torch.channels_last)
    fastinit.initialize(module, dict(type="Orthogonal", param="weight"), backend="torch", seed=0)
    assert torch.equal(module.weight, by_torch(nn.init.orthogonal_, (5, 4, 3, 3)))


def test_a_delta_orthogonal_kernel_on_torch() -> None:
    w = weight((6, 4, 3, 3), dict(type="DeltaOrthogonal", gain=2))
    assert (w[:, :, 1, 1].T @ w[:, :, 1, 1] - 4 * torch.eye(4)).abs().max() < 1e-5 and w.count_nonzero() == 24


# --- scaling by variance ---------------------------------------------------------------------------------------------

FANS = {"fan_in": 12 * 9, "fan_out": 20 * 9, "fan_avg": 16 * 9, "fan_geo_avg": math.sqrt(12 * 20) * 9}


@pytest.mark.parametrize("mode", FANS)
@pytest.mark.parametrize("kind", ["normal", "uniform", "truncated_normal"])
def test_variance_is_scale_over_fan(kind: str, mode: str) -> None:
    """The formula of jax.nn.initializers.variance_scaling and of Keras."""
    from scipy import stats

    found = schemes.variance_scaling((20, 12, 3, 3), 3.0, mode, kind)
    if isinstance(found, plans.TruncatedNormal):
        assert found.low == -2 * found.std and found.high == 2 * found.std
        variance = stats.truncnorm(-2, 2, scale=found.std).var()
    else:
        is_uniform = isinstance(found, plans.Uniform)
        variance = (found.high - found.low) ** 2 / 12 if is_uniform else found.std**2  # type: ignore[union-attr]
    assert variance == pytest.approx(3.0 / FANS[mode], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "scale", "mode", "kind"),
    [
        ("Lecun", 1, "fan_in", "truncated_normal"),
        ("Glorot", 1, "fan_avg", "uniform"),
        ("He", 2, "fan_in", "truncated_normal"),
    ],
)
def test_names_for_scalings(name: str, scale: float, mode: str, kind: str) -> None:
    module = nn.Linear(5, 7)
    (row, _) = fastinit.plan(module, dict(type=name, layer="Linear")).items
    assert isinstance(row, plans.Fill) and row.distribution == schemes.variance_scaling((7, 5), scale, mode, kind)
    (row, _) = fastinit.plan(module, dict(type=name, layer="Linear", distribution="normal")).items
    assert isinstance(row, plans.Fill) and row.distribution == schemes.variance_scaling((7, 5), scale, mode, "normal")


@pytest.mark.parametrize("name", ["Xavier", "Kaiming", "VarianceScaling"])
def test_fan_axes_are_for_weights_that_are_stored_in_another_order(name: str) -> None:
    def found(shape: tuple[int, ...], **options: Any) -> Any:
        module = nn.Module()
        module.w = nn.Parameter(torch.empty(shape))
        (item,) = fastinit.plan(module, dict(type=name, param="w", **options)).items
        return item.distribution  # type: ignore[union-attr]

    assert found((8, 5, 7), batch_dims=1, fan_axes=(1, 2)) == found((7, 5))
    assert found((8, 5, 7), batch_dims=1, fan_axes=[-2, -1]) == found((7, 5))
    assert found((3, 3, 5, 7), fan_axes=(2, 3)) == found((7, 5, 3, 3))  # as JAX and Keras store convolutions


@pytest.mark.parametrize("by", ["layer", "param"])
@pytest.mark.parametrize(
    ("layer", "fans"),
    [
        (nn.Conv2d(8, 12, 3), (8 * 9, 12 * 9)),
        (nn.Conv2d(8, 12, 3, groups=4), (2 * 9, 3 * 9)),
        (nn.Conv1d(8, 8, 5, groups=8), (5, 5)),
        (nn.ConvTranspose2d(8, 12, 3), (8 * 9, 12 * 9)),
        (nn.ConvTranspose1d(8, 12, 5, groups=4), (2 * 5, 3 * 5)),
        (nn.Linear(8, 12), (8, 12)),
    ],
    ids=str,
)
def test_fans_of_a_layer_know_groups_and_transposed_convolutions(layer: nn.Module, fans: Any, by: str) -> None:
    module = nn.ModuleDict({"x": layer})
    selected = dict(param="x.weight") if by == "param" else dict(layer=type(layer).__name__)
    for cfg, std in [
        (dict(type="Kaiming", mode="fan_in", nonlinearity="linear", fan="layer"), fans[0] ** -0.5),
        (dict(type="Kaiming", mode="fan_out", nonlinearity="linear", fan="layer"), fans[1] ** -0.5),
        (dict(type="Xavier", fan="layer"), math.sqrt(2 / sum(fans))),
        (dict(type="Xavier", gain="fan_out / fan_in", fan="layer"), fans[1] / fans[0] * math.sqrt(2 / sum(fans))),
    ]:
        fill = fastinit.plan(module, {**cfg, **selected}).items[0]
        assert fill.shape == layer.weight.shape and "fan=layer" in fill.info  # type: ignore[union-attr]
        assert fill.distribution.std == pytest.approx(std, rel=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["relu", "elu", "gelu", "gelu_tanh", "mish", "silu", "swish"])
def test_gains_keep_the_mean_square_of_a_standard_normal(name: str) -> None:
    functional = nn.functional
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
        "swish": functional.silu,
    }
    z = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    mean = (functions.get(name, getattr(functional, name, None))(z) ** 2 * density).sum()  # type: ignore[misc]
    assert schemes.gain_of(name, 0) == pytest.approx(1 / math.sqrt(mean), rel=1e-7)


def test_bounds_in_units_of_the_standard_deviation() -> None:
    module = nn.Linear(3, 2)
    (fill, _) = fastinit.plan(
        module, dict(type="TruncNormal", layer="Linear", mean=1, std=0.5, a=-2, b=3, bounds="sigma")
    ).items
    assert isinstance(fill, plans.Fill) and fill.distribution == plans.TruncatedNormal(1, 0.5, 0, 2.5)
    assert "bounds=sigma" in fill.info


@pytest.mark.parametrize("name", ["TruncNormal", "torch.nn.init.trunc_normal_"])
def test_every_truncated_normal_knows_bounds_in_sigma(name: str) -> None:
    cfg = dict(type=name, param="weight", mean=1, std=0.5, a=-2, b=3, bounds="sigma")
    (fill,) = fastinit.plan(nn.Linear(3, 2), cfg).items
    assert isinstance(fill, plans.Fill) and plans.numbers_of(fill.distribution)["high"] == 2.5


# --- as the other types ----------------------------------------------------------------------------------------------

STRUCTURED = [
    dict(type="Identity", layer="Linear"),
    dict(type="Orthogonal", layer="Linear", gain=2, bias=1),
    dict(type="Sparse", layer="Linear", sparsity=0.5),
    dict(type="Dirac", layer="Conv1d"),
    dict(type="DeltaOrthogonal", layer="Conv1d"),
]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Conv1d(3, 6, 3))


@pytest.mark.parametrize("cfg", STRUCTURED, ids=lambda cfg: cfg["type"])
def test_a_plan_shows_them_and_is_json(cfg: dict[str, Any]) -> None:
    plan = fastinit.plan(model(), cfg, backend="cpp")
    row = json.loads(plan.to_json())["rows"][0]
    kind = {"DeltaOrthogonal": "delta_orthogonal"}.get(cfg["type"], cfg["type"].lower())
    assert row["values"]["kind"] == kind and kind in str(plan)
    assert row["info"].startswith(f"{cfg['type']}Init")


@needs.mark(needs.CPP)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("cfg", STRUCTURED, ids=lambda cfg: cfg["type"])
def test_every_way_to_initialize_gives_the_same_bits(cfg: dict[str, Any], backend: str) -> None:
    expected = model()
    report = fastinit.initialize(expected, cfg, backend=backend, seed=3)
    assert set(report.unreached) == {f"{int('Linear' in cfg['layer'])}.weight", f"{int('Linear' in cfg['layer'])}.bias"}
    with torch.device("meta"):
        other = model()
    fastinit.materialize(other, cfg, backend=backend, seed=3, device="cpu")
    with fastinit.capture(backend=backend, seed=3):
        third = model()
        fastinit.initialize(third, cfg)
    for name in expected.state_dict():
        if name not in report.unreached:
            assert same_bits(expected.state_dict()[name], other.state_dict()[name]), name
            # Torch's numbers in the block depend on what was drawn before.
            assert backend == "torch" or same_bits(expected.state_dict()[name], third.state_dict()[name]), name


@needs.mark(needs.CPP)
@pytest.mark.parametrize(
    ("function", "cfg", "shape"),
    [
        (fastinit.identity_init, dict(type="Identity"), (4, 3)),
        (fastinit.dirac_init, dict(type="Dirac"), (4, 3, 3)),
        (lambda m: fastinit.sparse_init(m, 0.5, 2.0), dict(type="Sparse", sparsity=0.5, std=2.0), (4, 3)),
        (lambda m: fastinit.orthogonal_init(m, 2), dict(type="Orthogonal", gain=2), (4, 3)),
        (fastinit.delta_orthogonal_init, dict(type="DeltaOrthogonal"), (4, 3, 3)),
        (lambda m: fastinit.variance_scaling_init(m, 2), dict(type="VarianceScaling", scale=2), (4, 3)),
    ],
    ids=lambda each: each.get("type") if isinstance(each, dict) else "",
)
def test_functions_are_twins_of_types(function: Callable[[nn.Module], None], cfg: dict[str, Any], shape: Any) -> None:
    module = nn.Module()
    module.weight, module.bias = nn.Parameter(torch.full(shape, 9.0)), nn.Parameter(torch.full((4,), 9.0))
    with fastinit.use(backend="torch", seed=0):
        function(module)
    assert same_bits(module.weight, weight(shape, cfg)) and (module.bias == 0).all()


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize(
    ("cfg", "kind", "message"),
    [
        (dict(type="Orthogonal", layer="LayerNorm"), ValueError, "parameter '2.weight': orthogonal needs at least 2"),
        (dict(type="Orthogonal", layer="Linear", batch_dims=1), ValueError, "2 dimensions after batch_dims=1, but the"),
        (dict(type="Orthogonal", layer="Linear", batch_dims=-1), ValueError, "batch_dims must be a whole number"),
        (dict(type="Orthogonal", layer="Linear", gain="x"), TypeError, "gain must be a number, but got 'x'"),
        (
            dict(type="Identity", layer="Conv1d"),
            ValueError,
            "identity needs a matrix, with 2 dimensions, but the shape",
        ),
        (dict(type="Sparse", layer="Linear", sparsity=1.5), ValueError, "sparsity is the share of zeros, from 0 to 1"),
        (dict(type="Sparse", layer="Linear"), TypeError, "sparsity"),
        (dict(type="Sparse", layer="Linear", sparsity=0.5, std=-1), RuntimeError, "std >= 0.0, but found std -1"),
        (dict(type="Dirac", layer="Linear"), ValueError, "dirac needs the weight of a convolution"),
        (dict(type="Dirac", layer="Conv1d", groups=4), ValueError, "out channels divisible by groups=4"),
        (dict(type="Dirac", layer="Conv1d", groups=0), ValueError, "groups must be a whole number of at least 1"),
        (dict(type="DeltaOrthogonal", layer="Conv1d"), ValueError, "as many out channels as in channels"),
        (dict(type="VarianceScaling", layer="Linear", mode="fan"), ValueError, "mode must be one of fan_in, fan_out,"),
        (dict(type="VarianceScaling", layer="Linear", scale=-1), ValueError, "scale must not be negative, but got -1"),
        (
            dict(type="He", layer="Linear", distribution="beta"),
            ValueError,
            "distribution must be one of normal, uniform",
        ),
        (dict(type="He", layer="LayerNorm"), ValueError, "'2.weight': Fan in and fan out can not be computed"),
        (dict(type="Xavier", layer="Linear", fan_axes=(0, 0)), ValueError, "fan_axes=(0, 0) must be two different"),
        (
            dict(type="Xavier", layer="Linear", fan_axes=(0, 2)),
            ValueError,
            "dimensions from 0 to 1 of the shape (6, 4)",
        ),
        (
            dict(type="Xavier", layer="Linear", fan_axes=1),
            ValueError,
            "fan_axes must be two dimensions, (in, out), but",
        ),
        (dict(type="Xavier", layer="Linear", fan="conv"), ValueError, "fan must be 'torch' or 'layer', but got 'conv'"),
        (dict(type="Xavier", layer="Linear", fan="layer", batch_dims=1), ValueError, "batch_dims and fan_axes can not"),
        (dict(type="TruncNormal", layer="Linear", bounds="std"), ValueError, "bounds must be 'absolute' or 'sigma'"),
        (dict(type="torch.nn.init.calculate_gain", layer="Linear"), TypeError, "calculate_gain"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_is_written(
    cfg: dict[str, Any], kind: type[Exception], message: str, backend: str
) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Conv1d(8, 6, 3), nn.LayerNorm(3))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(kind) as caught:
        fastinit.initialize(module, [dict(type="Ones", layer="Linear"), cfg], backend=backend, seed=0)
    assert message in str(caught.value) and "init_cfg[1]" in str(caught.value)
    assert all(same_bits(tensor, before[name]) for name, tensor in module.state_dict().items())
