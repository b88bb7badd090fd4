"""What the file of a plan can hold, comes back exactly; what it cannot is refused, and is named."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import needs
import pytest
import torch
from helpers import same_bits
from lock_files import INIT_CFG, Opaque, agree, initialized, kept, net
from torch import nn

import fastinit
from fastinit import Plan, plans

pytestmark = needs.mark(needs.CPP)


# --- what cannot be kept ---------------------------------------------------------------------------------------------


def refusal(plan: Plan, path: Path) -> str:
    with pytest.raises(ValueError) as error:
        plan.save(path)
    assert not path.exists()
    return str(error.value)


def test_torchs_numbers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    told = refusal(fastinit.plan(net(), INIT_CFG, backend="torch", seed=1), tmp_path / "plan.json")
    assert "'0.weight' and 3 others would be drawn by torch's generators" in told and "backend='cpp'" in told


def test_a_plan_without_a_seed_is_refused_with_what_to_do(tmp_path: Path) -> None:
    told = refusal(fastinit.plan(net(), INIT_CFG, backend="cpp"), tmp_path / "plan.json")
    assert "the plan has no seed: plan with seed=..." in told


def test_constants_need_neither_seed_nor_contract(tmp_path: Path) -> None:
    fastinit.plan(net(), dict(type="Constant", val=2, param="*"), backend="torch").save(tmp_path / "plan.json")
    model = net()
    fastinit.initialize(model, Plan.load(tmp_path / "plan.json"))
    assert all((parameter == 2).all() for parameter in model.parameters())


def opaque_plan() -> Plan:
    return fastinit.plan(fastinit.Sequential(Opaque()), backend="cpp", seed=1)


def test_calls_are_refused_by_name(tmp_path: Path) -> None:
    assert "'0.init_weights() of Opaque' runs code of its own" in refusal(opaque_plan(), tmp_path / "plan.json")


def test_calls_that_were_kept_are_refused_where_they_would_have_to_run(tmp_path: Path) -> None:
    opaque_plan().save(tmp_path / "plan.json", exact=False)
    with pytest.raises(
        RuntimeError, match=r"calls of code that a plan holds the names of only: 0.init_weights\(\) of Opaque"
    ):
        fastinit.initialize(fastinit.Sequential(Opaque()), Plan.load(tmp_path / "plan.json"))


def test_what_cannot_promise_bits_is_kept_on_request(tmp_path: Path) -> None:
    plan = fastinit.plan(net(), INIT_CFG, backend="torch", seed=1)
    plan.save(tmp_path / "plan.json", exact=False)
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.numbers == "torch" and "torch's generators" in loaded.why_not_exact


def test_a_saved_plan_with_torchs_numbers_gives_its_distributions_to_any_backend(tmp_path: Path) -> None:
    fastinit.plan(net(), INIT_CFG, backend="torch").save(tmp_path / "plan.json", exact=False)
    model = net()
    fastinit.initialize(model, Plan.load(tmp_path / "plan.json"), backend="cpp", seed=7)
    assert agree(model, initialized())


# --- what is computed ------------------------------------------------------------------------------------------------


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4))
        self.register_buffer("table", torch.arange(8.0) / 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        with torch.no_grad():
            self.table.copy_(torch.arange(8.0) / 3)


def test_computed_tables_are_left_to_the_models_own_code(tmp_path: Path) -> None:
    fastinit.plan(lambda: Rotary(), backend="cpp", seed=1).save(tmp_path / "plan.json")
    with torch.device("meta"):
        model = Rotary()
    fastinit.materialize(model, Plan.load(tmp_path / "plan.json"))
    assert same_bits(model.table, torch.arange(8.0) / 3)


def test_computed_tables_of_a_model_with_memory_are_named_as_left_alone(tmp_path: Path) -> None:
    fastinit.plan(lambda: Rotary(), backend="cpp", seed=1).save(tmp_path / "plan.json")
    with pytest.warns(
        UserWarning, match="1 tensors that code computes, of which a plan has names only: table. They ke"
    ):
        fastinit.initialize(Rotary(), Plan.load(tmp_path / "plan.json"))


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.pi], ids=str)
def test_floats_come_back_exactly(tmp_path: Path, value: float) -> None:
    fastinit.plan(nn.Linear(2, 2).double(), dict(type="Constant", val=value, param="*"), seed=0).save(tmp_path / "p")
    (fill, _) = Plan.load(tmp_path / "p").items
    assert fill.distribution == plans.Constant(value)


@pytest.mark.parametrize("value", [True, 1, 1.0, math.inf, -math.inf, math.nan], ids=str)
def test_numbers_keep_their_kind(tmp_path: Path, value: float) -> None:
    fastinit.plan(nn.Linear(2, 2), dict(type="Constant", val=value, param="*"), seed=0).save(tmp_path / "p")
    (fill, _) = Plan.load(tmp_path / "p").items
    assert repr(fill.distribution.value) == repr(value)


def test_complex_numbers_come_back(tmp_path: Path) -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    fastinit.plan(model, dict(type="Constant", val=1 - 2.5j, param="*"), seed=0).save(tmp_path / "p")
    fastinit.initialize(model, Plan.load(tmp_path / "p"))
    assert (model.weight == 1 - 2.5j).all()


def test_saving_a_loaded_plan_gives_the_same_file(tmp_path: Path) -> None:
    plan = kept(tmp_path)
    plan.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_a_rule_that_changes_nothing_leaves_the_values_in_the_file_as_they_are(tmp_path: Path) -> None:
    def values(cfg: list[dict]) -> list:
        fastinit.plan(net(), cfg, backend="cpp", seed=7).save(tmp_path / "p")
        return [(item["name"], item["values"]) for item in json.loads((tmp_path / "p").read_text())["items"]]

    assert values([dict(type="Normal", std=9, param="*"), *INIT_CFG]) == values(INIT_CFG)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = kept(tmp_path)
    before = (tmp_path / "plan.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        plan.save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_bytes() == before


@needs.mark(needs.LINUX)
def test_a_file_has_the_permissions_of_new_files(tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / "plain").touch()
    assert (tmp_path / "plan.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- parts, streams and seeds of their own ---------------------------------------------------------------------------


def columns(model: nn.Module) -> None:
    nn.init.normal_(model.a)
    nn.init.uniform_(model.a[:, 1:3])
    nn.init.zeros_(model.b.t()[2:])
    nn.init.normal_(model.c[::2])


def joined(model: nn.Module) -> None:
    nn.init.normal_(model.a.t())
    model.b.copy_(torch.cat([nn.init.normal_(torch.empty(2, 6)), nn.init.uniform_(torch.empty(2, 6))]))
    model.c.fill_(1)


def seeded(model: nn.Module) -> None:
    with fastinit.use(seed=99):
        fastinit.initialize(model, dict(type="Normal", std=1, param="a"))
    model.b.zero_()
    model.c.zero_()


@pytest.mark.parametrize("code", [columns, joined, seeded], ids=lambda code: code.__name__)
def test_recorded_parts_and_streams_give_the_same_bits(tmp_path: Path, code: Callable[[nn.Module], None]) -> None:
    from capturing import Holder, captured

    made, recipe = captured(code)
    fastinit.plan(Holder(), recipe, backend="cpp", seed=0).save(tmp_path / "plan.json")
    model = Holder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastinit.initialize(model, Plan.load(tmp_path / "plan.json"))
    assert agree(model, made)


class WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(8.0).sin())
        self.layer, self.last = nn.Linear(4, 4), nn.Parameter(torch.ones(2))


def test_a_plan_from_a_file_shows_what_the_plan_showed_in_the_models_order(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "a.pth")
    cfg = [
        dict(type="Normal", override=dict(name="1", type="Pretrained", checkpoint=str(tmp_path / "a.pth"))),
        dict(type="Constant", val=3, param=["0.layer.bias", "2.layer.weight[1:3]"]),
    ]
    plan = fastinit.plan(lambda: nn.Sequential(WithTable(), nn.Linear(4, 4), WithTable()), cfg, backend="cpp", seed=1)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert shown(loaded) == shown(plan) and len(shown(plan)) == 11
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "plan.json").read_text()


def shown(plan: Plan) -> list[list[str]]:
    """Returns the table's cells but for device, rule and backend."""
    cells = [line.replace("  cpu ", "").replace("  meta ", "") for line in plan.table(collapse=False).splitlines()[2:]]
    return [re.split("  +", each)[:4] for each in cells]


def test_a_file_in_the_models_order_names_no_order(tmp_path: Path) -> None:
    assert "order" not in json.loads(kept(tmp_path)._text(True))
