"""A plan fits a review: like rows are one, in the model's order, and rules that change nothing change nothing there."""

from __future__ import annotations

import json
import re
from typing import Any

import needs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastinit
from fastinit import Plan
from fastinit.plans.alike import collapsed


def expanded(pattern: str) -> list[str]:
    """Returns the names that a pattern stands for."""
    found = re.search(r"\{([^}]*)\}", pattern)
    if found is None:
        return [pattern]
    values: list[int] = []
    before, _, last = found[1].partition("..")
    first, *others = [int(each) for each in before.split(",")]
    values = list(range(first, int(last) + 1, others[0] - first if others else 1)) if last else [first, *others]
    return [name for value in values for name in expanded(pattern.replace(found[0], str(value), 1))]


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["a.weight"], ["a.weight"]),
        ([f"layers.{i}.w" for i in range(32)], ["layers.{0..31}.w"]),
        (["0.w", "1.w"], ["{0,1}.w"]),
        ([f"l.{i}.e.{j}.w" for i in range(4) for j in range(8)], ["l.{0..3}.e.{0..7}.w"]),
        ([f"l.{i}.w" for i in (1, 3, 5, 7)], ["l.{1,3..7}.w"]),
        ([f"l.{i}.w" for i in (0, 1, 5)], ["l.{0,1,5}.w"]),
        (["l.0.e.0.w", "l.0.e.1.w", "l.1.e.0.w"], ["l.0.e.{0,1}.w", "l.1.e.0.w"]),
        (["l.00.w", "l.01.w"], ["l.00.w", "l.01.w"]),
        (["a.0.w", "b.0.w"], ["a.0.w", "b.0.w"]),
    ],
)
def test_names_become_patterns(names: list[str], patterns: list[str]) -> None:
    assert [name for name, _ in collapsed((name, "") for name in names)] == patterns


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 2)), max_size=40))
def test_patterns_stand_for_exactly_the_names_that_they_are_made_of(points: set[tuple[int, int, int]]) -> None:
    names = sorted(f"l.{i}.e.{j}.w.{k % 2}" for i, j, k in points)
    found = [name for pattern, _ in collapsed((name, "") for name in set(names)) for name in expanded(pattern)]
    assert sorted(found) == sorted(set(names))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_rows_that_say_something_else_are_not_in_a_pattern(said: list[int]) -> None:
    named = [(f"l.{i}.w", each) for i, each in enumerate(said)]
    found = [(name, each) for pattern, each in collapsed(named) for name in expanded(pattern)]
    assert sorted(found) == sorted(named)


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)


def transformer(n_layers: int = 6, width: int = 16) -> nn.Module:
    with torch.device("meta"):
        layers = nn.ModuleList([Block(width) for _ in range(n_layers)])
        return nn.ModuleDict(dict(layers=layers, embed=nn.Embedding(100, width)))


ALIKE = [
    dict(type="Normal", std=0.02, param="*w?.weight"),
    dict(type="Constant", val=1, layer="LayerNorm"),
    dict(type="Normal", std=1, param="embed.weight"),
]
BY_DEPTH = [*ALIKE, dict(type="Normal", param=r"re:layers\.(?P<i>\d+)\.wo\.weight", std="0.02 / sqrt(2 * (i + 1))")]


def first_column(plan: Plan, **options: Any) -> list[str]:
    return [line.split()[0] for line in plan.table(**options).splitlines()[2:]]


def test_like_layers_are_one_row() -> None:
    assert first_column(fastinit.plan(transformer(), ALIKE)) == [
        "layers.{0..5}.wq.weight",
        "layers.{0..5}.wo.weight",
        "layers.{0..5}.norm.weight",
        "layers.{0..5}.norm.bias",
        "embed.weight",
    ]


def test_numbers_that_go_with_the_depth_are_a_range() -> None:
    assert "layers.{0..5}.wo.weight    16x16   float32  meta    normal(mean=0, std=0.0141421..0.0057735)" in str(
        fastinit.plan(transformer(), BY_DEPTH)
    )


def test_numbers_that_rise_and_fall_stay_apart() -> None:
    cfg = [*ALIKE, dict(type="Normal", param=r"re:layers\.(?P<i>\d+)\.wo\.weight", std="0.1 + (i - 2) ** 2")]
    assert sum("wo" in name for name in first_column(fastinit.plan(transformer(), cfg))) == 4


