"""One tensor in an archive of torch.save within a stretch of a file, of which a folder may have thousands.

Archives of tensors of one shape and dtype differ only in the tensors' bytes, which are not read here, and in their
checksums, which nobody reads: what one such archive says is parsed once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ...errors import InitValueError
from ..storage.files import File
from ..storage.on_disk import FileStorage
from ..storage.stored import StoredTensor
from ..storage.stubs import Refusal, shown
from .pickles import PADDING
from .pickles.names import Context
from .torch_file import FOLDER

# Read from both ends of an archive; a tensor's pickle and the table are below 1 KiB each, so two reads suffice.
_WINDOW_BYTES = 2048
# The pickle of a tensor has about 200 bytes.
_MAX_PICKLE_BYTES = 64 << 10
# An archive of one tensor has seven entries; each takes less than 200 bytes in its table.
_MAX_TABLE_BYTES = 64 << 10
_LITTLE = b"little"
# Of the zip format (APPNOTE 4.3): the heads of an entry's bytes, of its line in the table, and of what ends the table.
_LOCAL = struct.Struct("<4s22xHH")
_LINE = struct.Struct("<4s6xH8xIIHHH4xII")
_CHECKSUM_AT, _CHECKSUM_BYTES = 16, 4
"""In a line of the table."""
_END = struct.Struct("<4s4xHHIIH")
_LOCATOR = struct.Struct("<4s4xQ4x")
_END_64 = struct.Struct("<4s20xQQQQ")
# Lengths of archives that are remembered; models have fewer shapes.
_MAX_SEEN = 4096
# Of each, which bounds the memory; torch's archives have about 1,300 bytes beside the values.
_MAX_SEEN_BYTES = 4096
_IN_EXTRA_32 = 0xFFFFFFFF
_EXTRA_64 = 1

Places = dict[str, tuple[int, int]]
"""Entries of the archive, without its one folder: (offset in the archive, length)."""


class _Plan(NamedTuple):
    """A pickled plain tensor: its storage, and its place in it."""

    key: str
    n_bytes: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class _Archive(NamedTuple):
    """A checked archive, with places counted from its beginning."""

    pickle: bytes
    places: Places
    plan: _Plan | None
    """The tensor, if it is a plain one."""
    at: int
    """The first byte of a plain tensor's storage."""
    n_bytes: int
    """The length of a plain tensor's storage."""


class SavedTensor(NamedTuple):
    """A tensor in a stretch of a file, whose archive has been checked."""

    archive: _Archive
    offset: int
    """Of the stretch in the file."""

    def of(self, file: File) -> StoredTensor:
        """Returns the tensor; ``file`` is the one it was found in, perhaps opened again."""
        plan = self.archive.plan
        if plan is not None:
            storage = FileStorage(file, self.offset + self.archive.at, self.archive.n_bytes)
            return StoredTensor.at(storage, plan.offset, plan.shape, plan.strides, plan.dtype, _CPU)

        def storage_of(key: str, n_bytes: int) -> FileStorage:
            start, length = _place(self.archive.places, f"data/{key}", n_bytes)
            return FileStorage(file, self.offset + start, length)

        return _loaded(self.archive.pickle, storage_of)

    def kind(self, file: File) -> tuple[torch.dtype, tuple[int, ...]]:
        """Returns the tensor's dtype and shape."""
        if self.archive.plan is not None:
            return self.archive.plan.dtype, self.archive.plan.shape
        made = self.of(file)
        return made.dtype, tuple(made.shape)


_CPU = torch.device("cpu")


class Seen:
    """The last archive of a plain tensor of each length, and the bytes that it was read from."""

    def __init__(self) -> None:
        self._archives: dict[int, tuple[_Archive, list[tuple[int, int, bytes]]]] = {}

    def archive(self, stretch: _Stretch) -> _Archive | None:
        """Returns an archive all of whose bytes that were read are the same in this stretch, None if there is none."""
        archive, parts = self._archives.get(stretch.n_bytes, (None, []))
        return archive if all(stretch.unread_at(start, n_bytes) == part for start, n_bytes, part in parts) else None

    def note(self, stretch: _Stretch, archive: _Archive) -> None:
        """Remembers an archive, and the bytes of the stretch that it was read from."""
        if archive.plan is None or (len(self._archives) >= _MAX_SEEN and stretch.n_bytes not in self._archives):
            return
        parts = stretch.parts_read()
        if sum(n_bytes for _, n_bytes, _ in parts) <= _MAX_SEEN_BYTES:
            self._archives[stretch.n_bytes] = archive, parts


