"""Saving functions that users import from mmengine.runner.checkpoint."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import tempfile
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ..errors import InitNotImplementedError, InitRuntimeError, InitValueError
from ..naming import is_model_wrapper
from ..replacing import replacing
from ..shards.dtensor import is_sharded
from .mmengine_log import log
from .sources.addresses import as_path, shown_address
from .sources.remote import fsspec_for


def save_checkpoint(
    checkpoint: Any, filename: str | os.PathLike[str], file_client_args: Any = None, backend_args: Any = None
) -> None:
    """Saves a checkpoint with ``torch.save``: to a temporary file that is then renamed, so no partial file appears.

    Args:
        checkpoint: any object, usually a dict.
        filename: a path, or an address that fsspec can write to, such as ``s3://bucket/name.pth``.
        file_client_args: mmengine's old name of ``backend_args``.
        backend_args: options of fsspec's file system.

    Raises:
        RuntimeError: it holds a tensor that is distributed over ranks; nothing is written.
        ValueError: both arguments at once.
    """
    if file_client_args is not None:
        log(
            '"file_client_args" will be deprecated in future. Please use "backend_args" instead',
            "current",
            logging.WARNING,
        )
        if backend_args is not None:
            raise InitValueError('"file_client_args" and "backend_args" cannot be set at the same time.')
    text = os.fspath(filename)
    if text.startswith(("pavi://", "petrel://")):
        raise InitNotImplementedError(
            f"{shown_address(text)}: this storage is not supported",
            place=shown_address(text),
            hint=". Save to a path or to s3://",
        )
    if "://" in text and not text.lower().startswith("file://"):
        options = {key: value for key, value in (backend_args or {}).items() if key != "backend"}
        system, remote = fsspec_for(text).core.url_to_fs(text, **options)
        with tempfile.TemporaryDirectory() as folder:
            # Not directly: a remote file that is closed after an error would be kept, incomplete.
            local = os.path.join(folder, "checkpoint")
            with open(local, "wb") as file:
                _save(checkpoint, file)
            system.put_file(local, remote)
        return
    path = as_path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _save(checkpoint, file)


class _Pickler(pickle.Pickler):
    """Refuses distributed tensors anywhere in a checkpoint."""

    def reducer_override(self, obj: Any) -> Any:
        check_whole(obj)
        return NotImplemented


def _save(checkpoint: Any, file: IO[bytes]) -> None:
    """Saves with ``torch.save``, which pickles everything before it writes tensors, so a refusal is cheap."""
    module = types.ModuleType("pickle")  # torch.save looks up its pickler here
    module.__dict__.update({**vars(pickle), "Pickler": _Pickler})
    torch.save(checkpoint, file, pickle_module=module)


def check_whole(value: object, name: str = "") -> None:
    """Raises RuntimeError if a tensor is distributed over ranks, as this rank only has a part of it.

    Args:
        value: anything.
        name: its name in the message.
    """
    sharded = sys.modules.get("torch.distributed._shard.sharded_tensor")  # FSDP1's; without it nothing is one
    if is_sharded(value) or (sharded is not None and isinstance(value, sharded.ShardedTensor)):
        called = f"{name!r} is" if name else f"the checkpoint holds a {type(value).__name__} of shape "
        called += " a distributed tensor" if name else f"{tuple(getattr(value, 'shape', ()))},"
        raise InitRuntimeError(
            f"{called} of which each rank has its own part only: a file of one rank would hold that part, and every "
            f"rank would write the same file",
            hint=". Gather first, on all ranks: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True, cpu_offload=True)), and save what rank 0 gets. Or save a folder with "
            "torch.distributed.checkpoint.save(state_dict, checkpoint_id=folder), which fastinit loads, too",
        )


def weights_to_cpu(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Returns a state dict with its tensors on the CPU; the modules' ``_metadata`` is kept.

    Raises:
        RuntimeError: a tensor is distributed over ranks: its mesh stays on its devices.
    """
    for key, value in state_dict.items():
        check_whole(value, key)
    moved = OrderedDict((key, value.cpu()) for key, value in state_dict.items())
    moved._metadata = getattr(state_dict, "_metadata", OrderedDict())  # type: ignore[attr-defined]
    return moved


def get_state_dict(
    module: nn.Module, destination: Any = None, prefix: str = "", keep_vars: bool = False
) -> OrderedDict[str, Any]:
    """Returns a module's state dict without the name parts of model wrappers such as DDP, at any depth.

    Distributed tensors (those of ``fully_shard``) stay distributed, as in ``module.state_dict()``: for
    ``torch.distributed.checkpoint.save``, and not for ``save_checkpoint``.

    Args:
        module: any module.
        destination: the dict to add to; None: a new one.
        prefix: prepended to the names.
        keep_vars: return the parameters themselves rather than detached tensors.
    """
    if is_model_wrapper(module):
        module = module.module  # type: ignore[assignment]
    if destination is None:
        destination = OrderedDict()
        destination._metadata = OrderedDict()
    local = {"version": module._version}
    destination._metadata[prefix[:-1]] = local
    module._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
    for name, child in module._modules.items():
        if child is not None:
            get_state_dict(child, destination, f"{prefix}{name}.", keep_vars)
    for hook in module._state_dict_hooks.values():
        destination = destination if (result := hook(module, destination, prefix, local)) is None else result
    return destination  # type: ignore[no-any-return]


def _save_to_state_dict(module: nn.Module, destination: Any, prefix: str, keep_vars: bool) -> None:
    """Adds a module's own parameters and persistent buffers to a state dict, without its hooks and extra state."""
    persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    for name, value in {**module._parameters, **persistent}.items():
        if value is not None:
            destination[prefix + name] = value if keep_vars else value.detach()


def find_latest_checkpoint(path: str | os.PathLike[str]) -> str | None:
    """Returns the path written in a folder's ``last_checkpoint`` file, None if there is no such file."""
    pointer = Path(path) / "last_checkpoint"
    if pointer.exists():
        return pointer.read_text(encoding="utf-8").strip()
    log("Did not find last_checkpoint to be resumed.", None)
    return None
