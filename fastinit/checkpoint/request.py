"""A user's request for a checkpoint: which keys of it, and how they are renamed."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..errors import InitAssertionError, InitRuntimeError, InitTypeError, InitValueError
from ..execution.collector import uncollected
from .formats.by_content import Reading
from .messages import MAX_SHOWN, listed
from .module_versions import checked_metadata, with_metadata
from .sources.addresses import shown_address
from .sources.url_schemes import tree_of
from .storage.stored import StoredTensor
from .storage.stubs import Foreign, refuse, shown
from .wrappers import below

Revisions = Sequence[tuple[str, str]]
# DataParallel and DDP prepend this to every name.
STRIP_MODULE: Revisions = ((r"^module\.", ""),)
# Where training scripts keep the weights; the first one present is used.
_NESTS = ("state_dict", "model", "state_dict_ema")

# An error compares no more keys than a model has, whatever a file holds, and lists a few of their prefixes.
_MOST_KEYS = 20_000
_MOST_SHOWN = 8

# Suffixes of the scale of an 8-bit weight, in DeepSeek's files and compressed-tensors.
_SCALES = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class Request:
    """Which part of a checkpoint is loaded, and how."""

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
                raise InitTypeError(f"{name} must be a {kind.__name__}, but got {value!r}")
        for revision in self.revise_keys or ():
            if not isinstance(revision, (tuple, list)) or len(revision) != 2:
                raise InitTypeError(f"revise_keys must hold (pattern, replacement) pairs, but it holds {revision!r}")
            try:
                re.compile(revision[0])
            except re.error as error:
                raise InitValueError(f"revise_keys: {revision[0]!r} is no regular expression: {error}") from error
        if isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", getattr(torch, self.dtype.removeprefix("torch."), self.dtype))
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise InitTypeError(
                f"dtype must be a floating-point dtype of torch, such as 'bfloat16', but got {self.dtype!r}"
            )

    @property
    def _dotted_prefix(self) -> str | None:
        return self.prefix if self.prefix is None or self.prefix.endswith(".") else self.prefix + "."

    def _candidates(self) -> tuple[Revisions, ...]:
        """Returns the revisions to try; with a prefix, the unrevised keys first."""
        if self.revise_keys is not None:
            return (self.revise_keys,)
        return (STRIP_MODULE,) if self.prefix is None else ((), STRIP_MODULE)

    def _wants(self, key: str) -> bool:
        prefix = self._dotted_prefix
        if prefix is None or any(_revised(key, each).startswith(prefix) for each in map(_compiled, self._candidates())):
            return True
        return self.revise_keys is None and below(key, prefix) is not None

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of a ``Pretrained`` rule that asks for the same, as JSON has them; defaults left out.

        Raises:
            ValueError: some cannot be written down, or must not.
        """
        checkpoint = os.fspath(self.checkpoint)
        if not isinstance(checkpoint, str) or shown_address(checkpoint) != checkpoint:
            raise InitValueError(f"the address {shown_address(checkpoint)!r} holds a secret, or what is no text")
        if self.reading.weights_only is not True or self.reading.allow:
            raise InitValueError(
                f"{shown_address(checkpoint)}: weights_only=False and allow=... may run code",
                place=shown_address(checkpoint),
            )
        found: dict[str, Any] = {"checkpoint": checkpoint, "prefix": self.prefix, "key": self.key}
        revisions = None if self.revise_keys is None else [list(each) for each in self.revise_keys]
        if not all(isinstance(text, str) for each in revisions or () for text in each):
            raise InitValueError(f"{checkpoint}: revise_keys holds a function or a compiled pattern")
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        found |= {"revise_keys": revisions, "dtype": dtype}
        found |= {name: True for name in ("strict", "assign") if getattr(self, name)}
        return {name: value for name, value in found.items() if value is not None}

    def tree(self, *, offline: bool = False, logger: logging.Logger | str | None = "current") -> Any:
        """Returns the contents of the checkpoint, with tensors still in the file where possible."""
        is_here = os.path.exists(self.checkpoint)  # a download could take long
        with uncollected() if is_here else nullcontext():
            return tree_of(self.checkpoint, self.reading, wants=self._wants, offline=offline, logger=logger)

    def state_dict(self, tree: Any) -> OrderedDict[str, Any]:
        """Returns the requested tensors by their revised keys; raises as ``selection``."""
        return self.selection(tree).state_dict

    def selection(self, tree: Any) -> Selection:
        """Returns the requested tensors by their revised keys, and the keys that they have in the file.

        Raises:
            AssertionError: no key begins with the prefix.
            RuntimeError: there is no state dict, or its module versions are damaged.
        """
        selected = self._selected(tree)
        state_dict = selected.state_dict
        if isinstance(self.dtype, torch.dtype):
            for key, value in state_dict.items():
                if type(value) is StoredTensor and value.tensor is None:
                    if value.geometry.dtype.is_floating_point and value.geometry.dtype != self.dtype:
                        state_dict[key] = value.turned_into(self.dtype)
                elif isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != self.dtype:
                    state_dict[key] = value.to(self.dtype)
        return selected

    def hints(self, tree: Any, copied: Collection[str], unexpected: Collection[str]) -> list[str]:
        """Returns hints for users who may have meant something else.

        Args:
            tree: the contents of the checkpoint.
            copied, unexpected: keys of its state dict that are copied, and that the model does not have.
        """
        if not isinstance(tree, Mapping):
            return []
        if not copied and self.key is None:
            return _weights_elsewhere(tree)
        scales = [name for name in unexpected if name.endswith(_SCALES)]
        state_dict = self._selected(tree).state_dict if scales else {}
        scales = [name for name in scales if _is_scale(name, state_dict)]
        line = "copied unchanged, without applying the scales beside them"
        return [f"values of 8 bits are {line}: {listed(scales)}"] if scales else []

    def _selected(self, tree: Any) -> Selection:
        prefix = self._dotted_prefix
        for revisions in self._candidates():
            selected = _selected(tree, self.checkpoint, revisions, self.key)
            if prefix is None:
                return selected
            if found := selected.cut(lambda name: name[len(prefix) :] if f"{name}.".startswith(prefix) else None):
                return found
        if self.revise_keys is None and prefix is not None:
            # Wrappers may have added their parts before the prefix and within it.
            selected = _selected(tree, self.checkpoint, (), self.key)
            if found := selected.cut(partial(below, prefix=prefix)):
                return found
        source = shown_address(self.checkpoint)
        raise InitAssertionError(
            f"{prefix} is not in the pretrained model {source}",
            place=source,
            hint=f": no key begins with prefix={shown(self.prefix)}{_other_prefixes(prefix, selected)}",
        )


