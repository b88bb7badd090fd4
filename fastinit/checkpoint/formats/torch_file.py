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

from ...errors import InitValueError
from ..storage.files import File
from ..storage.on_disk import FileStorage
from ..storage.stubs import Refusal, shown
from .pickles import PADDING, TruncatedError
from .pickles.names import Context, Location

ZIP_HEAD = b"PK\x03\x04"
# The magic number 0x1950A86A20F9469CFC6C, pickled by any protocol: 4 has frames, 0 and 1 have text.
LEGACY_HEAD = re.compile(
    rb"(?:\x80.(?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19|L119547037146038801333356L\n)\.", re.DOTALL
)
_LEGACY_PROTOCOL = 1001
_LITTLE = b"little"
# Most pickles before the tensors are shorter (20,000 tensors: 2.3 MB); otherwise, more of the file is read.
_LEGACY_BYTES = 16 << 20
_LEGACY_GROWTH = 8
# The header before an entry's bytes: 30 bytes, of which the last fields are the lengths of name and extra field.
_UTF8_FLAG = 0x800
_LOCAL_HEADER = struct.Struct("<4s22xHH")
FOLDER = 0x10
"""The MS-DOS attribute of folders: for entries that have it, torch.load returns uninitialized memory."""


def read_zip(file: File, location_of: Location, allow: Iterable[Any], refusal: Refusal) -> Any:
    """Returns the contents of a zip archive of ``torch.save``, with stubs for objects that are not data.

    Args:
        file: the open file.
        location_of, allow: as for ``Context``.
        refusal: of the file; it gets the names of all that is not data.

    Raises:
        ValueError, zipfile.BadZipFile, ...: it is damaged.
    """
    with os.fdopen(os.dup(file.fd), "rb") as opened, zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if len(names) != len(entries):
        raise InitValueError("its archive has two entries of one name")
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise InitValueError("the zip archive was not made by torch.save: it has no data.pkl in its only folder")
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in names:
        raise InitValueError(
            "it is a TorchScript archive", hint=": load it with torch.jit.load and take its state_dict()"
        )
    records = _records(file, entries)
    # Checksums are not verified: torch can leave them out (set_crc32_options).
    start, n_bytes = records.get(root + "byteorder", (0, 0))
    if n_bytes and file.bytes_at(start, min(n_bytes, len(_LITTLE) + 1)) != _LITTLE:
        raise InitValueError("it was saved on a big-endian machine", hint=": load it with torch.load and save it anew")
    storages: dict[str, FileStorage] = {}

    def storage_of(key: str, n_bytes: int) -> FileStorage:
        if key not in storages:
            place = records.get(f"{root}data/{key}")
            if place is None:
                raise InitValueError(f"its pickle names the storage {shown(key)}, which the archive does not hold")
            storages[key] = FileStorage(file, *place)
        if n_bytes > storages[key].n_bytes:
            raise InitValueError(f"the storage {shown(key)} has {storages[key].n_bytes:,} bytes and not {n_bytes:,}")
        return storages[key]

    context = Context(refusal, storage_of, location_of, allow)
    start, n_bytes = records[root + "data.pkl"]
    tree, _ = context.load(_padded(file, start, n_bytes), n_bytes)
    return _checked(tree, context)


def _checked(tree: Any, context: Context) -> Any:
    """Returns the tree after the checks that need values: sparse tensors are made now, and their indices checked."""
    for each in context.late:
        each.make()
    return tree


def _padded(file: File, start: int, n_bytes: int) -> bytes:
    memory = bytearray(n_bytes + len(PADDING))
    file.read_into([memoryview(memory)[:n_bytes]], start)
    return bytes(memory)


