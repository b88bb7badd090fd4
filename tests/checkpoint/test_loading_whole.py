"""All or nothing: what can be known before the first write of a load is known then, and errors say what was written."""

from __future__ import annotations

import copy
import itertools
import json
import os
import warnings
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from helpers import assert_same_tensors, tensors
from torch import nn

import fastinit
from fastinit import checkpoint as ours
from fastinit.checkpoint.storage import batches
from fastinit.checkpoint.storage.copying import Copies
from fastinit.checkpoint.storage.files import File
from fastinit.checkpoint.storage.on_disk import FileStorage
from fastinit.checkpoint.storage.stored import StoredTensor


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


def state_of(model):
    return OrderedDict((key, torch.full_like(value, 5)) for key, value in model.state_dict().items())


class Own(nn.Linear):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)


# --- _metadata -------------------------------------------------------------------------------------------------------

_VERSIONS = ["2", 2.5, [], {}, (2,), True, 1j, torch.tensor(2), torch.Size([2]), torch.float32]
_DAMAGED = [
    *(5, "x", [], [("1", {})], (), 1.5, "", torch.zeros(1), True),
    *({key: {"version": 2}} for key in (1, None, (), 1.5)),
    *({path: local} for path in ("", "1", "2.a") for local in (None, [], "x", 3, {1: 2}, {None: 1}, torch.zeros(1))),
    *({path: {"version": version}} for path in ("", "1", "no.such") for version in _VERSIONS),
]


# What reads the pickle tells some of it.
DAMAGED_METADATA = r"versions of modules in its `_metadata` are damaged: |the _metadata of a state dict "


@pytest.mark.parametrize("strict", [True, False])
def test_damaged_versions_of_modules_are_one_error_before_anything_is_written(tmp_path, strict):
    assert len(_DAMAGED) > 55
    made = net()
    before = copy.deepcopy(tensors(made))
    for index, damage in enumerate(_DAMAGED):
        state = state_of(made)
        state._metadata = damage
        path = tmp_path / f"{index}.pth"
        torch.save({"state_dict": state}, path)
        for load in (
            lambda: ours.load_checkpoint(made, path, strict=strict, logger="silent"),
            lambda: fastinit.initialize(made, dict(type="Pretrained", checkpoint=path, strict=strict)),
            lambda: ours.load_state_dict(made, state, strict=strict, logger="silent"),
        ):
            with pytest.raises(RuntimeError, match=DAMAGED_METADATA) as caught:
                load()
            assert len(str(caught.value)) < 400
        assert_same_tensors(tensors(made), before)


def test_valid_versions_pass_with_other_metadata_of_modules(tmp_path):
    seen = []

    class Sees(nn.Linear):
        def _load_from_state_dict(self, state, prefix, local, *args):
            seen.append(dict(local))
            super()._load_from_state_dict(state, prefix, local, *args)

    state = state_of(nn.Linear(2, 2))
    for local in ({"version": 3, "mine": [1, 2]}, {"version": None}, {}):
        state._metadata = OrderedDict({"": local})
        torch.save(state, tmp_path / "c.pth")
        ours.load_checkpoint(Sees(2, 2), tmp_path / "c.pth", logger="silent", strict=True)
        assert seen.pop() == local


def test_a_file_cannot_ask_to_be_adopted(tmp_path):
    state = state_of(net())
    state._metadata = {path: {"version": 2, "assign_to_params_buffers": True} for path in ("", "0", "1", "2")}
    torch.save(state, tmp_path / "c.pth")
    made = net()
    made[2] = Own(2, 2)
    held = dict(made.named_parameters())
    ours.load_checkpoint(made, tmp_path / "c.pth", logger="silent", strict=True)
    assert all(held[name] is parameter and (parameter == 5).all() for name, parameter in made.named_parameters())


# --- strict ----------------------------------------------------------------------------------------------------------


def test_strict_with_own_loading_code_says_the_model_may_be_partly_loaded(tmp_path):
    state = state_of(nn.Sequential(Own(2, 2), nn.Linear(2, 2)))
    del state["1.bias"]
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match=r"(?s)missing keys.*: 1\.bias.*may be partly loaded: 1 modules.*Own '0'"):
        ours.load_checkpoint(nn.Sequential(Own(2, 2), nn.Linear(2, 2)), tmp_path / "c.pth", strict=True)


def test_strict_stops_before_own_loading_code_at_an_earlier_shape_mismatch(tmp_path):
    state = state_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2), Own(2, 2)))
    torch.save(state, tmp_path / "c.pth")
    made = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), Own(2, 2))
    before = copy.deepcopy(tensors(made))
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.weight") as caught:
        ours.load_checkpoint(made, tmp_path / "c.pth", strict=True, logger="silent")
    assert_same_tensors(tensors(made), before)
    assert "partly" not in str(caught.value)


