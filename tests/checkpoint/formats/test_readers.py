"""Checkpoint files: what is read of them, how, and which are refused."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import needs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from limited import needs_linux, run_limited
from torch import nn

import fastinit
from fastinit.checkpoint import CheckpointLoader
from fastinit.checkpoint.formats import by_content as readers
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import files
from fastinit.checkpoint.storage.stored import StoredTensor, read_everything

safetensors = needs.module("safetensors.torch")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2] if hasattr(torch, "uint16") else []  # older torch cannot save them
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def everything_of(path, **options):
    return read_everything(read(Path(path), Reading(**options)))


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
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.stride() == theirs.stride()
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
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
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
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path, zipped, protocol, access):
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
def test_what_safetensors_saves_is_read_as_safetensors_reads_it(tmp_path, access):
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
    assert isinstance(a, StoredTensor) and a.shape == (2, 3) and a.dtype == torch.float32 and a.numel() == 6
    assert a.device.type == "cpu" and not a.is_meta and a.is_floating_point() and len(a) == 2 and a.tensor is None
    assert (a + 1).tolist() == [[1, 2, 3], [4, 5, 6]] and type(a + 1) is torch.Tensor
    a.mul_(2)  # in memory from now on, and only there
    assert a.sum() == 30 and torch.cat([a, a]).shape == (4, 3) and tree["b"].tensor is None
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
    assert type(found) is HistoryBuffer and found.mean() == history.mean() and found.max() == 3
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
    assert isinstance(found, argparse.Namespace) and (found.lr, found.layers) == (0.1, [1, 2])


def test_a_sparse_tensor_leaves_the_others_in_the_file(tmp_path):
    state = {"sparse": torch.eye(3).to_sparse(), "dense": torch.ones(2)}
    torch.save(state, tmp_path / "c.pth")
    found = read(tmp_path / "c.pth", Reading())
    assert torch.equal(found["sparse"].to_dense(), torch.eye(3))
    assert isinstance(found["dense"], StoredTensor) and found["dense"].tensor is None


def test_deep_and_circular_containers_are_read(tmp_path):
    circular = {"a": torch.ones(1)}
    circular["self"] = circular
    sys.setrecursionlimit(10**6)
    try:
        torch.save(circular, tmp_path / "c.pth")
    finally:
        sys.setrecursionlimit(1000)
    found = everything_of(tmp_path / "c.pth")
    assert found["self"] is found and found["a"].item() == 1
    pickled = b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."
    write_zip(tmp_path / "deep.pth", pickled)
    assert isinstance(everything_of(tmp_path / "deep.pth"), list)


@pytest.mark.parametrize(
    "where", ["cpu", torch.device("cpu"), {"cuda:0": "cpu"}, None, lambda storage, location: storage]
)
def test_map_location_takes_what_torch_takes(tmp_path, where):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "c.pth")
    assert everything_of(tmp_path / "c.pth", map_location=where)["a"].tolist() == [0, 1, 2]


def test_what_was_saved_on_a_gpu_comes_to_the_cpu(tmp_path):
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


# --- what more than data is ------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return print, ("code of the file was run",)


class Settings:
    def __init__(self):
        self.lr = 0.1


def test_a_pickle_that_wants_more_is_refused_with_all_the_names_it_wanted(tmp_path, capsys):
    content = {"a": torch.ones(1), "x": Evil(), "y": Settings(), "z": np.random.RandomState(0)}
    for zipped in (True, False):
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(RuntimeError) as caught:
            everything_of(tmp_path / "c.pth")
        message = str(caught.value)
        assert f"{tmp_path}/c.pth: the file holds more than tensors" in message
        for name in ("builtins.print", "test_readers.Settings", "numpy.random", "weights_only=False", "allow=["):
            assert name in message or name.replace("builtins", "__builtin__") in message
    assert "code of the file" not in capsys.readouterr().out


def test_types_can_be_allowed_by_class_and_by_name(tmp_path):
    torch.save({"a": torch.ones(1), "y": Settings()}, tmp_path / "c.pth")
    for allow in ((Settings,), (f"{Settings.__module__}.Settings",)):
        found = read(tmp_path / "c.pth", Reading(allow=allow))
        assert type(found["y"]) is Settings and found["y"].lr == 0.1 and isinstance(found["a"], StoredTensor)
    with pytest.raises(ValueError, match=r"allow='no.such.thing' cannot be imported"):
        Reading(allow=("no.such.thing",))
    with pytest.raises(TypeError, match="allow must hold classes"):
        Reading(allow=(3,))


@needs.mark(needs.torch_from(2, 5))  # which has a list of safe types
def test_types_that_torch_was_told_are_safe_are_allowed(tmp_path):
    torch.save({"y": Settings()}, tmp_path / "c.pth")
    with torch.serialization.safe_globals([Settings]):
        assert type(read(tmp_path / "c.pth", Reading())["y"]) is Settings


def test_code_is_only_run_on_demand(tmp_path, capsys):
    torch.save({"a": torch.ones(1), "x": Evil()}, tmp_path / "c.pth")
    assert read(tmp_path / "c.pth", Reading(weights_only=False))["a"].item() == 1
    assert "code of the file was run" in capsys.readouterr().out


def write_zip(path, pickled, records=(), root="archive", method=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled, compress_type=method)
        for name, data in records:
            archive.writestr(f"{root}/{name}", data, compress_type=method)
        archive.writestr(f"{root}/version", "3\n")


def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def a_global(module, name):
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    "attack",
    {
        "call of a class": opcodes(a_global("os", "system"), b"X\x02\x00\x00\x00id\x85R"),
        "attribute of a function": opcodes(
            a_global("torch._utils", "_rebuild_tensor_v2"), b"N}X\x0c\x00\x00\x00__defaults__K\x01s\x86b"
        ),
        "what a function is": opcodes(
            a_global("torch._utils", "_rebuild_tensor_v2"),
            b"N}X\x09\x00\x00\x00_function" + a_global("collections", "OrderedDict") + b"s\x86b",
        ),
        "attribute of a class": opcodes(a_global("argparse", "Namespace"), b"N}X\x01\x00\x00\x00xK\x01s\x86b"),
        "attribute of a stand-in": opcodes(
            a_global("mmengine.logging.history_buffer", "HistoryBuffer"), b"N}X\x08\x00\x00\x00__init__K\x01s\x86b"
        ),
        "dotted name": opcodes(a_global("collections", "OrderedDict.__class__")),
        "object array": opcodes(
            a_global("numpy.core.multiarray", "_reconstruct"),
            a_global("numpy", "ndarray"),
            b"K\x00\x85C\x01b\x87R(K\x01K\x01\x85",
            a_global("numpy", "dtype"),
            b"X\x02\x00\x00\x00O8K\x00K\x01\x87R\x89]K\x01atb",
        ),
        "tensor without a storage": opcodes(a_global("torch._utils", "_rebuild_tensor_v2"), b"(NK\x00)))\x89NtR"),
        "unknown persistent id": opcodes(b"X\x01\x00\x00\x00xQ"),
        "stack underflow": opcodes(b"R"),
    }.items(),
    ids=lambda attack: attack[0],
)
def test_pickles_that_attack_the_unpickler_change_nothing(tmp_path, attack):
    write_zip(tmp_path / "c.pth", attack[1])
    with pytest.raises(RuntimeError, match=r"c\.pth: the file (is damaged|holds more)"):
        read(tmp_path / "c.pth", Reading())
    assert not hasattr(argparse.Namespace, "x")
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pth")  # and the next file is read as ever
    assert everything_of(tmp_path / "good.pth")["a"].item() == 1


def test_an_array_whose_bytes_are_a_number_takes_no_memory(tmp_path):
    """bytearray(2**40) would be a terabyte of zeros."""
    pickled = opcodes(
        a_global("numpy.core.multiarray", "_reconstruct"),
        a_global("numpy", "ndarray"),
        b"K\x00\x85C\x01b\x87R(K\x01K\x01\x85",
        a_global("numpy", "dtype"),
        b"X\x02\x00\x00\x00u1K\x00K\x01\x87R\x89\x8a\x06\x00\x00\x00\x00\x00\x01tb",
    )
    write_zip(tmp_path / "c.pth", pickled)
    with pytest.raises(RuntimeError, match="a numpy array of objects is not plain data"):
        read(tmp_path / "c.pth", Reading())


# --- damaged and hostile files ---------------------------------------------------------------------------------------


def safe_bytes(table, data=b"", length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE_SAFETENSORS = {
    "table longer than the file": (safe_bytes({"a": entry()}, b"1234", 2**40), "does not fit into the file"),
    "table longer than any": (safe_bytes({"a": entry()}, b"1234", 2**63 + 5), "does not fit into the file"),
    "table cut": (safe_bytes({"a": entry()}, b"1234")[:20], "does not fit into the file"),
    "no JSON": (safe_bytes(b"{not json", b"1234"), "damaged or no checkpoint"),
    "no UTF-8": (safe_bytes(b'{"\xff":1}', b"1234"), "damaged or no checkpoint"),
    "nested too deep": (safe_bytes(b'{"a":' * 100_000, b"1234"), "damaged or no checkpoint"),
    "name twice": (safe_bytes(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), b"1234"), "'a' twice"),
    "overlap": (safe_bytes({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456"), "'b' overlaps"),
    "gap": (safe_bytes({"a": entry(), "b": entry(offsets=(8, 12))}, b"1" * 12), "'b' leaves a gap"),
    "begins late": (safe_bytes({"a": entry(offsets=(4, 8))}, b"1" * 8), "'a' leaves a gap"),
    "data missing": (safe_bytes({"a": entry()}, b"123"), "describes 4 bytes of data, but the file holds 3"),
    "data left over": (safe_bytes({"a": entry()}, b"12345"), "describes 4 bytes of data, but the file holds 5"),
    "unknown dtype": (safe_bytes({"a": entry("F77")}, b"1234"), "the dtype 'F77'"),
    "odd F4": (safe_bytes({"a": entry("F4", (3,), (0, 2))}, b"12"), "its last is not even"),
    "F4 without a shape": (safe_bytes({"a": entry("F4", (), (0, 1))}, b"1"), "its last is not even"),
    "dtype no text": (safe_bytes({"a": entry(["F32"])}, b"1234"), "the dtype"),
    "wrong size": (safe_bytes({"a": entry("F64")}, b"1234"), "'a' of 8 bytes has the data_offsets"),
    "negative shape": (safe_bytes({"a": entry(shape=(-1,))}, b"1234"), "has the shape"),
    "boolean shape": (safe_bytes({"a": entry(shape=(True,))}, b"1234"), "has the shape"),
    "infinite shape": (
        safe_bytes(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', b"1234"),
        "has the shape",
    ),
    "endless shape": (safe_bytes({"a": entry(shape=(2**62, 2**62))}, b"1234"), "data_offsets"),
    "offsets backwards": (safe_bytes({"a": entry(offsets=(4, 0))}, b"1234"), "data_offsets"),
    "offsets too large": (safe_bytes({"a": entry(offsets=(0, 2**70))}, b"1234"), "data_offsets"),
    "three offsets": (safe_bytes({"a": entry(offsets=(0, 4, 8))}, b"1234"), "data_offsets"),
    "no offsets": (
        safe_bytes({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
        "must have dtype, shape and data_offsets",
    ),
    "entry no dict": (safe_bytes({"a": 3}, b"1234"), "must have dtype, shape and data_offsets"),
    "table a list": (safe_bytes(b"[1]", b"1234"), "damaged or no checkpoint"),
    "metadata no texts": (safe_bytes({"__metadata__": {"a": 1}, "a": entry()}, b"1234"), "__metadata__"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE_SAFETENSORS.values(), ids=HOSTILE_SAFETENSORS)
def test_a_safetensors_file_is_checked_whole_before_a_byte_is_used(tmp_path, content, message):
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=message):
        read(path, Reading())
    if message != "'a' twice":  # of which the library takes the last
        with pytest.raises(Exception):
            safetensors.load_file(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_safetensors_itself_refuses_is_refused(data):
    """Random damage to a table: whatever we take, the library takes with the same values."""
    good = {"a": entry("F32", (2, 2), (0, 16)), "b": entry("I64", (1,), (16, 24)), "c": entry("U8", (0,), (24, 24))}
    name = data.draw(st.sampled_from(sorted(good)))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    numbers = st.sampled_from([-1, 0, 1, 2, 4, 8, 16, 20, 24, 2**31, 2**64])
    values = {
        "dtype": st.sampled_from(["F32", "I64", "U8", "I32", "F16", "XX", ""]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
    good[name] = {**good[name], field: data.draw(values[field])}
    content = safe_bytes(good, bytes(range(24)))
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        try:
            ours = everything_of(file.name)
        except RuntimeError:
            return
        theirs = safetensors.load_file(file.name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def good_zip(folder):
    torch.save({"a": torch.arange(1000.0), "b": torch.ones(10)}, folder / "good.pth")
    return (folder / "good.pth").read_bytes()


def rezipped(folder, change, method=zipfile.ZIP_STORED):
    """A good file with one entry changed: change(name, data) returns entries."""
    good_zip(folder)
    with zipfile.ZipFile(folder / "good.pth") as archive, zipfile.ZipFile(folder / "bad.pth", "w") as bad:
        for name in archive.namelist():
            for new_name, data in change(name, archive.read(name)):
                bad.writestr(new_name, data, compress_type=method)
    return folder / "bad.pth"


HOSTILE_ZIPS = {
    "storage cut": (lambda name, data: [(name, data[:8] if "data/0" in name else data)], "the storage '0' has 8 bytes"),
    "storage missing": (
        lambda name, data: [] if "data/0" in name else [(name, data)],
        "which the archive does not hold",
    ),
    "no pickle": (lambda name, data: [] if "data.pkl" in name else [(name, data)], "not made by torch.save"),
    "two pickles": (
        lambda name, data: [(name, data), ("other/data.pkl", data)] if "data.pkl" in name else [(name, data)],
        "not made by torch.save",
    ),
    "big-endian": (lambda name, data: [(name, b"big" if "byteorder" in name else data)], "big-endian"),
    "TorchScript": (
        lambda name, data: (
            [(name, data), (name.replace("data.pkl", "constants.pkl"), b"")] if "data.pkl" in name else [(name, data)]
        ),
        "TorchScript archive",
    ),
    "pickle cut": (lambda name, data: [(name, data[:40] if "data.pkl" in name else data)], "damaged or no checkpoint"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_ZIPS.values(), ids=HOSTILE_ZIPS)
def test_a_damaged_archive_is_refused(tmp_path, change, message):
    with pytest.raises(RuntimeError, match=message):
        read(rezipped(tmp_path, change), Reading())


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = opcodes(b"B" + struct.pack("<I", 10**9) + bytes(10**6))
    write_zip(tmp_path / "bomb.pth", bomb * 20, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(RuntimeError, match=r"'archive/data\.pkl' is compressed, which torch\.save never does"):
        read(tmp_path / "bomb.pth", Reading())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_and_overlapping_entries_are_refused(tmp_path):
    twice = rezipped(tmp_path, lambda name, data: [(name, data)] * (2 if "data/1" in name else 1))
    with pytest.raises(RuntimeError, match="two entries of one name"):
        read(twice, Reading())
    # the directory sends both storages to the same bytes
    content = bytearray(good_zip(tmp_path))
    with zipfile.ZipFile(tmp_path / "good.pth") as archive:
        offsets = {info.filename[-6:]: info.header_offset for info in archive.infolist() if "/data/" in info.filename}
    at = content.rindex(b"good/data/1") - 4  # the offset is the last field before the name
    assert struct.unpack_from("<I", content, at)[0] == offsets["data/1"]
    struct.pack_into("<I", content, at, offsets["data/0"])
    (tmp_path / "overlap.pth").write_bytes(content)
    with pytest.raises(RuntimeError, match="overlaps the one before it|has another name in front of its bytes"):
        read(tmp_path / "overlap.pth", Reading())


def persistent(n_elements, tail=b"N"):
    """The pickle of one tensor of four float32, with other numbers than its storage has."""
    return (
        a_global("torch._utils", "_rebuild_tensor_v2")
        + b"((X\x07\x00\x00\x00storage"
        + a_global("torch", "FloatStorage")
        + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + n_elements
        + b"tQ"
    )


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (persistent(b"K\x05") + b"K\x00K\x04\x85K\x01\x85\x89NtR", "has 16 bytes and not 20"),
        (persistent(b"K\x04") + b"K\x01K\x04\x85K\x01\x85\x89NtR", "reaches to element 5 of a storage of 4"),
        (persistent(b"K\x04") + b"K\x00K\x04\x85K\x02\x85\x89NtR", "reaches to element 7 of a storage of 4"),
        (persistent(b"K\x04") + b"J\xff\xff\xff\xffK\x04\x85K\x01\x85\x89NtR", "the shape"),
        (persistent(b"K\x04") + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85\x89NtR", "the shape"),
        (persistent(b"K\x04") + b"K\x00K\x04K\x04\x86K\x01\x85\x89NtR", "the shape"),
        (persistent(b"K\x04") + b"K\x00\x8a\x09" + bytes(8) + b"\x01\x85K\x01\x85\x89NtR", "the shape"),
        (persistent(b"J\xff\xff\xff\xff") + b"K\x00K\x04\x85K\x01\x85\x89NtR", "a storage of -1 elements"),
        (
            persistent(b"G\x7f\xf0\x00\x00\x00\x00\x00\x00") + b"K\x00K\x04\x85K\x01\x85\x89NtR",
            "a storage of inf elements",
        ),
    ],
)
def test_a_tensor_must_lie_within_its_storage(tmp_path, pickled, message):
    write_zip(tmp_path / "c.pth", opcodes(pickled), [("data/0", bytes(16))])
    with pytest.raises(RuntimeError, match=message):
        read(tmp_path / "c.pth", Reading())


def test_the_tensor_of_these_pickles_is_read_where_its_numbers_are_right(tmp_path):
    pickled = opcodes(persistent(b"K\x04") + b"K\x00K\x04\x85K\x01\x85\x89NtR")
    write_zip(tmp_path / "c.pth", pickled, [("data/0", struct.pack("<4f", 1, 2, 3, 4))])
    assert everything_of(tmp_path / "c.pth").tolist() == [1, 2, 3, 4]


def test_damaged_legacy_files_are_refused(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"a": torch.arange(100.0), "b": torch.ones(10)}, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    assert everything_of(path)["a"].sum() == 4950
    for cut in (len(good) - 1, len(good) - 60, len(good) - 450, 100, 30, 17):
        path.write_bytes(good[:cut])
        with pytest.raises(RuntimeError, match="damaged or no checkpoint"):
            read(path, Reading())
    number = good.rindex(struct.pack("<q", 10))
    path.write_bytes(good[:number] + struct.pack("<q", 7) + good[number + 8 :])
    with pytest.raises(RuntimeError, match="claims 7 elements"):
        read(path, Reading())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_damage_never_gives_anything_but_an_error_or_the_same_shapes(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damage"
    folder.mkdir(exist_ok=True)
    content = bytearray(good_zip(folder))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    (folder / "bad.pth").write_bytes(content[:end])
    try:
        found = everything_of(folder / "bad.pth")
    except RuntimeError as error:
        assert "bad.pth: " in str(error)
        return
    for value in found.values() if isinstance(found, dict) else []:
        if isinstance(value, torch.Tensor):
            assert value.numel() <= 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"GGUF" + bytes(100), "a GGUF file"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (pickle.dumps({"a": 1}), "a pickle, but not of torch.save"),
        (b"hello world, this is text", "neither safetensors nor torch.save's"),
        (b'{"a": 1}', "no index of a sharded checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints_are_named_for_what_they_are(tmp_path, content, message):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"c\.pth: the file is damaged or no checkpoint: .*{message}"):
        read(tmp_path / "c.pth", Reading())


# --- sharded checkpoints ---------------------------------------------------------------------------------------------


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
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def test_only_the_shards_that_are_needed_are_opened(tmp_path):
    index, _, weight_map = shard(tmp_path)
    (tmp_path / weight_map["block.1.weight"]).write_bytes(b"damaged")
    (tmp_path / weight_map["block.2.weight"]).unlink()
    made = nn.ModuleDict({"0": nn.Linear(4, 4), "3": nn.Linear(4, 4)})  # both in the first shard
    made["0"].bias = made["3"].bias = None
    report = fastinit.initialize(made["3"], dict(type="Pretrained", checkpoint=str(index), prefix="block.3"))
    assert (made["3"].weight == 3).all() and report.checkpoints[0].result.copied == ("weight",)
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


# --- the way to the bytes --------------------------------------------------------------------------------------------


def test_network_file_systems_are_read_and_others_mapped(tmp_path, monkeypatch):
    mounts = tmp_path / "mountinfo"
    lines = [
        "22 1 8:1 / / rw - ext4 /dev/a rw",
        f"23 22 0:5 / {tmp_path}/net\\040work rw,relatime shared:3 - nfs4 server:/x rw",
        f"24 23 8:2 / {tmp_path}/net\\040work/local rw - xfs /dev/b rw",
        f"25 22 0:6 / {tmp_path}/fuse rw - fuse.sshfs host: rw",
        f"26 22 0:7 / {tmp_path}/block rw - fuseblk /dev/c rw",
    ]
    mounts.write_text("\n".join(lines) + "\n")
    original = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **k: original(mounts if "mountinfo" in str(self) else self, **k)
    )
    expected = {
        "net work": True,
        "net work/local": False,
        "fuse": True,
        "block": False,
        ".": False,
        "net workshop": False,
    }
    for folder, on_network in expected.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "c.pth"
        torch.save({"a": torch.ones(1)}, path)
        assert files.is_on_network(path) is on_network
        assert files.File(path).access == ("read" if on_network else "auto")
    assert files.File(tmp_path / "fuse" / "c.pth", "map").access == "map"


def test_an_unknown_access_is_refused_when_the_rule_is_made():
    with pytest.raises(ValueError, match=r"init_cfg: access must be one of 'auto', 'map', 'read', but got 'mmap'"):
        fastinit.plan(nn.Linear(1, 1), dict(type="Pretrained", checkpoint="x", access="mmap"))
    for wrong, message in [
        (dict(weights_only=1), "weights_only must be True or False"),
        (dict(map_location=[1]), "map_location must be"),
        (dict(map_location="gpu"), "gpu"),
        (dict(prefix=3), "prefix must be a str"),
        (dict(strict="yes"), "strict must be a bool"),
        (dict(revise_keys=["ab"]), "revise_keys must hold"),
        (dict(revise_keys=[("(", "")]), "no regular expression"),
        (dict(dtype="int8"), "dtype must be a floating-point dtype"),
        (dict(dtype="bf16"), "dtype must be a floating-point dtype"),
    ]:
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            fastinit.plan(nn.Linear(1, 1), dict(type="Pretrained", checkpoint="x", **wrong))


def test_names_in_a_folder_are_what_the_hub_writes():
    assert readers.chosen_name(["README.md", "pytorch_model.bin", "model.safetensors"]) == "model.safetensors"
    assert (
        readers.chosen_name(["model.safetensors.index.json", "model-1.safetensors", "x.bin"])
        == "model.safetensors.index.json"
    )
    assert readers.chosen_name(["a.txt", "weights.pt"]) == "weights.pt"
    assert readers.chosen_name(["a.pt", "b.pt"]) is None and readers.chosen_name([]) is None


def test_file_descriptors_and_mappings_are_given_back(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "c.pth")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    for _ in range(20):
        everything_of(tmp_path / "c.pth")
        made = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1000))})
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()


# --- what large and odd tables cost ----------------------------------------------------------------------------------


@needs_linux
@pytest.mark.parametrize("shape", [[1] * 20_000, [2**62] * 20_000, [0] * 20_000], ids=["ones", "great", "zeros"])
def test_a_shape_of_many_dimensions_is_refused_at_once(tmp_path, shape):
    path = tmp_path / "c.safetensors"
    path.write_bytes(safe_bytes({"a": entry(shape=shape)}, b"1234"))
    cost = run_limited(lambda: read(path, Reading()))
    assert "has the shape a list of 20,000" in cost.result[1] and cost.cpu_s < 1


@needs_linux
def test_fifty_thousand_tensors_take_no_longer_than_the_library_needs(tmp_path):
    table = {f"layer.{i}.weight": entry(shape=(0,), offsets=(0, 0)) for i in range(50_000)}
    path = tmp_path / "c.safetensors"
    path.write_bytes(safe_bytes(table))
    ours = run_limited(lambda: len(read(path, Reading())))
    theirs = run_limited(lambda: len(safetensors.load_file(path)))
    assert ours.result == theirs.result == 50_000


@needs.mark(needs.torch_from(2, 8))
def test_pairs_of_float4_are_read_as_safetensors_reads_them(tmp_path):
    value = torch.arange(8, dtype=torch.uint8).view(2, 4).view(torch.float4_e2m1fn_x2)
    safetensors.save_file({"a": value, "b": torch.ones(2)}, tmp_path / "c.safetensors")
    found, expected = everything_of(tmp_path / "c.safetensors"), safetensors.load_file(tmp_path / "c.safetensors")
    assert found["a"].dtype == expected["a"].dtype and found["a"].shape == expected["a"].shape == (2, 4)
    assert torch.equal(found["a"].view(torch.uint8), expected["a"].view(torch.uint8))


def test_a_local_header_that_lies_is_seen(tmp_path):
    content = good_zip(tmp_path)
    at = content.index(b"good/data/0")  # the local header's; the directory's comes later
    (tmp_path / "bad.pth").write_bytes(content[:at] + b"good/data/9" + content[at + 11 :])
    with pytest.raises(RuntimeError, match="'good/data/0' has another name in front of its bytes"):
        read(tmp_path / "bad.pth", Reading())
    longer = bytearray(content)
    struct.pack_into("<H", longer, at - 2, struct.unpack_from("<H", content, at - 2)[0] + 200)
    (tmp_path / "bad.pth").write_bytes(longer)
    with pytest.raises(RuntimeError, match="overlaps the one before it"):
        read(tmp_path / "bad.pth", Reading())


def test_an_archive_without_checksums_is_read(tmp_path):
    """torch.serialization.set_crc32_options(False) leaves them out; torch loads such files."""
    content = bytearray(good_zip(tmp_path))
    for info in zipfile.ZipFile(tmp_path / "good.pth").infolist():
        crc = struct.pack("<I", info.CRC)
        while info.CRC and crc in content:
            at = content.index(crc)
            content[at : at + 4] = b"\xde\xad\xbe\xef"
    (tmp_path / "c.pth").write_bytes(content)
    assert everything_of(tmp_path / "c.pth")["a"].sum() == torch.load(tmp_path / "c.pth")["a"].sum() == 499500
