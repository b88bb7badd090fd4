"""The report of a block tells what wrote a parameter, and what then changed it."""

from __future__ import annotations

import re
from collections.abc import Callable

import needs
import pytest
import torch
from torch import nn

import fastinit

Code = Callable[[nn.Parameter], object]
BACKENDS = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])


def provenance(code: Code, backend: str) -> list[str]:
    """Returns what wrote a parameter that ``code`` is run on after a normal fill: names of functions, "part" behind."""
    with fastinit.capture(backend=backend, seed=0) as recipe:
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(6, 4))
        nn.init.normal_(model.w)
        with torch.no_grad():
            code(model.w)
        recipe.bind(model)
    return shortened(recipe.report.provenance["w"])


def shortened(text: str) -> list[str]:
    found = []
    for step in text.split("; then "):
        match = re.fullmatch(r"`(?:aten\.)?(\w+?)(?:\.\w+)?` at \w+\.py:\d+ in [\w<>]+( \(a part\))?", step)
        found.append(step if match is None else match[1] + (" part" if match[2] else ""))
    return found


def assign(where: object, value: float) -> Code:
    def code(w: nn.Parameter) -> None:
        w[where] = value

    return code


def scaled(w: nn.Parameter) -> None:
    w *= 0.5


def by_rows(w: nn.Parameter) -> None:
    for row in w:
        row.zero_()


def scaled_in_part(w: nn.Parameter) -> None:
    w[:2].mul_(2)


def twice(w: nn.Parameter) -> None:
    w.mul_(2)
    w[0] = 1
    w.add_(1)


@BACKENDS
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (lambda w: None, ["normal_"]),
        (scaled, ["normal_", "mul_"]),
        (lambda w: w.clamp_(-1, 1), ["normal_", "clamp_"]),
        (lambda w: w.div_(w.norm()), ["normal_", "div_"]),
        (lambda w: w.add_(torch.ones(6, 4).cumsum(0)), ["normal_", "add_"]),
        (assign(slice(2), 0), ["normal_", "fill_ part"]),
        (lambda w: w[3].zero_(), ["normal_", "zero_ part"]),
        (lambda w: w.data[:2].normal_(), ["normal_", "normal_ part"]),
        (lambda w: w.masked_fill_(w > 0, 0), ["normal_", "masked_fill_"]),
        (by_rows, ["normal_", "zero_ part"]),
        (scaled_in_part, ["normal_", "mul_ part"]),
        (twice, ["normal_", "mul_", "fill_ part", "add_"]),
    ],
    ids=[
        *("nothing", "imul", "clamp", "norm", "addition", "rows", "padding", "data", "mask", "every row"),
        *("part", "several"),
    ],
)
def test_changes_of_a_fill_are_told_behind_it(backend: str, code: Code, expected: list[str]) -> None:
    assert provenance(code, backend) == expected


@BACKENDS
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (lambda w: nn.init.constant_(w, 1), ["fill_"]),
        (lambda w: nn.init.uniform_(w.mul_(2)), ["uniform_"]),
        (lambda w: w.copy_(torch.ones(6, 4).cumsum(0)), ["copy_"]),
        (lambda w: w.div_(w.norm()).zero_(), ["zero_"]),
        (lambda w: w.bernoulli_(0.5), ["bernoulli_"]),
    ],
    ids=["constant", "fill", "copy", "after a change", "draw"],
)
def test_what_is_overwritten_is_not_told(backend: str, code: Code, expected: list[str]) -> None:
    assert provenance(code, backend) == expected


@BACKENDS
def test_a_scaled_temporary_is_told_with_its_scale(backend: str) -> None:
    def code(w: nn.Parameter) -> None:
        w.copy_(torch.randn(6, 4) * 0.02)

    assert provenance(code, backend) == ["randn", "mul"]


@BACKENDS
def test_many_changes_are_told_by_the_first_and_the_last(backend: str) -> None:
    def code(w: nn.Parameter) -> None:
        w.mul_(2)
        for _ in range(20):
            w.add_(1)
            w.mul_(2)

    assert provenance(code, backend) == ["normal_", "mul_", "...", "mul_", "add_", "mul_"]


@BACKENDS
def test_code_that_changes_what_a_rule_wrote_is_told_behind_the_rule(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0) as recipe:
        model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
        recipe.bind(model)
        fastinit.initialize(model, dict(type="Normal", layer="Linear"))
        with torch.no_grad():
            model["a"].weight[0] = 0
            model["b"].weight.mul_(0.5)
    told = recipe.report.provenance
    assert shortened(told["a.weight"]) == ["NormalInit: mean=0, std=1, bias=0 (init_cfg)", "fill_ part"]
    assert shortened(told["b.weight"]) == ["NormalInit: mean=0, std=1, bias=0 (init_cfg)", "mul_"]


@BACKENDS
def test_a_rule_for_a_part_is_told_behind_that_for_the_whole(backend: str) -> None:
    rules = [
        dict(type="Constant", val=1, param="weight"),
        dict(type="Constant", val=2, param="weight[0:2]"),
        dict(type="Normal", param="bias[0:2]"),
    ]
    report = fastinit.initialize(nn.Linear(4, 4), rules, backend=backend, seed=0)
    told = "ConstantInit: val=1 (init_cfg[0]); then ConstantInit: val=2 (init_cfg[1]) (a part)"
    assert report.provenance["weight"] == told
    assert report.provenance["bias"] == "NormalInit: mean=0, std=1 (init_cfg[2])"


@BACKENDS
def test_blocks_of_one_rule_are_told_once(backend: str) -> None:
    report = fastinit.initialize(
        nn.Linear(4, 6), dict(type="Orthogonal", layer="Linear", blocks=3), backend=backend, seed=0
    )
    assert "; then " not in report.provenance["weight"]


@BACKENDS
def test_a_recipe_tells_again_what_was_recorded(backend: str) -> None:
    def make() -> nn.Module:
        model = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            model.weight.mul_(2)
            model.weight[0].zero_()
        return model

    with fastinit.capture(backend=backend, seed=0) as recipe, torch.device("meta"):
        model = make()
        recipe.bind(model)
    report = fastinit.materialize(model, recipe=recipe, device="cpu", backend=backend, seed=0)
    assert shortened(report.provenance["weight"]) == ["uniform_", "mul_", "zero_ part"]


@BACKENDS
def test_columns_of_one_buffer_do_not_tell_of_each_other(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0) as recipe:
        memory, model = torch.empty(4, 6), nn.Module()
        model.left, model.right = nn.Parameter(memory[:, :2]), nn.Parameter(memory[:, 2:])
        recipe.bind(model)
        with torch.no_grad():
            memory.normal_()
            model.left.fill_(1)
            model.right[0].uniform_()
    told = {name: shortened(text) for name, text in recipe.report.provenance.items()}
    assert told == {"left": ["fill_"], "right": ["normal_", "uniform_ part"]}
