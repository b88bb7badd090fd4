"""Formats of the cpp backend: half precision, float8, and constants in every dtype."""

from __future__ import annotations

import needs
import numpy as np
import pytest
import torch
from cpp_core import (
    FLOAT8,
    FLOATS,
    INF,
    ISAS,
    NORMAL,
    TRUNCATED,
    UNIFORM,
    fill,
    from_words,
)
from helpers import same_bits
from torch import nn

import fastinit
from fastinit import plans


@pytest.mark.parametrize("distribution", [NORMAL, UNIFORM], ids=plans.describe)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_to_nearest(dtype, distribution):
    exact = fill(torch.empty(70_001), distribution)
    assert same_bits(fill(torch.empty(70_001, dtype=dtype), distribution), exact.to(dtype))


@pytest.mark.parametrize("std", [1e-8, 3e-6, 6e4])
def test_float16_rounds_its_subnormals_and_overflows_as_torch_does(std):
    for isa in ISAS:
        exact = fill(torch.empty(20_000), plans.Normal(0, std))
        assert same_bits(fill(torch.empty(20_000, dtype=torch.float16), plans.Normal(0, std), isa=isa), exact.half())


def converted(exact, dtype):
    """Torch's conversion; what is too large for float8_e4m3fn becomes the largest, which torch does since about 2.13."""
    return (exact.clamp(-448, 448) if dtype == torch.float8_e4m3fn else exact).to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=str)
def test_conversions_match_torch(dtype, isa):
    # Around every number of the dtype and every middle of two of them, from below the subnormals to overflow.
    steps = torch.arange(1 << 16 if dtype.itemsize == 2 else 1 << 8, dtype=torch.int32).to(torch.int16)
    numbers = steps.view(dtype) if dtype.itemsize == 2 else steps.to(torch.uint8).view(dtype)
    exact = numbers.float()[~numbers.float().isnan()].unique()
    middles = torch.cat(
        [(exact[1:].double() + exact[:-1].double()) / 2, exact[exact.isfinite()].abs().max()[None] * 1.1]
    )
    around = torch.cat([exact, middles.float(), -middles.float()]).numpy().view(np.uint32)
    bits = np.concatenate([around - 1, around, around + 1, np.random.default_rng(0).integers(0, 2**32, 2**18)])
    values = torch.from_numpy(bits.astype(np.uint32).view(np.float32))
    values = values[~values.isnan()]
    found = from_words(values.numpy().view(np.uint32), "words", isa, dtype)
    assert same_bits(found, converted(values, dtype))


@pytest.mark.parametrize("distribution", [plans.Normal(0, 0.02), UNIFORM, TRUNCATED, plans.Normal(0, 200)], ids=str)
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8_is_float32_rounded(dtype, distribution):
    exact = fill(torch.empty(70_001), distribution)
    made = fill(torch.empty(70_001).to(dtype), distribution)
    if distribution == TRUNCATED:
        exact = exact.clamp(-2.5, 3.0)
    assert same_bits(made, converted(exact, dtype))
    box = fill(torch.empty(7, 11).to(dtype).t(), distribution, shape=(40, 50), offset=(3, 5))
    whole = fill(torch.empty(40, 50).to(dtype), distribution)
    assert same_bits(box.contiguous(), whole[3:14, 5:12].contiguous())


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize(
    "bounds", [(-2.3, 1.7), (-INF, INF), (-1e9, 0.3), (0.0, 0.0), (-1e-4, 1e-4), (3, 1e6), (-1, -1e-7)], ids=str
)
def test_float8_truncated_normals_stay_within_their_bounds(dtype, bounds):
    for std in (1.0, 1e5):
        made = fill(torch.empty(100_000).to(dtype), plans.TruncatedNormal(0, std, *bounds)).float()
        assert made.min() >= bounds[0]
        assert made.max() <= bounds[1]
        assert made.isfinite().all()


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_a_model_in_float8_is_initialized(dtype):
    made = nn.Linear(64, 64, bias=False)
    made.weight = nn.Parameter(made.weight.detach().to(dtype), requires_grad=False)
    report = fastinit.initialize(made, dict(type="Kaiming", layer="Linear"), backend="cpp", seed=0)
    assert report.n_bytes == 4096
    exact = nn.Linear(64, 64, bias=False)
    fastinit.initialize(exact, dict(type="Kaiming", layer="Linear"), backend="cpp", seed=0)
    assert same_bits(made.weight.detach(), exact.weight.detach().to(dtype))


@needs.mark(needs.torch_from(2, 7))  # which has float8_e8m0fnu
def test_float8_e8m0_and_values_out_of_range_are_refused():
    made = nn.ParameterList([nn.Parameter(torch.zeros(4).to(torch.float8_e8m0fnu), requires_grad=False)])
    with pytest.raises(RuntimeError, match="no random numbers into torch.float8_e8m0fnu"):
        fastinit.initialize(made, dict(type="Normal", param="0"), backend="cpp", seed=0)
    made = nn.ParameterList([nn.Parameter(torch.zeros(4).to(torch.float8_e4m3fn), requires_grad=False)])
    for rule, message in (
        (dict(type="Uniform", a=-500, b=0), "out of bounds for torch.float8_e4m3fn"),
        (dict(type="TruncNormal", std=1000, a=470, b=500), "no number of torch.float8_e4m3fn lies within"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fastinit.initialize(made, dict(**rule, param="0"), backend="cpp", seed=0)


@pytest.mark.parametrize(
    "dtype",
    [*FLOATS, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]
    + [torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_constants_go_into_every_dtype(dtype):
    expected = torch.full((3, 1000), 1.0).to(dtype)
    assert same_bits(fill(torch.zeros(3, 1000).to(dtype), plans.Constant(1)), expected)
    strided = torch.zeros(1000, 6).to(dtype)
    fill(strided.t()[1:4], plans.Constant(1))
    assert strided.to(torch.complex64).sum() == 3000
