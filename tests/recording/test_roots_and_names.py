"""Which module is the root of a block of ``capture``, and which draws have a name."""

from __future__ import annotations

import gc
import math

import pytest
import torch
import torch.nn.utils.prune
from capturing import Holder, captured, cpp, is_uninstalled
from helpers import named_fill, orthogonal_by_hand_, same_bits
from torch import nn

import fastinit
from fastinit import plans


@cpp
def test_two_roots_are_an_error_unless_they_are_bound_under_prefixes():
    with pytest.raises(RuntimeError, match=r"2 modules.*\(Linear, Conv1d\).*recipe.bind"):
        with fastinit.capture(backend="cpp", seed=0):
            a, b = nn.Linear(3, 3), nn.Conv1d(2, 2, 1)
    assert a.weight.abs().max() <= 0.58
    assert a.weight.std() > 0.05
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        a, b = nn.Linear(3, 3), nn.Linear(3, 3)
        recipe.bind(a, prefix="left")
        recipe.bind(b, "right.")
    bound = plans.Uniform(-math.sqrt(1 / 3), math.sqrt(1 / 3))
    assert same_bits(b.bias, named_fill("right.bias", (3,), bound))
    assert recipe.report.unkeyed == ()
    assert sorted(recipe.report.provenance) == ["left.bias", "left.weight", "right.bias", "right.weight"]
    with pytest.raises(RuntimeError, match="two roots have a parameter called 'bias'"):
        with fastinit.capture(backend="cpp", seed=0) as recipe:
            a, b = nn.Linear(3, 3), nn.Linear(3, 3)
            recipe.bind(a)
            recipe.bind(b)
    with pytest.raises(RuntimeError, match="block is over"):
        recipe_of_the_past = captured(lambda m: m.a.normal_(), Holder())[1]
        recipe_of_the_past._names = object()
        recipe_of_the_past.bind(a)
    with pytest.raises(TypeError, match="needs a torch.nn.Module"), fastinit.capture() as recipe:
        recipe.bind(torch.zeros(3))


@cpp
def test_reads_after_bind_are_keyed_by_name():
    with fastinit.capture(backend="cpp", seed=0, strict=True) as recipe:
        model = nn.Linear(3, 3)
        torch.zeros(2).sum().item()
        recipe.bind(model)
        seen = model.weight.sum().item()
    bound = plans.Uniform(-math.sqrt(1 / 3), math.sqrt(1 / 3))
    assert same_bits(model.weight, named_fill("weight", (3, 3), bound))
    assert seen == model.weight.sum().item()


@cpp
def test_freed_modules_and_modules_without_draws_are_not_roots(request):
    gc.disable()
    request.addfinalizer(gc.enable)
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        nn.Linear(3, 3)
        cycle = nn.Linear(2, 2)
        cycle.itself = [cycle]
        del cycle
        nn.ReLU()
        norm = nn.LayerNorm(3)
        model = nn.Sequential(nn.Linear(3, 3))
        model.head = nn.Linear(3, 3)
    assert recipe.report.unkeyed == ()
    assert "head.weight" in recipe.report.provenance
    assert (norm.weight == 1).all()


@cpp
def test_a_prefix_a_module_and_the_outermost_names_give_the_same_values():
    def make():
        return nn.Sequential(nn.Linear(3, 3))

    whole = fastinit.build(lambda: nn.ModuleDict({"encoder": make()}), backend="cpp", seed=0)
    part = fastinit.build(make, backend="cpp", seed=0, prefix="encoder")
    again = make()
    with fastinit.capture(again, backend="cpp", seed=0, prefix="encoder."):
        again[0].reset_parameters()
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with fastinit.capture() as inner:
            encoder = fastinit.build(make)
        nested = nn.ModuleDict({"encoder": encoder})
    for other in (part, again, nested["encoder"]):
        assert same_bits(other[0].weight, whole["encoder"][0].weight)
    assert recipe.report.launches == {"cpu": 1}
    with pytest.raises(RuntimeError, match="part of a larger block"):
        inner.report


@cpp
def test_strict_refuses_unnamed_draws_and_still_fills():
    with pytest.raises(
        RuntimeError, match=r"strict: test_roots_and_names.py:\d+ in .* draws normal.* of shape \(4, 4\)"
    ):
        with fastinit.capture(backend="cpp", seed=0, strict=True):
            model = nn.Linear(4, 4)
            nn.init.normal_(model.weight)
            model.weight.sum().item()
    assert model.weight.isfinite().all()
    assert model.bias.abs().max() <= 0.5
    assert is_uninstalled()
    with pytest.raises(RuntimeError, match="strict"):
        fastinit.build(
            lambda: nn.Sequential(orthogonal_by_hand_(nn.Linear(4, 4).weight) is None or nn.Linear(2, 2)),
            backend="cpp",
            strict=True,
        )
    with pytest.raises(RuntimeError, match="strict: `aten.bernoulli.*by order"):
        captured(lambda m: m.a.bernoulli_(0.5), strict=True)


@cpp
def test_unnamed_draws_are_keyed_by_order_and_repeat_under_a_seed():
    def run():
        with fastinit.capture(backend="cpp", seed=0) as recipe:
            tensors = [torch.empty(5).normal_(), torch.randn(5)]
        return tensors, recipe.report.unkeyed

    (one, two), listed = run()
    (again, _), _ = run()
    assert same_bits(one, again)
    assert not same_bits(one, two)
    assert [text[:2] for text in listed] == ["#0", "#1"]
    assert same_bits(one, named_fill("#0", (5,), plans.Normal(0, 1)))


@cpp
def test_fills_of_freed_tensors_are_dropped():
    def code(m):
        for _ in range(3):
            torch.randn(1000, 1000)
        m.a.copy_(torch.randn(1000, 24)[0].view(6, 4))
        m.b.normal_()
        m.b.uniform_()

    _, recipe = captured(code)
    assert recipe.report.n_bytes == 4 * 24
    assert [row.parameter for row in recipe.report.rows if row.action == "fill"] == ["b"]
