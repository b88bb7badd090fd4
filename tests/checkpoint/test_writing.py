"""``write``: a checkpoint of initial weights holds what the built model would, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from helpers import assert_same_tensors, same_bits
from torch import nn
from written_models import Tied, built, by_name, contents, of_all_kinds, on_meta, plain

import fastinit
from fastinit import writing
from fastinit.backends import cpp_backend
from fastinit.checkpoint.writing import safetensors
from fastinit.checkpoint.writing.contents import Draw, Drawn
from fastinit.execution.scope import Scope
from fastinit.plans import Strided

st = needs.module("safetensors.torch")
hub = needs.module("huggingface_hub")
pytestmark = needs.mark(needs.CPP)


@pytest.fixture(params=[32 << 20, 64], ids=["one window", "many windows"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "WINDOW_BYTES", request.param)


# --- the bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("make", [plain, of_all_kinds])
def test_a_file_is_the_one_that_save_file_makes_of_the_built_model(
    make: Callable[[], nn.Module], dtype: torch.dtype | None, tmp_path: Path
) -> None:
    (file,) = fastinit.write(make, tmp_path / "here", seed=3, dtype=dtype)
    st.save_file(built(make, dtype=dtype), tmp_path / "expected", metadata={"format": "pt"})
    assert file == tmp_path / "here" / "model.safetensors"
    assert contents(tmp_path / "here") == {"model.safetensors": (tmp_path / "expected").read_bytes()}


def test_without_metadata_it_is_that_of_a_plain_save_file(tmp_path: Path) -> None:
    (file,) = fastinit.write(plain, tmp_path, seed=3, metadata={})
    assert file.read_bytes() == st.save(built(plain))


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("size", [1000, "2KB", "2.5 kb", 10**9])
def test_shards_and_their_index_are_those_of_huggingface_hub(size: int | str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    model = fastinit.build(plain, backend="cpp", seed=3)
    hub.save_torch_model(model, tmp_path / "theirs", max_shard_size=size)
    files = fastinit.write(plain, tmp_path / "ours", seed=3, max_shard_size=size)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert {file.name for file in files} == set(contents(tmp_path / "ours"))


def test_a_path_that_names_a_file_gives_the_names_of_all(tmp_path: Path) -> None:
    files = fastinit.write(plain, tmp_path / "seed.safetensors", seed=3, max_shard_size="2KB")
    assert [file.name for file in files] == [
        "seed-00001-of-00003.safetensors",
        "seed-00002-of-00003.safetensors",
        "seed-00003-of-00003.safetensors",
        "seed.safetensors.index.json",
    ]


def test_every_dtype_has_its_place_in_a_file(tmp_path: Path) -> None:
    dtypes = [each for each in safetensors._CODE_OF if each != getattr(torch, "float4_e2m1fn_x2", None)]

    def make() -> nn.Module:
        model = nn.Module()
        for dtype in dtypes:
            for name in ("b", "a"):
                tensor = torch.zeros(2, 16, dtype=torch.uint8, device="cpu").view(dtype)
                model.register_buffer(f"{name}_{str(dtype).removeprefix('torch.')}", tensor)
        return model

    (file,) = fastinit.write(make, tmp_path, seed=3)
    assert file.read_bytes() == st.save(dict(make().state_dict()), {"format": "pt"})


def test_names_are_escaped_as_the_library_does(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Module()
        for name in ('a"\\\n\x01\x7f', "ä€😀"):
            model.register_buffer(name, torch.ones(3))
        return model

    (file,) = fastinit.write(make, tmp_path, seed=3)
    assert file.read_bytes() == st.save(dict(make().state_dict()), {"format": "pt"})


@pytest.mark.filterwarnings("ignore:the function. the recipe holds no parameter")
def test_a_model_without_tensors_is_an_empty_file(tmp_path: Path) -> None:
    (file,) = fastinit.write(lambda: nn.Identity(), tmp_path, seed=3)
    assert st.load_file(file) == {}


@pytest.mark.usefixtures("window")
def test_a_model_on_the_meta_device_gets_what_materialize_gives_it(tmp_path: Path) -> None:
    cfg = [
        dict(type="Xavier", layer="Linear"),
        dict(type="Orthogonal", param="2.weight"),
        dict(type="Normal", std="0.02 * shape[0]", param="0.weight"),
    ]
    model = on_meta(plain)
    (file,) = fastinit.write(model, tmp_path, cfg, seed=5)
    assert all(each.is_meta for each in model.parameters())
    fastinit.materialize(model, cfg, backend="cpp", seed=5)
    assert_same_tensors(by_name(st.load_file(file)), by_name(model.state_dict()))


@pytest.mark.usefixtures("window")
def test_parts_that_rules_fill_are_written(tmp_path: Path) -> None:
    cfg = [
        dict(type="Normal", std=0.1, param="0.weight"),
        dict(type="Xavier", param="0.weight[3:7]"),
        dict(type="Uniform", param="0.weight[:, 2:9]"),
        dict(type="Orthogonal", param="2.weight", blocks=3),
        dict(type="Identity", param="2.weight[10:20, 5:15]"),
    ]
    model = on_meta(plain)
    (file,) = fastinit.write(model, tmp_path, cfg, seed=5)
    fastinit.materialize(model, cfg, backend="cpp", seed=5)
    assert_same_tensors(by_name(st.load_file(file)), by_name(model.state_dict()))


def test_a_recipe_serves_as_a_config(tmp_path: Path) -> None:
    with fastinit.capture(backend="cpp", seed=3) as recipe, torch.device("meta"):
        model = of_all_kinds()
    (file,) = fastinit.write(model, tmp_path, recipe, seed=3)
    assert_same_tensors(by_name(st.load_file(file)), by_name(built(of_all_kinds)))


@pytest.mark.usefixtures("window")
def test_a_plan_serves_without_the_model(tmp_path: Path) -> None:
    plan = fastinit.plan(on_meta(plain), device="cpu", backend="cpp", seed=3)
    (file,) = fastinit.write(plan, tmp_path)
    model = on_meta(plain)
    fastinit.materialize(model, backend="cpp", seed=3)
    assert_same_tensors(by_name(st.load_file(file)), by_name(model.state_dict()))


class Passing(nn.Module):
    """Holds buffers that a state dict has and others that it has not, filled and computed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((2,), 3.0))
        self.register_buffer("ones", torch.ones(3), persistent=False)
        self.register_buffer("table", torch.arange(6.0).sin(), persistent=False)
        self.layer = nn.Linear(4, 3)


