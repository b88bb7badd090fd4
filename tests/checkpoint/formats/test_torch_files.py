"""Files of ``torch.save`` and of safetensors are read as torch and safetensors read them."""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict

import needs
import numpy as np
import pytest
import torch
from torch import nn
from written_files import everything_of, write_zip

import fastinit
from fastinit.checkpoint import CheckpointLoader
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage.stored import StoredTensor

safetensors = needs.module("safetensors.torch")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2] if hasattr(torch, "uint16") else []  # older torch cannot save them

INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def state_of_all_kinds():
    """Tensors of every dtype and layout that files hold, with shared memory."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    state = OrderedDict(
        (f"d{i}", torch.randint(0, 2, (3, 5)).to(dtype)) for i, dtype in enumerate(FLOATS + FLOAT8 + INTEGERS)
    )
    state["complex"] = torch.randn(4, dtype=torch.complex64)
    state["scalar"] = torch.tensor(3.5)
    state["empty"] = torch.zeros(0, 4)
    state["base"], state["view"], state["transposed"] = base, base[2:4, 1:5], base.t()
    state["channels last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["expanded"] = torch.randn(1, 3).expand(4, 3)
    state["parameter"] = nn.Parameter(torch.randn(3))
    return state


def same(ours, theirs):
    """Equal values, types, layouts; tensors bit for bit."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.stride() == theirs.stride()
        assert ours.requires_grad == theirs.requires_grad
        assert torch.equal(
            ours.float() if ours.dtype.itemsize == 1 else ours, theirs.float() if ours.dtype.itemsize == 1 else theirs
        )
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            same(a, b)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    else:
        assert ours == theirs


