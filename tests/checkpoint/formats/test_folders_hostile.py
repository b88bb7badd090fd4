"""Hostile folders: lists and places that would harm, each answered with one error; nothing is run, changed or written."""

from __future__ import annotations

import collections
import inspect
import os
import pathlib
import pickle
import shutil
import signal

import folders
import pytest
import torch
from folders import ALARM_S, data_file, model, refused
from limited import MOST_BYTES, needs_linux, run_limited
from pickle_opcodes import pickled
from torch.distributed.checkpoint import filesystem, metadata

import fastinit
from fastinit.checkpoint import load_checkpoint

pytestmark = [folders.needs_dcp, needs_linux]


# --- places (A6) -----------------------------------------------------------------------------------------------------


def elsewhere(folder, name):
    with folders.changed(folder) as contents:
        for place in contents.storage_data.values():
            place.relative_path = name


@pytest.mark.parametrize(
    "name",
    [
        *("../other/__0_0.distcp", "x/../../other/__0_0.distcp", "{other}/__0_0.distcp", "", ".", "..", "/", "\0"),
        *("..\\other\\__0_0.distcp", "C:\\x", "file:///etc/passwd", "/dev/zero", "/dev/stdin", "a\nb" * 10_000),
    ],
)
def test_places_outside_the_folder_are_refused(folder, name):
    other = shutil.copytree(folder, folder.parent / "other")
    elsewhere(folder, name.format(other=other))
    error = "OSError" if name.startswith("a") else "RuntimeError"
    refused(folder, "" if name.startswith("a") else "which is not a path below the folder", error=error)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "linked folder", "socket", "loop"])
def test_places_that_are_not_regular_files_of_the_folder_are_refused(folder, kind):
    other = shutil.copytree(folder, folder.parent / "other")
    name, message, error = "x", "which is no regular file", "RuntimeError"
    if kind == "fifo":
        os.mkfifo(folder / "x")
    elif kind == "folder":
        (folder / "x").mkdir()
    elif kind == "socket":
        os.mknod(folder / "x", 0o140600)
    elif kind == "link":
        (folder / "x").symlink_to(other / "__0_0.distcp")
        message = "which is a link out of the folder"
    elif kind == "loop":
        (folder / "x").symlink_to("x")
        message, error = "", "OSError"
    else:
        (folder / "x").symlink_to(other)
        name, message = "x/__0_0.distcp", "which is a link out of the folder"
    elsewhere(folder, name)
    refused(folder, message, error=error)


def test_links_within_the_folder_and_those_of_a_cache_are_followed(folder, good):
    (folder / "real").mkdir()
    shutil.move(data_file(folder), folder / "real" / "data")
    data_file(folder).symlink_to("real/data")
    load_checkpoint(made := model(), folder, strict=True, logger="silent")
    assert (made[0].weight == 7).all()
    # The Hub's cache: every file of a snapshot is a link into one folder of all contents.
    cache = folder.parent / "cache"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    for each, name in ((".metadata", "1234"), ("__0_0.distcp", "5678")):
        shutil.copy(good / each, cache / "blobs" / name)
        (cache / "snapshots" / each).symlink_to(f"../blobs/{name}")
    load_checkpoint(made := model(), cache / "snapshots", strict=True, logger="silent")
    assert (made[0].weight == 7).all()


# --- what is listed (A2, A10) ----------------------------------------------------------------------------------------


def relist(change):
    def make(folder):
        with folders.changed(folder) as contents:
            change(contents, contents.state_dict_metadata["0.weight"], folders.place_of(contents, "0.weight"))

    return make


LISTED = {
    "a chunk is too small": relist(lambda c, entry, p: entry.chunks.__setitem__(0, folders.chunk((0, 0), (1, 64)))),
    "there are no chunks": relist(lambda c, entry, p: entry.chunks.clear()),
    "chunks overlap": relist(lambda c, entry, p: entry.chunks.append(folders.chunk((0, 0), (64, 64)))),
    "the tensor is larger": relist(lambda c, entry, p: setattr(entry, "size", torch.Size([65, 64]))),
    "the tensor is huge": relist(lambda c, entry, p: setattr(entry, "size", torch.Size([2**62, 2**62]))),
    "the chunk is huge": relist(
        lambda c, entry, p: (
            setattr(entry, "size", torch.Size([2**40, 64])),
            entry.chunks.__setitem__(0, folders.chunk((0, 0), (2**40, 64))),
        )
    ),
    "its place is gone": relist(lambda c, entry, p: c.storage_data.clear()),
    "its dtype is a lie": relist(lambda c, entry, p: setattr(entry.properties, "dtype", torch.int32)),
    "its dtype is none": relist(lambda c, entry, p: setattr(entry.properties, "dtype", None)),
    "its dtype is quantized": relist(lambda c, entry, p: setattr(entry.properties, "dtype", torch.qint8)),
    "it is empty and huge": relist(
        lambda c, entry, p: (setattr(entry, "size", torch.Size([0, 2**62, 2**62])), entry.chunks.clear())
    ),
    "it ends behind its file": relist(lambda c, entry, p: setattr(p, "length", 2**40)),
    "it begins behind its file": relist(lambda c, entry, p: setattr(p, "offset", 2**62)),
    "it is compressed": relist(lambda c, entry, p: setattr(p, "transform_descriptors", ["zstd"])),
}


