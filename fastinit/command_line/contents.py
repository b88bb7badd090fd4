"""What is in a checkpoint on this machine: format, files, tensors, and the code that it names; nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checkpoint.formats import by_content, distributed_folder, safetensors_file, torch_file
from ..checkpoint.formats.by_content import Reading
from ..checkpoint.storage.files import File
from ..checkpoint.storage.stored import StoredTensor
from ..checkpoint.storage.stubs import Foreign
from ..checkpoint.storage.trees import PlainObject
from ..checkpoint.writing.whole_files import JOURNALS
from .errors import CommandError, DamagedError

_HEAD_BYTES = 64


class FoundTensor(NamedTuple):
    """A tensor of a checkpoint."""

    name: str
    """With the keys of the containers that it is in, joined by dots."""
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds."""

    format: str
    n_files: int
    n_bytes: int
    """Of the files."""
    tensors: tuple[FoundTensor, ...]
    names: tuple[str, ...]
    """Of classes and functions that are not data: what Python's unpickler would import, and could run."""


def contents_of(path: Path) -> Contents:
    """Returns what is in a checkpoint; all of its tables are checked, and the bytes of values are not read.

    Raises:
        CommandError: there is none.
        DamagedError: it is not whole, and where.
        OSError: it cannot be read.
    """
    if not path.exists():
        raise CommandError(f"{path}: there is no such file or folder", place=path)
    names: dict[str, None] = {}
    try:
        tree = by_content.read(path, Reading(access="map"), names=names)
        tensors = list(_tensors(tree))
        _check(tensor for _, tensor in tensors)
    except (FileNotFoundError, RuntimeError) as error:
        raise DamagedError(f"{error}{_interrupted(path)}", of=error) from error
    files = _files(path, tensors)
    found = tuple(_found(name, tensor) for name, tensor in tensors)
    return Contents(_format(path), len(files), sum(file.stat().st_size for file in files), found, tuple(names))


def _interrupted(path: Path) -> str:
    if path.is_dir() and any(path.glob(JOURNALS)):
        return ". A call of write was interrupted here: the same call, made again, goes on"
    return ""


def _tensors(tree: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and tensors, in the order of the file; deep trees cost no stack."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, torch.Tensor):
            yield name, node
            continue
        children = [] if isinstance(node, Foreign) or id(node) in seen else list(_children(node))
        seen.add(id(node))
        below = f"{name}." if name else ""
        stack += [(f"{below}{_key(key)}", child) for key, child in reversed(children)]


def _key(key: Any) -> str:
    # Keys may be stubs, whose methods raise.
    return key if type(key) is str else f"<{type(key).__name__}>" if isinstance(key, Foreign) else repr(key)


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, (list, tuple)) and not isinstance(node, torch.Size):
        yield from enumerate(node)
    elif isinstance(node, PlainObject):
        yield from vars(node).items()


def _check(tensors: Iterator[torch.Tensor]) -> None:
    """Checks what a folder's list says of its chunks; the tables of other formats are checked when they are read."""
    unchanged: set[File] = set()
    for tensor in tensors:
        if isinstance(tensor, StoredTensor):
            for each in tensor.parts or (tensor,):
                each.storage_in_file.check(None, unchanged)


def _found(name: str, tensor: torch.Tensor) -> FoundTensor:
    with torch._C.DisableTorchFunctionSubclass():
        shape, dtype = tuple(tensor.shape), tensor.dtype
    return FoundTensor(name, shape, str(dtype).removeprefix("torch."), math.prod(shape) * dtype.itemsize)


def _files(path: Path, tensors: list[tuple[str, torch.Tensor]]) -> list[Path]:
    """Returns the files of a checkpoint."""
    found = {_file(path): None}
    for _, tensor in tensors:
        if isinstance(tensor, StoredTensor):
            for each in tensor.parts or (tensor,):
                storage = each.storage_in_file
                if isinstance(storage, distributed_folder.FolderStorage):
                    found |= {storage.path / name: None for name in storage.folder.names}
                else:
                    found[storage.path] = None
    return list(found)


def _file(path: Path) -> Path:
    """Returns the file that a folder's checkpoint begins with."""
    if not path.is_dir():
        return path
    if (path / distributed_folder.LIST).is_file():
        return path / distributed_folder.LIST
    name = by_content.chosen_name(each.name for each in path.iterdir())
    assert name is not None  # it has been read
    return path / name


def _format(path: Path) -> str:
    file = _file(path)
    if file.name == distributed_folder.LIST:
        return "folder of torch.distributed.checkpoint"
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    if safetensors_file.looks_like(head):
        return "safetensors"
    if head.startswith(torch_file.ZIP_HEAD):
        return "torch.save"
    if torch_file.LEGACY_HEAD.match(head):
        return "torch.save before torch 1.6"
    return "sharded, with an index"
