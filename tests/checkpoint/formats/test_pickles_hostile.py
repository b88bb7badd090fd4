"""Hostile pickles, by kind: each costs little memory and time, harms nothing, and is answered with one clear error."""

from __future__ import annotations

import argparse
import inspect
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace

import numpy
import pytest
import torch
from hostile_pickles import (
    HOSTILE,
    MARKER,
    NEST,
    write,
)
from limited import MOST_BYTES, needs_linux, run_limited
from pickle_opcodes import g, pickled, text
from torch import nn

from fastinit.checkpoint import CheckpointLoader
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import copying, derived, stored

pytestmark = needs_linux

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
    assert cost.peak_bytes < MOST_BYTES, cost
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", [name for name in HOSTILE if not name.startswith("sparse")])
def test_pickle_operations_never_read_a_tensors_values(tmp_path, monkeypatch, name):
    """Neither compared, nor counted, nor printed; in old files, it is not known yet where a tensor is."""

    def read_it(*_):
        raise AssertionError(f"{name} reads a tensor")

    for module in (stored, derived):
        monkeypatch.setattr(module, "in_memory", read_it)
    monkeypatch.setattr(copying, "read", read_it)
    write(tmp_path / "c.pth", HOSTILE[name], "legacy")
    with pytest.raises(RuntimeError) as caught:
        CheckpointLoader.load_checkpoint(tmp_path / "c.pth", logger="silent")
    assert "reads a tensor" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("put", [b"r" + struct.pack("<I", 10**8), b"r\xff\xff\xff\xff", b"p99999999999999\n"])
def test_the_memo_takes_memory_only_for_its_entries(tmp_path, put, form):
    write(tmp_path / "c.pth", pickled(b"]" + put), form)
    cost = run_limited(lambda: CheckpointLoader.load_checkpoint(tmp_path / "c.pth", logger="silent"))
    assert cost.result == []
    assert cost.peak_bytes < 10 << 20


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
    # An empty list is one byte of a pickle and 88 of memory: no reader can do without.
    assert cost.peak_bytes < MOST_BYTES + 150 * len(content[1]), cost


@pytest.mark.parametrize("kind", ["deque", "defaultdict"])
def test_containers_freed_by_recursion_become_stubs_below_depth_1000(tmp_path, kind):
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


def test_the_names_of_hostile_files_are_printed_escaped(tmp_path):
    write(tmp_path / "c.pth", pickled(b"}" + text("a") + g("x\x1b[2J", "y" * 500) + b"s"), "zip")
    with pytest.raises(RuntimeError) as caught:
        CheckpointLoader.load_checkpoint(tmp_path / "c.pth", logger="silent")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_that_is_cut_within_its_pickle_is_refused(tmp_path):
    torch.save(
        {"a": torch.ones(3), "b": [1.5, "text", b"bytes"]}, tmp_path / "c.pth", _use_new_zipfile_serialization=False
    )
    content = (tmp_path / "c.pth").read_bytes()
    for cut in range(len(content) - 1):
        (tmp_path / "c.pth").write_bytes(content[:cut])
        with pytest.raises(RuntimeError, match="damaged or no checkpoint"):
            read(tmp_path / "c.pth", Reading())
