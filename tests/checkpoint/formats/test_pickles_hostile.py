"""Hostile pickles, by kind: each costs little memory and time, harms nothing, and is answered with one clear error."""

from __future__ import annotations

import argparse
import inspect
import pathlib
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace

import numpy
import pytest
import torch
from limited import needs_linux, run_limited
from torch import nn

from fastinit.checkpoint import CheckpointLoader, load_checkpoint
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import derived, stored

pytestmark = needs_linux

# What a hostile file may take beyond its own size, and how long; both as the documentation says.
MOST_BYTES = 100 << 20
MOST_CPU_S = 1.0
MARKER = "FASTINIT_HOSTILE_CODE_RAN"


def g(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


STORAGE = b"(" + text("storage") + g("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
LONG_STORAGE = b"(" + text("storage") + g("torch", "LongStorage") + text("0") + text("cpu") + b"K\x02tQ"
NO_HOOKS = g("collections", "OrderedDict") + b")R"


def a_tensor(shape: bytes, strides: bytes, storage: bytes = STORAGE, more: bytes = b"") -> bytes:
    return (
        g("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage
        + b"K\x00"
        + shape
        + strides
        + b"\x89"
        + NO_HOOKS
        + more
        + b"tR"
    )


def endless(n: int = 2**26) -> bytes:
    """A tensor of many elements over four."""
    return a_tensor(number(n) + b"\x85", b"K\x00\x85")


GOOD_TENSOR = a_tensor(b"K\x04\x85", b"K\x01\x85")
NUMPY_F8 = (
    g("numpy", "dtype")
    + text("f8")
    + b"\x89\x88\x87R(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
EMPTY_ARRAY = g("numpy.core.multiarray", "_reconstruct") + g("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
SHARED = b"]q\x00" + b"".join(b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40))
LONG_LIST = b"](" + b"N" * 100_000 + b"eq\x01"
# Deep enough to overflow the stack of whoever recurses.
NEST = b")" + b"\x85" * 300_000


def quantized(params: bytes, storage: str = "QInt8Storage", shape: bytes = b"K\x04\x85") -> bytes:
    stored = b"(" + text("storage") + g("torch", storage) + text("1") + text("cpu") + b"K\x04tQ"
    return (
        g("torch._utils", "_rebuild_qtensor")
        + b"("
        + stored
        + b"K\x00"
        + shape
        + b"K\x01\x85"
        + params
        + b"\x89"
        + NO_HOOKS
        + b"tR"
    )


def sparse(layout: str, data: bytes) -> bytes:
    named = g("torch.serialization", "_get_layout") + text(layout) + b"\x85R"
    return g("torch._utils", "_rebuild_sparse_tensor") + named + data + b"\x86R"


INDICES = a_tensor(b"K\x01K\x02\x86", b"K\x02K\x01\x86", LONG_STORAGE)  # 16 bytes of the storage: 1.0, 2.0, 3.0, 4.0
F = b"G" + struct.pack(">d", 0.5)

HOSTILE = {
    # --- counts that are trusted ---
    "memo index as long text": pickled(b"]p" + b"9" * 100_000 + b"\n"),
    "memo index, negative": pickled(b"]p-1\n"),
    "length of a bytearray": pickled(b"\x96" + struct.pack("<Q", 2**63)),
    "length of bytes": pickled(b"\x8e" + struct.pack("<Q", 2**40)),
    "length of a text": pickled(b"\x8d" + struct.pack("<Q", 2**62)),
    "length of an old text": pickled(b"T\xff\xff\xff\x7f"),
    "length of a number": pickled(b"\x8b\xff\xff\xff\x7f"),
    "length of a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",
    "number as long text": pickled(b"L" + b"9" * 200_000 + b"L\n"),
    # --- constructors that are given much, for little ---
    **{
        f"{name} of an endless tensor": pickled(g(module, name) + endless(n) + b"\x85R")
        for n in (2**26, 2**40)
        for module, name in (
            *(
                ("builtins", each)
                for each in ("set", "frozenset", "bytearray", "bytes", "list", "tuple", "dict", "range")
            ),
            ("collections", "OrderedDict"),
            ("collections", "Counter"),
            ("collections", "deque"),
            ("torch", "Size"),
            ("torch", "device"),
            ("torch.nn.parameter", "Parameter"),
            ("pathlib", "PosixPath"),
            ("datetime", "datetime"),
        )
    },
    "shape that is a tensor": pickled(a_tensor(endless(), b"K\x01\x85")),
    "strides that are a tensor": pickled(a_tensor(b"K\x01\x85", endless())),
    "persistent id that is a tensor": pickled(endless() + b"Q"),
    "hooks that are a tensor": pickled(
        g("torch._utils", "_rebuild_tensor_v2") + b"(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89" + endless() + b"tR"
    ),
    "metadata that are a tensor": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=endless())),
    "array of an endless tensor": pickled(
        g("numpy._core.numeric", "_frombuffer") + b"(" + endless() + NUMPY_F8 + b"K\x01\x85" + text("C") + b"tR"
    ),
    "array of so many zeros": pickled(
        g("numpy._core.numeric", "_frombuffer") + b"(" + number(2**31) + NUMPY_F8 + b"K\x01\x85" + text("C") + b"tR"
    ),
    "array of many elements of no size": pickled(
        g("numpy._core.numeric", "_frombuffer")
        + b"(C\x00"
        + NUMPY_F8.replace(text("f8"), text("U0"))
        + number(2**40)
        + b"\x85"
        + text("C")
        + b"tR"
    ),
    "bytearray of so many zeros": pickled(g("builtins", "bytearray") + number(2**33) + b"\x85R"),
    "bytes of so many zeros": pickled(g("builtins", "bytes") + number(2**33) + b"\x85R"),
    "set of one list, again and again": pickled(
        LONG_LIST + b"(" + (g("builtins", "set") + b"h\x01\x85R0") * 10_000 + b"t"
    ),
    "size of one list, again and again": pickled(
        b"](" + b"K\x01" * 50_000 + b"eq\x01(" + g("torch", "Size") + b"q\x02" + b"h\x02h\x01\x85R" * 10_000 + b"t"
    ),
    "bytes of one text, again and again": pickled(
        text("x" * 100_000)
        + b"q\x01("
        + g("_codecs", "encode")
        + b"q\x02"
        + text("latin1")
        + b"q\x03"
        + b"h\x02h\x01h\x03\x86R" * 10_000
        + b"t"
    ),
    "tensors of one storage, again and again": pickled(
        STORAGE
        + b"q\x01K\x04\x85q\x02K\x01\x85q\x03"
        + NO_HOOKS
        + b"q\x04"
        + g("torch._utils", "_rebuild_tensor_v2")
        + b"q\x05(h\x01K\x00h\x02h\x03\x89h\x04tq\x06("
        + b"h\x05h\x06R" * 300_000
        + b"l"
    ),
    "array of one text, again and again": pickled(
        b"B"
        + struct.pack("<I", 80_000)
        + bytes(80_000)
        + b"q\x01"
        + NUMPY_F8
        + b"q\x02("
        + (g("numpy._core.numeric", "_frombuffer") + b"(h\x01h\x02M\x10\x27\x85" + text("C") + b"tR") * 5_000
        + b"t"
    ),
    # --- messages ---
    "error about shared lists": pickled(SHARED + b"Q"),
    "shared lists as a shape": pickled(a_tensor(SHARED, b"K\x01\x85")),
    "shared lists as a dtype": pickled(SHARED + b"\x85q\x64" + g("numpy", "dtype") + b"h\x64R"),
    "shared lists as a state": pickled(NO_HOOKS + SHARED + b"b"),
    "shared lists as a key": pickled(b"}" + SHARED + b"\x85Ns"),
    "shared lists as a layout": pickled(g("torch.serialization", "_get_layout") + SHARED + b"\x85R"),
    "long name": pickled(g("a" * 900, "b\x1b[31m" + "c" * 900)),
    "name of megabytes": pickled(g("a" * 10**6, "b")),
    "long key of a storage": pickled(STORAGE.replace(text("0"), text("\x1b]0;" + "k" * 10**6))),
    "error about a great number": pickled(b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b"Q"),
    # --- nests and hashes ---
    "nested tuple as a key": pickled(b"}" + NEST + b"Ns"),
    "nested tuple in a set": pickled(g("builtins", "set") + b"]" + NEST + b"a\x85R"),
    "nested tuple in a frozenset": b"\x80\x04(" + NEST + b"\x91.",
    "nested tuple in a new set": b"\x80\x04\x8f(" + NEST + b"\x90.",
    "nested tuple as a count": pickled(g("collections", "Counter") + b"}" + NEST + b"Ns\x85R"),
    "nested tuple as a storage": pickled(NEST + b"Q"),
    "nested tuple as a shape": pickled(a_tensor(NEST, b"K\x01\x85")),
    "frozensets in each other": b"\x80\x04" + b"(" * 10_000 + b"N" + b"\x91" * 10_000 + b".",
    "great numbers as keys": pickled(
        b"}" + b"\x8b" + struct.pack("<I", 50_000) + b"\x7f" * 50_000 + b"q\x01(" + b"h\x01N" * 10_000 + b"u"
    ),
    "one state, again and again": pickled(
        b"}("
        + b"".join(text(f"a{i}") + b"N" for i in range(20_000))
        + b"uq\x010("
        + g("argparse", "Namespace")
        + b"q\x02"
        + b"h\x02)\x81h\x01b" * 20_000
        + b"t"
    ),
    "one tuple in keys, again and again": pickled(
        b"("
        + b"K\x01" * 16
        + b"tq\x01("
        + b"h\x01" * 16
        + b"tq\x02("
        + b"h\x02" * 16
        + b"tq\x030}("
        + b"h\x03N" * 10_000
        + b"u"
    ),
    "parts of a path, again and again": pickled(
        b"(" + b"U\x00" * 20_000 + b"tq\x01(" + g("pathlib", "PosixPath") + b"q\x02" + b"h\x02h\x01R" * 10_000 + b"t"
    ),
    "numbers of one hash": pickled(b"}(" + b"".join(number((2**61 - 1) * i) + b"N" for i in range(20_000)) + b"u"),
    "tuples of one hash": pickled(
        b"}("
        + b"".join(
            b"(" + b"".join(b"J\xff\xff\xff\xff" if i >> bit & 1 else b"J\xfe\xff\xff\xff" for bit in range(13)) + b"tN"
            for i in range(8192)
        )
        + b"u"
    ),
    # --- names ---
    "call": pickled(g("os", "system"), text(f"touch {MARKER}") + b"\x85R"),
    "call, with INST": pickled(b"(" + text(f"touch {MARKER}") + b"ios\nsystem\n"),
    "call, with OBJ": pickled(b"(" + g("os", "system") + text(f"touch {MARKER}") + b"o"),
    "call, with STACK_GLOBAL": b"\x80\x04"
    + text("os")
    + text("system")
    + b"\x93"
    + text(f"touch {MARKER}")
    + b"\x85R.",
    "call, with NEWOBJ_EX": b"\x80\x04" + g("subprocess", "Popen") + text("id") + b"\x85}\x92.",
    "getattr": pickled(g("builtins", "getattr") + g("collections", "OrderedDict") + text("__class__") + b"\x86R"),
    "getattr of a tensor": pickled(g("builtins", "getattr") + GOOD_TENSOR + text("__reduce_ex__") + b"\x86R"),
    "eval": pickled(g("builtins", "eval") + text("1") + b"\x85R"),
    "import": pickled(g("builtins", "__import__") + text("antigravity") + b"\x85R"),
    "call of what a call made": pickled(NO_HOOKS + b")R"),
    "call of a class": pickled(g("torch", "FloatStorage") + b"K\x08\x85R"),
    "call of a text": pickled(text("os.system") + b")R"),
    "extension registry": pickled(b"\x82\x01"),
    "persistent text": pickled(b"Pabc\n"),
    "out-of-band buffer": b"\x80\x05\x97.",
    # --- states ---
    **{
        f"state of {name}": pickled(g(module, name) + state + b"b")
        for module, name in (
            ("collections", "OrderedDict"),
            ("argparse", "Namespace"),
            ("pathlib", "PosixPath"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch.nn.parameter", "Parameter"),
            ("torch", "Tensor"),
            ("numpy", "ndarray"),
            ("mmengine.logging.history_buffer", "HistoryBuffer"),
            ("torch", "FloatStorage"),
        )
        for state in (b"N}" + text("hostile") + b"K\x01s\x86",)
    },
    "state of an OrderedDict that hides items": pickled(NO_HOOKS + b"}" + text("items") + b"Nsb"),
    "state of arguments that hides a method": pickled(
        g("argparse", "Namespace") + b")\x81}" + text("_get_kwargs") + b"Nsb"
    ),
    "state of a tensor": pickled(GOOD_TENSOR + b"}" + text("hostile") + b"K\x01sb"),
    "state of a dict": pickled(b"}}" + text("hostile") + b"K\x01sb"),
    "state of a dtype": pickled(g("torch", "float32") + b"}" + text("hostile") + b"K\x01sb"),
    "state of an array, twice": pickled(
        EMPTY_ARRAY + b"(K\x01K\x00\x85" + NUMPY_F8 + b"\x89C\x00tb(K\x01K\x00\x85" + NUMPY_F8 + b"\x89C\x00tb"
    ),
    "items of a tensor": pickled(GOOD_TENSOR + b"K\x00K\x01s"),
    "item of a range": pickled(g("builtins", "range") + b"K\x01\x85RNa"),
    # --- tensors ---
    "argument too many": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=b"}N")),
    "unknown metadata": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=b"}" + text("zero") + b"\x88s")),
    "conjugate of floats": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=b"}" + text("conj") + b"\x88s")),
    "hooks": pickled(
        g("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + STORAGE
        + b"K\x00K\x04\x85K\x01\x85\x89"
        + NO_HOOKS
        + b"K\x00K\x00stR"
    ),
    "gradients of integers": pickled(
        g("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + LONG_STORAGE
        + b"K\x00K\x02\x85K\x01\x85\x88"
        + NO_HOOKS
        + b"tR"
    ),
    "too many dimensions": pickled(a_tensor(b"(" + b"K\x01" * 100_000 + b"t", b"(" + b"K\x01" * 100_000 + b"t")),
    "two dtypes of one storage": pickled(
        b"(" + GOOD_TENSOR + a_tensor(b"K\x02\x85", b"K\x01\x85", LONG_STORAGE) + b"t"
    ),
    "parameter of text": pickled(g("torch._utils", "_rebuild_parameter") + text("x") + b"\x88" + NO_HOOKS + b"\x87R"),
    "parameter whose attribute hides data": pickled(
        g("torch._utils", "_rebuild_parameter_with_state")
        + b"("
        + GOOD_TENSOR
        + b"\x88"
        + NO_HOOKS
        + b"}"
        + text("data")
        + b"NstR"
    ),
    "scale of nothing": pickled(quantized(g("torch", "per_tensor_affine") + b"G" + bytes(8) + b"K\x00\x87")),
    "zero out of bounds": pickled(quantized(g("torch", "per_tensor_affine") + F + b"M\xff\xff\x87")),
    "quantized, endless": pickled(
        quantized(g("torch", "per_tensor_affine") + F + b"K\x00\x87", shape=number(2**40) + b"\x85")
    ),
    "quantized, axis out of bounds": pickled(
        quantized(b"(" + g("torch", "per_channel_affine") + GOOD_TENSOR + GOOD_TENSOR + b"K\x05t")
    ),
    "quantized, scales that are too few": pickled(
        quantized(b"(" + g("torch", "per_channel_affine") + GOOD_TENSOR * 2 + b"K\x00t", shape=b"K\x03\x85")
    ),
    "sparse, indices out of bounds": pickled(
        sparse(
            "torch.sparse_coo",
            b"("
            + INDICES
            + a_tensor(b"K\x02\x85", b"K\x01\x85", STORAGE.replace(text("0"), text("1")))
            + b"K\x02\x85\x89t",
        )
    ),
    "sparse, endless": pickled(
        sparse(
            "torch.sparse_coo",
            b"("
            + a_tensor(b"K\x01" + number(2**40) + b"\x86", b"K\x00K\x00\x86", LONG_STORAGE)
            + a_tensor(number(2**40) + b"\x85", b"K\x00\x85", STORAGE.replace(text("0"), text("1")))
            + b"K\x02\x85\x89t",
        )
    ),
    "sparse, of a layout that is none": pickled(
        g("torch.serialization", "_get_layout") + text("torch.nothing") + b"\x85R"
    ),
    # --- comparisons and truth, which a tensor of the file would answer with its values ---
    "bits that are a tensor": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=endless())),
    "state with a tensor for slots": pickled(g("argparse", "Namespace") + b")\x81N" + endless() + b"\x86b"),
    "byte order that is a tensor": pickled(
        g("numpy", "dtype")
        + text("f8")
        + b"\x89\x88\x87R(K\x03"
        + endless()
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    ),
    "base that is a tensor": pickled(
        g("numpy", "dtype")
        + text("f8")
        + b"\x89\x88\x87R(K\x03"
        + text("<")
        + endless()
        + b"NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    ),
    "layout that is a tensor": pickled(g("torch._utils", "_rebuild_sparse_tensor") + endless() + b")\x86R"),
    "quantizer that is a tensor": pickled(quantized(b"(" + endless() + b"NNNt")),
    "encoding that is a tensor": pickled(g("_codecs", "encode") + text("x") + endless() + b"\x86R"),
    "order that is a tensor": pickled(
        g("numpy._core.numeric", "_frombuffer") + b"(C\x08" + bytes(8) + NUMPY_F8 + b"K\x01\x85" + endless() + b"tR"
    ),
    # --- structure ---
    "nothing on the stack": pickled(b"R"),
    "a mark left": pickled(b"N("),
    "two objects": pickled(b"NN"),
    "no object": pickled(b""),
    "no end": b"\x80\x02]",
    "a key without a value": pickled(b"}(Nu"),
    "an item below a mark": pickled(b"](N(ae"),
    "memo never written": pickled(b"h\x07"),
    "unknown opcode": pickled(b"\xff"),
    "unknown protocol": b"\x80\x09N.",
}
TENSORS = [("data/0", struct.pack("<4f", 1, 2, 3, 4)), ("data/1", struct.pack("<4f", 1, 2, 3, 4))]


