"""Arithmetic on draws under ``capture``: what can be folded changes the distribution, the rest is done to the values."""

from __future__ import annotations

import math

import needs
import pytest
import torch
import torch.nn.utils.prune
from capturing import captured, cpp, timm_style
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit import plans


@cpp
@pytest.mark.parametrize(
    ("code", "distribution"),
    [
        (lambda w: w.normal_().mul_(0.02), plans.Normal(0, 0.02)),
        (lambda w: w.normal_(1, 2).mul_(3).add_(1), plans.Normal(4, 6)),
        (lambda w: w.normal_().div_(math.sqrt(8)), plans.Normal(0, 1 / math.sqrt(8))),
        (lambda w: w.uniform_().mul_(2).sub_(1), plans.Uniform(-1, 1)),
        (lambda w: w.uniform_().add_(1, alpha=3), plans.Uniform(3, 4)),
        (lambda w: w.uniform_().mul_(torch.tensor(2.0)), plans.Uniform(0, 2)),
        (lambda w: w.copy_(torch.randn(6, 4) * 0.02), plans.Normal(0, 0.02)),
        (lambda w: w.copy_(2 * torch.rand(6, 4) - 1), plans.Uniform(-1, 1)),
        (lambda w: w.copy_(torch.normal(1.0, 0.5, (6, 4))), plans.Normal(1, 0.5)),
        (lambda w: w.copy_(torch.randn_like(w) / 4), plans.Normal(0, 0.25)),
        (lambda w: nn.init.trunc_normal_(w, std=1.0).mul_(0.02).add_(1), plans.TruncatedNormal(1, 0.02, 0.96, 1.04)),
        (lambda w: w.zero_().add_(0.3).mul_(3), plans.Constant(torch.tensor(0.3).mul_(3).item())),
        (lambda w: w.fill_(torch.tensor(5.0)), plans.Constant(5.0)),
        (lambda w: w.copy_(torch.full((6, 4), 2.0) ** 1), None),
    ],
    ids=[
        *(
            "mul",
            "mul and add",
            "div",
            "mul and sub",
            "add with alpha",
            "mul by a tensor",
            "copy of randn",
            "copy of rand",
        ),
        *(
            "copy of normal",
            "copy of randn_like",
            "truncated normal",
            "constant",
            "fill by a tensor",
            "copy of a power",
        ),
    ],
)
def test_scaling_and_shifting_fold_into_the_distribution(code, distribution):
    model, recipe = captured(lambda m: code(m.a))
    (fill,) = recipe.fills.get("a", (None,))
    if distribution is None:
        assert fill is None
        assert "copy_" in recipe.unknown["a"]
        assert (model.a == 2).all()
        return
    assert fill.distribution == distribution
    assert recipe.report.launches == {"cpu": 1}
    assert not recipe.report.unkeyed
    assert same_bits(model.a, named_fill("a", (6, 4), distribution))


@cpp
@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(-1),
        lambda w: w.mul_(0),
        lambda w: w.neg_(),
        lambda w: w.pow_(2),
        lambda w: w.mul_(torch.arange(4.0)),
        lambda w: w.add_(w.mean()),
        lambda w: w.clamp_(-0.5, 0.5),
        lambda w: w.mul_(math.inf),
        lambda w: w[:, 1].mul_(3),
        lambda w: w.erfinv_(),
        lambda w: w.add_(1).erfinv_(),
        lambda w: w.mul_(0.5).erfinv_().mul_(2).cos_(),
    ],
    ids=[
        *(
            "negated by mul",
            "times zero",
            "neg",
            "square",
            "mul by a vector",
            "add its mean",
            "clamp",
            "times infinity",
        ),
        *("one column", "erfinv", "erfinv of a sum", "erfinv and cos"),
    ],
)
def test_operations_that_do_not_fold_run_on_the_values(change):
    model, _ = captured(lambda m: change(m.a.uniform_()))
    expected = named_fill("a", (6, 4), plans.Uniform(0, 1))
    change(expected)
    torch.testing.assert_close(model.a.detach(), expected, equal_nan=True, rtol=1e-6, atol=1e-7)


@cpp
@pytest.mark.parametrize(
    "numbers", [(0, 0.02, -2, 2), (0.5, 0.3, -0.1, 1.1), (0, 1, -2, 2), (0, 1, 1, 8), (0, 0.029, -2, 2)], ids=str
)
def test_truncated_normals_of_every_library_are_recognized(numbers):
    mean, std, a, b = numbers
    expected = named_fill("a", (6, 4), plans.TruncatedNormal(mean, std, a, b))
    mmengine_style = needs.module("mmengine.model.weight_init").trunc_normal_
    draws = [
        lambda w: nn.init.trunc_normal_(w, mean, std, a, b),
        lambda w: timm_style(w, mean, std, a, b),
        lambda w: mmengine_style(w, mean, std, a, b),
        lambda w: fastinit.trunc_normal_(w, mean, std, a, b),
    ]
    for draw in draws:
        model, recipe = captured(lambda m: draw(m.a))
        assert same_bits(model.a, expected)
        assert recipe.report.launches == {"cpu": 1}
        assert not recipe.report.unkeyed


@cpp
def test_an_incomplete_truncated_normal_runs_as_written():
    def code(w, other):
        w.uniform_(-0.9, 0.9).erfinv_().mul_(2)
        other.copy_(w.t())
        w.clamp_(-0.1, 0.2)

    model, _ = captured(lambda m: code(m.a, m.b))
    expected, transposed = named_fill("a", (6, 4), plans.Uniform(-0.9, 0.9)), torch.empty(4, 6)
    expected.erfinv_().mul_(2)
    transposed.copy_(expected.t())
    assert torch.equal(model.a, expected.clamp_(-0.1, 0.2))
    assert torch.equal(model.b, transposed)
    # Clamped to other bounds than those that it was drawn for.
    model, recipe = captured(lambda m: m.a.uniform_(-0.9, 0.9).erfinv_().mul_(2).clamp_(-0.1, 0.2))
    assert torch.equal(model.a, expected)
    assert "a" in recipe.unknown
    # One that is left unfinished, and one whose half is overwritten meanwhile.
    model, _ = captured(lambda m: (m.a.uniform_(0, 0.5).erfinv_(), m.b.uniform_(0, 0.5).erfinv_(), m.b[1].fill_(9)))
    assert torch.equal(model.a, named_fill("a", (6, 4), plans.Uniform(0, 0.5)).erfinv_())
    expected = named_fill("b", (4, 6), plans.Uniform(0, 0.5)).erfinv_()
    expected[1] = 9
    assert torch.equal(model.b, expected)
