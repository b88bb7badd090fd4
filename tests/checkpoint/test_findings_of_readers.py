"""What was found wrong with reading checkpoints and shows in no other test: hints, costs, folders in one batch."""

from __future__ import annotations

import gc
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import folders
import needs
import pytest
import torch
from helpers import assert_same_tensors, tensors
from limited import needs_linux, run_limited
from torch import nn

import fastinit
from fastinit.checkpoint import load_checkpoint
from fastinit.checkpoint.storage import batches, placing
from fastinit.execution.collector import uncollected

WORDS = "the checkpoint holds tensors under another key"


def said(model: nn.Module, path: Path, capsys: pytest.CaptureFixture[str], **kwargs: Any) -> str:
    load_checkpoint(model, path, **kwargs)
    return capsys.readouterr().out


# --- what people may have meant --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["params_ema", "module", "net"])
def test_where_nothing_is_copied_the_key_of_the_weights_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    source, made = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save({"epoch": 3, "settings": {"lr": 0.1}, key: source.state_dict()}, tmp_path / "c.pth")
    assert f"{WORDS}: pass key={key!r}\n" in said(made, tmp_path / "c.pth", capsys)
    assert WORDS not in said(made, tmp_path / "c.pth", capsys, key=key)
    assert_same_tensors(tensors(made), tensors(source))


def test_pretrained_names_the_key_of_the_weights_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"params_ema": nn.Linear(2, 2).state_dict()}, tmp_path / "c.pth")
    with caplog.at_level("WARNING"):
        fastinit.initialize(nn.Linear(2, 2), dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert f"{WORDS}: pass key='params_ema'" in caplog.text


def test_the_plan_the_report_and_the_error_under_strict_name_it_as_well(tmp_path: Path) -> None:
    torch.save({"params_ema": nn.Linear(2, 2).state_dict()}, tmp_path / "c.pth")
    made, rule = nn.Linear(2, 2), dict(type="Pretrained", checkpoint=tmp_path / "c.pth")
    hint = f"{WORDS}: pass key='params_ema'"
    plan, report = fastinit.plan(made, rule), fastinit.initialize(made, rule)
    assert json.loads(plan.to_json())["checkpoints"][0]["hints"] == [hint]
    assert f"; {hint}\n" in str(plan) and f"  {hint}\n" in report.summary()
    for call in (fastinit.plan, fastinit.initialize):
        with pytest.raises(fastinit.Error) as caught:
            call(made, rule, strict=True)
        assert str(caught.value.hint).startswith(hint)
    with fastinit.use(strict=True), pytest.raises(RuntimeError, match=hint):
        load_checkpoint(made, tmp_path / "c.pth", logger="silent")


def test_no_other_key_is_named_where_one_was_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = nn.Linear(3, 3).state_dict()
    torch.save({"state_dict": {"other": torch.ones(1)}, "params_ema": other}, tmp_path / "c.pth")
    assert WORDS not in said(nn.Linear(2, 2), tmp_path / "c.pth", capsys)


@pytest.mark.parametrize(("dtype", "is_told"), [(torch.float8_e4m3fn, True), (torch.float32, False)])
def test_values_of_8_bits_without_their_scales_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype, is_told: bool
) -> None:
    weight = torch.full((2, 2), 44.0).to(dtype)
    held = {"weight": weight, "weight_scale_inv": torch.ones(1)}
    path = tmp_path / "c.safetensors"  # the first torch saves no float8 itself
    needs.module("safetensors.torch").save_file(held, path)
    text = said(nn.Linear(2, 2, bias=False), path, capsys, dtype="bfloat16")
    assert ("without applying the scales beside them: weight_scale_inv" in text) == is_told


# --- what large files cost -------------------------------------------------------------------------------------------