def _records(file: File, entries: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Returns the checked place (offset, length) of each entry's bytes."""
    records: dict[str, tuple[int, int]] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.header_offset, entry.file_size)):
        name = entry.orig_filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise InitValueError(f"its entry {shown(name)} is compressed, which torch.save never does")
        if entry.external_attr & FOLDER and entry.file_size:
            raise InitValueError(f"its entry {shown(name)} is marked as a folder, whose bytes torch would not read")
        if entry.header_offset < end:
            raise InitValueError(f"its entry {shown(name)} overlaps the one before it")
        # Names are UTF-8 if flagged, else ASCII, which zipfile decodes as cp437.
        encoded = name.encode("utf-8" if entry.flag_bits & _UTF8_FLAG else "cp437")
        header = file.bytes_at(entry.header_offset, _LOCAL_HEADER.size + len(encoded))
        if len(header) < _LOCAL_HEADER.size:
            raise InitValueError(f"its entry {shown(name)} does not lie within the file")
        magic, n_name, n_extra = _LOCAL_HEADER.unpack_from(header)
        start = entry.header_offset + _LOCAL_HEADER.size + n_name + n_extra
        if magic != ZIP_HEAD or start + entry.file_size > file.size:
            raise InitValueError(f"its entry {shown(name)} does not lie within the file")
        if n_name != len(encoded) or header[_LOCAL_HEADER.size :] != encoded:
            raise InitValueError(f"its entry {shown(name)} has another name in front of its bytes")
        end = start + entry.file_size
        records[entry.filename] = (start, entry.file_size)
    return records


def read_legacy(file: File, location_of: Location, allow: Iterable[Any], refusal: Refusal) -> Any:
    """Returns the contents of a file of ``torch.save`` from before torch 1.6; arguments as for ``read_zip``.

    Raises:
        As ``read_zip``.
    """
    n_bytes = _LEGACY_BYTES
    while True:
        try:
            n_bytes = min(n_bytes, file.size)
            return _read_legacy(file, _padded(file, 0, n_bytes), n_bytes, location_of, allow, refusal)
        except TruncatedError:
            if n_bytes >= file.size:
                raise
        n_bytes *= _LEGACY_GROWTH


def _read_legacy(
    file: File, data: bytes, end: int, location_of: Location, allow: Iterable[Any], refusal: Refusal
) -> Any:
    storages: dict[str, FileStorage] = {}

    def storage_of(key: str, n_bytes: int) -> FileStorage:
        storage = storages.setdefault(key, FileStorage(file, -1, n_bytes))
        if storage.n_bytes != n_bytes:
            raise InitValueError(f"the storage {shown(key)} has two lengths")
        return storage

    head = LEGACY_HEAD.match(data)
    assert head is not None
    trusting_nobody = Context(refusal, storage_of, location_of)
    context = Context(refusal, storage_of, location_of, allow)
    version, at = trusting_nobody.load(data, end, head.end())
    if type(version) is not int or version != _LEGACY_PROTOCOL:
        raise InitValueError("it has an unknown version")
    system, at = trusting_nobody.load(data, end, at)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise InitValueError("it was saved on a big-endian machine", hint=": load it with torch.load and save it anew")
    tree, at = context.load(data, end, at)
    keys, at = trusting_nobody.load(data, end, at)
    is_list = type(keys) is list and len(keys) == len(storages) and all(type(key) is str for key in keys)
    if not is_list or set(keys) != set(storages):
        raise InitValueError("it does not hold the storages that its pickle names")
    for key in keys:
        storage = storages[key]
        n_elements = int.from_bytes(file.bytes_at(at, 8), "little")
        storage.offset, at = at + 8, at + 8 + storage.n_bytes
        if at > file.size:
            raise InitValueError(f"it ends before the storage {shown(key)} does")
        if storage.n_bytes % max(n_elements, 1) or (n_elements == 0) != (storage.n_bytes == 0):
            raise InitValueError(
                f"the storage {shown(key)} of {storage.n_bytes:,} bytes claims {n_elements:,} elements"
            )
    return _checked(tree, context)