def test_a_few_layers_with_other_numbers_stay_apart() -> None:
    cfg = [*ALIKE, dict(type="Normal", param="layers.[03].wo.weight", std=1)]
    assert [name for name in first_column(fastinit.plan(transformer(), cfg)) if "wo" in name] == [
        "layers.{0,3}.wo.weight",
        "layers.{1,2,4,5}.wo.weight",
    ]


def test_all_rows_are_there_on_request() -> None:
    assert len(first_column(fastinit.plan(transformer(), ALIKE), collapse=False)) == 25


@pytest.mark.parametrize("how", [{}, dict(collapse=False), dict(history=True), dict(max_rows=3)], ids=str)
def test_a_report_shows_its_rows_as_the_plan_does(how: dict[str, Any]) -> None:
    model, cfg = transformer(width=4).to_empty(device="cpu"), [*ALIKE, ALIKE[0]]
    assert fastinit.plan(model, cfg).table(**how) == fastinit.initialize(model, cfg).table(**how)


def test_a_model_of_405b_parameters_is_on_one_screen() -> None:
    plan = fastinit.plan(transformer(126, 16384), BY_DEPTH)
    assert len(str(plan).splitlines()) < 24 and len(plan.rows) > 600


def test_the_table_does_not_depend_on_the_order_of_the_rules() -> None:
    a, b = (fastinit.plan(transformer(), cfg).table() for cfg in (ALIKE, [ALIKE[2], *ALIKE[:2]]))
    assert [line.split("init_cfg")[0] for line in a.splitlines()] == [
        line.split("init_cfg")[0] for line in b.splitlines()
    ]


def test_rules_that_change_nothing_leave_the_json_as_it_is() -> None:
    def values(cfg: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = json.loads(fastinit.plan(transformer(), cfg).to_json())["rows"]
        return [{key: value for key, value in row.items() if key not in ("rule", "info")} for row in rows]

    assert values([dict(type="Normal", std=9, param="*"), *BY_DEPTH]) == values(BY_DEPTH)


def test_the_json_has_the_history_on_request() -> None:
    rows = json.loads(fastinit.plan(transformer(1), [*ALIKE, *ALIKE]).to_json(history=True))["rows"]
    assert len(rows) == 10 and sum(row["replaced"] for row in rows) == 5


def test_buffers_come_with_their_modules() -> None:
    def made() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))

    rows = json.loads(fastinit.plan(made).to_json())["rows"]
    assert [row["parameter"] for row in rows] == [
        "0.weight",
        "0.bias",
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
        "1.weight",
        "1.bias",
    ]


def test_copies_of_like_names_are_one_row(tmp_path: Any) -> None:
    model = nn.ModuleDict(dict(layers=nn.ModuleList([Block() for _ in range(3)])))
    torch.save(model.state_dict(), tmp_path / "net.pth")
    plan = fastinit.plan(model, dict(type="Pretrained", checkpoint=str(tmp_path / "net.pth")))
    assert first_column(plan)[0] == "layers.{0..2}.wq.weight" and "copy of layers.{..}.wq.weight in" in plan.table()


# --- differences -----------------------------------------------------------------------------------------------------


def planned(cfg: Any = None, **options: Any) -> Plan:
    return fastinit.plan(transformer(), cfg or ALIKE, **{"seed": 1, "backend": "cpp", **options})


def test_a_plan_does_not_differ_from_itself() -> None:
    diff = planned().diff(planned())
    assert not diff and str(diff) == "no difference"


def test_constants_are_compared_as_the_parameter_holds_them() -> None:
    def diff(val: Any, other: Any) -> Any:
        old, new = ([dict(type="Constant", val=each, param="*.norm.weight")] for each in (val, other))
        return planned(old).diff(planned(new))

    assert not diff(1, 1.0) and not diff(True, 1)
    assert diff(0.0, -0.0).changed and diff(1, 2).changed


def test_the_order_and_the_names_of_rules_are_no_difference() -> None:
    assert not planned().diff(planned([dict(type="Constant", val=5, param="*"), *reversed(ALIKE)]))


def test_devices_are_no_difference() -> None:
    assert not planned().diff(planned(device="cpu"))


