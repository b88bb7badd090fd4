"""A plan in a file names its checkpoints with a digest of each tensor, so that another checkpoint is no substitute."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from helpers import same_bits
from lock_files import net
from torch import nn

import fastinit
from fastinit import Plan

pytestmark = needs.mark(needs.CPP)


def source(folder: Path, shift: float = 0.0) -> Path:
    """Writes a checkpoint."""
    state = {
        name: torch.arange(float(value.numel())).view_as(value) + shift for name, value in net().state_dict().items()
    }
    torch.save({"state_dict": state}, folder / "net.pth")
    return folder / "net.pth"


def plan_of(folder: Path, **options: Any) -> Plan:
    """Returns the plan of a copy and a rule, from a file."""
    cfg = [
        dict(type="Pretrained", checkpoint=str(source(folder)), **options),
        dict(type="Normal", std=1, param="2.weight"),
    ]
    fastinit.plan(net(), cfg, backend="cpp", seed=3).save(folder / "plan.json")
    return Plan.load(folder / "plan.json")


def test_a_copy_is_done_again(tmp_path: Path) -> None:
    model = net()
    fastinit.initialize(model, plan_of(tmp_path))
    assert same_bits(model[0].weight, torch.arange(32.0).view(8, 4))


def test_a_rule_after_a_copy_comes_after_it_again(tmp_path: Path) -> None:
    model, expected = net(), net()
    fastinit.initialize(model, plan_of(tmp_path))
    fastinit.initialize(expected, dict(type="Normal", std=1, param="2.weight"), backend="cpp", seed=3)
    assert same_bits(model[2].weight, expected[2].weight)


def test_another_checkpoint_in_its_place_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan, model = plan_of(tmp_path), net()
    before = [parameter.clone() for parameter in model.parameters()]
    source(tmp_path, shift=0.5)
    with pytest.raises(
        RuntimeError, match=r"net.pth is not the checkpoint that the plan was made with: 6 tensors have"
    ):
        fastinit.initialize(model, plan)
    assert all(map(same_bits, before, model.parameters()))


def test_one_changed_bit_is_found_and_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    state = torch.load(tmp_path / "net.pth")
    state["state_dict"]["1.bias"].view(torch.int32)[3] ^= 1
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(RuntimeError, match=r"1 tensors have other names, shapes or values: 1.bias$"):
        fastinit.initialize(net(), plan)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    state = torch.load(tmp_path / "net.pth")
    del state["state_dict"]["1.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(RuntimeError, match=r"1 tensors have other names, shapes or values: 1.bias$"):
        fastinit.initialize(net(), plan)


def test_the_same_tensors_in_another_format_have_the_same_digests(tmp_path: Path) -> None:
    safetensors = needs.module("safetensors.torch")
    plan = plan_of(tmp_path)
    state = torch.load(tmp_path / "net.pth")["state_dict"]
    safetensors.save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "net.pth")
    model = net()
    fastinit.initialize(model, plan)
    assert same_bits(model[0].weight, torch.arange(32.0).view(8, 4))


def test_a_missing_checkpoint_is_an_error_of_the_system(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    os.remove(tmp_path / "net.pth")
    with pytest.raises(FileNotFoundError):
        fastinit.initialize(net(), plan)


def test_a_copy_into_a_part_goes_there_again(tmp_path: Path) -> None:
    def whole() -> nn.Module:
        return nn.ModuleDict(dict(body=fastinit.Sequential(*net())))

    model = whole()
    model["body"].init_cfg = dict(type="Pretrained", checkpoint=str(source(tmp_path)))
    tree = fastinit.Sequential(model["body"])
    fastinit.plan(tree, backend="cpp", seed=3).save(tmp_path / "plan.json")
    (item,) = json.loads((tmp_path / "plan.json").read_text())["items"]
    assert item["module"] == "0" and item["tensors"][0]["name"] == "0.0.weight"
    again = fastinit.Sequential(whole()["body"])
    fastinit.initialize(again, Plan.load(tmp_path / "plan.json"))
    assert same_bits(again[0][0].weight, torch.arange(32.0).view(8, 4))


def test_planning_with_a_checkpoint_that_lacks_a_tensor_is_refused_as_well(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    state = torch.load(tmp_path / "net.pth")
    del state["state_dict"]["1.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(RuntimeError, match=r"1 tensors have other names, shapes or values: 1.bias$"):
        fastinit.plan(net(), plan)


def test_a_meta_model_gets_the_copy_and_the_rest(tmp_path: Path) -> None:
    plan, model, expected = plan_of(tmp_path), net("meta"), net()
    fastinit.materialize(model, plan)
    fastinit.initialize(expected, plan)
    assert all(map(same_bits, model.parameters(), expected.parameters()))


def test_options_of_the_copy_are_kept(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, revise_keys=[(r"^module\.", "")], dtype="bfloat16", key="state_dict")
    model = net()
    fastinit.initialize(model, plan)
    assert same_bits(model[0].weight, torch.arange(32.0).view(8, 4).bfloat16().float())


def test_a_plan_of_a_kept_copy_reads_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    monkeypatch.setattr("fastinit.checkpoint.storage.digests._bytes_of", lambda tensor: pytest.fail("it was read"))
    assert len(fastinit.plan(net(), plan).rows) == 7


def test_a_checkpoint_that_may_run_code_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot hold this request .* weights_only=False and allow=... may run code"):
        plan_of(tmp_path, weights_only=False)


def test_an_address_with_a_secret_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastinit.checkpoint.request.Request.tree", lambda self, **_: torch.load(source(tmp_path)))
    cfg = dict(type="Pretrained", checkpoint="https://user:hunter2@example.com/net.pth")
    with pytest.raises(ValueError, match="holds a secret") as error:
        fastinit.plan(net(), cfg, backend="cpp", seed=3).save(tmp_path / "plan.json")
    assert "hunter2" not in str(error.value) and not (tmp_path / "plan.json").exists()


def test_a_checkpoint_that_is_not_here_yet_is_not_kept(tmp_path: Path) -> None:
    cfg = dict(type="Pretrained", checkpoint="https://example.invalid/net.pth")
    with pytest.raises(ValueError, match="what https://example.invalid/net.pth holds is not known"):
        fastinit.plan(net(), cfg, backend="cpp", seed=3).save(tmp_path / "plan.json")
