"""Values that are no stretch of a file: converted, or parts of rows. By which way they come, and that they are right."""

from __future__ import annotations

import mmap
from itertools import count

import pytest
import torch
from loading import ACCESS
from torch import nn

import fastinit
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import batches, mapping
from fastinit.checkpoint.storage.copying import copy_into
from fastinit.checkpoint.storage.files import File


@pytest.fixture
def mapped(monkeypatch):
    """Notes which files are mapped."""
    found = []
    whole = File.mapped
    monkeypatch.setattr(File, "mapped", lambda self: found.append(self.path.name) or whole(self))
    return found


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize(("stored", "into"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float16")])
def test_converted_values_are_those_of_copy(tmp_path, pieces, mapping_is_faster, mapped, access, stored, into):
    values = torch.randn(70, 11).to(getattr(torch, stored))
    values[3, :3] = torch.tensor([float("nan"), float("inf"), 1e-40])
    torch.save({"a": values}, tmp_path / "c.pth")
    made = nn.ParameterDict({"a": nn.Parameter(torch.zeros(70, 11, dtype=getattr(torch, into)))})
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", access=access))
    expected = torch.zeros_like(made["a"]).copy_(values)
    torch.testing.assert_close(made["a"], expected, rtol=0, atol=0, equal_nan=True)
    assert bool(mapped) is (access == "map" or (access == "auto" and mapping_is_faster))


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 40), (5, 12, 40)], ids=["matrix", "stack"])
def test_a_part_of_rows_has_the_values_of_the_part(tmp_path, pieces, mapping_is_faster, mapped, access, into, shape):
    values = torch.randn(shape)
    torch.save({"a": values}, tmp_path / "c.pth")
    stored = read(tmp_path / "c.pth", Reading(access=access))["a"]
    part = stored.part([0] * (len(shape) - 1) + [15], (*shape[:-1], 5))
    made = torch.zeros(*shape[:-1], 5, dtype=into)
    assert torch.equal(copy_into(made, part), torch.zeros_like(made).copy_(values[..., 15:20]))
    assert bool(mapped) is (access == "map" or (access == "auto" and mapping_is_faster))


def test_rows_far_apart_are_not_mapped(tmp_path, mapped, monkeypatch):
    values = torch.randn(4, 50_000)
    torch.save({"a": values}, tmp_path / "c.pth")
    stored = read(tmp_path / "c.pth", Reading(access="auto"))["a"]
    made = torch.zeros(4, 5)
    monkeypatch.setattr("fastinit.checkpoint.storage.placing.is_faster", lambda *place: True)
    assert torch.equal(copy_into(made, stored.part([0, 40_000], (4, 5))), values[:, 40_000:40_005])
    assert not mapped


def test_threads_convert_in_inference_mode_and_without_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "PIECE_BYTES", 48)
    monkeypatch.setattr(batches, "_BLOCK_ELEMENTS", 5)
    values = torch.randn(100)
    torch.save({"a": values}, tmp_path / "c.pth")
    stored = read(tmp_path / "c.pth", Reading(access="read"))["a"]
    with torch.inference_mode():
        made = torch.zeros(100, dtype=torch.float64)
        copy_into(made, stored)
    assert torch.equal(made, values.double())
    learned = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    copy_into(learned, stored)
    assert learned.is_leaf and torch.equal(learned.detach(), values.double())


@pytest.mark.parametrize(("of_reading", "of_mapping"), [(1.0, 1.9), (1.0, 2.1)], ids=["mapping", "reading"])
def test_a_mapping_may_take_twice_the_time_of_reading(tmp_path, monkeypatch, of_reading, of_mapping):
    (tmp_path / "file").write_bytes(bytes(mapping.WORTH_TRYING_BYTES))
    # Each block is timed by two calls, one of them before it; blocks are read and mapped in turns.
    turns, clock = count(), [0.0]

    def thread_time():
        turn = next(turns)
        if turn % 2:
            clock[0] += of_mapping if turn % 4 == 3 else of_reading
        return clock[0]

    monkeypatch.setattr(mapping.time, "thread_time", thread_time)
    found = mapping.is_faster(File(tmp_path / "file"), 4096, mapping.WORTH_TRYING_BYTES)
    assert found is (of_mapping < 2 * of_reading)
    assert next(turns) == 2 * mapping._N_BLOCKS


@pytest.mark.parametrize(("access", "expected"), [("read", False), ("map", True), ("auto", False)])
def test_only_long_loads_of_auto_try(tmp_path, monkeypatch, access, expected):
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(File, "read_into", None)
    assert mapping.is_faster(File(tmp_path / "file", access), 0, 1 << 20) is expected


@pytest.mark.parametrize("size", [1 << 20, mapping.WORTH_TRYING_BYTES], ids=["a short file", "the end of a file"])
def test_the_trial_stays_within_the_file(tmp_path, size):
    (tmp_path / "file").write_bytes(bytes(size))
    found = mapping.is_faster(File(tmp_path / "file"), size - 16, mapping.WORTH_TRYING_BYTES)
    assert found in ((False,) if size == 1 << 20 else (False, True))


def test_the_trial_keeps_no_pages_of_the_mapping(tmp_path):
    (tmp_path / "file").write_bytes(bytes(mapping.WORTH_TRYING_BYTES))
    file = File(tmp_path / "file")
    forgotten = []
    file.forget = lambda start, end: forgotten.append((start, end))
    mapping.is_faster(file, mmap.PAGESIZE, mapping.WORTH_TRYING_BYTES)
    assert forgotten[-1] == (mmap.PAGESIZE, mmap.PAGESIZE + mapping._BLOCK_BYTES * mapping._N_BLOCKS)
