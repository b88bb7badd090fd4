"""``write``: a checkpoint of initial weights holds what the built model would, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from helpers import assert_same_tensors, same_bits
from torch import nn

import fastinit
from fastinit import writing
from fastinit.checkpoint.writing import distributed, safetensors
from fastinit.checkpoint.writing.contents import Drawn
from fastinit.execution.scope import Scope

st = needs.module("safetensors.torch")
hub = needs.module("huggingface_hub")
pytestmark = needs.mark(needs.CPP)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20), nn.Linear(20, 30), nn.BatchNorm1d(3))


def of_all_kinds() -> nn.Module:
    """Fills of wholes and parts, joined and transposed ones, what code computes, buffers, what is empty or in memory."""
    model = nn.Sequential(
        nn.Embedding(7, 5, padding_idx=2),
        nn.LSTM(5, 4, 2),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        nn.MultiheadAttention(8, 2),
    )
    if torch.get_default_dtype().itemsize > 2:  # torch has no QR of narrower ones
        nn.init.orthogonal_(model[4].out_proj.weight)
    model[3].bias.data.uniform_().mul_(3)
    with torch.no_grad():
        model[4].in_proj_weight[:, ::3].fill_(0.25)
    model.register_buffer("table", torch.arange(10.0).sin())
    model.register_buffer("not_kept", torch.ones(3), persistent=False)
    model.register_buffer("held", torch.tensor([1, 2, 3], device="cpu"))
    model.register_buffer("flags", torch.ones(5, dtype=torch.bool))
    model.register_parameter("fused", nn.Parameter(torch.cat([torch.randn(3, 4) * i for i in (1, 2)])))
    model.register_parameter("scalar", nn.Parameter(torch.tensor(2.65)))
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 3)))
    model.register_parameter("transposed", nn.Parameter(torch.randn(4, 6).t().contiguous()))
    model.register_parameter("in_half", nn.Parameter(torch.randn(9, 3).half()))
    model.register_parameter("in_double", nn.Parameter(torch.randn(9, 3, dtype=torch.float64)))
    return model


def built(make: Callable[[], nn.Module], **how: Any) -> dict[str, torch.Tensor]:
    """Returns the state dict of the model with memory, row-major."""
    model = fastinit.build(make, backend="cpp", seed=3, **how)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def by_name(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items()))


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(params=[32 << 20, 64], ids=["one window", "many windows"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "WINDOW_BYTES", request.param)
    monkeypatch.setattr(distributed, "CHUNK_BYTES", request.param)


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
        nn.init.orthogonal_(layer.weight)  # with memory: nobody keeps what is computed
    with pytest.raises(RuntimeError, match=r"1 tensors have no values that a plan knows: weight \(.*mul_"):
        fastinit.write(on_meta(lambda: nn.Linear(4, 4)), tmp_path, recipe, seed=3)


# --- names ------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(6, 4)
        self.lm_head = nn.Linear(4, 6, bias=False)
        self.lm_head.weight = self.wte.weight


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


# --- what is refused --------------------------------------------------------------------------------------------------


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


def test_a_plan_for_torchs_numbers_is_refused(tmp_path: Path) -> None:
    plan = fastinit.plan(on_meta(plain), device="cpu", backend="torch", seed=3)
    with pytest.raises(ValueError, match="the plan is for the numbers of 'torch'"):
        fastinit.write(plan, tmp_path)


def test_another_seed_than_the_plans_is_refused(tmp_path: Path) -> None:
    plan = fastinit.plan(on_meta(plain), device="cpu", backend="cpp", seed=3)
    with pytest.raises(ValueError, match="the plan has seed 3, but the call was given seed=4"):
        fastinit.write(plan, tmp_path, seed=4)


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


# --- folders of torch.distributed.checkpoint --------------------------------------------------------------------------


def loaded_by_torch(folder: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from torch.distributed import checkpoint

    state = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    checkpoint.load(state, checkpoint_id=folder)
    return state


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("size", ["5GB", 300])
@pytest.mark.parametrize("make", [plain, of_all_kinds])
def test_a_folder_is_loaded_by_torch(make: Callable[[], nn.Module], size: int | str, tmp_path: Path) -> None:
    fastinit.write(make, tmp_path, seed=3, format="dcp", max_shard_size=size)
    expected = built(make)
    assert_same_tensors(loaded_by_torch(tmp_path, expected), expected)


@pytest.mark.usefixtures("window")
def test_a_folder_is_loaded_by_fastinit(tmp_path: Path) -> None:
    fastinit.write(of_all_kinds, tmp_path, seed=3, format="dcp")
    model = of_all_kinds()
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=str(tmp_path), strict=True))
    assert_same_tensors({name: each.contiguous() for name, each in model.state_dict().items()}, built(of_all_kinds))


def test_a_folder_becomes_a_file_by_torchs_own_tool(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    fastinit.write(plain, tmp_path / "folder", seed=3, format="dcp")
    dcp_to_torch_save(tmp_path / "folder", tmp_path / "file")
    assert_same_tensors(by_name(torch.load(tmp_path / "file")), by_name(built(plain)))


def test_a_folder_has_the_names_of_one_rank(tmp_path: Path) -> None:
    files = fastinit.write(plain, tmp_path, seed=3, format="dcp")
    assert [file.name for file in files] == ["__0_0.distcp", ".metadata"]
    assert set(contents(tmp_path)) == {"__0_0.distcp", ".metadata"}


@pytest.mark.parametrize(("shape", "most"), [((), 1), ((7,), 3), ((5, 4), 8), ((3, 4, 5), 6), ((2, 3), 1), ((0, 3), 2)])
def test_chunks_are_the_pieces_of_a_tensor_in_order(shape: tuple[int, ...], most: int) -> None:
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    pieces = [whole[tuple(slice(at, at + n) for at, n in zip(*chunk))] for chunk in distributed.chunks_of(shape, most)]
    assert all(piece.numel() <= most for piece in pieces)
    assert torch.cat([piece.flatten() for piece in pieces]).tolist() == whole.flatten().tolist()