def find(file: File, offset: int, n_bytes: int, seen: Seen | None = None) -> SavedTensor:
    """Finds the tensor in a stretch of a file, and checks its archive.

    Args:
        file, offset, n_bytes: the stretch.
        seen: archives that need not be parsed again.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is none, or it is damaged.
    """
    stretch = _Stretch(file, offset, n_bytes)
    archive = seen.archive(stretch) if seen is not None else None
    if archive is None:
        archive = _archive_in(stretch)
        found = SavedTensor(archive, offset)
        found.of(file)  # raises
        if seen is not None:
            seen.note(stretch, archive)
    return SavedTensor(archive, offset)


def _archive_in(stretch: _Stretch) -> _Archive:
    table = _table(stretch)
    roots = [name.removesuffix("data.pkl") for name in table if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise InitValueError("its archive has no data.pkl in its only folder")
    below = {name[len(roots[0]) :]: line for name, line in table.items() if name.startswith(roots[0])}
    places = {
        name: _bytes_of(stretch, roots[0] + name, *line)
        for name, line in below.items()
        if name in ("data.pkl", "byteorder") or name.startswith("data/")
    }
    start, length = places.get("byteorder", (0, 0))
    if length and stretch.at(start, min(length, len(_LITTLE) + 1)) != _LITTLE:
        raise InitValueError("it was saved on a big-endian machine")
    start, length = places.pop("data.pkl")
    if length > _MAX_PICKLE_BYTES:
        raise InitValueError(f"its pickle of {length:,} bytes is not that of one tensor")
    pickle = stretch.at(start, length)
    plan = _planned(pickle)
    at, n_bytes = (0, 0) if plan is None else _place(places, f"data/{plan.key}", plan.n_bytes)
    return _Archive(pickle, places, plan, at, n_bytes)


class _Stretch:
    """Bytes of a file; both ends are read when it is made."""

    def __init__(self, file: File, offset: int, n_bytes: int) -> None:
        self.file, self.offset, self.n_bytes = file, offset, n_bytes
        self._head = file.bytes_at(offset, min(n_bytes, 2 * _WINDOW_BYTES))
        self._tail_at = max(n_bytes - _WINDOW_BYTES, 0)
        is_short = n_bytes <= len(self._head)
        self._tail = self._head[self._tail_at :] if is_short else file.bytes_at(offset + self._tail_at, _WINDOW_BYTES)
        self._read: list[tuple[int, int]] = []
        """What was read: first byte, and the one behind the last."""

    def at(self, offset: int, n_bytes: int) -> bytes:
        """Returns bytes; ValueError if some are outside."""
        self._read.append((offset, offset + n_bytes))
        return self.unread_at(offset, n_bytes)

    def unread_at(self, offset: int, n_bytes: int) -> bytes:
        """Returns bytes as ``at`` does, without counting them as read."""
        if not 0 <= offset <= offset + n_bytes <= self.n_bytes:
            raise InitValueError("its archive reaches beyond its bytes")
        if offset + n_bytes <= len(self._head):
            return self._head[offset : offset + n_bytes]
        if offset >= self._tail_at:
            return self._tail[offset - self._tail_at : offset - self._tail_at + n_bytes]
        return self.file.bytes_at(self.offset + offset, n_bytes)

    def read_without(self, offset: int, n_bytes: int, left_out: Sequence[int]) -> None:
        """Counts bytes as read, except checksums that begin at ``left_out``."""
        starts = [offset, *(at + _CHECKSUM_BYTES for at in left_out)]
        self._read.extend(zip(starts, [*left_out, offset + n_bytes]))

    def parts_read(self) -> list[tuple[int, int, bytes]]:
        """Returns all that was read, neighbours joined: (first byte, number of bytes, the bytes)."""
        joined: list[list[int]] = []
        for start, end in sorted(self._read):
            if joined and start <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], end)
            else:
                joined.append([start, end])
        return [(start, end - start, self.unread_at(start, end - start)) for start, end in joined]


