"""Reads checkpoint files into trees of containers with ``StoredTensor``; detects the format by the content."""

from __future__ import annotations

import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import InitFileNotFoundError, InitRuntimeError, InitTypeError, InitValueError
from ...plans import names_line
from ..storage.files import File, checked_access
from ..storage.stubs import Foreign, Refusal, one_line, refuse
from . import distributed_folder, safetensors_file, torch_file
from .pickles.names import imported
from .sibling_files import is_beside
from .torch_file import ZIP_HEAD

Fetch = Callable[[str], Path]
"""Returns the path of a file beside an index."""
Wants = Callable[[str], bool]
"""Returns whether a key is needed."""

# File names that the Hub's libraries write, the preferred ones first.
NAMES_IN_FOLDER = tuple(
    f"{stem}{ending}"
    for stem, endings in (
        ("model", (".safetensors", ".safetensors.index.json")),
        ("diffusion_pytorch_model", (".safetensors", ".safetensors.index.json")),
        ("adapter_model", (".safetensors", ".bin")),
        ("pytorch_model", (".bin", ".bin.index.json")),
        ("diffusion_pytorch_model", (".bin",)),
    )
    for ending in endings
)
_CHECKPOINT_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_HEAD_BYTES = 512
# Half a million keys; larger JSON would take many seconds.
_MAX_INDEX_BYTES = 100_000_000
# Control, direction and hiding characters, and lone surrogates: no library uses them in the name of a shard, which
# would be printed in errors.
_UNPRINTED = ("Cc", "Cf", "Cs")
# Files that are often mistaken for checkpoints, by their first bytes.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"<", "a web page or XML and no checkpoint: the download went wrong"),
    (b"\x89HDF", "an HDF5 file: convert it to safetensors"),
    (b"GGUF", "a GGUF file: convert it to safetensors"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
)


@dataclass(frozen=True)
class Reading:
    """How files are read."""

    map_location: Any = None
    access: str = "auto"
    weights_only: bool = True
    allow: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        checked_access(self.access)
        object.__setattr__(self, "allow", imported(self.allow))
        if not isinstance(self.weights_only, bool):
            raise InitTypeError(f"weights_only must be True or False, but got {self.weights_only!r}")
        where = self.map_location
        if isinstance(where, (str, torch.device, int)) and not isinstance(where, bool):
            torch.device(where)  # raises if it is no device
        elif not (where is None or callable(where) or isinstance(where, dict)):
            raise InitTypeError(f"map_location must be a device, a dict, a function or None, but got {where!r}")

    def location_of(self, saved: str) -> torch.device:
        """Returns the device for a tensor that was saved from a device; without a mapping, the CPU.

        A function is called with an empty storage, and the device of its result is used.
        """
        where = self.map_location
        if callable(where):
            put = where(torch.UntypedStorage(0), saved)  # type: ignore[no-untyped-call]
            where = None if put is None else put.device
        if isinstance(where, dict):
            where = next((to for from_, to in where.items() if str(from_) == saved), "cpu")
        return torch.device("cpu" if where is None else where)


def read(
    path: Path,
    reading: Reading,
    *,
    wants: Wants | None = None,
    fetch: Fetch | None = None,
    is_shard: bool = False,
    names: dict[str, None] | None = None,
) -> Any:
    """Returns the contents of a checkpoint file, of a sharded checkpoint by its index, or of a folder with either.

    Args:
        path: of the file or folder.
        reading: options.
        wants: which keys are needed; of a sharded checkpoint, only files with such keys are opened.
        fetch: returns the paths of an index's shards; None: they are beside it.
        is_shard: the file is named by an index, so it must not be one.
        names: gets the names of all that is not data, in the files' order; a file that holds nothing else is then
            returned as its stub.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: it is damaged, is no checkpoint, or holds more than tensors and plain containers.
    """
    if (path / distributed_folder.LIST).is_file():
        return distributed_folder.read(path, reading.location_of("cpu"), reading.access)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise InitFileNotFoundError(f"{path} can not be found.", place=path)
    tree: Any = None
    weight_map: dict[str, str] | None = None
    refusal = Refusal(path)
    if names is not None:
        refusal.names = names
    file = File(path, reading.access)
    head = file.bytes_at(0, _HEAD_BYTES)
    try:
        if not reading.weights_only and not safetensors_file.looks_like(head) and not head.lstrip().startswith(b"{"):
            where = "cpu" if reading.map_location is None else reading.map_location
            return torch.load(str(path), map_location=where, weights_only=False)
        if safetensors_file.looks_like(head):
            return safetensors_file.read(file, reading.location_of("cpu"))
        if head.startswith(ZIP_HEAD):
            tree = torch_file.read_zip(file, reading.location_of, reading.allow, refusal)
        elif torch_file.LEGACY_HEAD.match(head):
            tree = torch_file.read_legacy(file, reading.location_of, reading.allow, refusal)
        elif head.lstrip().startswith(b"{"):
            if is_shard:
                raise InitValueError("an index cannot be a shard of an index")
            weight_map = _weight_map(file)
        else:
            raise InitValueError(_what_else(head))
    except OSError:  # the file cannot be read, which says nothing about its contents
        raise
    except Exception as error:
        # damaged bytes fail in many ways: PickleError, BadZipFile, struct.error, RecursionError, ...
        raise InitRuntimeError(
            f"{path}: the file is damaged or no checkpoint: {one_line(error)}", place=path, of=error
        ) from error
    if weight_map is not None:
        return _sharded(path, weight_map, reading, wants, fetch or path.parent.joinpath, names)
    if isinstance(tree, Foreign) and names is None:
        refuse(tree)
    return tree