class Refuses(torch.Tensor):
    """A tensor of another library, which does not take what others take."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            raise NotImplementedError("no copies into this")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("strict", [True, False])
def test_a_tensor_that_refuses_a_copy_is_a_mismatch_and_strict_writes_no_other(tmp_path, strict, caplog):
    def make():
        made = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        made[1].register_buffer("odd", torch.zeros(2).as_subclass(Refuses))
        return made

    torch.save(
        {key: torch.full(tuple(value.shape), 5.0) for key, value in make().state_dict().items()}, tmp_path / "c.pth"
    )
    made = make()
    before = copy.deepcopy(made[0].weight)
    if strict:  # the same with a state dict in memory
        with pytest.raises(RuntimeError, match="no copies into this"):
            ours.load_state_dict(made, torch.load(tmp_path / "c.pth"), strict=True)
        assert torch.equal(made[0].weight, before)
    message = 'While copying the parameter named "1.odd".*no copies into this'
    if strict:
        with pytest.raises(RuntimeError, match=message):
            ours.load_checkpoint(made, tmp_path / "c.pth", strict=True, logger="silent")
        assert torch.equal(made[0].weight, before)
    else:
        ours.load_checkpoint(made, tmp_path / "c.pth", logger="current")
        assert (made[0].weight == 5).all() and "no copies into this" in caplog.text


# --- files that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ["map", "read", "auto"])
@pytest.mark.parametrize("how", ["cut", "emptied", "touched"])
def test_a_changed_last_shard_prevents_writes_from_the_first(tmp_path, access, how):
    source = state_of(net())
    shards = {"a.safetensors": list(source)[:3], "b.safetensors": list(source)[3:]}
    for name, keys in shards.items():
        safetensors.torch.save_file({key: source[key] for key in keys}, tmp_path / name)
    weight_map = {key: name for name, keys in shards.items() for key in keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    made = net()
    before = copy.deepcopy(tensors(made))

    class Changes(fastinit.BaseInit):
        def __call__(self, module):
            if how == "touched":
                os.utime(tmp_path / "b.safetensors", (1, 1))
            else:
                os.truncate(tmp_path / "b.safetensors", 0 if how == "emptied" else 100)

    with pytest.raises(OSError, match=r"b\.safetensors: the file was changed") as caught:
        fastinit.initialize(made, [Changes(), dict(type="Pretrained", checkpoint=tmp_path, access=access)])
    assert_same_tensors(tensors(made), before)
    assert "partly" not in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
def test_truncation_during_a_read_is_an_error_that_lists_possible_writes(tmp_path, monkeypatch, strict):
    monkeypatch.setattr(batches, "PIECE_BYTES", 4000)
    path = tmp_path / "c.pth"
    torch.save({"0.weight": torch.ones(100, 100), "1.weight": torch.ones(100, 100)}, path)
    original, n_read = batches._read, itertools.count()

    def cuts(job):
        if next(n_read) == 9:
            os.truncate(path, 5000)
        return original(job)

    monkeypatch.setattr(batches, "_read", cuts)
    made = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    with pytest.raises(OSError, match=r"was changed while it was being loaded .*The model may be partly loaded"):
        ours.load_checkpoint(made, path, access="read", strict=strict, logger="silent")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("access", ["map", "read", "auto"])
def test_a_read_error_in_own_loading_code_is_not_a_mismatch(tmp_path, strict, access):
    path = tmp_path / "c.pth"
    torch.save(state_of(nn.Sequential(Own(2, 2), nn.Linear(2, 2), Own(2, 2))), path)

    class Cuts(Own):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            os.truncate(path, 1000)

    made = nn.Sequential(Cuts(2, 2), Own(2, 2))
    with pytest.raises(OSError, match=r"was changed while it was being loaded .*The model may be partly loaded"):
        ours.load_checkpoint(made, path, access=access, strict=strict, logger="silent")


def test_a_tensor_that_reaches_out_of_its_bytes_is_refused_with_its_name(tmp_path):
    (tmp_path / "f").write_bytes(bytes(1000))
    storage = FileStorage(File(tmp_path / "f"), 10, 100)
    for offset, shape, strides in ((0, (26,), (1,)), (24, (2,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (24, 1))):
        copies = Copies()
        held = torch.ones(shape)
        copies.add(held, StoredTensor.at(storage, offset, shape, strides, torch.float32, torch.device("cpu")), "w")
        with pytest.raises(RuntimeError, match="'w' does not lie within its bytes"):
            copies.make()
        assert (held == 1).all()


# --- folders of torch.distributed.checkpoint -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("damage", ["gone", "cut", "a folder", "something else"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, Own])
def test_an_unreadable_folder_is_an_error_and_not_a_mismatch(tmp_path, damage, strict, kind):
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(checkpoint, "save"):
            checkpoint.save(state_of(net()), checkpoint_id=tmp_path)
        else:  # before torch 2.2
            checkpoint.save_state_dict(state_of(net()), checkpoint.FileSystemWriter(tmp_path), no_dist=True)
    (file,) = tmp_path.glob("*.distcp")
    size = file.stat().st_size
    file.unlink()
    if damage == "cut":
        file.write_bytes(bytes(size - 1))
    elif damage == "a folder":
        file.mkdir()
    elif damage == "something else":
        file.write_bytes(bytes(size))
    made = net()
    made[0] = kind(2, 2)
    before = copy.deepcopy(tensors(made))
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"can not be (read|found)"):
        ours.load_checkpoint(made, tmp_path, strict=strict, logger="silent")
    assert_same_tensors(tensors(made), before)
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"can not be (read|found)"):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path, strict=strict))
    assert_same_tensors(tensors(made), before)
