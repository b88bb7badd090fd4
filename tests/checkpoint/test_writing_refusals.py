"""What ``write`` refuses: values that no plan knows, and wrong arguments. Nothing is written then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from torch import nn
from written_models import on_meta, plain

import fastinit

st = needs.module("safetensors.torch")
pytestmark = needs.mark(needs.CPP)


class Odd(nn.Module):
    """Makes a tensor by code whose values are not known without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(3))


class Anew(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(3.0))

    def reset_parameters(self) -> None:
        self.table = torch.arange(3.0, device="cpu")


def doubling(module: nn.Module, state: dict[str, Any], prefix: str, local: object) -> None:
    state["twice"] = state["0.weight"] * 2


def with_hook() -> nn.Module:
    model = plain()
    model._register_state_dict_hook(doubling)
    return model


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: object) -> None: ...


def code(module: nn.Module) -> None:
    """An initializer that nobody sees into."""


@pytest.mark.parametrize(
    ("source", "cfg", "problem"),
    [
        (lambda: Odd(), None, "1 tensors have no values that a plan knows: w. Add a rule"),
        (
            on_meta(Anew),
            None,
            "table (no rule reaches it, and what own code of Anew gives it is not known before it has memory)",
        ),
        (with_hook, None, "twice (a hook of state_dict() computes it)"),
        (lambda: Extra(3, 3), None, "1 entries of the state dict are no tensors: _extra_state"),
        (on_meta(plain), code, "init_cfg: code(Sequential) is code whose effects are not known before it runs"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_values_that_no_plan_knows_are_refused_by_name(source: Any, cfg: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=re.escape(problem)):
        fastinit.write(source, tmp_path / "new", cfg, seed=3)
    assert not (tmp_path / "new").exists()


def test_copies_of_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save(plain().state_dict(), tmp_path / "a.pth")
    cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth"))
    with pytest.raises(RuntimeError, match=r"a\.pth would be copied: materialize the model, and save it"):
        fastinit.write(on_meta(plain), tmp_path / "new", cfg, seed=3)


def test_a_tensor_of_which_only_a_part_is_filled_is_refused(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = Odd()
        model.w.data[::2].fill_(1)
        return model

    with pytest.raises(RuntimeError, match=r"w \(only a part of it is filled: "):
        fastinit.write(make, tmp_path, seed=3)


def test_parts_that_cover_a_tensor_are_enough(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = Odd()
        model.w.data[::2].fill_(1)
        model.w.data[1::2].fill_(2)
        return model

    (file,) = fastinit.write(make, tmp_path, seed=3)
    assert st.load_file(file)["w"].tolist() == [1, 2, 1]


def test_a_plan_that_leaves_parameters_out_is_refused(tmp_path: Path) -> None:
    plan = fastinit.plan(on_meta(plain), dict(type="Normal", param="0.weight"), backend="cpp", seed=3)
    with pytest.raises(RuntimeError, match=r"7 parameters have no values: no row of the plan writes: 0\.bias"):
        fastinit.write(plan, tmp_path)


class Tabled(nn.Linear):
    """Computes a table from nothing but what recording sees."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("table", torch.arange(3.0) / 7)


def test_what_a_plan_from_a_file_has_the_name_of_only_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    fastinit.plan(lambda: Tabled(), backend="cpp", seed=3).save(tmp_path / "plan.json")
    plan = fastinit.Plan.load(tmp_path / "plan.json")
    problem = (
        r"1 tensors have no values that the plan knows: table \(code computes it, .* give the model with the plan\): "
        r".*write\(make_model, path, plan\), or `fastinit write MODEL PATH --config PLAN`"
    )
    with pytest.raises(RuntimeError, match=problem):
        fastinit.write(plan, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (file,) = fastinit.write(lambda: Tabled(), tmp_path / "new", plan)  # with the plan's seed
    assert st.load_file(file)["table"].tolist() == (torch.arange(3.0) / 7).tolist()


def test_a_plan_for_torchs_numbers_is_refused(tmp_path: Path) -> None:
    plan = fastinit.plan(on_meta(plain), device="cpu", backend="torch", seed=3)
    with pytest.raises(ValueError, match="the plan is for the numbers of 'torch'"):
        fastinit.write(plan, tmp_path)


def test_another_seed_than_the_plans_is_refused(tmp_path: Path) -> None:
    plan = fastinit.plan(on_meta(plain), device="cpu", backend="cpp", seed=3)
    for given in ((plan, tmp_path), (plain, tmp_path, plan)):
        with pytest.raises(ValueError, match="the plan has seed 3, but the call was given seed=4"):
            fastinit.write(*given, seed=4)


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        (dict(), "seed is missing"),
        (dict(seed=1, backend="torch"), "no part can be drawn alone"),
        (dict(seed=1, backend="cuda"), "leave backend out, the bits are the same"),
        (dict(seed=1, format="pt"), "format must be 'safetensors' or 'dcp'"),
        (dict(seed=1, max_shard_size="5 apples"), "max_shard_size must be a number of bytes"),
        (dict(seed=1, max_shard_size=0), "max_shard_size must be a number of bytes"),
        (dict(seed=1, max_shard_size="1.2.3GB"), "max_shard_size must be a number of bytes"),
        (dict(seed=1, metadata={"a": 1}), "metadata must be texts by name"),
    ],
)
def test_wrong_arguments_are_refused(how: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        fastinit.write(plain, tmp_path / "new", **how)
    assert not (tmp_path / "new").exists()


def test_a_dtype_for_a_model_that_is_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model\.to\(dtype\) costs nothing"):
        fastinit.write(on_meta(plain), tmp_path, seed=3, dtype=torch.bfloat16)


def test_a_call_within_a_block_of_capture_is_refused(tmp_path: Path) -> None:
    with fastinit.capture(), pytest.raises(RuntimeError, match="an initialization is open around this call"):
        fastinit.write(plain, tmp_path, seed=3)


def test_dtypes_that_safetensors_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"dtypes that safetensors does not have: weight \(torch\.complex128\)"):
        fastinit.write(lambda: nn.Linear(2, 2, dtype=torch.complex128), tmp_path, seed=3)


def test_init_of_the_constructor_that_does_not_run_is_warned_of(tmp_path: Path) -> None:
    class Own(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            nn.init.zeros_(self.weight)

    with pytest.warns(UserWarning, match="write: init in the constructor of Own .* give write the recipe"):
        fastinit.write(on_meta(Own), tmp_path, seed=3)
