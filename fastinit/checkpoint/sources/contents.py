"""Recognizes downloads that are no checkpoints, by their first bytes and their end, to keep them out of the cache."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from ..messages import shown

HEAD_BYTES = 512
_ZIP_HEAD = b"PK\x03\x04"
_PICKLE_HEAD = b"\x80"
# safetensors begins with the length of its table, which its library bounds like this, and the table with "{".
_TABLE_AT = 8
_MAX_TABLE_BYTES = 100_000_000
# Error messages of servers and most indexes are far shorter; longer files are left to the reader.
_MAX_JSON_BYTES = 10_000_000
# Files that servers send in place of a checkpoint, and formats that fastinit does not read.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: the file itself is kept elsewhere, and `git lfs pull` gets it"),
    (b"\x89HDF", "an HDF5 file: convert it to safetensors"),
    (b"GGUF", "a GGUF file: convert it to safetensors"),
    (b"\x1f\x8b", "a file that is compressed with gzip: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a file that is compressed with zstd: unpack it"),
    (b"\xff\xfe", "text"),
    (b"\xfe\xff", "text"),
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TITLE = re.compile(r"<title[^>]*>\s*([^<]{1,200})", re.IGNORECASE)


def why_no_checkpoint(head: bytes) -> str | None:
    """Returns a description of a file that begins like this and is no checkpoint; None if it may be one.

    Args:
        head: its first ``HEAD_BYTES``, or all of a shorter file.
    """
    if not head:
        return "an empty file"
    if head.startswith((_ZIP_HEAD, _PICKLE_HEAD)) or _is_table(head) or head[257:262] == b"ustar":
        return None
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if text.startswith(b"{"):
        return None  # the index of a sharded checkpoint or an error message in JSON; why_not_whole decides
    if text.startswith(b"<"):
        title = _TITLE.search(text.decode("utf-8", "replace"))
        return f"a web page or XML{f' with the title {shown(title[1].strip())!r}' if title else ''}"
    for beginning, what in _OTHERS:
        if head.startswith(beginning):
            return what
    try:
        words = text.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(text) - 3:  # else the last character is cut off
            return f"a file that begins with {head[:8]!r}"
        words = text.decode("utf-8", "ignore")
    is_text = all(each.isprintable() or each.isspace() for each in words)
    return f"text ({shown(words.strip(), 100)!r})" if is_text else f"a file that begins with {head[:8]!r}"


def why_not_whole(path: Path) -> str | None:
    """Returns a description of a file that begins like a checkpoint but is incomplete, by its size and its end.

    For files without a hash in their name.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = os.fstat(file.fileno()).st_size
        if head.startswith(_ZIP_HEAD):
            return None if zipfile.is_zipfile(path) else "a file of torch.save without its end"
        if _is_table(head):
            n_table = int.from_bytes(head[:_TABLE_AT], "little")
            if size < _TABLE_AT + n_table:
                return "a part of a safetensors file"
            if n_table > _MAX_JSON_BYTES:
                return None
            file.seek(_TABLE_AT)
            table = _json(file.read(n_table))
            n_bytes = max((end for entry in _values(table) if (end := _end_of(entry)) is not None), default=0)
            return "a part of a safetensors file" if size < _TABLE_AT + n_table + n_bytes else None
        if head.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"{") and size <= _MAX_JSON_BYTES:
            file.seek(0)
            text = file.read()
            found = _json(text)
            if not isinstance(found, dict) or "weight_map" not in found:
                return f"JSON without a `weight_map` ({shown(text.decode('utf-8', 'replace').strip())!r})"
    return None


def _is_table(head: bytes) -> bool:
    n_table = int.from_bytes(head[:_TABLE_AT], "little")
    return head[_TABLE_AT : _TABLE_AT + 1] == b"{" and n_table <= _MAX_TABLE_BYTES


def _json(text: bytes) -> Any:
    try:
        return json.loads(text.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        return None


def _values(table: Any) -> list[Any]:
    return list(table.values()) if isinstance(table, dict) else []


def _end_of(entry: Any) -> int | None:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    is_pair = isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)
    return offsets[1] if is_pair else None  # type: ignore[index]
