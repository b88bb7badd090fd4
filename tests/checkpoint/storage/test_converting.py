"""Values that are no stretch of a file: converted, or parts of rows. They are right, and only access="map" maps files."""

from __future__ import annotations

import pytest
import torch
from loading import ACCESS
from torch import nn

import fastinit
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import batches
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
def test_converted_values_are_those_of_copy(tmp_path, pieces, mapped, access, stored, into):
    values = torch.randn(70, 11).to(getattr(torch, stored))
    values[3, :3] = torch.tensor([float("nan"), float("inf"), 1e-40])
    torch.save({"a": values}, tmp_path / "c.pth")
    made = nn.ParameterDict({"a": nn.Parameter(torch.zeros(70, 11, dtype=getattr(torch, into)))})
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", access=access))
    expected = torch.zeros_like(made["a"]).copy_(values)
    torch.testing.assert_close(made["a"], expected, rtol=0, atol=0, equal_nan=True)
    assert bool(mapped) is (access == "map")


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 40), (5, 12, 40)], ids=["matrix", "stack"])
def test_a_part_of_rows_has_the_values_of_the_part(tmp_path, pieces, mapped, access, into, shape):
    values = torch.randn(shape)
    torch.save({"a": values}, tmp_path / "c.pth")
    stored = read(tmp_path / "c.pth", Reading(access=access))["a"]
    part = stored.part([0] * (len(shape) - 1) + [15], (*shape[:-1], 5))
    made = torch.zeros(*shape[:-1], 5, dtype=into)
    assert torch.equal(copy_into(made, part), torch.zeros_like(made).copy_(values[..., 15:20]))
    assert bool(mapped) is (access == "map")


def test_rows_far_apart_have_the_values_of_the_part(tmp_path):
    values = torch.randn(4, 50_000)
    torch.save({"a": values}, tmp_path / "c.pth")
    stored = read(tmp_path / "c.pth", Reading(access="map"))["a"]
    made = torch.zeros(4, 5)
    assert torch.equal(copy_into(made, stored.part([0, 40_000], (4, 5))), values[:, 40_000:40_005])


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
