"""What a user asks of a checkpoint: which of its keys, by which names."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .readers import Reading
from .schemes import tree_of
from .stored import StoredTensor
from .stubs import Foreign, refuse

Revisions = Sequence[tuple[str, str]]
# What DataParallel and DDP put in front of every name.
STRIP_MODULE: Revisions = ((r"^module\.", ""),)
# Where training scripts put the weights among other things, the first that is there.
_NESTS = ("state_dict", "model", "state_dict_ema")


@dataclass(frozen=True)
class Request:
    """What of a checkpoint is wanted, and how it goes into a model."""

    checkpoint: str | os.PathLike[str]
    prefix: str | None = None
    key: str | None = None
    revise_keys: Revisions | None = None
    strict: bool = False
    assign: bool = False
    dtype: torch.dtype | str | None = None
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        for name, kind in (("prefix", str), ("key", str), ("strict", bool), ("assign", bool)):
            value = getattr(self, name)
            if not isinstance(value, kind) and (value is not None or kind is bool):
                raise TypeError(f"{name} must be a {kind.__name__}, but got {value!r}")
        for revision in self.revise_keys or ():
            if not isinstance(revision, (tuple, list)) or len(revision) != 2:
                raise TypeError(f"revise_keys must hold (pattern, replacement) pairs, but it holds {revision!r}")
            try:
                re.compile(revision[0])
            except re.error as error:
                raise ValueError(f"revise_keys: {revision[0]!r} is no regular expression: {error}") from error
        if isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", getattr(torch, self.dtype.removeprefix("torch."), self.dtype))
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(
                f"dtype must be a floating-point dtype of torch, such as 'bfloat16', but got {self.dtype!r}"
            )

    @property
    def _dotted_prefix(self) -> str | None:
        return self.prefix if self.prefix is None or self.prefix.endswith(".") else self.prefix + "."

    def _candidates(self) -> tuple[Revisions, ...]:
        """Revisions to be tried; below a prefix the keys as they are come first."""
        if self.revise_keys is not None:
            return (self.revise_keys,)
        return (STRIP_MODULE,) if self.prefix is None else ((), STRIP_MODULE)

    def _wants(self, key: str) -> bool:
        prefix = self._dotted_prefix
        return prefix is None or any(_revised(key, each).startswith(prefix) for each in self._candidates())

    def tree(self, *, offline: bool = False, logger: logging.Logger | str | None = "current") -> Any:
        """Returns what the checkpoint holds, with tensors still in the file where that can be."""
        return tree_of(self.checkpoint, self.reading, wants=self._wants, offline=offline, logger=logger)

    def state_dict(self, tree: Any) -> OrderedDict[str, Any]:
        """Returns the tensors for the model by the model's names.

        Raises:
            AssertionError: no key begins with the prefix.
            RuntimeError: there is no state dict.
        """
        prefix = self._dotted_prefix
        for revisions in self._candidates():
            state_dict = state_dict_of(tree, self.checkpoint, revisions, self.key)
            if prefix is None:
                break
            below = OrderedDict((k[len(prefix) :], value) for k, value in state_dict.items() if k.startswith(prefix))
            if below:
                metadata = getattr(state_dict, "_metadata", None)
                state_dict = with_metadata(below, metadata, len(prefix), prefix[:-1])
                break
        else:
            raise AssertionError(f"{prefix} is not in the pretrained model")
        if isinstance(self.dtype, torch.dtype):
            for key, value in state_dict.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != self.dtype:
                    lazy = isinstance(value, StoredTensor) and value.tensor is None
                    state_dict[key] = value.turned_into(self.dtype) if lazy else value.to(self.dtype)  # type: ignore[attr-defined]
        return state_dict


def state_dict_of(
    checkpoint: Any, filename: object, revisions: Revisions, key: str | None = None
) -> OrderedDict[str, Any]:
    """Returns the weights of a checkpoint by their revised keys.

    Raises:
        RuntimeError: there are none, or they are of a class that is not data.
    """
    if not isinstance(checkpoint, Mapping):
        raise RuntimeError(f"No state_dict found in checkpoint file {filename}")
    found = _nested(checkpoint, filename, key)
    if isinstance(found, Foreign):
        refuse(found)
    if not isinstance(found, Mapping):
        raise RuntimeError(f"No state_dict found in checkpoint file {filename}: its 'state_dict' is a {type(found)}")
    if not all(isinstance(name, str) for name in found):
        raise RuntimeError(f"No state_dict found in checkpoint file {filename}: its keys are no names")
    revised = OrderedDict((_revised(name, revisions), value) for name, value in found.items())
    return with_metadata(revised, getattr(found, "_metadata", None), 0, None)


def check_taken(state_dict: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises RuntimeError if one of the values that a model takes is no data."""
    for key in keys:
        if isinstance(state_dict.get(key), Foreign):
            refuse(state_dict[key])


def _nested(checkpoint: Mapping[Any, Any], filename: object, key: str | None) -> Any:
    """Returns the part of a checkpoint that holds the weights."""
    if key is None:
        for nest in _NESTS:
            # In a bare state dict "model" may be the name of a tensor; mmengine takes any "state_dict".
            if nest in checkpoint and (nest == "state_dict" or isinstance(checkpoint[nest], Mapping)):
                return checkpoint[nest]
        return checkpoint
    if key in checkpoint:
        return checkpoint[key]
    found: Any = checkpoint
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            keys = [repr(name) for name, value in checkpoint.items() if isinstance(value, Mapping)]
            raise RuntimeError(
                f"{filename}: the checkpoint has no key {key!r}. Those that hold dicts are: {', '.join(keys) or 'none'}"
            )
        found = found[part]
    return found


def _revised(key: str, revisions: Revisions) -> str:
    for pattern, replacement in revisions:
        key = re.sub(pattern, replacement, key)
    return key


def with_metadata(
    state_dict: OrderedDict[str, Any], metadata: Any, cut: int, path: str | None
) -> OrderedDict[str, Any]:
    """Attaches the versions of the modules that torch saves beside a state dict, those below ``path`` without it."""
    if metadata and path is not None:
        metadata = {key[cut:]: value for key, value in metadata.items() if key == path or key.startswith(path + ".")}
    if metadata:
        state_dict._metadata = metadata  # type: ignore[attr-defined]
    return state_dict
