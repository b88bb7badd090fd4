"""Names of the same parameter with and without what wrappers put into them, in checkpoints and in models.

torch.compile, DDP, FSDP1, activation checkpointing, averaged models and others each add a part to the path of all that
they wrap (``module._orig_mod.fc.weight``). A name counts as it is where the model has it; what is left over on both
sides is matched without those parts.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..naming import WRAPPED
from .module_versions import checked_metadata, with_metadata
from .modules import Tree
from .storage.stored import StoredTensor

# DDP, DataParallel and averaged models; a model may have a child of that name itself, so exact names go first.
_PARTS = WRAPPED | {"module"}
_COUNTER = "n_averaged"
"""What torch.optim.swa_utils.AveragedModel keeps beside the model's names."""


@dataclass(frozen=True)
class Matched:
    """A state dict by the model's names."""

    state_dict: OrderedDict[str, Any]
    metadata: dict[str, Any]
    """The versions of its modules, by the model's paths."""
    key_of: Mapping[str, str]
    """The checkpoint's key for a name of the model, where they differ."""
    stripped: tuple[str, ...]
    """What was left out of account, for people; empty where all names were the same."""
    optional: frozenset[str]
    """Names of the model that the checkpoint need not have."""


def matched(state_dict: Mapping[str, Any], tree: Tree, source: object) -> Matched:
    """Gives the tensors of a state dict the names of a model, where only wrappers tell them apart.

    Raises:
        RuntimeError: the versions that stand beside the tensors are damaged.
    """
    metadata = checked_metadata(getattr(state_dict, "_metadata", None), source)
    tensors = {slot.name_in_file: slot.tensor for slot in tree.slots}
    wanted = {*tensors, *tree.extra_states}
    strangers = [key for key in state_dict if key not in wanted]
    names = _names(strangers, state_dict, tensors, tree) if strangers else {}
    from_file, from_model = Counter[str](), Counter[str]()
    for key, name in names.items():
        parts, others = Counter(_parts(key)), Counter(_parts(name))
        from_file.update((parts - others).keys())
        from_model.update((others - parts).keys())
    stripped = [f"{part!r} in {n:,} of the checkpoint's keys" for part, n in from_file.items()]
    stripped += [f"{part!r} in {n:,} of the model's names" for part, n in from_model.items()]
    counters = [key for key in strangers if _is_counter(key, state_dict[key])]
    stripped += [f"{key!r} of an averaged model" for key in counters]
    renamed = OrderedDict((names.get(k, k), value) for k, value in state_dict.items() if k not in counters)
    if names:
        metadata = _versions(metadata, tree)
    optional = frozenset(_counters_of(tree) - state_dict.keys())
    if optional:
        stripped.append(f"{_COUNTER!r}, which averaged models have and the checkpoint has not")
    with_metadata(renamed, metadata)
    return Matched(renamed, metadata, {name: key for key, name in names.items()}, tuple(stripped), optional)


def plain(name: str) -> str:
    """Returns a name without the parts of wrappers."""
    return ".".join(part for part in name.split(".") if part not in _PARTS)


def below(name: str, prefix: str) -> str | None:
    """Returns the rest of a name behind a prefix, with the parts of wrappers anywhere in front and between."""
    looked_for = prefix.removesuffix(".").split(".")
    n_found = 0
    parts = name.split(".")
    for n, part in enumerate(parts):
        if part == looked_for[n_found]:
            n_found += 1
            if n_found == len(looked_for):
                return ".".join(parts[n + 1 :])
        elif part not in _PARTS:
            return None
    return None


def _parts(name: str) -> list[str]:
    return [part for part in name.split(".") if part in _PARTS]


def _names(
    strangers: list[str], state_dict: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tree: Tree
) -> dict[str, str]:
    """Returns the model's names of keys that are not the model's, where there is one for each."""
    free: dict[str, str | None] = {}
    for name, tensor in tensors.items():
        if name not in state_dict:
            bare = plain(name)
            other = free.setdefault(bare, name)
            if other is None or (other != name and tensors[other] is not tensor):
                free[bare] = None  # two tensors of the model: no guess
    for name in tree.extra_states:
        if name not in state_dict:
            free.setdefault(plain(name), name)
    claims: dict[str, list[str]] = {}
    for key in strangers:
        claims.setdefault(plain(key), []).append(key)
    # Keys that a module's own loading code turns into others have to stand under its path.
    owners = {plain(path): path for path in tree.own_code}
    found: dict[str, str] = {}
    for bare, keys in claims.items():
        key = keys[0]
        if any(not _is_same(state_dict[key], state_dict[other]) for other in keys[1:]):
            continue  # two tensors of the file: no guess either
        new = free[bare] if bare in free else _below_owner(key, bare, owners)
        if new is not None and new != key and new not in state_dict:
            found.update(dict.fromkeys(keys, new))
    return found


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
        return one.place == other.place
    return one is other


def _below_owner(key: str, bare: str, owners: Mapping[str, str]) -> str | None:
    """Returns the name that a key has to have for the loading code of the innermost module above it."""
    parts = bare.split(".")
    for n in range(len(parts) - 1, -1, -1):
        path = owners.get(".".join(parts[:n]))
        if path is not None:
            rest = parts[n:]
            # What stands between the module and its own names is left to its code.
            return ".".join([path, *rest] if path else rest) if key.split(".")[-len(rest) :] == rest else None
    return None


def _versions(metadata: dict[str, Any], tree: Tree) -> dict[str, Any]:
    """Returns the modules' versions by the paths of the model, of a wrapper those of what it wraps."""
    by_path: dict[str, Any] = {}
    for path, version in sorted(metadata.items(), key=lambda entry: len(entry[0])):
        by_path[plain(path)] = version
    return {path: by_path[bare] for path, bare in ((path, plain(path)) for path in tree.paths) if bare in by_path}


def _is_counter(key: str, value: Any) -> bool:
    return key.rpartition(".")[2] == _COUNTER and isinstance(value, torch.Tensor) and value.dim() == 0


def _counters_of(tree: Tree) -> set[str]:
    swa_utils = sys.modules.get("torch.optim.swa_utils")
    if swa_utils is None:
        return set()
    averaged = [path for path, module in tree.paths.items() if isinstance(module, swa_utils.AveragedModel)]
    return {f"{path}.{_COUNTER}" if path else _COUNTER for path in averaged}