def _table(stretch: _Stretch) -> dict[str, tuple[int, int]]:
    """Returns the entries of an archive by name: offset of their head in the stretch, and length."""
    at_end = stretch.n_bytes - _END.size
    magic, *_, n_entries, n_table, at, n_comment = _END.unpack(stretch.at(at_end, _END.size))
    if magic != b"PK\5\6" or n_comment:
        raise InitValueError("it is no archive of torch.save")
    if at_end >= _LOCATOR.size:
        magic, at_end_64 = _LOCATOR.unpack(stretch.at(at_end - _LOCATOR.size, _LOCATOR.size))
        if magic == b"PK\6\7":
            magic, _, n_entries, n_table, at = _END_64.unpack(stretch.at(at_end_64, _END_64.size))
            if magic != b"PK\6\6":
                raise InitValueError("its archive has no table")
    if n_table > _MAX_TABLE_BYTES:
        raise InitValueError(f"its archive has {n_entries:,} entries, and not one tensor")
    begin, checksums = at, []
    lines, found, at = stretch.unread_at(at, n_table), {}, 0
    while at + _LINE.size <= len(lines):
        magic, method, packed, unpacked, n_name, n_extra, n_comment, kind, head = _LINE.unpack_from(lines, at)
        name = str(lines[at + _LINE.size : at + _LINE.size + n_name], "utf-8", "surrogateescape")
        extra = lines[at + _LINE.size + n_name :][:n_extra]
        if magic != b"PK\1\2":
            raise InitValueError("its archive's table is damaged")
        if _IN_EXTRA_32 in (packed, unpacked, head):
            unpacked, packed, head = _long(extra, (unpacked, packed, head))
        if method or packed != unpacked:
            raise InitValueError(f"its entry {shown(name)} is compressed, which torch.save never does")
        if kind & FOLDER and unpacked:
            raise InitValueError(f"its entry {shown(name)} is marked as a folder, whose bytes torch would not read")
        if name in found:
            raise InitValueError(f"its archive has two entries {shown(name)}")
        found[name] = head, packed
        checksums.append(begin + at + _CHECKSUM_AT)
        at += _LINE.size + n_name + n_extra + n_comment
    if at != len(lines) or len(found) != n_entries:
        raise InitValueError("its archive's table is damaged")
    stretch.read_without(begin, n_table, checksums)
    return found


def _long(extra: bytes, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the numbers of a table line; those too large for 32 bits come from its extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, n_bytes = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + n_bytes]
        at += 4 + n_bytes
        if kind == _EXTRA_64:
            long = [number for (number,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8])]
            if len(long) < numbers.count(_IN_EXTRA_32):
                break
            return tuple(long.pop(0) if each == _IN_EXTRA_32 else each for each in numbers)
    raise InitValueError("its archive's table is damaged")


def _bytes_of(stretch: _Stretch, name: str, head: int, n_bytes: int) -> tuple[int, int]:
    """Returns the place of an entry's bytes in the stretch."""
    encoded = name.encode("utf-8", "surrogateescape")
    magic, n_name, n_extra = _LOCAL.unpack(stretch.at(head, _LOCAL.size))
    start = head + _LOCAL.size + n_name + n_extra
    if magic != b"PK\3\4" or n_name != len(encoded) or stretch.at(head + _LOCAL.size, n_name) != encoded:
        raise InitValueError(f"its entry {shown(name)} is not where its archive says")
    if start + n_bytes > stretch.n_bytes:
        raise InitValueError(f"its entry {shown(name)} reaches beyond its bytes")
    return start, n_bytes


def _place(places: Places, name: str, n_bytes: int) -> tuple[int, int]:
    start, length = places.get(name, (0, -1))
    if n_bytes > length:
        raise InitValueError(f"its archive has no {shown(name)} of {n_bytes:,} bytes")
    return start, length


@lru_cache(maxsize=4096)  # more shapes than models have
def _planned(pickle: bytes) -> _Plan | None:
    """Returns the place of a pickled tensor, None if it is not a plain one."""
    asked: dict[int, tuple[str, int]] = {}

    def storage_of(key: str, n_bytes: int) -> FileStorage:
        nowhere: Any = None
        storage = FileStorage(nowhere, 0, n_bytes)
        asked[id(storage)] = key, n_bytes
        return storage

    made = _loaded(pickle, storage_of)
    if type(made) is not StoredTensor or made.attributes:
        return None
    key, n_bytes = asked[id(made.storage_in_file)]
    return _Plan(key, n_bytes, made.offset_in_storage, tuple(made.size()), tuple(made.stride()), made.dtype_in_file)


def _loaded(pickle: bytes, storage_of: Any) -> StoredTensor:
    context = Context(Refusal("a folder"), storage_of, lambda saved: _CPU)
    made, end = context.load(pickle + PADDING, len(pickle))
    if not isinstance(made, StoredTensor) or end != len(pickle) or context.late:
        raise InitValueError(f"it holds {shown(made)}, and not one plain tensor")
    return made
