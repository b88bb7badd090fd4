"""Headers of safetensors are checked whole before a byte is used, at little cost."""

from __future__ import annotations

import json
import struct

import needs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from limited import needs_linux, run_limited
from written_files import everything_of

from fastinit.checkpoint.formats.by_content import Reading, read

safetensors = needs.module("safetensors.torch")


def safe_bytes(table, data=b"", length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


ODD_F4 = "its last is not even"
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
    "odd F4": (safe_bytes({"a": entry("F4", (3,), (0, 2))}, b"12"), ODD_F4),
    "F4 without a shape": (safe_bytes({"a": entry("F4", (), (0, 1))}, b"1"), ODD_F4),
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
    is_known = message != ODD_F4 or hasattr(torch, "float4_e2m1fn_x2")  # since torch 2.8
    with pytest.raises(RuntimeError, match=message if is_known else "'F4', which this torch does not have"):
        read(path, Reading())
    if message != "'a' twice":  # of which the library takes the last
        with pytest.raises(Exception):
            safetensors.load_file(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_safetensors_refuses_is_refused(data):
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
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@needs_linux
@pytest.mark.parametrize("shape", [[1] * 20_000, [2**62] * 20_000, [0] * 20_000], ids=["ones", "great", "zeros"])
def test_a_shape_of_many_dimensions_is_refused_at_once(tmp_path, shape):
    path = tmp_path / "c.safetensors"
    path.write_bytes(safe_bytes({"a": entry(shape=shape)}, b"1234"))
    cost = run_limited(lambda: read(path, Reading()))
    assert "has the shape a list of 20,000" in cost.result[1]


@needs_linux
def test_fifty_thousand_tensors_take_no_longer_than_the_library_needs(tmp_path):
    table = {f"layer.{i}.weight": entry(shape=(0,), offsets=(0, 0)) for i in range(50_000)}
    path = tmp_path / "c.safetensors"
    path.write_bytes(safe_bytes(table))
    ours = run_limited(lambda: len(read(path, Reading())))
    theirs = run_limited(lambda: len(safetensors.load_file(path)))
    assert ours.result == theirs.result == 50_000
