"""Checkpoints in several files: their index, and folders."""

from __future__ import annotations

import json

import needs
import pytest
import torch
from torch import nn
from written_files import everything_of

import fastinit
from fastinit.checkpoint.formats import by_content as readers
from fastinit.checkpoint.formats.by_content import Reading, read

safetensors = needs.module("safetensors.torch")


def shard(folder, n=3, ending="safetensors"):
    state = {f"block.{i}.weight": torch.full((4, 4), float(i)) for i in range(6)}
    weight_map = {}
    for index in range(n):
        part = dict(list(state.items())[index::n])
        name = f"model-{index + 1:05d}-of-{n:05d}.{ending}"
        safetensors.save_file(part, folder / name) if ending == "safetensors" else torch.save(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, state, weight_map


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_sharded_checkpoint_is_read_by_its_index_or_its_folder(tmp_path, ending):
    index, state, _ = shard(tmp_path, ending=ending)
    for path in (index, tmp_path):
        found = everything_of(path)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_only_the_shards_that_are_needed_are_opened(tmp_path):
    index, _, weight_map = shard(tmp_path)
    (tmp_path / weight_map["block.1.weight"]).write_bytes(b"damaged")
    (tmp_path / weight_map["block.2.weight"]).unlink()
    made = nn.ModuleDict({"0": nn.Linear(4, 4), "3": nn.Linear(4, 4)})  # both in the first shard
    made["0"].bias = made["3"].bias = None
    report = fastinit.initialize(made["3"], dict(type="Pretrained", checkpoint=str(index), prefix="block.3"))
    assert (made["3"].weight == 3).all()
    assert report.checkpoints[0].result.copied == ("weight",)
    with pytest.raises(
        FileNotFoundError,
        match=r"model-00003-of-00003.safetensors can not be found, which .*index.json names for 1 keys: block.2.weight",
    ):
        fastinit.initialize(made["3"], dict(type="Pretrained", checkpoint=str(index), prefix="block.2"))
    with pytest.raises(RuntimeError, match="model-00002-of-00003.safetensors: the file is damaged"):
        fastinit.initialize(made["3"], dict(type="Pretrained", checkpoint=str(index), prefix="block.1"))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..", "", 3, "C:\\x", "a\\..\\x", "x\0y", "http://x/y"]
)
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path, name):
    (tmp_path / "deep").mkdir()
    safetensors.save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    index = tmp_path / "deep" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(RuntimeError, match="which is not a file beside it"):
        read(index, Reading())


def test_indexes_that_are_wrong_are_refused(tmp_path):
    index, _, weight_map = shard(tmp_path)
    name = weight_map["block.0.weight"]
    for content, message in [
        (
            json.dumps({"weight_map": {**weight_map, "block.9.weight": name}}),
            r"its shard '.*' lacks 1 keys: block.9.weight",
        ),
        (f'{{"weight_map": {{"a": "{name}", "a": "{name}"}}}}', "one key twice"),
        ('{"weight_map": []}', "no `weight_map`"),
        ('{"weight_map": {}}', "no `weight_map`"),
        (json.dumps({"weight_map": {"a": index.name}}), "an index cannot be a shard"),
    ]:
        index.write_text(content)
        with pytest.raises(RuntimeError, match=message):
            read(index, Reading())


def test_a_folder_is_searched_for_usual_names_and_else_must_hold_one_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder holds none of model\.safetensors"):
        read(tmp_path, Reading())
    torch.save({"a": torch.ones(1)}, tmp_path / "last.ckpt")
    assert everything_of(tmp_path)["a"].item() == 1
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="not exactly one file"):
        read(tmp_path, Reading())
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert everything_of(tmp_path)["a"].item() == 0
    safetensors.save_file({"a": torch.full((1,), 2.0)}, tmp_path / "model.safetensors")
    assert everything_of(tmp_path)["a"].item() == 2


def test_names_in_a_folder_are_those_of_the_hub():
    assert readers.chosen_name(["README.md", "pytorch_model.bin", "model.safetensors"]) == "model.safetensors"
    assert (
        readers.chosen_name(["model.safetensors.index.json", "model-1.safetensors", "x.bin"])
        == "model.safetensors.index.json"
    )
    assert readers.chosen_name(["a.txt", "weights.pt"]) == "weights.pt"
    assert readers.chosen_name(["a.pt", "b.pt"]) is None
    assert readers.chosen_name([]) is None
