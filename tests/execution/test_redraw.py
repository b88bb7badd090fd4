"""``redraw`` gives the values that a plan says, in any dtype, with the parameters' devices, formats and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from helpers import same_bits
from lock_files import INIT_CFG, net
from torch import nn

import fastinit
from fastinit import Plan

pytestmark = needs.mark(needs.CPP)


def made(cfg: Any = None, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, Plan]:
    """Returns a model that was initialized by a plan, and the plan."""
    model = net() if model is None else model
    plan = fastinit.plan(model, cfg or INIT_CFG, **{"backend": "cpp", "seed": 7, **options})
    fastinit.initialize(model, plan)
    return model, plan


def test_the_values_are_those_that_the_plan_gives() -> None:
    model, plan = made()
    values = fastinit.redraw(model, plan)
    assert list(values) == [name for name, _ in model.named_parameters()]
    assert all(same_bits(values[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_masters_are_the_float32_values_of_narrow_parameters(dtype: torch.dtype) -> None:
    cfg = [dict(type="Normal", std=0.02, layer="Linear"), dict(type="Constant", val=1, layer="LayerNorm")]
    expected, _ = made(cfg)
    narrow, plan = made(cfg, net().to(dtype))
    masters = fastinit.redraw(narrow, plan, dtype=torch.float32)
    for name, parameter in narrow.named_parameters():
        assert same_bits(masters[name], expected.get_parameter(name))
        assert same_bits(masters[name].to(dtype), parameter)


def test_without_a_dtype_the_plans_own_counts(tmp_path: Path) -> None:
    expected, plan = made()
    plan.save(tmp_path / "plan.json")
    masters = fastinit.redraw(net().bfloat16(), Plan.load(tmp_path / "plan.json"))
    assert same_bits(masters["0.weight"], expected[0].weight)


def test_what_training_has_changed_does_not_count() -> None:
    model, plan = made()
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert same_bits(fastinit.redraw(model, plan)["0.weight"], before)
    assert (model[0].weight == 0).all()


def test_memory_formats_are_those_of_the_parameters() -> None:
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    model, plan = made(dict(type="Normal", std=1, layer="Conv2d"), model)
    weight = fastinit.redraw(model, plan)["weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last) and same_bits(weight, model.weight)


def test_parts_orthogonal_matrices_and_copies_are_redrawn(tmp_path: Path) -> None:
    torch.save({"1.weight": torch.arange(8.0), "1.bias": torch.arange(8.0) / 3}, tmp_path / "net.pth")
    cfg = [
        dict(type="Orthogonal", layer="Linear"),
        dict(type="Pretrained", checkpoint=str(tmp_path / "net.pth")),
        dict(type="Constant", val=2, param="1.weight"),
    ]
    model, plan = made(cfg)
    values = fastinit.redraw(model, plan)
    assert all(same_bits(values[name], parameter) for name, parameter in model.named_parameters())


def test_buffers_and_parameters_that_the_plan_leaves_alone_are_left_out() -> None:
    model, plan = made(dict(type="Normal", std=1, param="0.weight"), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert list(fastinit.redraw(model, plan)) == ["0.weight"]


def refused(model: nn.Module, plan: Plan, **options: Any) -> str:
    with pytest.raises(RuntimeError) as error:
        fastinit.redraw(model, plan, **options)
    return str(error.value)


def test_torchs_numbers_are_refused_by_name() -> None:
    told = refused(*made(backend="torch"))
    assert told.startswith("redraw: 3 parameters have values that the plan cannot give: 0.weight (torch's generators")


def test_float64_which_has_other_numbers_is_refused() -> None:
    assert "0.weight (float64 has other numbers)" in refused(*made(), dtype=torch.float64)


def test_parts_of_what_is_not_written_are_refused() -> None:
    from capturing import Holder, captured

    model, recipe = captured(lambda model: nn.init.normal_(model.a[2:4]))
    assert "a (only a part of it is written)" in refused(model, fastinit.plan(Holder(), recipe, backend="cpp", seed=0))


def test_something_else_than_a_plan_or_a_dtype_is_an_error() -> None:
    model, plan = made()
    with pytest.raises(TypeError, match="redraw needs a plan"):
        fastinit.redraw(model, INIT_CFG)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dtype must be a floating-point dtype of torch, but got torch\.int8"):
        fastinit.redraw(model, plan, dtype=torch.int8)
