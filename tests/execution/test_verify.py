"""``verify`` finds one flipped bit, anywhere, by name and index; what it cannot know it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import needs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_files import INIT_CFG, Opaque, net
from torch import nn
from verified import DISTRIBUTIONS, INTEGERS, differing, flip, made

import fastinit
from fastinit import Plan
from fastinit.backends import cpp_backend
from fastinit.execution import comparing

pytestmark = needs.mark(needs.CPP)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets small tensors be many pieces."""
    monkeypatch.setattr(comparing, "_PIECE", 16)
    monkeypatch.setattr(comparing, "_MOST_TOGETHER", 3)


def test_a_model_holds_the_plan_that_made_it() -> None:
    model, plan = made()
    found = fastinit.verify(model, plan)
    assert found and set(found.held) == {name for name, _ in model.named_parameters()}
    assert not found.differs and not found.unverified and found.is_complete


def test_a_plan_from_a_file_is_verified_likewise(tmp_path: Path) -> None:
    model, plan = made()
    plan.save(tmp_path / "plan.json")
    assert fastinit.verify(model, Plan.load(tmp_path / "plan.json"))


def test_a_plan_under_another_seed_does_not_hold() -> None:
    model, _ = made()
    other = fastinit.plan(model, INIT_CFG, backend="cpp", seed=8)
    assert [name for name, _ in differing(model, other)] == ["0.weight", "1.weight", "2.weight"]


def test_one_flipped_bit_is_found_with_its_index_and_both_values() -> None:
    model, plan = made()
    before = model[0].weight[5, 2].item()
    flip(model[0].weight, (5, 2))
    (found,) = fastinit.verify(model, plan).differs
    assert (found.name, found.index) == ("0.weight", (5, 2))
    assert (found.expected, found.found) == (before, model[0].weight[5, 2].item())


def test_a_verification_with_a_difference_is_false_and_says_where() -> None:
    model, plan = made()
    with torch.no_grad():
        model[2].bias[1:] = 5
    found = fastinit.verify(model, plan)
    assert not found
    assert str(found) == (
        "5 tensors hold what the plan says\n1 differ:\n  2.bias from index (1,) on: 0.0 expected, 5.0 found"
    )


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.usefixtures("small_pieces")
def test_every_distribution_is_verified_in_every_dtype(kind: str, dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.zeros(13, 11).to(dtype), requires_grad=False))
    rule = dict(**DISTRIBUTIONS[kind], param="weight")
    model, plan = made(rule, model)
    assert fastinit.verify(model, plan)
    model.weight.view(INTEGERS[dtype.itemsize])[7, 3] ^= 1 << (8 * dtype.itemsize - 2)
    assert differing(model, plan) == [("weight", (7, 3))]


