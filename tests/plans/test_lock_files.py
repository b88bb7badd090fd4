"""A plan that was saved and loaded gives the same bits, whatever has changed since: rules, names, libraries, dtypes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import needs
import pytest
from helpers import same_bits
from lock_files import INIT_CFG, agree, initialized, kept, net
from torch import nn

import fastinit
from fastinit import Plan, plans

pytestmark = needs.mark(needs.CPP)


# --- a source of items like a config ---------------------------------------------------------------------------------


def test_initialize_takes_a_plan_from_a_file(tmp_path: Path) -> None:
    model = net()
    fastinit.initialize(model, kept(tmp_path))
    assert agree(model, initialized())


def test_materialize_takes_a_plan_from_a_file(tmp_path: Path) -> None:
    model = net("meta")
    fastinit.materialize(model, kept(tmp_path))
    assert agree(model, initialized())


def test_the_plan_of_a_plan_from_a_file_is_that_plan(tmp_path: Path) -> None:
    plan = fastinit.plan(net(), INIT_CFG, backend="cpp", seed=7)
    expected = [row for row in json.loads(plan.to_json())["rows"] if not row["replaced"]]
    again = json.loads(fastinit.plan(net(), kept(tmp_path)).to_json())["rows"]
    assert sorted(again, key=str) == sorted(expected, key=str)


def test_a_plan_that_was_not_in_a_file_is_a_source_too() -> None:
    model = net()
    fastinit.initialize(model, fastinit.plan(net(), INIT_CFG, backend="cpp", seed=7))
    assert agree(model, initialized())


def test_a_plan_with_torchs_numbers_has_those_of_its_seed() -> None:
    model, expected = net(), net()
    fastinit.initialize(model, fastinit.plan(net(), INIT_CFG, backend="torch", seed=7))
    fastinit.initialize(expected, INIT_CFG, backend="torch", seed=7)
    assert agree(model, expected)


def test_a_plan_may_be_the_config_of_a_base_module(tmp_path: Path) -> None:
    model = fastinit.Sequential(*net(), init_cfg=kept(tmp_path))
    model.init_weights()
    assert agree(model, initialized()) and model.last_init_report.numbers == "contract 1"


def test_code_that_is_recorded_may_be_given_a_plan(tmp_path: Path) -> None:
    plan = kept(tmp_path)

    def make() -> nn.Module:
        model = net()
        fastinit.initialize(model, plan)
        return model

    for options in ({}, dict(backend="cpp", seed=4)):
        assert agree(fastinit.build(make, **options), initialized())


def test_two_plans_in_one_call_keep_their_seeds() -> None:
    model = nn.ModuleDict(dict(x=nn.Linear(3, 3), y=nn.Linear(3, 3)))
    plans = [
        fastinit.plan(model, dict(type="Normal", std=1, param=f"{name}.*"), backend="cpp", seed=seed)
        for name, seed in (("x", 1), ("y", 2))
    ]
    fastinit.initialize(model, plans)
    assert all(not fastinit.verify(model, plan).differs for plan in plans)


def test_copying_a_config_copies_no_plan(tmp_path: Path) -> None:
    plan = kept(tmp_path)
    assert copy.deepcopy([plan])[0] is plan


def test_a_rule_after_a_plan_wins(tmp_path: Path) -> None:
    model = net()
    fastinit.initialize(model, [kept(tmp_path), dict(type="Constant", val=3, param="0.bias")])
    assert (model[0].bias == 3).all() and same_bits(model[0].weight, initialized()[0].weight)


def test_the_report_names_the_seed_and_the_numbers_of_the_file(tmp_path: Path) -> None:
    report = fastinit.initialize(net(), kept(tmp_path))
    assert (report.seed, report.numbers) == (7, "contract 1")


def test_a_block_with_another_seed_does_not_change_the_weights(tmp_path: Path) -> None:
    model = net()
    with fastinit.use(seed=1):
        fastinit.initialize(model, kept(tmp_path))
    assert agree(model, initialized())


def test_another_seed_for_the_call_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"init_cfg: the plan has seed 7, but the call was given seed=8: leave it out"
    ):
        fastinit.initialize(net(), kept(tmp_path), seed=8)


def test_a_backend_with_other_numbers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="'contract 1', and the backend 'torch' gives those of 'torch'"):
        fastinit.initialize(net(), kept(tmp_path), backend="torch")


def test_numbers_of_a_contract_that_is_not_known_are_an_error(tmp_path: Path) -> None:
    text = kept(tmp_path)._text(True).replace("contract 1", "contract 2")
    (tmp_path / "later.json").write_text(text)
    with pytest.raises(RuntimeError, match="'contract 2', which this version of fastinit does not have"):
        fastinit.initialize(net(), Plan.load(tmp_path / "later.json"))


def test_draws_of_code_in_the_same_call_have_the_numbers_of_the_plan(tmp_path: Path) -> None:
    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    plan = fastinit.plan(made(), dict(type="Normal", std=1, param="0.*"), backend="cpp", seed=2)
    plan.save(tmp_path / "part.json")
    a, b = (made().to("meta") for _ in range(2))
    fastinit.materialize(a, Plan.load(tmp_path / "part.json"))
    fastinit.materialize(b, dict(type="Normal", std=1, param="0.*"), backend="cpp", seed=2)
    assert agree(a, b)


# --- what may change -------------------------------------------------------------------------------------------------


def test_a_change_of_a_scheme_does_not_change_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, expected = kept(tmp_path), initialized()
    monkeypatch.setattr("fastinit.config.initializers.xavier", lambda *_, **__: plans.Constant(0))
    assert not agree(initialized(), expected), "a control: rules give other weights now"
    model = net()
    fastinit.initialize(model, plan)
    assert agree(model, expected)


def test_names_that_have_changed_keep_their_streams_under_a_map_of_names(tmp_path: Path) -> None:
    renamed = nn.Sequential()
    for name, module in zip(("inp", "norm", "out"), net().children()):
        renamed.add_module(name, module)
    fastinit.initialize(renamed, kept(tmp_path), prefix={"inp": "0", "norm": "1", "out": "2"})
    assert agree(renamed, initialized())


def test_a_stream_in_the_file_gives_the_numbers_whatever_the_name(tmp_path: Path) -> None:
    document = json.loads(kept(tmp_path)._text(True))
    for item in document["items"]:
        item["stream"], item["name"] = item["name"], item["name"].replace("2.", "head.")
    (tmp_path / "edited.json").write_text(json.dumps(document))
    model = nn.Sequential()
    for name, module in zip(("0", "1", "head"), net().children()):
        model.add_module(name, module)
    fastinit.initialize(model, Plan.load(tmp_path / "edited.json"))
    assert agree(model, initialized())


def test_numbers_from_other_places_of_a_stream_are_kept(tmp_path: Path) -> None:
    document = json.loads(kept(tmp_path)._text(True))
    weight, bias = document["items"][:2]
    at = {"first": 1, "steps": [4]}  # the second column of the weight
    bias.update(values=weight["values"], stream="0.weight", drawn_at=at)
    (tmp_path / "edited.json").write_text(json.dumps(document))
    Plan.load(tmp_path / "edited.json").save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["items"][1]["drawn_at"] == at
    model = net()
    fastinit.initialize(model, Plan.load(tmp_path / "again.json"))
    assert same_bits(model[0].bias, model[0].weight[:, 1])


def test_a_part_of_a_model_takes_its_part_of_the_plan(tmp_path: Path) -> None:
    whole = nn.ModuleDict(dict(backbone=net(), head=nn.Linear(3, 3)))
    fastinit.plan(whole, dict(type="Normal", std=1, param="*"), backend="cpp", seed=5).save(tmp_path / "whole.json")
    fastinit.initialize(whole, dict(type="Normal", std=1, param="*"), backend="cpp", seed=5)
    part = net()
    fastinit.initialize(part, Plan.load(tmp_path / "whole.json"), prefix="backbone")
    assert agree(part, whole["backbone"])


def test_a_narrower_model_gets_the_same_numbers_rounded_and_a_warning(tmp_path: Path) -> None:
    model = net().bfloat16()
    with pytest.warns(UserWarning, match=r"tensors of another dtype than in the plan.*rounded to their own dtype"):
        fastinit.initialize(model, kept(tmp_path))
    assert same_bits(model[0].weight, initialized()[0].weight.bfloat16())


def test_float64_which_has_other_numbers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"0.weight \(8x4 float32 in the plan, 8x4 float64 here, which has other"):
        fastinit.initialize(net().double(), kept(tmp_path))


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_both_lists_are_named_where_names_do_not_fit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(9), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(RuntimeError) as error:
        fastinit.initialize(model, kept(tmp_path))
    assert str(error.value) == (
        "init_cfg: the plan does not fit Sequential: 2 names of the plan that the model lacks: 2.weight, 2.bias; "
        "2 parameters of the model that the plan lacks: 3.weight, 3.bias; 2 tensors of another shape or kind of dtype: "
        "1.weight (8 float32 in the plan, 9 float32 here), 1.bias (8 float32 in the plan, 9 float32 here). "
        "Nothing is written"
    )


def test_a_model_that_does_not_fit_stays_as_it_is(tmp_path: Path) -> None:
    model = nn.Sequential(*net(), nn.Linear(3, 1))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="does not fit"):
        fastinit.initialize(model, kept(tmp_path))
    assert all(map(same_bits, before, model.parameters()))


def test_a_meta_model_that_does_not_fit_stays_on_the_meta_device(tmp_path: Path) -> None:
    model = nn.Sequential(*net("meta"), nn.Linear(3, 1, device="meta"))
    with pytest.raises(RuntimeError, match="does not fit"):
        fastinit.materialize(model, kept(tmp_path))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_parameters_that_the_plan_leaves_alone_may_be_there(tmp_path: Path) -> None:
    plan = fastinit.plan(net(), dict(type="Normal", std=1, param="0.*"), backend="cpp", seed=1)
    plan.save(tmp_path / "plan.json")
    report = fastinit.initialize(net(), Plan.load(tmp_path / "plan.json"))
    assert report.unreached == ("1.weight", "1.bias", "2.weight", "2.bias")
