"""The plan of a checkpoint shows the tensors that the load gives, those of the file where it adopts them (``assign``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit


def narrow() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16()


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A checkpoint of the model in float32."""
    torch.save(narrow().float().state_dict(), tmp_path / "wide.pth")
    return tmp_path / "wide.pth"


def shown(result: fastinit.Plan | fastinit.Report) -> list[tuple[str, str, str]]:
    return [(row.parameter, row.dtype, row.device) for row in result.rows]


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_plan_shows_the_dtype_and_device_of_what_is_adopted(wide: Path, device: str, dtype: str | None) -> None:
    rule = dict(type="Pretrained", checkpoint=wide, assign=True, dtype=dtype)
    model = narrow().to(device)
    plan = fastinit.plan(model, rule)
    report = fastinit.initialize(model, rule)
    assert shown(plan) == shown(report)
    assert shown(plan)[0] == ("0.weight", dtype or "float32", "cpu")
    assert model[0].weight.dtype == getattr(torch, dtype or "float32")


def test_a_plan_shows_the_models_dtype_of_what_is_copied(wide: Path) -> None:
    plan = fastinit.plan(narrow(), dict(type="Pretrained", checkpoint=wide))
    assert shown(plan)[0] == ("0.weight", "bfloat16", "cpu")


def test_a_rule_after_an_adopted_tensor_fills_that(wide: Path) -> None:
    rules = [dict(type="Pretrained", checkpoint=wide, assign=True), dict(type="Constant", val=3, param="0.weight")]
    model = narrow()
    plan = fastinit.plan(model, rules)
    assert shown(plan) == shown(fastinit.initialize(model, rules))
    assert model[0].weight.dtype == torch.float32 and (model[0].weight == 3).all()


def test_the_plan_of_materialize_shows_the_device_that_it_was_given(wide: Path) -> None:
    rule = dict(type="Pretrained", checkpoint=wide, assign=True)
    plan = fastinit.plan(narrow().to("meta"), rule, device="cuda:1")
    assert shown(plan)[0] == ("0.weight", "float32", "cuda:1")


@needs.mark(needs.CPP)
@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}], ids=str)
def test_a_model_holds_what_a_kept_plan_adopted(wide: Path, options: dict[str, Any], tmp_path: Path) -> None:
    fastinit.plan(narrow(), dict(type="Pretrained", checkpoint=str(wide), assign=True, **options)).save(tmp_path / "p")
    plan, model = fastinit.Plan.load(tmp_path / "p"), narrow()
    fastinit.initialize(model, plan)
    assert fastinit.verify(model, plan)
    assert fastinit.redraw(model, plan)["0.weight"].dtype == model[0].weight.dtype != torch.bfloat16


def test_a_kept_plan_adopts_whatever_the_models_dtype_was(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3, dtype=torch.int32)}, tmp_path / "whole.pth")
    plan = fastinit.plan(holder(), dict(type="Pretrained", checkpoint=str(tmp_path / "whole.pth"), assign=True))
    plan.save(tmp_path / "p")
    for each in (plan, fastinit.Plan.load(tmp_path / "p")):
        model = holder()
        fastinit.initialize(model, each)
        assert model.weight.dtype == torch.int32 and shown(plan) == [("weight", "int32", "cpu")]


def holder() -> nn.Module:
    model = nn.Module()
    model.register_buffer("weight", torch.zeros(2, 3))
    return model