@dataclass(frozen=True)
class Selection:
    """The tensors of a checkpoint that a request asks for."""

    state_dict: OrderedDict[str, Any]
    key_of: Mapping[str, str]
    """The key in the file, before revisions and the prefix, of each key in ``state_dict``."""

    def cut(self, rest: Callable[[str], str | None]) -> Selection | None:
        """Returns the part for which ``rest`` returns a name, under that name; None if there is none."""
        names = [(name, new) for name in self.state_dict if (new := rest(name))]
        found = OrderedDict((new, self.state_dict[name]) for name, new in names)
        with_metadata(found, getattr(self.state_dict, "_metadata", {}), rest)
        return Selection(found, {new: self.key_of[name] for name, new in names}) if found else None


def _other_prefixes(prefix: str | None, selected: Selection) -> str:
    """Returns a hint: the prefixes of a checkpoint's keys that are nearest to one that none of them has."""
    keys = [key for key in selected.state_dict if len(key) <= MAX_SHOWN][:_MOST_KEYS]
    prefixes = list(dict.fromkeys(key[:at] for key in keys for at, sign in enumerate(key) if sign == "." and at))
    wanted = (prefix or "").removesuffix(".")
    # Of as many parts, as far as there are such: what is within the one that is meant is alike, too.
    as_deep = [each for each in prefixes[:_MOST_KEYS] if each.count(".") == wanted.count(".")]
    if near := difflib.get_close_matches(wanted, as_deep, n=3, cutoff=0.6):
        return f". Did you mean {' or '.join(map(shown, near))}?"
    tops = [each for each in prefixes if "." not in each]
    return f". Its keys begin with {_first(tops)}" if tops else f". Its keys have no prefix: {_first(keys)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:_MOST_SHOWN])) + (", ..." if len(names) > _MOST_SHOWN else "")


def _weights_elsewhere(tree: Mapping[Any, Any]) -> list[str]:
    """Returns a hint about dicts of tensors under other keys of a checkpoint."""
    if any(nest in tree for nest in _NESTS):
        return []
    found = [
        key
        for key, value in tree.items()
        if isinstance(key, str)
        and isinstance(value, Mapping)
        and any(isinstance(each, torch.Tensor) for each in value.values())
    ]
    if not found:
        return []
    others = f" (or {', '.join(map(shown, found[1:6]))})" if found[1:] else ""
    return [f"the checkpoint holds tensors under another key: pass key={shown(found[0])}{others}"]


def _is_scale(name: str, state_dict: Mapping[str, Any]) -> bool:
    """Returns whether a tensor is the scale of an 8-bit floating-point weight."""
    weight = state_dict.get(next(name.removesuffix(ending) for ending in _SCALES if name.endswith(ending)))
    return isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.element_size() == 1


def state_dict_of(
    checkpoint: Any, filename: object, revisions: Revisions, key: str | None = None
) -> OrderedDict[str, Any]:
    """Returns the weights of a checkpoint by their revised keys.

    Raises:
        RuntimeError: there are none, they are of a class that is not data, or their module versions are damaged.
    """
    return _selected(checkpoint, filename, revisions, key).state_dict


def _selected(checkpoint: Any, filename: object, revisions: Revisions, key: str | None) -> Selection:
    if not isinstance(checkpoint, Mapping):
        raise InitRuntimeError(f"No state_dict found in checkpoint file {filename}")
    found = _nested(checkpoint, filename, key)
    if isinstance(found, Foreign):
        refuse(found)
    if not isinstance(found, Mapping):
        raise InitRuntimeError(
            f"No state_dict found in checkpoint file {filename}: its 'state_dict' is a {type(found)}"
        )
    if not all(isinstance(name, str) for name in found):
        raise InitRuntimeError(f"No state_dict found in checkpoint file {filename}: its keys are no names")
    compiled = _compiled(revisions)
    key_of = {_revised(name, compiled): name for name in found}
    revised = OrderedDict((new, found[name]) for new, name in key_of.items())
    return Selection(with_metadata(revised, checked_metadata(getattr(found, "_metadata", None), filename)), key_of)


def check_taken(state_dict: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises RuntimeError if one of the values that a model needs is not data."""
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
            raise InitRuntimeError(
                f"{filename}: the checkpoint has no key {key!r}",
                place=filename,
                hint=f". Those that hold dicts are: {', '.join(keys) or 'none'}",
            )
        found = found[part]
    return found


def _compiled(revisions: Revisions) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in revisions]


def _revised(key: str, revisions: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in revisions:
        key = pattern.sub(replacement, key)
    return key