META = {
    "epoch": 3,
    "lr": np.float64(0.1),
    "count": np.int32(7),
    "palette": np.arange(12, dtype=np.uint8).reshape(4, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "names": ("a", "b"),
    "size": torch.Size([1, 2]),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "set": {1, 2},
    "counter": Counter("aab"),
    "bytes": b"\x00\xff",
    "nested": [{"deep": torch.ones(2)}],
    "number": 1 + 2j,
}


@pytest.mark.parametrize("access", ["map", "read"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_torch_save_read_as_torch_reads_them(tmp_path, zipped, protocol, access):
    content = {"state_dict": state_of_all_kinds(), "meta": META}
    if not zipped:  # what old torch did not know
        content["state_dict"] = {k: v for k, v in content["state_dict"].items() if v.dtype not in FLOAT8}
    path = tmp_path / "c.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = everything_of(path, access=access)
    same(found, torch.load(path, weights_only=False))
    state = found["state_dict"]
    assert state["base"].untyped_storage().data_ptr() == state["view"].untyped_storage().data_ptr()
    assert type(state["parameter"]) is nn.Parameter


@pytest.mark.parametrize("access", ["map", "read"])
def test_files_of_safetensors_read_as_safetensors_reads_them(tmp_path, access):
    state = {key: value.contiguous().clone() for key, value in state_of_all_kinds().items()}
    safetensors.save_file(state, tmp_path / "c.safetensors", metadata={"format": "pt"})
    found = everything_of(tmp_path / "c.safetensors", access=access)
    expected = safetensors.load_file(tmp_path / "c.safetensors")
    assert found.keys() == expected.keys()
    for key in expected:
        same(found[key], expected[key])


def test_tensors_stay_in_the_file_until_they_are_used(tmp_path):
    torch.save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, tmp_path / "c.pth")
    tree = read(tmp_path / "c.pth", Reading())
    a = tree["a"]
    assert isinstance(a, StoredTensor)
    assert a.shape == (2, 3)
    assert a.dtype == torch.float32
    assert a.numel() == 6
    assert a.device.type == "cpu"
    assert not a.is_meta
    assert a.is_floating_point()
    assert len(a) == 2
    assert a.tensor is None
    assert (a + 1).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert type(a + 1) is torch.Tensor
    a.mul_(2)  # in memory from now on, and only there
    assert a.sum() == 30
    assert torch.cat([a, a]).shape == (4, 3)
    assert tree["b"].tensor is None
    torch.save(a, tmp_path / "d.pth")
    assert torch.load(tmp_path / "d.pth").tolist() == [[0, 2, 4], [6, 8, 10]]
    assert read(tmp_path / "c.pth", Reading())["a"].sum() == 15
    destination = torch.zeros(2, 3)
    destination.copy_(a)
    assert destination.sum() == 30


def test_a_history_buffer_of_mmengine_is_read_without_running_it(tmp_path):
    HistoryBuffer = needs.module("mmengine.logging").HistoryBuffer

    history = HistoryBuffer([1.0, 2.0, 3.0], [1, 1, 2], max_length=10)
    torch.save({"state_dict": {"weight": torch.ones(1)}, "message_hub": {"loss": history}}, tmp_path / "c.pth")
    found = CheckpointLoader.load_checkpoint(tmp_path / "c.pth", logger="silent")["message_hub"]["loss"]
    assert type(found) is HistoryBuffer
    assert found.mean() == history.mean()
    assert found.max() == 3
    # where mmengine has not been imported, its attributes are there
    code = (
        "import sys, torch; from pathlib import Path; from fastinit.checkpoint.formats.by_content import Reading, read\n"
        f"found = read(Path({str(tmp_path / 'c.pth')!r}), Reading())['message_hub']['loss']\n"
        "assert 'mmengine' not in sys.modules, 'imported'\n"
        "print(type(found).__name__, found._log_history.tolist(), found.max_length)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "HistoryBuffer [1.0, 2.0, 3.0] 10"


def test_command_line_arguments_are_read(tmp_path):
    torch.save(
        {"model": {"weight": torch.ones(1)}, "args": argparse.Namespace(lr=0.1, layers=[1, 2])}, tmp_path / "c.pth"
    )
    found = everything_of(tmp_path / "c.pth")["args"]
    assert isinstance(found, argparse.Namespace)
    assert (found.lr, found.layers) == (0.1, [1, 2])


def test_a_sparse_tensor_leaves_the_others_in_the_file(tmp_path):
    state = {"sparse": torch.eye(3).to_sparse(), "dense": torch.ones(2)}
    torch.save(state, tmp_path / "c.pth")
    found = read(tmp_path / "c.pth", Reading())
    assert torch.equal(found["sparse"].to_dense(), torch.eye(3))
    assert isinstance(found["dense"], StoredTensor)
    assert found["dense"].tensor is None


def test_deep_and_circular_containers_are_read(tmp_path):
    circular = {"a": torch.ones(1)}
    circular["self"] = circular
    sys.setrecursionlimit(10**6)
    try:
        torch.save(circular, tmp_path / "c.pth")
    finally:
        sys.setrecursionlimit(1000)
    found = everything_of(tmp_path / "c.pth")
    assert found["self"] is found
    assert found["a"].item() == 1
    pickled = b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."
    write_zip(tmp_path / "deep.pth", pickled)
    assert isinstance(everything_of(tmp_path / "deep.pth"), list)


@pytest.mark.parametrize(
    "where", ["cpu", torch.device("cpu"), {"cuda:0": "cpu"}, None, lambda storage, location: storage]
)
def test_map_location_accepts_the_forms_of_torch(tmp_path, where):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "c.pth")
    assert everything_of(tmp_path / "c.pth", map_location=where)["a"].tolist() == [0, 1, 2]


def test_tensors_saved_on_a_gpu_load_on_the_cpu(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "c.pth")
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "gpu.pth", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:3"))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "gpu.pth")
    assert everything_of(tmp_path / "gpu.pth")["a"].tolist() == [0, 1, 2]
    made = nn.ParameterDict({"a": nn.Parameter(torch.zeros(3))})
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "gpu.pth", map_location=None))
    assert made["a"].tolist() == [0, 1, 2]


@needs.mark(needs.torch_from(2, 8))
def test_pairs_of_float4_are_read_as_safetensors_reads_them(tmp_path):
    value = torch.arange(8, dtype=torch.uint8).view(2, 4).view(torch.float4_e2m1fn_x2)
    safetensors.save_file({"a": value, "b": torch.ones(2)}, tmp_path / "c.safetensors")
    found, expected = everything_of(tmp_path / "c.safetensors"), safetensors.load_file(tmp_path / "c.safetensors")
    assert found["a"].dtype == expected["a"].dtype
    assert found["a"].shape == expected["a"].shape == (2, 4)
    assert torch.equal(found["a"].view(torch.uint8), expected["a"].view(torch.uint8))
