"""Copies and casts of draws under ``capture``."""

from __future__ import annotations

import copy

import torch
import torch.nn.utils.prune
from capturing import captured, cpp
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit import plans


@cpp
def test_copies_share_a_draw_keyed_by_the_first_name_that_holds_it():
    def make():
        layer = nn.Linear(4, 4)
        return nn.ModuleList([copy.deepcopy(layer), copy.deepcopy(layer), nn.Linear(4, 4)])

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = make()
    bound = plans.Uniform(-0.5, 0.5)
    assert same_bits(model[0].weight, named_fill("0.weight", (4, 4), bound))
    assert same_bits(model[1].weight, model[0].weight)
    assert model[1].weight is not model[0].weight
    assert same_bits(model[2].weight, named_fill("2.weight", (4, 4), bound))
    assert recipe.report.launches == {"cpu": 1}
    assert recipe.report.unkeyed == ()
    assert recipe.fills["1.weight"][0].stream == "0.weight"
    assert "the values of 0.weight" in str(recipe.report)


@cpp
def test_copies_and_casts_of_partly_overwritten_fills_stay_pending():
    def make():
        table = nn.Embedding(6, 4, padding_idx=2)
        return nn.ModuleList([copy.deepcopy(table), copy.deepcopy(table).to(torch.bfloat16)])

    model = fastinit.build(make, backend="cpp", seed=0, strict=True)
    expected = named_fill("0.weight", (6, 4), plans.Normal(0, 1))
    expected[2] = 0
    assert same_bits(model[0].weight, expected)
    assert same_bits(model[1].weight, expected.to(torch.bfloat16))


@cpp
def test_casts_that_change_values_run_the_fill():
    seen = {}

    def code(m):
        m.a.normal_()
        seen["double"] = m.a.double()
        m.b.data.copy_(nn.init.trunc_normal_(torch.empty(4, 6), std=1, a=-1.1, b=1.1))
        seen["half"] = m.b.bfloat16()
        m.c.copy_(torch.rand(24, dtype=torch.float64))

    model, recipe = captured(code)
    assert torch.equal(seen["double"], model.a.double())
    assert torch.equal(seen["half"], model.b.bfloat16())
    assert torch.equal(model.a, named_fill("a", (6, 4), plans.Normal(0, 1)))
    assert (model.c < 1).all()
    assert "c" in recipe.unknown
    assert len(recipe.report.unkeyed) == 1


@cpp
def test_casts_that_round_twice_or_leave_bounds_run_the_fill():
    with fastinit.capture(backend="cpp", seed=0):
        double = torch.randn(4096, dtype=torch.float64)
        half = torch.rand(4096, dtype=torch.bfloat16)
        narrow = nn.init.trunc_normal_(torch.empty(1 << 16), std=1.0, a=-0.01102, b=0.01102)
        casts = double.bfloat16(), half.half(), narrow.bfloat16()
    assert torch.equal(casts[0], double.bfloat16())
    assert torch.equal(casts[1], half.half())
    assert torch.equal(casts[2], narrow.bfloat16())
    assert casts[2].float().max() > 0.01102


@cpp
def test_a_copy_survives_overwriting_its_source():
    def code(m):
        m.a.normal_()
        m.b.copy_(m.a.view(4, 6))
        m.c.copy_(m.a.flatten())
        m.a.zero_()
        m.a.data.add_(1)

    model, recipe = captured(code)
    assert (model.a == 1).all()
    assert torch.equal(model.b.flatten(), model.c)
    assert model.b.std() > 0.5
    assert recipe.report.unkeyed == ()
