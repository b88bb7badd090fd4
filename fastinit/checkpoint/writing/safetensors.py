"""Safetensors files as the library of that name writes them, in shards with an index as huggingface_hub makes them."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

import torch

from ...errors import InitTypeError
from ...plans import names_line
from ..formats.safetensors_file import DTYPES
from .behind import PIECES, Behind
from .contents import Content, Made, Range, Values
from .whole_files import Layout

# What is filled at once, and written at once. It is a multiple of the elements' sizes.
WINDOW_BYTES = 32 << 20
# Tensors are sorted by dtype, the last of these first, then by name (safetensors' enumeration of dtypes).
_CODES = [
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
]
_CODE_OF = {getattr(torch, name): code for code, name in DTYPES.items() if hasattr(torch, name)}
_ALIGNED_BYTES = 8


def head_of(contents: Sequence[Content], metadata: Mapping[str, str]) -> tuple[bytes, list[Content]]:
    """Returns what a file begins with, up to the first tensor's bytes, and the tensors in the order of theirs."""
    ordered = sorted(contents, key=lambda each: (-_CODES.index(_CODE_OF[each.dtype]), each.name))
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for each in ordered:
        code, shape = _CODE_OF[each.dtype], list(each.shape)
        if code == "F4":  # of which torch has two in an element
            shape[-1] *= 2
        table[each.name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + each.n_bytes]}
        at += each.n_bytes
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_BYTES)
    return len(text).to_bytes(8, "little") + text, ordered


def write_file(contents: Sequence[Content], metadata: Mapping[str, str], values: Values, file: IO[bytes]) -> int:
    """Writes a file of tensors in bounded memory, and returns its length."""
    head, ordered = head_of(contents, metadata)
    file.write(head)
    ends = list(accumulate(each.n_bytes for each in ordered))
    total = ends[-1] if ends else 0
    buffers = [torch.empty(min(WINDOW_BYTES, total), dtype=torch.uint8, device="cpu") for _ in range(PIECES)]
    with Behind(file) as behind:
        for number, start in enumerate(range(0, total, WINDOW_BYTES)):
            behind.wait_for_room()
            window = buffers[number % PIECES][: min(WINDOW_BYTES, total - start)]
            values.put(list(_ranges(ordered, ends, start, window)))
            behind.submit(partial(file.write, window.numpy().data))
    return len(head) + total


def _ranges(ordered: Sequence[Content], ends: Sequence[int], start: int, window: torch.Tensor) -> Iterator[Range]:
    """Yields what of tensors that lie one after the other is within a window that begins at a byte."""
    stop = start + window.numel()
    for each, end in islice(zip(ordered, ends), bisect_right(ends, start), None):
        at = end - each.n_bytes
        if at >= stop:
            return
        first, last = max(at, start), min(end, stop)
        if first < last:
            memory = window[first - start : last - start].view(each.dtype)
            yield Range(each, (first - at) // each.dtype.itemsize, memory)


# --- shards -----------------------------------------------------------------------------------------------------------


def layout_of(
    contents: Sequence[Content],
    values: Values,
    *,
    stem: str,
    digest: Callable[[str], str],
    metadata: Mapping[str, str],
    dropped: Mapping[str, str],
    max_shard_bytes: int,
) -> Layout:
    """Returns the files of a checkpoint.

    Args:
        contents: in the order of the model's state dict.
        values: brings theirs into memory.
        stem: what the names of files begin with, e.g. ``model``.
        digest: of the contents, from what more they depend on.
        metadata: of each file.
        dropped: names that are not written -> those of the same tensors that are.
        max_shard_bytes: a file holds more only where one tensor has more.

    Raises:
        TypeError: a dtype is none that the format has.
    """
    if unknown := [f"{each.name} ({each.dtype})" for each in contents if each.dtype not in _CODE_OF]:
        raise InitTypeError(f"write: {names_line('tensors have dtypes that safetensors does not have', unknown)}")
    shards = shards_of(contents, max_shard_bytes)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    of_file = dict(metadata) if len(shards) > 1 else {**dropped, **metadata}
    jobs = {name: partial(write_file, shard, of_file, values) for name, shard in zip(names, shards)}
    index = f"{stem}.safetensors.index.json"
    heads = [head_of(shard, of_file)[0] for shard in shards]
    return Layout(
        stem=stem,
        digest=digest(repr((names, heads))),
        jobs=jobs,
        last=(index, partial(_write_index, dict(zip(names, shards)), dropped)) if len(shards) > 1 else None,
        markers=(index, f"{stem}.safetensors"),
        pattern=re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"),
        redone=frozenset(
            name for name, shard in zip(names, shards) if any(isinstance(each.origin, Made) for each in shard)
        ),
    )


def shards_of(contents: Sequence[Content], max_bytes: int) -> list[list[Content]]:
    """Returns contents in groups of at most so many bytes, in order, as huggingface_hub splits a state dict."""
    shards: list[list[Content]] = []
    open_shard: list[Content] = []
    n_bytes = 0
    for each in contents:
        if each.n_bytes > max_bytes:
            shards.append([each])
            continue
        if n_bytes + each.n_bytes > max_bytes:
            shards.append(open_shard)
            open_shard, n_bytes = [], 0
        open_shard.append(each)
        n_bytes += each.n_bytes
    return [*shards, *([open_shard] if open_shard or not shards else [])]


def _write_index(
    shards: Mapping[str, Sequence[Content]], dropped: Mapping[str, str], known: object, file: IO[bytes]
) -> None:
    """Writes which tensor is in which file."""
    total = sum(each.n_bytes for shard in shards.values() for each in shard)
    of_tensor = {each.name: name for name, shard in shards.items() for each in shard}
    index = {"metadata": {"total_size": total, **dropped}, "weight_map": of_tensor}
    file.write(json.dumps(index, indent=2).encode())


def stem_of(path: Path) -> tuple[Path, str]:
    """Returns the folder, and what the names of files begin with, for a path to a folder or to a safetensors file."""
    return (path.parent, path.name.removesuffix(".safetensors")) if path.suffix == ".safetensors" else (path, "model")
