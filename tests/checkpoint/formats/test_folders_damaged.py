"""Damaged folders: one error that says where and what to do, before anything is written."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from io import BytesIO

import folders
import pytest
import torch
from folders import changed, data_file, model, place_of, refused
from limited import needs_linux
from torch import nn

import fastinit
from fastinit.checkpoint import Request, load_checkpoint

pytestmark = [folders.needs_dcp, needs_linux]


def part_of(folder, key):
    with changed(folder) as contents:
        place = place_of(contents, key)
        return place.offset, place.length


def overwrite(folder, key, new):
    """Writes bytes, or what a function makes of the old ones, in the place of a key."""
    at, n_bytes = part_of(folder, key)
    data = bytearray(data_file(folder).read_bytes())
    new = new(bytes(data[at : at + n_bytes])) if callable(new) else new
    data[at : at + len(new)] = new
    data_file(folder).write_bytes(data)


def torch_saved(value):
    buffer = BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(make):
    """Returns what appends an archive that ``make`` makes of the good one, and lets a key lie there."""

    def change(folder):
        at, n_bytes = part_of(folder, "2.weight")
        new = make(data_file(folder).read_bytes()[at : at + n_bytes])
        with changed(folder) as contents:
            place = place_of(contents, "2.weight")
            place.offset, place.length = data_file(folder).stat().st_size, len(new)
        with data_file(folder).open("ab") as file:
            file.write(new)

    return change


def in_its_place(value):
    return archive(lambda old: torch_saved(value))


def zipped(**entries):
    buffer = BytesIO()
    compression = entries.pop("compression", zipfile.ZIP_STORED)
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return buffer.getvalue()


def rezipped(old, change, **options):
    with zipfile.ZipFile(BytesIO(old)) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    change(entries)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return buffer.getvalue()


def with_entries(change, **options):
    return archive(lambda old: rezipped(old, change, **options))


def swap(entries, name, old, new):
    assert old in entries[name]
    entries[name] = entries[name].replace(old, new)


DAMAGED = {
    "it is cut within a tensor": lambda folder: os.truncate(data_file(folder), 5000),
    "it is cut at the end": lambda folder: os.truncate(data_file(folder), data_file(folder).stat().st_size - 1),
    "it is empty": lambda folder: data_file(folder).write_bytes(b""),
    "it is all zeros": lambda folder: data_file(folder).write_bytes(bytes(data_file(folder).stat().st_size)),
    "it is all the same": lambda folder: data_file(folder).write_bytes(b"P" * data_file(folder).stat().st_size),
    "a web page lies there": lambda folder: data_file(folder).write_bytes(
        b"<html>".ljust(data_file(folder).stat().st_size)
    ),
    "the tensor's head is gone": lambda folder: overwrite(folder, "2.weight", bytes(4)),
    "the tensor's table is gone": lambda folder: overwrite(folder, "2.weight", lambda old: old[:-200] + bytes(200)),
    "the tensor's pickle is gone": lambda folder: overwrite(folder, "2.weight", lambda old: old[:80] + bytes(150)),
    "another tensor lies there": lambda folder: overwrite(folder, "2.bias", lambda old: torch_saved(torch.ones(3))),
    "its shape is another": in_its_place(torch.ones(64, 2)),
    "its dtype is another": in_its_place(torch.ones(2, 64, dtype=torch.float64)),
    "its dtype is as long": in_its_place(torch.ones(2, 64, dtype=torch.int32)),
    "there is a list of it": in_its_place([torch.ones(2, 64)]),
    "there is a dict of it": in_its_place({"2.weight": torch.ones(2, 64)}),
    "there is a number": in_its_place(3),
    "there is no tensor's archive": archive(lambda old: zipped(a="b" * 1000)),
    "there is code": archive(
        lambda old: zipped(archive__data_pkl=b"cos\nsystem\nX\x05\x00\x00\x00touch\x85R.".ljust(900))
    ),
    "it is compressed": with_entries(lambda entries: None, compression=zipfile.ZIP_DEFLATED),
    "its values are missing": with_entries(lambda entries: entries.pop("archive/data/0")),
    "its values are cut off": with_entries(lambda entries: entries.update({"archive/data/0": bytes(511)})),
    "its pickle is missing": with_entries(lambda entries: entries.pop("archive/data.pkl")),
    "its pickle is twice there": with_entries(lambda entries: entries.update({"b/data.pkl": b"N."})),
    "its pickle goes on": with_entries(
        lambda entries: entries.update({"archive/data.pkl": entries["archive/data.pkl"] + b"N."})
    ),
    "its pickle is long": with_entries(
        lambda entries: entries.update({"archive/data.pkl": b"]" + b"N" * 10**6 + b"."})
    ),
    "it is of another byte order": with_entries(lambda entries: entries.update({"archive/byteorder": b"big"})),
    "its steps lead away": with_entries(
        lambda entries: swap(entries, "archive/data.pkl", b"K@K\x01\x86", b"K@K\xff\x86")
    ),
    "its entries are many": with_entries(lambda entries: entries.update({f"archive/{i}": b"" for i in range(3000)})),
    "its table says where it is not": archive(
        lambda old: rezipped(old, lambda entries: None)[:-6] + b"\xff\xff\xff\x7f\0\0"
    ),
    "its archive has a comment": archive(lambda old: old[:-2] + struct.pack("<H", 3) + b"abc"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_found_before_anything_is_written(folder, what):
    DAMAGED[what](folder)
    for kwargs in (dict(), dict(strict=True), dict(assign=True)):
        refused(folder, "can not be read", **kwargs)


def test_the_message_says_which_chunk_and_what_to_do(folder):
    overwrite(folder, "2.weight", bytes(4))
    at, _ = part_of(folder, "2.weight")
    with pytest.raises(RuntimeError) as caught:
        load_checkpoint(model(), folder, logger="silent")
    assert str(caught.value) == (
        f"{folder}: '2.weight' can not be read: its chunk at (0, 0), in '__0_0.distcp' at byte {at:,}, is damaged: its "
        f"entry 'archive/data.pkl' is not where its archive says. Nothing can be loaded without it: copy the folder "
        f"again, or save it anew"
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("it is compressed", "its entry 'archive/data.pkl' is compressed, which torch.save never does"),
        (
            "its dtype is as long",
            "it holds torch.int32 of (2, 64), where the folder's list says torch.float32 of (2, 64)",
        ),
        ("it is of another byte order", "it was saved on a big-endian machine"),
        ("its pickle is long", "its pickle of 1,000,002 bytes is not that of one tensor"),
        ("its values are missing", "its archive has no 'data/0' of 512 bytes"),
        ("its entries are many", "entries, and not one tensor"),
        ("there is code", "<os.system, not loaded>"),
    ],
)
def test_errors_say_what_is_wrong_with_a_chunk(folder, what, message):
    DAMAGED[what](folder)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        load_checkpoint(model(), folder, logger="silent")


def test_a_missing_file_is_named(folder):
    data_file(folder).unlink()
    for kwargs in (dict(), dict(strict=True)):
        refused(
            folder, "'__0_0.distcp' can not be found, which .metadata names for", error="FileNotFoundError", **kwargs
        )


def test_a_file_that_changes_meanwhile_is_an_error(folder):
    class Slow(nn.Linear):
        def _load_from_state_dict(self, *args):
            os.truncate(data_file(folder), 100)
            super()._load_from_state_dict(*args)

    made = Slow(64, 64, bias=False)
    with pytest.raises(OSError, match="the file was changed while it was being loaded"):
        load_checkpoint(made, folder, prefix="0", logger="silent")
    assert not (made.weight == 7).any()


def test_a_file_that_changes_before_it_is_opened_is_an_error(folder):
    tree = Request(folder).tree()
    data = data_file(folder).read_bytes()
    os.unlink(data_file(folder))
    data_file(folder).write_bytes(bytes(reversed(data)))
    os.utime(data_file(folder), (1, 1))
    with pytest.raises(OSError, match="the file was changed while it was being loaded"):
        tree["0.weight"].sum()


def test_a_file_that_was_cut_off_is_found_when_the_folder_is_opened(folder):
    os.truncate(data_file(folder), data_file(folder).stat().st_size - 1)
    with pytest.raises(RuntimeError, match=r"it ends at byte .* of '__0_0.distcp', which has .*: the file was cut off"):
        fastinit.plan(model(), dict(type="Pretrained", checkpoint=folder))


def test_damage_found_by_a_modules_own_loading_code_is_an_error(folder):
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, 64))

        def _load_from_state_dict(self, state_dict, prefix, *args):
            state_dict[prefix + "w"] = state_dict.pop(prefix + "weight")
            super()._load_from_state_dict(state_dict, prefix, *args)

    load_checkpoint(made := Renamed(), folder, prefix="2", logger="silent")
    assert made.w.any()
    overwrite(folder, "2.weight", bytes(4))
    for strict in (False, True):
        with pytest.raises(RuntimeError, match="'2.weight' can not be read"):
            load_checkpoint(made := Renamed(), folder, prefix="2", strict=strict, logger="silent")
        assert not made.w.any()


def test_a_folder_without_a_list_says_why(tmp_path):
    folders.save(tmp_path, nn.Linear(2, 2).state_dict())
    (tmp_path / ".metadata").unlink()
    with pytest.raises(FileNotFoundError, match="there is no .metadata: it was not saved to the end"):
        load_checkpoint(nn.Linear(2, 2), tmp_path, logger="silent")
