"""Damaged archives and files that are no checkpoints are refused."""

from __future__ import annotations

import pickle
import struct
import zipfile

import needs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_opcodes import g, pickled
from written_files import everything_of, write_zip

from fastinit.checkpoint.formats.by_content import Reading, read

safetensors = needs.module("safetensors.torch")


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
    bomb = pickled(b"B" + struct.pack("<I", 10**9) + bytes(10**6))
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
        g("torch._utils", "_rebuild_tensor_v2")
        + b"((X\x07\x00\x00\x00storage"
        + g("torch", "FloatStorage")
        + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + n_elements
        + b"tQ"
    )


@pytest.mark.parametrize(
    ("content", "message"),
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
    ids=[
        *("storage too long", "offset too large", "stride too large", "negative offset", "negative size"),
        *("strides and sizes differ in number", "huge size", "negative storage", "infinite storage"),
    ],
)
def test_a_tensor_must_lie_within_its_storage(tmp_path, content, message):
    write_zip(tmp_path / "c.pth", pickled(content), [("data/0", bytes(16))])
    with pytest.raises(RuntimeError, match=message):
        read(tmp_path / "c.pth", Reading())


def test_the_same_pickle_with_correct_numbers_is_read(tmp_path):
    data = pickled(persistent(b"K\x04") + b"K\x00K\x04\x85K\x01\x85\x89NtR")
    write_zip(tmp_path / "c.pth", data, [("data/0", struct.pack("<4f", 1, 2, 3, 4))])
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
def test_random_damage_gives_an_error_or_the_same_shapes(tmp_path_factory, data):
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
    ids=["empty", "page", "LFS pointer", "HDF5", "GGUF", "gzip", "tar", "pickle", "text", "JSON"],
)
def test_files_that_are_not_checkpoints_are_identified(tmp_path, content, message):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"c\.pth: the file is damaged or no checkpoint: .*{message}"):
        read(tmp_path / "c.pth", Reading())


def test_a_false_local_header_is_detected(tmp_path):
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