def write(path: pathlib.Path, data: bytes, form: str) -> None:
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            for name, content in TENSORS:
                archive.writestr(f"archive/{name}", content)
        return
    system = pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + system + data + pickle.dumps([], 2)
    )


WATCHED = [
    *(OrderedDict, Counter, defaultdict, deque, argparse.Namespace, SimpleNamespace, pathlib.PurePath, numpy.dtype),
    *(numpy.ndarray, torch.Tensor, nn.Parameter, torch.Size, torch._utils._rebuild_tensor_v2),
    *(
        each
        for _, each in inspect.getmembers(inspect.getmodule(read))
        if inspect.isclass(each) or inspect.isfunction(each)
    ),
]


def digest() -> list[int]:
    """What a file could have changed in this process."""
    return [
        hash(tuple(sorted((name, id(value)) for name, value in vars(each).items() if name != "__dict__")))
        for each in WATCHED
    ]


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_at_little_cost_and_changes_nothing(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pth"
    write(path, HOSTILE[name], form)

    def attempt():
        before = digest()
        try:
            found = CheckpointLoader.load_checkpoint(path, logger="silent")
        finally:
            assert digest() == before, "a class or function was changed"
        return "loaded", type(found).__name__

    cost = run_limited(attempt)
    kind, message, *_ = cost.result
    assert kind == "RuntimeError", cost.result
    assert message.startswith(f"{path}: the file ") and cost.result[2] < 3000 and message.isprintable(), cost.result
    assert cost.peak_bytes < MOST_BYTES and cost.cpu_s < MOST_CPU_S, cost
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", [name for name in HOSTILE if not name.startswith("sparse")])
def test_no_tensor_is_read_for_what_a_pickle_does_with_it(tmp_path, monkeypatch, name):
    """Neither compared, nor counted, nor printed; in old files, it is not known yet where a tensor is."""

    def read_it(*_):
        raise AssertionError(f"{name} reads a tensor")

    for module in (stored, derived):
        monkeypatch.setattr(module, "in_memory", read_it)
    monkeypatch.setattr(stored, "read", read_it)
    write(tmp_path / "c.pth", HOSTILE[name], "legacy")
    with pytest.raises(RuntimeError) as caught:
        CheckpointLoader.load_checkpoint(tmp_path / "c.pth", logger="silent")
    assert "reads a tensor" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("put", [b"r" + struct.pack("<I", 10**8), b"r\xff\xff\xff\xff", b"p99999999999999\n"])
def test_the_memo_takes_memory_for_what_is_in_it_only(tmp_path, put, form):
    write(tmp_path / "c.pth", pickled(b"]" + put), form)
    cost = run_limited(lambda: CheckpointLoader.load_checkpoint(tmp_path / "c.pth", logger="silent"))
    assert cost.result == [] and cost.peak_bytes < 10 << 20 and cost.cpu_s < MOST_CPU_S


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    {
        "lists": b"]" * 300_000 + b"a" * 299_999,
        "tuples": NEST,
        "lists and tuples": b"]" * 50_000 + b"\x85a" * 49_999,
        "dicts": b"}" + b"K\x00}" * 100_000 + b"s" * 100_000,
        "ordered dicts": g("collections", "OrderedDict") + b"q\x01)R" + b"K\x00h\x01)R" * 50_000 + b"s" * 50_000,
        "attributes": g("argparse", "Namespace")
        + b"q\x01)\x81"
        + (b"}" + text("x") + b"h\x01)\x81") * 20_000
        + b"sb" * 20_000,
        "default dicts": g("collections", "defaultdict") + b"q\x01N\x85R" + b"K\x00h\x01N\x85R" * 900 + b"s" * 900,
        "None": b"(" + b"N" * 300_000 + b"t",
    }.items(),
    ids=lambda each: each[0],
)
def test_a_deep_nest_is_read_and_freed(tmp_path, content, form):
    write(tmp_path / "c.pth", pickled(b"}" + text("nest") + content[1] + b"s"), form)

    def attempt():
        found = read(tmp_path / "c.pth", Reading())
        kinds = list(found), type(found["nest"]).__name__
        del found
        return kinds

    cost = run_limited(attempt)
    assert cost.result[0] == ["nest"], cost.result
    assert cost.cpu_s < MOST_CPU_S, cost
    # An empty list is one byte of a pickle and 88 of memory: no reader can do without.
    assert cost.peak_bytes < MOST_BYTES + 150 * len(content[1]), cost


