"""The files of ``torch.save``: zip archives (since torch 1.6), and the sequences of pickles from before.

The tensors stay in the file; only the pickle that names them is read. https://pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

from .files import File
from .stored import Storage
from .unpickling import Location, Unpickler, settled

ZIP_HEAD = b"PK\x03\x04"
# The number 0x1950A86A20F9469CFC6C, pickled: what torch put first, to know its files by. Protocol 4 has frames.
LEGACY_HEAD = re.compile(rb"\x80.(?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_LONGEST_HEAD = 64
_LEGACY_PROTOCOL = 1001
# A zip entry in front of its bytes: 30 of fixed fields, of which the last two are the lengths of name and extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Refused(Exception):  # noqa: N818 (it becomes a RuntimeError that says what to do)
    """The pickle asks for more than data."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(", ".join(dict.fromkeys(names)))


def read_zip(file: File, location_of: Location, allow: Iterable[Any] = ()) -> Any:
    """Returns what a zip archive of ``torch.save`` holds.

    Raises:
        Refused: its pickle asks for names that are not data.
        Unsupported: it holds tensors that only torch knows how to load.
        ValueError, zipfile.BadZipFile, ...: it is damaged.
    """
    with os.fdopen(os.dup(file.fd), "rb") as opened, zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if len(names) != len(entries):
            raise ValueError("its archive has two entries of one name")
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("the zip archive was not made by torch.save: it has no data.pkl in its only folder")
        root = pickles[0].removesuffix("data.pkl")
        if root + "constants.pkl" in names:
            raise ValueError("it is a TorchScript archive: load it with torch.jit.load and take its state_dict()")
        records = _records(file, entries)
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise ValueError("it was saved on a big-endian machine: load it with torch.load and save it anew")

        def storage_of(key: str, n_bytes: int) -> Storage:
            if key not in storages:
                place = records.get(f"{root}data/{key}")
                if place is None:
                    raise ValueError(f"its pickle names the storage {key!r}, which the archive does not hold")
                storages[key] = Storage(file, *place)
            if n_bytes > storages[key].n_bytes:
                raise ValueError(f"the storage {key!r} has {storages[key].n_bytes:,} bytes and not {n_bytes:,}")
            return storages[key]

        storages: dict[str, Storage] = {}
        with archive.open(root + "data.pkl") as pickled:
            unpickler = Unpickler(pickled, storage_of, location_of, allow)  # type: ignore[arg-type]
            tree = _loaded(unpickler)
    return settled(tree)


def _records(file: File, entries: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Returns the place (offset, length) of each entry's bytes, all of them checked."""
    records: dict[str, tuple[int, int]] = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"its entry {entry.filename!r} is compressed, which torch.save never does")
        header = file.bytes_at(entry.header_offset, _LOCAL_HEADER.size)
        magic, n_name, n_extra = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + n_name + n_extra
        if magic != ZIP_HEAD or start + entry.file_size > file.size:
            raise ValueError(f"its entry {entry.filename!r} does not lie within the file")
        records[entry.filename] = (start, entry.file_size)
    end = 0
    for name, (start, n_bytes) in sorted(records.items(), key=lambda record: record[1]):
        if start < end:
            raise ValueError(f"its entry {name!r} overlaps the one before it")
        end = start + n_bytes
    return records


def read_legacy(file: File, location_of: Location, allow: Iterable[Any] = ()) -> Any:
    """Returns what a file of ``torch.save`` from before torch 1.6 holds.

    Raises:
        As ``read_zip``.
    """
    storages: dict[str, Storage] = {}

    def storage_of(key: str, n_bytes: int) -> Storage:
        storage = storages.setdefault(key, Storage(file, -1, n_bytes))
        if storage.n_bytes != n_bytes:
            raise ValueError(f"the storage {key!r} has two lengths")
        return storage

    with os.fdopen(os.dup(file.fd), "rb") as opened:
        head = LEGACY_HEAD.match(opened.read(_LONGEST_HEAD))
        assert head is not None
        opened.seek(head.end())

        def load(allowed: Iterable[Any] = ()) -> Any:
            return _loaded(Unpickler(opened, storage_of, location_of, allowed))

        if load() != _LEGACY_PROTOCOL:
            raise ValueError("it has an unknown version")
        system = load()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("it was saved on a big-endian machine: load it with torch.load and save it anew")
        tree, keys = load(allow), load()
        at = opened.tell()
    if not isinstance(keys, list) or set(keys) != set(storages) or len(keys) != len(storages):
        raise ValueError("it does not hold the storages that its pickle names")
    for key in keys:
        storage = storages[key]
        n_elements = int.from_bytes(file.bytes_at(at, 8), "little")
        storage.offset, at = at + 8, at + 8 + storage.n_bytes
        if at > file.size:
            raise ValueError(f"it ends before the storage {key!r} does")
        if storage.n_bytes % max(n_elements, 1) or (n_elements == 0) != (storage.n_bytes == 0):
            raise ValueError(f"the storage {key!r} of {storage.n_bytes:,} bytes claims {n_elements:,} elements")
    return settled(tree)


def _loaded(unpickler: Unpickler) -> Any:
    try:
        tree = unpickler.load()
    except Exception:
        if unpickler.wanted:  # what came of refused names may well have led to other errors
            raise Refused(unpickler.wanted) from None
        raise
    if unpickler.wanted:
        raise Refused(unpickler.wanted)
    return tree
