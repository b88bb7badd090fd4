"""Archives of chunks that are alike are parsed once, and no byte that is read goes unseen."""

from __future__ import annotations

from io import BytesIO

import folders
import pytest
import torch
from torch import nn

from fastinit.checkpoint import load_checkpoint
from fastinit.checkpoint.formats import saved_tensor
from fastinit.checkpoint.formats.saved_tensor import Seen, find
from fastinit.checkpoint.storage.files import File

pytestmark = folders.needs_dcp


@pytest.fixture
def two(tmp_path):
    """Two archives of tensors of one shape, one behind the other in a file: (path, length of each)."""
    buffers = BytesIO(), BytesIO()
    for buffer in buffers:
        torch.save(torch.randn(5, 3), buffer)
    first, second = (buffer.getvalue() for buffer in buffers)
    assert len(first) == len(second)
    (tmp_path / "both").write_bytes(first + second)
    return tmp_path / "both", len(first)


def outcome(path, offset, n_bytes, seen=None):
    """Returns what a reader finds in a stretch, or why it finds nothing."""
    file = File(path)
    try:
        found = find(file, offset, n_bytes, seen)
        tensor = found.of(file)
    except Exception as error:
        return type(error), str(error)
    return found, tensor.geometry, tensor.offset_in_storage, tensor.storage_in_file.stretch[1]


def test_an_archive_like_the_last_one_is_found_as_if_it_were_parsed(two, monkeypatch):
    path, n_bytes = two
    seen = Seen()
    expected = outcome(path, n_bytes, n_bytes)
    outcome(path, 0, n_bytes, seen)
    monkeypatch.setattr(saved_tensor, "_archive_in", None)
    assert outcome(path, n_bytes, n_bytes, seen) == expected
    assert isinstance(expected[0], saved_tensor.SavedTensor)


def test_each_changed_byte_has_the_effect_that_it_has_without_a_memory(two):
    path, n_bytes = two
    good = path.read_bytes()
    noticed = set()
    plain = outcome(path, n_bytes, n_bytes)
    for at in range(n_bytes):
        damaged = bytearray(good)
        damaged[n_bytes + at] ^= 0x41
        path.write_bytes(damaged)
        seen = Seen()
        outcome(path, 0, n_bytes, seen)
        expected = outcome(path, n_bytes, n_bytes)
        assert outcome(path, n_bytes, n_bytes, seen) == expected, at
        if expected != plain:
            noticed.add(at)
    assert len(noticed) > 300  # heads, names, the pickle, the table


def test_archives_of_a_folder_are_parsed_once_for_each_kind_of_tensor(tmp_path, monkeypatch):
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(10)))
    folders.save(tmp_path / "folder", model.state_dict())
    made = nn.Sequential(*(nn.Linear(6, 6) for _ in range(10)))
    parsed = []
    table = saved_tensor._table
    monkeypatch.setattr(saved_tensor, "_table", lambda stretch: parsed.append(stretch) or table(stretch))
    load_checkpoint(made, tmp_path / "folder", strict=True, logger="silent")
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), model.parameters()))
    assert len(parsed) == 2


def test_what_is_remembered_is_bounded(two, monkeypatch):
    path, n_bytes = two
    for name, most in (("_MAX_SEEN", 0), ("_MAX_SEEN_BYTES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(saved_tensor, name, most)
            seen = Seen()
            outcome(path, 0, n_bytes, seen)
            assert not seen._archives
    outcome(path, 0, n_bytes, seen)
    assert len(seen._archives) == 1