@pytest.mark.parametrize("what", LISTED)
def test_inconsistent_entries_are_refused_with_their_key(folder, what):
    LISTED[what](folder)
    for kwargs in (dict(), dict(strict=True), dict(assign=True), dict(dtype="bfloat16")):
        refused(folder, "'0.weight'", **kwargs)


META = b"ctorch.distributed.checkpoint.metadata\n"
HOSTILE = {
    "a memo of 2 GiB": b"]r\x00\x00\x00\x08",
    "a memo of 16 GiB, as text": b"]p1000000000\n",
    "a bytearray of 2**63": b"\x96" + b"\xff" * 7 + b"\x7f",
    "lists that share lists": b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40)
    ),
    "a nest": b")" + b"\x85" * 10**6,
    "a nest as a key": b"}" + b")" + b"\x85" * 10**6 + b"Ns",
    "a class's attribute": b"cpathlib\nPosixPath\nN}X\x0b\x00\x00\x00is_absoluteccollections\nOrderedDict\ns\x86b",
    "a class's method": META + b"Metadata\nN}X\x08\x00\x00\x00__init__ccollections\nOrderedDict\ns\x86b",
    "a function's attribute": b"ctorch.serialization\n_get_layout\n}X\x05\x00\x00\x00cacheK\x01sb",
    "a long size": b"ctorch\nSize\n(" + b"K\x01" * 10**6 + b"t\x85R",
    "a process": b"cos\nsystem\nX\x04\x00\x00\x00true\x85R",
    "a record without state": META + b"Metadata\n)\x81",
    "a record of itself": META + b"Metadata\n)\x81q\x00}X\x13\x00\x00\x00state_dict_metadatah\x00sb",
}


def digest():
    """Returns what a list could try to change: the attributes of the classes that it names."""
    classes = [pathlib.PosixPath, pathlib.Path, collections.OrderedDict, torch.Size, torch.serialization._get_layout]
    for module in (metadata, filesystem):
        classes += [
            each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__
        ]
    return {f"{each.__module__}.{each.__qualname__}": {k: id(v) for k, v in vars(each).items()} for each in classes}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_lists_cost_little_and_change_nothing(folder, what):
    (folder / ".metadata").write_bytes(pickled(HOSTILE[what]))

    def attempt():
        signal.alarm(ALARM_S)
        before = digest()
        try:
            load_checkpoint(model(), folder, logger="silent")
        finally:
            assert digest() == before, "a class or function was changed"

    cost = run_limited(attempt)
    assert cost.result[0] == "RuntimeError" and cost.result[1].startswith(f"{folder / '.metadata'}: the file "), cost
    assert cost.result[2] < 2000 and cost.result[1].isprintable(), cost.result
    assert cost.peak_bytes < MOST_BYTES, cost


def test_a_list_of_chunks_that_many_keys_share_is_refused(folder):
    with folders.changed(folder) as contents:
        entry = contents.state_dict_metadata["0.weight"]
        entry.size = torch.Size([0])
        entry.chunks = [folders.chunk((0,), (0,))] * 4000
        contents.state_dict_metadata.update({f"x{i}": entry for i in range(4000)})
    refused(folder, "it has more chunks than bytes")


def test_a_list_that_is_no_pickle_is_not_read_whole(folder):
    with (folder / ".metadata").open("wb") as file:
        file.truncate(1 << 40)
    refused(folder, "is no list of contents")


def test_nothing_of_pickle_or_of_torchs_reader_is_used(folder, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it was used")

    for owner, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (torch, "load"),
        (filesystem.FileSystemReader, "read_data"),
    ):
        monkeypatch.setattr(owner, name, never)
    made = model()
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=folder, strict=False))
    assert (made[0].weight == 7).all() and not report.checkpoints[0].result.missing