@pytest.mark.parametrize("kind", ["deque", "defaultdict"])
def test_what_is_freed_by_recursion_is_a_stub_below_a_thousand(tmp_path, kind):
    one = b"h\x01)R"
    close = b"a" if kind == "deque" else b"s"
    between = b"" if kind == "deque" else b"K\x00"
    nest = g("collections", kind) + b"q\x01)R" + (between + one) * 20_000 + close * 20_000
    write(tmp_path / "c.pth", pickled(b"}" + text("nest") + nest + b"s"), "zip")

    def attempt():
        found = read(tmp_path / "c.pth", Reading())["nest"]
        depth = 0
        while isinstance(found, (deque, defaultdict)):
            found, depth = found[0], depth + 1
        return depth, repr(found)

    assert run_limited(attempt).result == (1000, f"<collections.{kind}, not loaded>")


def test_classes_that_torch_was_told_are_safe_are_not_changed(tmp_path):
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    state = g(DTensorSpec.__module__, "DTensorSpec") + b"N}" + text("hostile") + b"K\x01s\x86b"
    write(tmp_path / "c.pth", pickled(state), "zip")
    with pytest.raises(RuntimeError, match="cannot be given a state"):
        load_checkpoint(nn.Linear(2, 2), tmp_path / "c.pth", logger="silent")
    assert not hasattr(DTensorSpec, "hostile")


