"""The initialization that other libraries leave out on the meta device, and their modules' own code."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastinit
from fastinit.recording.libraries import initialize_like_its_library, models_own_code, own_code


class PreTrainedModel(nn.Module):
    """A model as transformers' are: it has code for each of its modules, and notes for which it ran."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(children)
        self.ran: list[str] = []

    def initialize_weights(self) -> None:
        self.ran.append("initialize_weights")

    def _init_weights(self, module: nn.Module) -> None:
        self.ran.append(type(module).__name__)
        if isinstance(module, nn.Linear):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


@pytest.fixture(autouse=True)
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", SimpleNamespace(PreTrainedModel=PreTrainedModel))  # type: ignore[misc]


def linear(device: str) -> nn.Linear:
    return nn.Linear(2, 2, device=device)


# --- what a constructor has left out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "ran"), [("meta", ["initialize_weights"]), ("cpu", [])])
def test_a_model_is_initialized_as_by_its_constructor_on_the_meta_device_only(device: str, ran: list[str]) -> None:
    model = PreTrainedModel(linear(device))
    initialize_like_its_library(nn.Sequential(model))
    assert model.ran == ran


def test_a_model_that_is_initialized_already_is_left_alone() -> None:
    model = PreTrainedModel(linear("meta"))
    model._is_hf_initialized = True  # type: ignore[assignment]
    initialize_like_its_library(model)
    assert model.ran == []


def test_without_transformers_no_module_is_a_model_of_its(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers.modeling_utils")
    model = PreTrainedModel(linear("meta"))
    initialize_like_its_library(model)
    assert model.ran == [] and models_own_code(model) == {}


# --- the code of modules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reset_parameters", "_reset_parameters"])
def test_modules_fill_themselves_by_either_name(name: str) -> None:
    module = nn.Module()
    code = setattr(module, name, lambda: name) or own_code(module)
    assert code is not None and code() == name


def test_the_newer_name_comes_first() -> None:
    module = nn.Module()
    module.reset_parameters, module._reset_parameters = lambda: "new", lambda: "old"  # type: ignore[assignment]
    code = own_code(module)
    assert code is not None and code() == "new"


def test_an_attribute_of_that_name_that_can_not_be_called_is_no_code() -> None:
    module = nn.Module()
    module.reset_parameters = True  # type: ignore[assignment]
    assert own_code(module) is None


def test_the_innermost_model_initializes_a_module() -> None:
    inner = PreTrainedModel(linear("cpu"))
    outer = PreTrainedModel(inner, nn.LayerNorm(2))
    for code in models_own_code(outer).values():
        code()
    assert inner.ran == ["Linear", "ModuleList", "PreTrainedModel"] and outer.ran == [
        "LayerNorm",
        "ModuleList",
        "PreTrainedModel",
    ]


def test_children_are_initialized_before_their_parents() -> None:
    model = PreTrainedModel(nn.Sequential(linear("cpu")))
    assert [type(module).__name__ for module in models_own_code(model)] == [
        "Linear",
        "Sequential",
        "ModuleList",
        "PreTrainedModel",
    ]


def test_modules_beside_a_model_have_no_code_of_one() -> None:
    beside = linear("cpu")
    assert beside not in models_own_code(nn.Sequential(PreTrainedModel(), beside))


# --- materialize ------------------------------------------------------------------------------------------------------


def test_a_models_code_does_not_run_where_rules_reach_everything() -> None:
    model = PreTrainedModel(linear("meta"))
    fastinit.materialize(model, dict(type="Constant", val=3, layer="Linear"))
    assert model.ran == [] and (model.parts[0].weight == 3).all()


def test_only_modules_that_a_models_code_writes_have_a_row() -> None:
    class Scaled(PreTrainedModel):
        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.PReLU):
                nn.init.ones_(module.weight)

    scale = nn.PReLU(device="meta")
    scale.reset_parameters = None  # type: ignore[assignment]
    report = fastinit.materialize(Scaled(scale, nn.Identity()))
    assert [row.description for row in report.rows if row.action == "call"] == [
        "call of parts.0._init_weights() of PReLU"
    ]


def test_a_tensor_that_a_rule_reaches_is_not_written_by_a_models_code() -> None:
    model = PreTrainedModel(linear("meta"))
    report = fastinit.materialize(model, dict(type="Constant", val=3, param="parts.0.weight"))
    assert (model.parts[0].weight == 3).all() and (model.parts[0].bias == 0).all()
    assert report.provenance["parts.0.weight"].startswith("ConstantInit")
    assert torch.equal(model.parts[0].bias, torch.zeros(2))


# --- what code of transformers leaves out where a tensor is on the meta device ----------------------------------------

LEAVES_OUT = """
import torch
from torch import nn

def copied(module):
    new = nn.Linear(4, 4)
    if module.weight.device != torch.device("meta"):
        with torch.no_grad():
            new.weight.copy_(module.weight)
    return new

def placed(module):
    return torch.zeros(2, device=module.weight.device)
"""


def library(tmp_path, name):
    path = tmp_path / "modeling.py"
    path.write_text(LEAVES_OUT)
    names = {"__name__": name}
    exec(compile(LEAVES_OUT, str(path), "exec"), names)
    return SimpleNamespace(**names)


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [("transformers.models.detr.modeling_detr", True), ("mine.models", False)],
    ids=["of it", "other"],
)
def test_a_copy_that_transformers_leaves_out_on_meta_is_recorded(tmp_path, name, is_kept):
    lines = library(tmp_path, name)
    with fastinit.capture() as recipe, torch.device("meta"):
        first = nn.Linear(4, 4)
        nn.init.constant_(first.weight, 7)
        model = nn.Sequential(first, lines.copied(first))
        assert lines.placed(first).is_meta
    fastinit.materialize(model, recipe=recipe, seed=0)
    assert (model[1].weight == 7).all().item() is is_kept


def test_outside_of_a_block_the_device_is_what_it_is(tmp_path):
    lines = library(tmp_path, "transformers.models.detr.modeling_detr")
    with torch.device("meta"):
        first = nn.Linear(4, 4)
        assert lines.copied(first).weight.is_meta and first.weight.device.type == "meta"