def in_an_archive(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", content)
    return path


@needs_linux
@pytest.mark.parametrize(
    "content",
    [b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", pickle.dumps((None,) * 1_000_000, 2)],
    ids=["lists in lists", "a long tuple"],
)
def test_what_has_many_parts_is_read_in_a_time_that_grows_with_them(tmp_path: Path, content: bytes) -> None:
    path = in_an_archive(tmp_path / "c.pth", content)
    cost = run_limited(lambda: len(fastinit.checkpoint.CheckpointLoader.load_checkpoint(path, logger="silent")))
    assert cost.result in (1, 1_000_000)
    assert cost.peak_bytes < 100 << 20


@needs_linux
@folders.needs_dcp
def test_a_list_of_many_objects_that_are_no_tensors_is_read(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    folders.good(tmp_path)
    with folders.changed(tmp_path) as contents:
        contents.state_dict_metadata.update((f"x{i}", BytesStorageMetadata()) for i in range(200_000))
    made = folders.model()
    cost = run_limited(lambda: (load_checkpoint(made, tmp_path, logger="silent"), made[0].weight[0, 0].item())[1])
    assert cost.result == 7.0
    assert cost.peak_bytes < 200 << 20


# --- folders in the batch --------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces each batch had."""
    seen: list[int] = []
    run = batches.run

    def counted(pieces: list[Any]) -> None:
        seen.append(len(pieces))
        run(pieces)

    monkeypatch.setattr(placing, "run", counted)
    return seen


@folders.needs_dcp
@pytest.mark.parametrize("access", ["auto", "map", "read"])
def test_all_chunks_of_a_folder_come_in_one_batch(tmp_path: Path, runs: list[int], access: str) -> None:
    whole = torch.arange(48.0).view(6, 8)
    boxes = [((0, 0), (6, 3)), ((0, 3), (2, 5)), ((2, 3), (4, 5))]
    folders.in_chunks(tmp_path, "weight", whole, boxes)
    made = nn.Linear(8, 6, bias=False)
    version = made.weight._version
    load_checkpoint(made, tmp_path, access=access, logger="silent")
    assert torch.equal(made.weight, whole)
    assert len(runs) == 1
    assert made.weight._version > version


@folders.needs_dcp
def test_a_folder_gives_tied_weights_their_values_once(tmp_path: Path, runs: list[int]) -> None:
    source = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    folders.save(tmp_path, dict(source.state_dict()))
    made = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    made[1].weight = made[0].weight
    load_checkpoint(made, tmp_path, logger="silent")
    assert torch.equal(made[0].weight, source[1].weight)
    assert runs == [1]


@folders.needs_dcp
def test_a_chunk_that_is_damaged_leaves_what_is_in_the_batch_as_it_was(tmp_path: Path) -> None:
    folders.good(tmp_path)
    made = folders.model()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    data = bytearray(folders.data_file(tmp_path).read_bytes())
    with folders.changed(tmp_path) as contents:
        place = folders.place_of(contents, "2.weight")
        data[place.offset : place.offset + 4] = b"XXXX"
    folders.data_file(tmp_path).write_bytes(data)
    with pytest.raises(RuntimeError, match=r"'2\.weight' can not be read"):
        load_checkpoint(made, tmp_path, logger="silent")
    assert_same_tensors(dict(made.state_dict()), before)


# --- how the system is told, and Python ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_kept", "is_told"), [(64, True), (8, False)])
def test_the_system_reads_ahead_where_most_of_a_file_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_kept: int, is_told: bool
) -> None:
    monkeypatch.setattr(batches, "_FAR_BYTES", 1000)
    told: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: told.append(args[-1]), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_SEQUENTIAL", 2, raising=False)
    torch.save({f"{i}": torch.ones(100) for i in range(64)}, tmp_path / "c.pth")
    # The first and the last, and nothing between, of what is kept.
    names = [f"{i}" for i in (*range(n_kept // 2), *range(64 - n_kept // 2, 64))]
    made = nn.ParameterDict({name: nn.Parameter(torch.zeros(100)) for name in names})
    load_checkpoint(made, tmp_path / "c.pth", logger="silent")
    assert all(value.sum() == 100 for value in made.values())
    assert told == ([2] if is_told else [])


def test_python_looks_for_cycles_again_after_an_error() -> None:
    gc.enable()
    with pytest.raises(ValueError), uncollected():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