@given(st.integers(0, 97 * 31 - 1))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_the_first_of_several_differences_is_found_wherever_it_is(layout: str, at: int) -> None:
    model = nn.Module()
    tensor = {
        "contiguous": lambda: torch.zeros(97, 31),
        "transposed": lambda: torch.zeros(31, 97).t(),
        "strided": lambda: torch.zeros(97, 64)[:, 1:63:2],
    }[layout]()
    model.register_parameter("weight", nn.Parameter(tensor, requires_grad=False))
    model, plan = made(dict(type="Normal", std=1, param="weight"), model)
    index, later = divmod(at, 31), divmod((at + 97 * 31 - 1) // 2, 31)
    piece, comparing._PIECE = comparing._PIECE, 64
    try:
        flip(model.weight, later) if later != index else None
        flip(model.weight, index)
        assert differing(model, plan) == [("weight", index)]
    finally:
        comparing._PIECE = piece


def test_zero_is_not_minus_zero_and_nan_is_itself() -> None:
    cfg = [dict(type="Constant", val=value, param=param) for value, param in ((math.nan, "[02].*"), (0, "1.*"))]
    model, plan = made(cfg)
    assert fastinit.verify(model, plan)
    with torch.no_grad():
        model[1].bias[4] = -0.0
    assert differing(model, plan) == [("1.bias", (4,))]


@pytest.mark.usefixtures("small_pieces")
def test_many_small_tensors_are_verified_in_groups() -> None:
    model, plan = made(dict(type="Normal", std=1, layer="Linear"), nn.Sequential(*(nn.Linear(3, 5) for _ in range(40))))
    assert len(fastinit.verify(model, plan).held) == 80
    for at in (0, 17, 39):
        flip(model[at].weight, (4, 2))
    assert differing(model, plan) == [(f"{at}.weight", (4, 2)) for at in (0, 17, 39)]


def test_scalars_and_empty_tensors_are_verified() -> None:
    model = nn.Module()
    model.register_parameter("a", nn.Parameter(torch.zeros(())))
    model.register_parameter("b", nn.Parameter(torch.zeros(0, 3)))
    model, plan = made(dict(type="Normal", std=1, param="*"), model)
    assert fastinit.verify(model, plan).held == ("a", "b")
    flip(model.a, ())
    assert differing(model, plan) == [("a", ())]


def columns(model: nn.Module) -> None:
    nn.init.normal_(model.a)
    nn.init.uniform_(model.a[:, 1:3])
    nn.init.normal_(model.b.t())
    nn.init.zeros_(model.c)
    nn.init.normal_(model.c[::2])


def test_parts_are_verified_where_they_are() -> None:
    from capturing import Holder, captured

    model, recipe = captured(columns)
    plan = fastinit.plan(Holder(), recipe, backend="cpp", seed=0)
    assert fastinit.verify(model, plan)
    for tensor, index in ((model.a, (3, 2)), (model.b, (1, 4)), (model.c, (6,))):
        flip(tensor, index)
    assert differing(model, plan) == [("a", (3, 2)), ("b", (1, 4)), ("c", (6,))]


def test_elements_that_the_plan_leaves_alone_may_be_anything() -> None:
    from capturing import Holder, captured

    model, recipe = captured(lambda model: nn.init.normal_(model.a[2:4]))
    plan = fastinit.plan(Holder(), recipe, backend="cpp", seed=0)
    with torch.no_grad():
        model.a[0] = 5
    assert fastinit.verify(model, plan).held == ("a",)
    flip(model.a, (3, 3))
    assert differing(model, plan) == [("a", (3, 3))]


def test_a_backend_that_is_missing_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = made()
    monkeypatch.setattr(cpp_backend, "_native", None)
    monkeypatch.setattr(cpp_backend, "_WHY_NOT", "it was not built")
    with pytest.raises(RuntimeError, match="no backend with the numbers of 'contract 1' runs: it was not built"):
        fastinit.verify(model, plan)


def test_another_dtype_is_a_difference() -> None:
    model, plan = made()
    model[2].bfloat16()
    found = fastinit.verify(model, plan)
    assert not found and found.held == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert [(each.name, each.index, each.expected, each.found) for each in found.differs] == [
        (f"2.{name}", (), torch.float32, torch.bfloat16) for name in ("weight", "bias")
    ]
    line = "2 differ:\n  2 in dtype, torch.float32 expected, torch.bfloat16 found: 2.weight, 2.bias\n"
    assert line in str(found) and "rounded=True" in str(found)
    assert json.loads(found.to_json())["differs"][0]["found"] == "torch.bfloat16"


def test_a_narrower_model_holds_the_rounded_values_where_they_are_asked_for() -> None:
    _, plan = made()
    model = net().bfloat16()
    with pytest.warns(UserWarning, match="rounded"):
        fastinit.initialize(model, plan)
    found = fastinit.verify(model, plan, rounded=True)
    assert found and found.rounded == found.held and len(found.held) == 6
    assert "6 of them hold it rounded to another dtype than the plan's: 0.weight" in str(found)
    flip(model[0].weight, (5, 2))
    found = fastinit.verify(model, plan, rounded=True)
    assert [(each.name, each.index) for each in found.differs] == [("0.weight", (5, 2))]
    assert "0.weight" not in found.rounded and len(found.rounded) == 5


def test_a_model_in_the_dtype_of_the_plan_is_not_rounded() -> None:
    model, plan = made()
    assert fastinit.verify(model, plan, rounded=True).rounded == ()


def test_orthogonal_matrices_may_differ_in_the_last_place() -> None:
    model, plan = made(dict(type="Orthogonal", layer="Linear"), nn.Sequential(nn.Linear(64, 64)))
    flip(model[0].weight, (9, 9))
    assert fastinit.verify(model, plan)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_that_have_changed_are_mapped() -> None:
    model, plan = made()
    other = nn.Sequential()
    for name, module in zip(("inp", "norm", "out"), model.children()):
        other.add_module(name, module)
    assert fastinit.verify(other, plan, prefix={"inp": "0", "norm": "1", "out": "2"}).held[0] == "0.weight"


def test_names_that_do_not_fit_are_an_error_with_both_lists() -> None:
    _, plan = made()
    with pytest.raises(
        RuntimeError, match=r"does not fit Sequential: 2 names of the plan that the model lacks: 2.weigh"
    ):
        fastinit.verify(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)).pop(2) and
                        nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), plan)  # fmt: skip


def test_something_else_than_a_plan_is_an_error() -> None:
    with pytest.raises(TypeError, match="verify needs a plan"):
        fastinit.verify(net(), INIT_CFG)  # type: ignore[arg-type]


# --- what cannot be verified -----------------------------------------------------------------------------------------


def test_torchs_numbers_are_not_verified_but_constants_are() -> None:
    model, plan = made(backend="torch")
    found = fastinit.verify(model, plan)
    assert found.held == ("0.bias", "1.bias", "2.bias") and not found and not found.is_complete
    assert set(found.unverified) == {"0.weight", "1.weight", "2.weight"}
    assert "not verified: 0.weight, 1.weight, 2.weight (torch's generators draw it" in str(found)


def test_a_plan_without_a_seed_is_not_verified() -> None:
    model, _ = made()
    found = fastinit.verify(model, fastinit.plan(model, INIT_CFG, backend="cpp"))
    assert set(found.unverified.values()) == {"the plan has no seed"}