def _what_else(head: bytes) -> str:
    if not head:
        return "the file is empty"
    for beginning, what in _OTHERS:
        if head.lstrip().startswith(beginning):
            return f"it is {what}"
    if head[257:262] == b"ustar":
        return "it is a tar archive, torch's format of 2016: load it with an old torch and save it anew"
    if head[:1] == b"\x80":
        return "it is a pickle, but not of torch.save; such a file could run code when it is loaded"
    return f"it begins with {head[:8]!r}, which is neither safetensors nor torch.save's"


# --- folders and indexes ---------------------------------------------------------------------------------------------


def _in_folder(folder: Path) -> Path:
    names = [entry.name for entry in folder.iterdir()]
    found = chosen_name(names)
    if found is None and (reason := distributed_folder.why_no_list(names)) is not None:
        raise InitFileNotFoundError(f"{folder} can not be loaded: {reason}", place=folder)
    if found is None:
        raise InitFileNotFoundError(
            f"{folder} can not be loaded: the folder holds none of {', '.join(NAMES_IN_FOLDER)}, and not exactly one "
            f"file that ends with {', '.join(_CHECKPOINT_ENDINGS)}",
            place=folder,
            hint=". Give the path of the file",
        )
    return folder / found


def chosen_name(names: Iterable[str]) -> str | None:
    """Returns which file of a folder is the checkpoint: one with a usual name, or the only one with a usual ending."""
    names = list(names)
    usual = next((name for name in NAMES_IN_FOLDER if name in names), None)
    likely = [name for name in names if name.endswith(_CHECKPOINT_ENDINGS) or name.endswith(".index.json")]
    indexes = [name for name in likely if name.endswith(".index.json")]
    return usual or (indexes[0] if len(indexes) == 1 else likely[0] if len(likely) == 1 else None)


def _weight_map(file: File) -> dict[str, str]:
    """Returns which file holds each key, from an index."""
    if file.size > _MAX_INDEX_BYTES:
        raise InitValueError(f"it begins like an index, but {file.size:,} bytes are no index")
    index = file.json_at(0, file.size, "the index has one key twice: {!r}")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InitValueError("it is JSON, but no index of a sharded checkpoint: it has no `weight_map`")
    checked: set[str] = set()  # a file holds many keys
    for key, name in weight_map.items():
        if isinstance(name, str) and name in checked:
            continue
        if not isinstance(name, str) or not is_beside(name):
            raise InitValueError(f"the index says that {key!r} is in {name!r}, which is not a file beside it")
        if any(unicodedata.category(each) in _UNPRINTED for each in name):
            raise InitValueError(f"the index says that {key!r} is in {name!r}, a name that moves cursors or hides text")
        checked.add(name)
    return weight_map


def _sharded(
    path: Path,
    weight_map: dict[str, str],
    reading: Reading,
    wants: Wants | None,
    fetch: Fetch,
    names: dict[str, None] | None,
) -> OrderedDict[str, Any]:
    keys_of: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        if wants is None or wants(key):
            keys_of.setdefault(name, []).append(key)
    found: dict[str, Any] = {}
    for name, keys in keys_of.items():
        shard_path = fetch(name)
        if not shard_path.is_file():
            raise InitFileNotFoundError(
                f"{shard_path} can not be found, which {path} names for {names_line('keys', keys)}", place=shard_path
            )
        shard = read(shard_path, reading, is_shard=True, names=names)
        if not isinstance(shard, dict):
            raise InitRuntimeError(f"{path}: its shard {name!r} holds no dict", place=path)
        if absent := [key for key in keys if key not in shard]:
            raise InitRuntimeError(f"{path}: its shard {name!r} lacks {names_line('keys', absent)}", place=path)
        found.update((key, shard[key]) for key in keys)
    return OrderedDict((key, found[key]) for key in weight_map if key in found)