def twice() -> nn.Module:
    return nn.Sequential(Passing(), Passing())


@pytest.mark.parametrize("is_from_a_file", [False, True], ids=["live", "from a file"])
def test_a_plans_checkpoint_has_what_the_state_dict_has(is_from_a_file: bool, tmp_path: Path) -> None:
    plan = fastinit.plan(twice, backend="cpp", seed=3, prefix="" if is_from_a_file else "part")
    if is_from_a_file:
        plan.save(tmp_path / "plan.json")
        plan = fastinit.Plan.load(tmp_path / "plan.json")
    (file,) = fastinit.write(plan, tmp_path)
    made = fastinit.build(twice, backend="cpp", seed=3, prefix="" if is_from_a_file else "part").state_dict()
    expected = {name if is_from_a_file else f"part.{name}": tensor for name, tensor in made.items()}
    assert_same_tensors(by_name(st.load_file(file)), by_name(expected))


def test_a_buffer_is_persistent_where_one_of_its_holders_keeps_it() -> None:
    model, shared = nn.Sequential(Passing(), Passing()), torch.zeros(3)
    model[0].ones, model[1].scale = shared, shared
    plan = fastinit.plan(model, dict(type="Normal", layer="Linear"), backend="cpp", seed=3)
    assert plan.non_persistent == ("0.table", "1.ones", "1.table")


def test_buffers_that_no_row_of_a_plan_writes_are_missing_with_a_warning(tmp_path: Path) -> None:
    plan = fastinit.plan(twice(), dict(type="Normal", layer="Linear"), backend="cpp", seed=3)
    with pytest.warns(
        fastinit.InitWarning, match=r"write: 2 buffers .* in no row of the plan: 0\.scale, 1\.scale\. The"
    ):
        fastinit.write(plan, tmp_path)


def test_modules_own_init_is_written_behind_a_prefix(tmp_path: Path) -> None:
    model, rule = on_meta(plain), dict(type="Normal", std=0.5, layer="Linear")
    (file,) = fastinit.write(model, tmp_path, rule, seed=3, prefix="teacher")
    fastinit.materialize(model, rule, backend="cpp", seed=3, prefix="teacher")
    assert_same_tensors(by_name(st.load_file(file)), by_name(model.state_dict()))


def test_a_prefix_goes_before_the_names_of_streams_only(tmp_path: Path) -> None:
    (file,) = fastinit.write(plain, tmp_path, seed=3, prefix="teacher")
    expected = fastinit.build(plain, backend="cpp", seed=3, prefix="teacher").state_dict()
    assert same_bits(st.load_file(file)["0.weight"], expected["0.weight"])


def test_the_seed_of_use_counts(tmp_path: Path) -> None:
    with fastinit.use(seed=3):
        (file,) = fastinit.write(plain, tmp_path)
    assert same_bits(st.load_file(file)["0.weight"], built(plain)["0.weight"])


