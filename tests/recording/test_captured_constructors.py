"""Constructors under ``capture``: each parameter is filled once, by its name, as a part of the whole."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.utils.prune
from capturing import captured, cpp, is_uninstalled
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit import plans


@cpp
def test_a_constructor_fills_its_parameters_once_by_name_and_in_one_launch():
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Embedding(10, 32, padding_idx=3))
        nn.init.trunc_normal_(model[0].weight, std=0.02)
    assert same_bits(model[0].weight, named_fill("0.weight", (32, 64), plans.TruncatedNormal(0, 0.02, -2, 2)))
    assert same_bits(model[0].bias, named_fill("0.bias", (32,), plans.Uniform(-1 / 8, 1 / 8)))
    expected = named_fill("2.weight", (10, 32), plans.Normal(0, 1))
    expected[3] = 0
    assert same_bits(model[2].weight, expected)
    assert (model[1].weight == 1).all()
    report = recipe.report
    assert report.launches == {"cpu": 1}
    assert report.unkeyed == report.unreached == ()
    assert report.seed == 0
    assert report.numbers == "contract 1"
    assert "1 launch on cpu" in report.summary()
    assert report.provenance["0.weight"].startswith("`trunc_normal_` at test_captured_constructors.py:")
    assert [(row.parameter, row.description) for row in report.rows][-1] == (
        "0.weight",
        "trunc_normal(mean=0, std=0.02, low=-2, high=2)",
    )
    assert is_uninstalled()


@cpp
def test_values_do_not_depend_on_construction_order_or_dtype():
    def make(**kwargs):
        return nn.Sequential(nn.Linear(8, 8, **kwargs), nn.Linear(8, 8, **kwargs))

    plain = fastinit.build(make, backend="cpp", seed=5)
    half = fastinit.build(make, backend="cpp", seed=5, dtype=torch.bfloat16)
    other = fastinit.build(lambda: nn.Sequential(*reversed([nn.Linear(8, 8), nn.Linear(8, 8)])), backend="cpp", seed=5)
    cast = fastinit.build(lambda: make().to(torch.bfloat16), backend="cpp", seed=5)
    with torch.device("meta"):
        meta = make()
    fastinit.materialize(meta, backend="cpp", seed=5)
    for name, tensor in plain.state_dict().items():
        assert same_bits(other.state_dict()[name], tensor)
        assert same_bits(meta.state_dict()[name], tensor)
        assert same_bits(half.state_dict()[name], tensor.to(torch.bfloat16))
        assert same_bits(cast.state_dict()[name], tensor.to(torch.bfloat16))


@cpp
@pytest.mark.parametrize(
    ("view", "index"),
    [
        (lambda w: w[2], [8, 9, 10, 11]),
        (lambda w: w[1:3], range(4, 12)),
        (lambda w: w[:, 1], [1, 5, 9, 13, 17, 21]),
        (lambda w: w[::2, 1:3], [1, 2, 9, 10, 17, 18]),
        (lambda w: w.t()[1], [1, 5, 9, 13, 17, 21]),
        (lambda w: w.view(2, 3, 4)[1], range(12, 24)),
        (lambda w: w.view(3, 2, 4).transpose(0, 1)[0], [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]),
        (lambda w: w.unsqueeze(1)[2:4, 0], range(8, 16)),
        (lambda w: w.chunk(3)[1], range(8, 16)),
        (lambda w: w.detach().diagonal(), [0, 5, 10, 15]),
    ],
    ids=[
        *(
            "row",
            "rows",
            "column",
            "block with steps",
            "column of the transposed",
            "part of a reshaped",
            "strided part",
        ),
        *("unsqueezed", "chunk", "diagonal"),
    ],
)
def test_a_view_gets_the_values_of_its_elements_in_the_whole_parameter(view, index):
    model, recipe = captured(lambda m: view(m.a).normal_(1, 2))
    whole = named_fill("a", (6, 4), plans.Normal(1, 2)).flatten()
    expected = torch.full((24,), math.nan)
    expected[list(index)] = whole[list(index)]
    assert torch.equal(torch.nan_to_num(model.a.flatten(), 7.0), torch.nan_to_num(expected, 7.0))
    assert recipe.report.unkeyed == ()
    assert recipe.report.n_bytes == 4 * len(list(index))


@cpp
def test_fused_weights_are_filled_slice_by_slice_in_one_launch():
    def code(m):
        nn.init.xavier_uniform_(m.a[:2])
        nn.init.normal_(m.a[2:4], std=0.5)
        m.a[4:].fill_(3)
        m.b.normal_()
        m.b[1].zero_()
        m.b[2:].uniform_()
        m.b[2][3:].fill_(7)

    model, recipe = captured(code)
    bound = math.sqrt(6 / 6)
    assert same_bits(model.a[:2], named_fill("a", (6, 4), plans.Uniform(-bound, bound))[:2])
    assert same_bits(model.a[2:4], named_fill("a", (6, 4), plans.Normal(0, 0.5))[2:4])
    assert (model.a[4:] == 3).all()
    expected = named_fill("b", (4, 6), plans.Normal(0, 1))
    expected[1], expected[2:] = 0, named_fill("b", (4, 6), plans.Uniform(0, 1))[2:]
    expected[2][3:] = 7
    assert same_bits(model.b, expected)
    assert recipe.report.launches == {"cpu": 1}
    assert recipe.report.unkeyed == ()


@cpp
def test_channels_last_parameters_have_the_same_values():
    model = nn.Module()
    model.w = nn.Parameter(torch.empty(4, 3, 2, 2).to(memory_format=torch.channels_last))
    captured(lambda m: (m.w.normal_(), m.w[1:3].uniform_()), model)
    expected = named_fill("w", (4, 3, 2, 2), plans.Normal(0, 1))
    expected[1:3] = named_fill("w", (4, 3, 2, 2), plans.Uniform(0, 1))[1:3]
    assert same_bits(model.w.contiguous(), expected)
