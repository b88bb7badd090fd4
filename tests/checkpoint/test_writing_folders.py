"""``write`` in folders of torch.distributed.checkpoint, as torch and fastinit load them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import needs
import pytest
import torch
from helpers import assert_same_tensors
from torch import nn
from written_models import built, by_name, contents, of_all_kinds, plain

import fastinit
from fastinit.checkpoint.writing import distributed

pytestmark = needs.mark(needs.CPP)


@pytest.fixture(params=[32 << 20, 64], ids=["one chunk", "many chunks"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "CHUNK_BYTES", request.param)


def loaded_by_torch(folder: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from torch.distributed import checkpoint

    state = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    if hasattr(checkpoint, "load"):
        checkpoint.load(state, checkpoint_id=folder)
    else:  # before torch 2.2
        checkpoint.load_state_dict(state, checkpoint.FileSystemReader(folder), no_dist=True)
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


@needs.mark(needs.torch_from(2, 3))  # which has the tool
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
