"""The table of a report tells of each parameter what it got in the end: what changed a fill, and what code computed."""

from __future__ import annotations

from collections.abc import Callable

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit.plans import Row
from fastinit.plans.alike import alike

BACKENDS = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])
RULE = dict(type="Normal", std=0.5, layer="Linear")


def reported(code: Callable[[nn.Linear], object], backend: str) -> dict[str, list[Row]]:
    """Returns the rows that count of a layer that a rule fills and code then changes, by name."""
    with fastinit.capture(backend=backend, seed=0) as recipe:
        model = nn.Linear(4, 4)
        recipe.bind(model)
        fastinit.initialize(model, RULE)
        with torch.no_grad():
            code(model)
    found: dict[str, list[Row]] = {}
    for row in recipe.report.rows:
        if not row.replaced:
            found.setdefault(row.parameter, []).append(row)
    return found


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (lambda model: None, "normal(mean=0, std=0.5)"),
        (lambda model: model.weight.mul_(0.5), "normal(mean=0, std=0.5), then changed by mul_"),
        (lambda model: model.weight.clamp_(-1, 1), "normal(mean=0, std=0.5), then changed by clamp_"),
        (lambda model: model.weight[0].mul_(2), "normal(mean=0, std=0.5), then changed by mul_ (a part)"),
        (lambda model: model.weight.mul_(2).add_(1), "normal(mean=0, std=0.5), then changed by mul_, add_"),
    ],
    ids=["nothing", "scaled", "clamped", "a part", "twice"],
)
def test_a_rules_fill_that_code_changes_is_told_as_changed(code: Callable[[nn.Linear], object], told: str) -> None:
    (row,) = reported(code, "torch")["weight"]
    assert row.description == told


@BACKENDS
def test_a_recorded_fill_that_is_scaled_is_told_with_the_numbers_it_came_to(backend: str) -> None:
    (row,) = reported(lambda model: nn.init.normal_(model.weight, std=0.5).mul_(0.5), backend)["weight"]
    assert row.description == "normal(mean=0, std=0.25)" and "then" not in row.values


def test_the_json_of_a_changed_fill_has_the_lines_of_code() -> None:
    (row,) = reported(lambda model: model.weight.mul_(0.5), "torch")["weight"]
    (step,) = row.values["then"]
    assert step.startswith("`aten.mul_.Tensor` at test_reported_changes.py:")


@BACKENDS
def test_a_part_that_is_filled_later_has_a_row_and_is_no_change_of_the_whole(backend: str) -> None:
    rows = reported(lambda model: model.weight[0].fill_(7), backend)["weight"]
    assert [row.description for row in rows] == ["normal(mean=0, std=0.5)", "constant(7)"]


@BACKENDS
def test_what_recorded_code_computes_has_a_row(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0) as recipe:
        model = nn.Linear(4, 3)
        recipe.bind(model)
        with torch.no_grad():
            model.weight.normal_().mul_(-0.5)
    rows = {row.parameter: row for row in recipe.report.rows}
    assert rows["weight"].description == f"computed: {recipe.report.provenance['weight']}"
    assert rows["weight"].shape == (3, 4) and rows["weight"].action == "compute"
    assert "2 parameters initialized: 15 elements" in recipe.report.summary()


@BACKENDS
def test_a_fill_that_a_childs_own_init_weights_changes_is_told_as_changed(backend: str) -> None:
    class Child(fastinit.BaseModule):
        def __init__(self) -> None:
            super().__init__(RULE)
            self.fc, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def init_weights(self) -> None:
            super().init_weights()
            self.fc.weight.data.clamp_(-1, 1)

    tree = fastinit.Sequential(Child())
    with fastinit.use(backend=backend, seed=0):
        tree.init_weights()
    told = {row.parameter: row.description for row in tree.last_init_report.rows}
    changed = {
        "torch": "normal(mean=0, std=0.5), then changed by user-defined `init_weights` in Child",
        "cpp": "computed: NormalInit: mean=0, std=0.5, bias=0; then `aten.clamp_.default` at test_reported_changes.py",
    }
    assert told["0.fc.weight"].partition(":9")[0] == changed[backend]
    assert told["0.other.weight"] == "normal(mean=0, std=0.5)"


def test_an_initializer_that_changes_what_a_rule_wrote_is_told() -> None:
    def halve(module: nn.Linear) -> None:
        module.weight.data.mul_(0.5)

    report = fastinit.initialize(nn.Linear(2, 2), [RULE, halve])
    (weight, bias, _) = report.rows
    assert weight.description == "normal(mean=0, std=0.5), then changed by halve"
    assert bias.description == "constant(0)"


def test_provenance_names_no_place_where_it_may_be_either_of_two() -> None:
    class Fill(fastinit.BaseInit):
        def __call__(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                module.weight.data.fill_(1)

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    report = fastinit.initialize(model, [dict(type=Fill)])
    assert report.provenance == {}
    report = fastinit.initialize(model[0], [RULE, dict(type=Fill)])
    assert report.provenance["weight"] == "Fill, bias=0 (init_cfg[1])"
    report = fastinit.initialize(model[0], [dict(type=Fill), RULE, dict(type=Fill)])
    assert report.provenance["weight"] == "Fill, bias=0"


def test_changed_fills_whose_numbers_go_with_the_depth_are_in_no_range() -> None:
    rows = [
        Row(
            f"l.{at}.w", (2,), "float32", "cpu", "fill", {"kind": "normal", "std": at, "then": ["x"]}, text, "r", "", ""
        )
        for at in range(6)
        for text in [f"normal(std={at}), then changed by x (a part)"]
    ]
    assert [row.description for row in alike(rows)] == [row.description for row in rows]