def test_all_that_a_rule_fills_is_drawn_window_by_window() -> None:
    scope = Scope(None, None, backend="cpp", seed=3)
    model = on_meta(lambda: nn.Sequential(plain(), nn.LSTM(5, 4, 2), nn.Embedding(7, 5, padding_idx=2)))
    found = writing._contents(model, dict(type="Normal", param="*.weight"), scope, "", None, None).contents
    assert {type(each.origin) for each in found} == {Drawn} and len(found) == len(model.state_dict())


def test_what_a_recipe_cannot_do_again_is_refused(tmp_path: Path) -> None:
    with fastinit.capture(backend="cpp", seed=3) as recipe:
        layer = nn.Linear(4, 4)
        with torch.no_grad():  # with memory: nobody keeps what is computed
            layer.weight.copy_(torch.linalg.qr(torch.randn(4, 4))[0])
    with pytest.raises(RuntimeError, match=r"1 tensors have no values that a plan knows: weight \(.*copy_"):
        fastinit.write(on_meta(lambda: nn.Linear(4, 4)), tmp_path, recipe, seed=3)


def test_values_of_another_place_in_the_stream_are_drawn_for_any_range() -> None:
    normal = fastinit.plans.Normal(0, 1)
    fill = fastinit.plans.Fill("w", torch.empty(4, 6, device="meta"), normal, "", "", (4, 6))
    draw = Draw(fill, Strided.whole((4, 6)), Strided(0, (4, 6), (1, 4)))  # the transposed values of a 6 x 4 parameter
    expected = fastinit.values("w", (6, 4), normal, seed=3).t().reshape(-1)
    for first, stop in [(0, 24), (3, 17), (7, 8), (5, 24)]:
        memory = torch.empty(stop - first)
        found = draw.at(memory, first, 24)
        assert found is not None
        cpp_backend.run([found], 3)
        assert same_bits(memory, expected[first:stop])


@pytest.mark.filterwarnings("ignore:write. 3 buffers")
def test_a_plan_is_written_in_the_dtypes_that_it_was_made_with(tmp_path: Path) -> None:
    model = plain()
    rules = [dict(type="Normal", std=1, param="*"), dict(type="Uniform", param="0.weight[0:2]")]
    plan = fastinit.plan(model, rules, backend="cpp", seed=3)
    expected = fastinit.write(plan, tmp_path / "before")[0].read_bytes()
    model.bfloat16()  # changes the parameters that the plan holds
    assert fastinit.write(plan, tmp_path / "after")[0].read_bytes() == expected


# --- names ------------------------------------------------------------------------------------------------------------


def test_of_tied_parameters_the_name_is_written_that_save_model_writes(tmp_path: Path) -> None:
    (file,) = fastinit.write(lambda: Tied(), tmp_path, seed=3)
    st.save_model(fastinit.build(Tied, backend="cpp", seed=3), tmp_path / "theirs", metadata={"format": "pt"})
    with st.safe_open(file, "pt") as ours, st.safe_open(tmp_path / "theirs", "pt") as theirs:
        assert list(ours.keys()) == list(theirs.keys()) == ["lm_head.weight"]
        assert ours.metadata() == theirs.metadata() == {"format": "pt", "wte.weight": "lm_head.weight"}
        assert same_bits(ours.get_tensor("lm_head.weight"), theirs.get_tensor("lm_head.weight"))


def test_the_index_of_shards_names_what_is_tied(tmp_path: Path) -> None:
    *_, index = fastinit.write(lambda: nn.Sequential(Tied(), nn.Linear(9, 9)), tmp_path, seed=3, max_shard_size=200)
    assert json.loads(index.read_text())["metadata"] == {"total_size": 456, "0.wte.weight": "0.lm_head.weight"}


class Renaming(nn.Module):
    """Its state dict holds a weight in two parts, under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Parameter(torch.empty(6, 4))
        nn.init.normal_(self.qk)
        self._register_state_dict_hook(self._split)

    @staticmethod
    def _split(module: nn.Module, state: dict[str, Any], prefix: str, local: object) -> None:
        whole = state.pop(f"{prefix}qk")
        state[f"{prefix}q"], state[f"{prefix}k"] = whole[:3], whole[3:]


def test_hooks_of_a_state_dict_may_rename_and_split(tmp_path: Path) -> None:
    (file,) = fastinit.write(lambda: Renaming(), tmp_path, seed=3)
    expected = {name: each.clone() for name, each in built(Renaming).items()}
    assert list(expected) == ["q", "k"]
    assert file.read_bytes() == st.save(expected, {"format": "pt"})