class Allowed:
    __slots__ = ("lr",)


@pytest.mark.parametrize(
    "state",
    [
        b"N}" + text("hostile") + b"K\x01s\x86",
        b"N}" + text("__class__") + b"K\x01s\x86",
        b"}" + text("x") + b"K\x01s",
        b"K\x01",
    ],
)
def test_an_allowed_class_gets_no_attributes_but_its_own(tmp_path, state):
    name = g(Allowed.__module__, "Allowed")
    write(tmp_path / "good.pth", pickled(name + b")\x81N}" + text("lr") + b"K\x01s\x86b"), "zip")
    assert read(tmp_path / "good.pth", Reading(allow=(Allowed,))).lr == 1
    for content in (name + state + b"b", name + b")\x81" + state + b"b"):
        write(tmp_path / "c.pth", pickled(content), "zip")
        with pytest.raises(RuntimeError, match="damaged"):
            read(tmp_path / "c.pth", Reading(allow=(Allowed,)))
    assert not hasattr(Allowed, "hostile")


@pytest.mark.parametrize(
    "damage", [None, 3, [], {"": None}, {"": {"version": "2"}}, {"": 3}, {3: {"version": 1}}, {"": {"version": []}}]
)
def test_damaged_metadata_of_a_state_dict_are_refused_before_anything_is_written(tmp_path, damage):
    def made():
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    state = made().state_dict()
    state._metadata = damage
    torch.save(state, tmp_path / "c.pth")
    model = made()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="damaged or no checkpoint: .*_metadata of a state dict"):
        load_checkpoint(model, tmp_path / "c.pth", logger="silent")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_metadata_that_are_damaged_after_they_were_set_are_seen(tmp_path):
    metadata = b"}q\x07"
    content = NO_HOOKS + b"q\x05}" + text("_metadata") + metadata + b"sb0h\x07" + text("") + b"Ns0h\x05"
    write(tmp_path / "c.pth", pickled(content), "zip")
    with pytest.raises(RuntimeError, match="_metadata of a state dict"):
        read(tmp_path / "c.pth", Reading())