def test_changed_numbers_are_told_by_parameter_with_like_layers_as_one() -> None:
    diff = planned().diff(planned([*ALIKE, dict(type="Normal", std=0.5, param="*wo.weight")]))
    assert str(diff) == (
        "from this plan to the other:\n"
        "changed:\n"
        "  layers.{0..5}.wo.weight  16x16  float32  normal(mean=0, std=0.02) -> normal(mean=0, std=0.5)\n"
        "6 changed, 0 added, 0 removed"
    )


def test_changes_that_go_with_the_depth_are_one_line() -> None:
    assert (
        "  layers.{0..5}.wo.weight  16x16  float32  normal(mean=0, std=0.02) -> normal(mean=0, std=0.0141421..0.00"
        in (str(planned().diff(planned(BY_DEPTH))))
    )


def test_rows_are_added_and_removed() -> None:
    diff = planned(ALIKE[:2]).diff(planned(ALIKE[1:]))
    assert [row.parameter for row in diff.added] == ["embed.weight"]
    assert {row.parameter.split(".")[2] for row in diff.removed} == {"wq", "wo"} and len(diff.removed) == 12
    assert not diff.changed


def test_shapes_and_dtypes_are_compared() -> None:
    small, large = (fastinit.plan(nn.Linear(n, 2, dtype=dtype), dict(type="Constant", val=0, param="weight"))
        for n, dtype in ((3, torch.float32), (4, torch.float16)))  # fmt: skip
    assert "weight  2x3 -> 2x4  float32 -> float16  constant(0)" in str(small.diff(large))


def test_a_seed_is_told_once() -> None:
    diff = planned().diff(planned(seed=2))
    assert diff.seed == (1, 2) and not diff.changed and bool(diff)
    assert str(diff).splitlines()[1] == "seed: 1 -> 2, so that all draws differ"


def test_a_seed_is_no_difference_where_nothing_is_drawn() -> None:
    assert not planned(ALIKE[1:2]).diff(planned(ALIKE[1:2], seed=2))


@needs.mark(needs.CPP)
def test_other_numbers_are_told_once() -> None:
    assert planned().diff(planned(backend="torch")).numbers == ("contract 1", "torch")


def test_numbers_are_no_difference_where_nothing_is_drawn() -> None:
    assert not planned(ALIKE[1:2]).diff(planned(ALIKE[1:2], backend="torch"))


@needs.mark(needs.CPP)
def test_a_plan_does_not_differ_from_itself_in_a_file(tmp_path: Any) -> None:
    planned(BY_DEPTH).save(tmp_path / "plan.json")
    assert not planned(BY_DEPTH).diff(Plan.load(tmp_path / "plan.json"))


@needs.mark(needs.CPP)
def test_a_difference_begins_with_what_its_sides_are(tmp_path: Any) -> None:
    planned().save(path := tmp_path / "plan.json")
    diff = Plan.load(path).diff(planned(seed=2))
    assert str(diff).splitlines()[0] == f"from {path} to the other:"
    assert json.loads(diff.to_json())["sides"] == [str(path), "the other"]
    assert diff == planned().diff(planned(seed=2))


def test_the_difference_has_a_json_form() -> None:
    document = json.loads(
        planned().diff(planned([*ALIKE[:2], dict(type="Normal", std=2, param="embed.weight")])).to_json()
    )
    assert document["fastinit_plan_diff"] == 1 and document["seed"] is None and document["added"] == []
    (change,) = document["changed"]
    assert (change["old"]["values"]["std"], change["new"]["values"]["std"]) == (1.0, 2.0)


def test_another_stream_is_a_difference() -> None:
    from capturing import Holder, captured

    def own(model: nn.Module) -> None:
        nn.init.normal_(model.b)

    plans = [fastinit.plan(Holder(), captured(own)[1], backend="cpp", seed=0)]
    (item,) = plans[0].items
    from dataclasses import replace

    plans.append(replace(plans[0], items=(replace(item, stream="other"),)))
    assert [old.parameter for old, _ in plans[0].diff(plans[1]).changed] == ["b"]


def test_something_else_than_a_plan_is_an_error() -> None:
    with pytest.raises(TypeError, match="diff needs another plan"):
        planned().diff(planned().to_json())  # type: ignore[arg-type]