def test_tensors_without_memory_are_not_verified() -> None:
    _, plan = made()
    assert set(fastinit.verify(net("meta"), plan).unverified.values()) == {"it has no memory"}


def test_parameters_that_no_row_writes_make_it_false_and_are_named() -> None:
    model, plan = made(dict(type="Normal", std=1, layer="Linear"))
    found = fastinit.verify(model, plan)
    assert not found and not found.is_complete and not found.differs and len(found.held) == 4
    assert found.unverified == dict.fromkeys(("1.weight", "1.bias"), "a parameter that no row of the plan writes")
    assert "2 not verified: 1.weight, 1.bias (a parameter that no row of the plan writes)" in str(found)


def test_buffers_that_no_row_writes_are_named_and_no_fault() -> None:
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.empty(4, 4)))
    model.register_buffer("inv_freq", torch.arange(3.0), persistent=False)
    model.register_buffer("nothing", torch.empty(0))
    model, plan = made(dict(type="Normal", std=1, param="weight"), model)
    found = fastinit.verify(model, plan)
    assert found and found.held == ("weight",)
    reason = found.unverified["inv_freq"]
    assert f"1 not verified: inv_freq ({reason})" in str(found) and "inv_freq" in repr(found)
    assert reason.startswith("a buffer that no row of the plan writes; not persistent: fastinit.digest(")
    assert "inv_freq" in fastinit.digest(model, non_persistent_buffers=True).tensors  # as the reason says
    assert "inv_freq" not in fastinit.digest(model).tensors


@pytest.mark.parametrize("load", [False, True], ids=["live", "loaded"])
@pytest.mark.parametrize(
    ("parts", "is_whole"),
    [(["[0:3]", "[3:8]"], True), (["[:, 0:1]", "[:, 2:4]"], False), (["[0:4]", "[:, 1:4]"], False)],
)
def test_parameters_of_which_a_part_is_written_make_it_false(
    parts: list[str], is_whole: bool, load: bool, tmp_path: Path
) -> None:
    cfg = [dict(type="Normal", std=1, param=f"0.weight{part}") for part in parts]
    model, plan = made([*cfg, dict(type="Constant", val=0, param="[12].*"), dict(type="Constant", val=0, param="0.b*")])
    if load:
        plan.save(tmp_path / "plan.json")
        plan = Plan.load(tmp_path / "plan.json")
    found = fastinit.verify(model, plan)
    assert bool(found) is is_whole and "0.weight" in found.held
    reason = "a parameter of which the rows of the plan write a part only"
    assert found.unverified == ({} if is_whole else {"0.weight": reason})


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4))
        nn.init.normal_(self.weight)
        self.register_buffer("table", torch.arange(8.0) / 3)


def test_computed_buffers_are_named_and_no_fault() -> None:
    plan = fastinit.plan(lambda: Table(), backend="cpp", seed=1)
    found = fastinit.verify(fastinit.build(Table, backend="cpp", seed=1), plan)
    assert found and found.unverified == {"table": "computed by the model's own code"}


def test_calls_are_named() -> None:
    model = fastinit.Sequential(Opaque())
    found = fastinit.verify(model, fastinit.plan(model, backend="cpp", seed=1))
    assert found.unverified == {
        "call of 0.init_weights() of Opaque": "code that a plan cannot see into",
        **dict.fromkeys(("0.a.weight", "0.a.bias"), "a parameter that no row of the plan writes"),
    }
    assert not found


# --- checkpoints -----------------------------------------------------------------------------------------------------


def copied(folder: Path) -> tuple[nn.Module, Plan]:
    torch.save({name: torch.randn_like(value) for name, value in net().state_dict().items()}, folder / "net.pth")
    cfg = [dict(type="Pretrained", checkpoint=str(folder / "net.pth")), dict(type="Normal", std=1, param="2.weight")]
    model = net()
    fastinit.initialize(model, cfg, backend="cpp", seed=7)
    fastinit.plan(model, cfg, backend="cpp", seed=7).save(folder / "plan.json")
    return model, Plan.load(folder / "plan.json")


def test_copies_are_verified_against_the_checkpoint(tmp_path: Path) -> None:
    model, plan = copied(tmp_path)
    assert fastinit.verify(model, plan)
    flip(model[0].bias, (6,))
    assert differing(model, plan) == [("0.bias", (6,))]


def gone(path: Path) -> None:
    path.unlink()


def another(path: Path) -> None:
    torch.save({name: torch.randn_like(value) for name, value in net().state_dict().items()}, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(gone, "its checkpoint cannot be read here"), (another, "is not the checkpoint that the plan was made with")],
)
def test_copies_without_their_checkpoint_are_named(tmp_path: Path, change: Callable[[Path], None], reason: str) -> None:
    model, plan = copied(tmp_path)
    change(tmp_path / "net.pth")
    found = fastinit.verify(model, plan)
    assert found.held == ("2.weight",) and not found.differs and not found
    assert len(found.unverified) == 5 and all(reason in text for text in found.unverified.values())
