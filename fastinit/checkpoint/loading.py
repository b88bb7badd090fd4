"""From a checkpoint's keys to a module's tensors, by the rules (and in the words) of mmengine.runner.checkpoint."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..naming import Names, is_model_wrapper, without_wrappers
from ..plans import Copy, CopyEntry, LoadResult
from ..provenance import is_rank_zero, version_of
from ..provenance import logger as own_logger
from . import readers

Revisions = Sequence[tuple[str, str]]
# What DataParallel and DDP put in front of every name.
STRIP_MODULE: Revisions = ((r"^module\.", ""),)


def print_log(msg: str, logger: logging.Logger | str | None = None, level: int = logging.INFO) -> None:
    """Logs a message, or prints it where ``logger`` is None.

    Args:
        msg: the message.
        logger: a Logger; "current" for fastinit's own, "silent" for none, another text for the logger of that name.
        level: the logging level.
    """
    if logger is None:
        print(msg)
    elif isinstance(logger, logging.Logger):
        logger.log(level, msg)
    elif logger == "current":
        own_logger.log(level, msg)
    elif logger != "silent":
        logging.getLogger(logger).log(level, msg)


# --- loading ---------------------------------------------------------------------------------------------------------


def load_checkpoint(
    model: nn.Module,
    filename: str | os.PathLike[str],
    map_location: Any = None,
    strict: bool = False,
    logger: logging.Logger | str | None = None,
    revise_keys: Revisions = STRIP_MODULE,
) -> Any:
    """Loads a local checkpoint file into a model, and returns the whole checkpoint.

    Args:
        model: its parameters and buffers are overwritten where names and shapes agree; they keep dtype and device.
        filename: a file of ``torch.save`` or safetensors.
        map_location: as for ``torch.load``.
        strict: raise where names or shapes differ; else one warning tells.
        logger: as for ``print_log``.
        revise_keys: (pattern, replacement) pairs that ``re.sub`` applies to every key, in order.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file holds no state dict, or ``strict`` and something differs.
    """
    checkpoint = _load_checkpoint(filename, map_location, logger)
    load_state_dict(model, _state_dict_of(checkpoint, filename, revise_keys), strict, logger)
    return checkpoint


def load_state_dict(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    strict: bool = False,
    logger: logging.Logger | str | None = None,
) -> None:
    """Copies a state dict into a module.

    Unlike ``nn.Module.load_state_dict`` a tensor of another shape is skipped unless ``strict``, and all that does not
    fit is told in one message. Hooks and ``_load_from_state_dict`` of the modules run as usual.

    Raises:
        RuntimeError: ``strict`` and a key is missing, unexpected or of another shape (on every rank).
    """
    _load(module, state_dict, strict, logger)


def _load(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool, logger: logging.Logger | str | None
) -> LoadResult:
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    metadata = getattr(state_dict, "_metadata", None) or {}
    before = {key: (tensor, version_of(tensor)) for key, tensor in _own_tensors(module)}

    def descend(current: nn.Module, state: dict[str, Any], prefix: str) -> None:
        current = _unwrapped(current)
        current._load_from_state_dict(  # type: ignore[no-untyped-call]
            state, prefix, metadata.get(prefix[:-1], {}), True, missing, unexpected, errors
        )
        for name, child in current._modules.items():
            if child is not None:
                inner = f"{prefix}{name}."
                descend(child, {key: value for key, value in state.items() if key.startswith(inner)}, inner)
        keys = _IncompatibleKeys(missing, unexpected)
        for hook in current._load_state_dict_post_hooks.values():
            result = hook(current, keys)
            assert result is None, (
                "a load_state_dict post hook must change the lists of keys in place and return None, but "
                f"{hook} returned {result!r}"
            )

    # The modules' own code may add and remove keys: it gets a copy that it may change.
    descend(module, _with_metadata(OrderedDict(state_dict), metadata, 0, None), "")
    # A counter that older checkpoints lack; no value is lost with it.
    missing = [key for key in missing if "num_batches_tracked" not in key]

    problems = [*errors]
    if unexpected:
        problems.append(f"unexpected key in source state_dict: {', '.join(unexpected)}\n")
    if missing:
        problems.append(f"missing keys in source state_dict: {', '.join(missing)}\n")
    if problems:
        message = "\n".join(["The model and loaded state dict do not match exactly\n", *problems])
        if strict:
            raise RuntimeError(message)
        if is_rank_zero():
            _log(message, logger, logging.WARNING)
    # What was written, and not what should have been: hooks rename keys, and a copy may fail in many ways.
    copied = tuple(
        key
        for key, tensor in _own_tensors(module)
        if key not in before or before[key][0] is not tensor or before[key][1] != version_of(tensor)
    )
    mismatched = tuple(found[1] for error in errors if (found := re.match(r"size mismatch for (\S+):", error)))
    return LoadResult(copied, tuple(missing), tuple(unexpected), mismatched)


def _load_checkpoint_to_model(
    model: nn.Module,
    checkpoint: Any,
    strict: bool = False,
    logger: logging.Logger | str | None = None,
    revise_keys: Revisions = STRIP_MODULE,
) -> Any:
    """Loads a checkpoint that has been read already, and returns it."""
    load_state_dict(model, _state_dict_of(checkpoint, "", revise_keys), strict, logger)
    return checkpoint


def _load_checkpoint(
    filename: str | os.PathLike[str], map_location: Any = None, logger: logging.Logger | str | None = None
) -> Any:
    """Reads a checkpoint file."""
    _log(f"Loads checkpoint by local backend from path: {filename}", logger, logging.INFO)
    return readers.read(filename, map_location)


def _load_checkpoint_with_prefix(
    prefix: str, filename: str | os.PathLike[str], map_location: Any = None
) -> dict[str, Any]:
    """Returns the part of a checkpoint whose keys begin with a prefix, without it.

    Raises:
        AssertionError: no key begins with it.
    """
    return _below_prefix(_load_checkpoint(filename, map_location, "current"), filename, prefix)


def _state_dict_of(checkpoint: Any, filename: object, revisions: Revisions) -> OrderedDict[str, Any]:
    if not isinstance(checkpoint, Mapping):
        raise RuntimeError(f"No state_dict found in checkpoint file {filename}")
    found = checkpoint.get("state_dict", checkpoint)
    if not isinstance(found, Mapping):
        raise RuntimeError(f"No state_dict found in checkpoint file {filename}: its 'state_dict' is a {type(found)}")
    if not all(isinstance(key, str) for key in found):
        raise RuntimeError(f"No state_dict found in checkpoint file {filename}: its keys are no names")
    revised: OrderedDict[str, Any] = OrderedDict(found)
    for pattern, replacement in revisions:
        revised = OrderedDict((re.sub(pattern, replacement, key), value) for key, value in revised.items())
    return _with_metadata(revised, getattr(found, "_metadata", None), 0, None)


def _below_prefix(checkpoint: Any, filename: object, prefix: str) -> OrderedDict[str, Any]:
    """Returns what stands below a prefix: as it is written, else behind DDP's ``module.``."""
    if not prefix.endswith("."):
        prefix += "."
    for revisions in ((), STRIP_MODULE):
        state_dict = _state_dict_of(checkpoint, filename, revisions)
        below = OrderedDict((key[len(prefix) :], value) for key, value in state_dict.items() if key.startswith(prefix))
        if below:
            return _with_metadata(below, getattr(state_dict, "_metadata", None), len(prefix), prefix[:-1])
    raise AssertionError(f"{prefix} is not in the pretrained model")