def test_the_names_of_hostile_files_are_printed_escaped(tmp_path):
    write(tmp_path / "c.pth", pickled(b"}" + text("a") + g("x\x1b[2J", "y" * 500) + b"s"), "zip")
    with pytest.raises(RuntimeError) as caught:
        CheckpointLoader.load_checkpoint(tmp_path / "c.pth", logger="silent")
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_file_that_is_cut_within_its_pickle_is_refused(tmp_path):
    torch.save(
        {"a": torch.ones(3), "b": [1.5, "text", b"bytes"]}, tmp_path / "c.pth", _use_new_zipfile_serialization=False
    )
    content = (tmp_path / "c.pth").read_bytes()
    for cut in range(len(content) - 1):
        (tmp_path / "c.pth").write_bytes(content[:cut])
        with pytest.raises(RuntimeError, match="damaged or no checkpoint"):
            read(tmp_path / "c.pth", Reading())


class AllowedOpen:
    """It has a __dict__, so that setting any attribute would succeed."""

    def method(self):
        return "its own"


def test_slots_of_an_allowed_class_are_those_it_declares(tmp_path):
    made = g(AllowedOpen.__module__, "AllowedOpen") + b")\x81"
    write(tmp_path / "c.pth", pickled(made + b"N}" + text("method") + b"K\x01s\x86b"), "zip")
    with pytest.raises(RuntimeError, match="a AllowedOpen has no slots a dict"):
        read(tmp_path / "c.pth", Reading(allow=(AllowedOpen,)))
    write(tmp_path / "c.pth", pickled(made + b"}" + text("lr") + b"K\x01sb"), "zip")
    assert read(tmp_path / "c.pth", Reading(allow=(AllowedOpen,))).lr == 1
