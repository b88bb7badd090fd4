"""Reads checkpoints with other libraries, and compares the results."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mutants import DATA_FILE


def read_by_others(path: Path, format: str, list_of_folder: bytes) -> Any:
    """Returns what torch or safetensors reads; raises whatever it raises.

    Args:
        path: of the checkpoint.
        format: one of ``mutants.FORMATS``.
        list_of_folder: the undamaged metadata of a folder.
    """
    if format in ("zip", "legacy"):
        return torch.load(path, weights_only=True)
    if format == "safetensors":
        return _safetensors(path)
    if format == "index":
        places = json.loads(path.read_bytes())["weight_map"]
        read = {
            n: _safetensors(path.parent / n) if n[-1] == "s" else torch.load(path.parent / n)
            for n in {*places.values()}
        }
        return {key: read[name][key] for key, name in places.items()}
    if (path / ".metadata").read_bytes() != list_of_folder:
        raise ValueError("the metadata is a pickle, and damaged: others would have to run it to read it")
    data, found = (path / DATA_FILE).read_bytes(), {}
    for index, place in pickle.loads(list_of_folder).storage_data.items():
        part = io.BytesIO(data[place.offset : place.offset + place.length])
        found[index.fqn] = torch.load(part, weights_only=True)
    return found


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tells whether two tensors have the same dtype, shape and bits."""
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        return same(a.to_dense(), b.to_dense())
    return bytes_of(a) == bytes_of(b)


def bytes_of(tensor: torch.Tensor) -> list[int]:
    """Returns the bytes of a tensor's values in order."""
    if tensor.numel() == 0:
        return []
    return tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).tolist()  # type: ignore[no-any-return]


def difference(ours: Any, theirs: Any, where: str) -> str | None:
    """Returns where two checkpoints differ, or None."""
    if type(ours) is not type(theirs):
        return f"{where}: {type(ours).__name__} and {type(theirs).__name__}"
    if isinstance(ours, torch.Tensor):
        return None if same(ours, theirs) and ours.requires_grad == theirs.requires_grad else where
    if isinstance(ours, Mapping):
        if list(map(repr, ours)) != list(map(repr, theirs)):
            return f"{where}: keys {list(ours)!r:.100} and {list(theirs)!r:.100}"
        pairs: Iterator[tuple[Any, Any, Any]] = ((k, a, b) for k, a, b in zip(ours, ours.values(), theirs.values()))
    elif isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
        pairs = ((i, a, b) for i, (a, b) in enumerate(zip(ours, theirs)))
    else:
        return None if repr(ours) == repr(theirs) else f"{where}: {ours!r:.100} and {theirs!r:.100}"
    return next((found for k, a, b in pairs if (found := difference(a, b, f"{where}[{k!r}]")) is not None), None)