def _with_metadata(
    state_dict: OrderedDict[str, Any], metadata: Any, cut: int, path: str | None
) -> OrderedDict[str, Any]:
    """Attaches the versions of the modules that torch saves beside a state dict, those below ``path`` without it."""
    if metadata and path is not None:
        metadata = {key[cut:]: value for key, value in metadata.items() if key == path or key.startswith(path + ".")}
    if metadata:
        state_dict._metadata = metadata  # type: ignore[attr-defined]
    return state_dict


# --- planning --------------------------------------------------------------------------------------------------------


def plan_copy(
    module: nn.Module,
    filename: str | os.PathLike[str],
    *,
    prefix: str | None,
    map_location: Any,
    names: Names,
    rule: str,
    info: str,
) -> Copy:
    """Returns what loading a checkpoint into ``module`` would copy; reads names and shapes, maps the rest.

    What modules with a ``_load_from_state_dict`` or hooks of their own do to keys shows only when it is loaded.

    Raises:
        AssertionError: a prefix that no key begins with.
        FileNotFoundError, RuntimeError: as ``load_checkpoint``.
    """
    checkpoint = readers.read(filename, map_location, mapped=True)
    if prefix is None:
        state_dict = _state_dict_of(checkpoint, filename, STRIP_MODULE)
    else:
        state_dict = _below_prefix(checkpoint, filename, prefix)

    def entry(key: str, tensor: torch.Tensor) -> CopyEntry:
        return CopyEntry(names.name_of(tensor, module, without_wrappers(key)), tensor, key)

    def fits(key: str, tensor: torch.Tensor) -> bool:
        value = state_dict.get(key)
        return isinstance(value, torch.Tensor) and (nn.parameter.is_lazy(tensor) or _fits(value, tensor))

    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        where = f"{prefix} in model" if prefix is not None else "model"
        own_logger.info("load %s from: %s", where, filename)
        result = _load(module, state_dict, strict=False, logger="current")
        copied = set(result.copied)
        return result, tuple(entry(key, tensor) for key, tensor in _own_tensors(module) if key in copied)

    planned = tuple(entry(key, tensor) for key, tensor in _own_tensors(module) if fits(key, tensor))
    return Copy(module, planned, str(filename), rule, info, load)


def _fits(value: torch.Tensor, tensor: torch.Tensor) -> bool:
    # Scalars had one dimension before torch 0.4; torch still takes them.
    return value.shape == tensor.shape or (tensor.dim() == 0 and value.shape == (1,))


def _own_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (key, tensor) of the parameters and persistent buffers of a module, by the keys of its state dict."""
    module = _unwrapped(module)
    buffers: Iterable[tuple[str, torch.Tensor | None]] = (
        (name, buffer) for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set
    )
    for name, tensor in (*module._parameters.items(), *buffers):
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _own_tensors(child, f"{prefix}{name}.")


def _unwrapped(module: nn.Module) -> nn.Module:
    mmengine = sys.modules.get("mmengine.model")
    test_time = mmengine is not None and isinstance(module, mmengine.BaseTTAModel)
    return module.module if is_model_wrapper(module) or test_time else module  # type: ignore[return-value]


def _log(message: str, logger: logging.Logger | str | None, level: int) -> None:
    # Looked up in the package when called: users and tests replace fastinit.checkpoint.print_log.
    from . import print_log

    print_log(message, logger=logger, level=level)
