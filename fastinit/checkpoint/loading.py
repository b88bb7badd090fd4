"""From a checkpoint's keys to a module's tensors, by the rules (and in the words) of mmengine.runner.checkpoint."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..naming import Names, is_model_wrapper, without_wrappers
from ..plans import Copy, CopyEntry, LoadResult
from ..provenance import is_rank_zero, version_of
from ..provenance import logger as own_logger
from ..sharding import is_sharded
from . import distributed_folder
from .copying import Loading, loading
from .downloads import NotDownloaded
from .messages import log
from .readers import Reading
from .request import STRIP_MODULE, Request, Revisions, check_taken, state_dict_of, with_metadata
from .schemes import CheckpointLoader
from .stored import Storage, StoredTensor, in_memory, read_everything

# --- loading ---------------------------------------------------------------------------------------------------------


def load_checkpoint(
    model: nn.Module,
    filename: str | os.PathLike[str],
    map_location: Any = None,
    strict: bool = False,
    logger: logging.Logger | str | None = None,
    revise_keys: Revisions = STRIP_MODULE,
    *,
    prefix: str | None = None,
    key: str | None = None,
    assign: bool = False,
    dtype: torch.dtype | str | None = None,
    access: str = "auto",
    weights_only: bool = True,
    allow: Sequence[Any] = (),
) -> Any:
    """Loads a checkpoint into a model, and returns the whole checkpoint.

    Of the file only what the model takes is read, straight to where it goes. The tensors in what is returned are read
    when something uses them, so the file must not be overwritten in place before (a new file of the same name does no
    harm: ``save_checkpoint`` writes one and renames it). ``CheckpointLoader.load_checkpoint`` reads all at once.

    Args:
        model: its parameters and buffers are overwritten where names and shapes agree; they keep dtype and device.
        filename: a path or a name with a scheme: a file of safetensors or ``torch.save``, the index of a sharded
            checkpoint, or a folder.
        map_location: where tensors of the returned checkpoint go; None: the CPU.
        strict: raise where names or shapes differ, else one warning tells. If no module has loading code or hooks of
            its own, that is before anything is written.
        logger: as for ``print_log``.
        revise_keys: (pattern, replacement) pairs that ``re.sub`` applies to every key, in order.
        prefix: load only the keys that begin with it (and a dot), without it.
        key: under which the weights are; None: ``state_dict``, ``model`` or ``state_dict_ema``, else the top.
        assign: give the model the file's tensors, mapped copy-on-write, in place of its own: nothing is read before it
            is used, training does not change the file, and models on the meta device get their values so. The file
            must stay as it is while the model lives: cutting it off kills the process (SIGBUS).
        dtype: that floating-point tensors are turned into on the way; None: the model's (``assign``: the file's).
        access: "map", "read" (through ``pread``: for files that another process might cut off), or "auto": "read" on
            network file systems, else "map".
        weights_only: False unpickles whatever the file holds, and so runs code that it may bring.
        allow: classes and functions, or their import paths, that a pickle may use besides data.

    Raises:
        AssertionError: no key begins with ``prefix``.
        FileNotFoundError: there is no such file.
        OSError: the file was changed while it was read: the model may be partly loaded.
        RuntimeError: the file is damaged, holds no state dict or more than data; or ``strict`` and something differs.

    Follows ``mmengine.runner.load_checkpoint`` (whose arguments are those before the star).

    Example:
        >>> import fastinit, tempfile, torch
        >>> source, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": source.state_dict(), "meta": {"epoch": 3}}, f"{folder}/last.pth")
        ...     checkpoint = fastinit.checkpoint.load_checkpoint(model, f"{folder}/last.pth", logger="silent")
        >>> checkpoint["meta"], torch.equal(model.weight, source.weight)
        ({'epoch': 3}, True)
    """
    reading = Reading(map_location, access, weights_only, tuple(allow))
    request = Request(filename, prefix, key, revise_keys, strict, assign, dtype, reading)
    tree = request.tree(logger=logger)
    _load(model, request.state_dict(tree), strict, logger, assign)
    return tree


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
    module: nn.Module,
    state_dict: Mapping[str, Any],
    strict: bool,
    logger: logging.Logger | str | None,
    assign: bool = False,
) -> LoadResult:
    held = list(_slots(module))
    check_taken(state_dict, (slot.key for slot in held))
    _check_assign(assign, (slot for slot in held if slot.key in state_dict))
    if not assign and (metas := [slot.key for slot in held if slot.tensor.is_meta and slot.key in state_dict]):
        raise RuntimeError(
            f"{metas[0]!r} of {type(module).__name__} is on the meta device and has no memory to copy into: pass "
            f"assign=True to give the model the checkpoint's tensors, or fastinit.materialize(model, ...) for memory"
        )
    if strict and not _runs_own_code(module):
        probes = OrderedDict((key, _probe(value)) for key, value in state_dict.items())
        with loading() as rehearsal:
            rehearsal.is_rehearsal = True
            missing, unexpected, errors = _descend(module, probes, getattr(state_dict, "_metadata", None), rehearsal)
            missing = _without_tied(missing, held, state_dict)
            if text := _mismatches(missing, unexpected, errors):
                raise RuntimeError(text)
    if not assign:  # which reads all before it writes
        distributed_folder.check((state_dict[slot.key], slot.tensor) for slot in held if slot.key in state_dict)
    before = {slot.key: (slot.tensor, version_of(slot.tensor)) for slot in held}
    state = OrderedDict(state_dict)
    if assign:
        _adopt(state, {slot.key for slot in held})
    with loading() as current:
        metadata = getattr(state_dict, "_metadata", None)
        missing, unexpected, errors = _descend(module, state, metadata, current, assign)
        if assign:
            _settle(module, held)
    # What was written, and not what should have been: hooks rename keys, and a copy may fail in many ways.
    now = list(_slots(module))
    done = [
        slot
        for slot in now
        if slot.key not in before
        or before[slot.key][0] is not slot.tensor
        or before[slot.key][1] != version_of(slot.tensor)
    ]
    copied = tuple(slot.key for slot in done)
    missing = _without_tied(missing, now, copied)
    if text := _mismatches(missing, unexpected, errors):
        if strict:
            raise RuntimeError(text)
        if is_rank_zero():
            log(text, logger, logging.WARNING)
    mismatched = tuple(found[1] for error in errors if (found := re.match(r"size mismatch for (\S+):", error)))
    return LoadResult(copied, tuple(missing), tuple(unexpected), mismatched)


def _descend(
    module: nn.Module,
    state_dict: OrderedDict[str, Any],
    metadata: Any,
    current: Loading,
    assign: bool = False,
) -> tuple[list[str], list[str], list[str]]:
    """Lets every module load its part; returns missing keys, unexpected keys, and what else did not fit."""
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    metadata = metadata or {}

    def descend(here: nn.Module, state: dict[str, Any], prefix: str) -> None:
        here = _unwrapped(here)
        local = metadata.get(prefix[:-1], {})
        if assign:
            local = {**local, "assign_to_params_buffers": True}
        here._load_from_state_dict(  # type: ignore[no-untyped-call]
            state, prefix, local, True, missing, unexpected, errors
        )
        if current.failure is not None:
            raise current.failure
        for name, child in here._modules.items():
            if child is not None:
                inner = f"{prefix}{name}."
                descend(child, {key: value for key, value in state.items() if key.startswith(inner)}, inner)
        keys = _IncompatibleKeys(missing, unexpected)
        for hook in here._load_state_dict_post_hooks.values():
            result = hook(here, keys)
            assert result is None, (
                "a load_state_dict post hook must change the lists of keys in place and return None, but "
                f"{hook} returned {result!r}"
            )

    # The modules' own code may add and remove keys: it gets a copy that it may change.
    descend(module, with_metadata(OrderedDict(state_dict), metadata, 0, None), "")
    # A counter that older checkpoints lack; no value is lost with it.
    return [key for key in missing if "num_batches_tracked" not in key], unexpected, errors


def _without_tied(missing: Sequence[str], slots: Sequence[_Slot], written: Iterable[str]) -> list[str]:
    """Returns the missing keys but those of tied tensors that get their values by another of their names."""
    names = set(written)
    tensors = {id(slot.tensor) for slot in slots if slot.key in names}
    tied = {slot.key for slot in slots if id(slot.tensor) in tensors}
    return [key for key in missing if key not in tied]


def _mismatches(missing: Sequence[str], unexpected: Sequence[str], errors: Sequence[str]) -> str:
    """Returns the one message about all that does not fit, "" if all does."""
    problems = [*errors]
    if unexpected:
        problems.append(f"unexpected key in source state_dict: {', '.join(unexpected)}\n")
    if missing:
        problems.append(f"missing keys in source state_dict: {', '.join(missing)}\n")
    return "\n".join(["The model and loaded state dict do not match exactly\n", *problems]) if problems else ""


# torch's own loading code: what it does is known.
_KNOWN_CODE = {nn.Module._load_from_state_dict, nn.BatchNorm1d._load_from_state_dict}


def _runs_own_code(module: nn.Module) -> bool:
    return any(
        type(each)._load_from_state_dict not in _KNOWN_CODE
        or each._load_state_dict_pre_hooks
        or each._load_state_dict_post_hooks
        for each in map(_unwrapped, module.modules())
    )


def _probe(value: Any) -> Any:
    """Returns a tensor's shape without its values."""
    if not isinstance(value, torch.Tensor) or isinstance(value, StoredTensor):
        return value
    nowhere: Any = None
    probe = StoredTensor.at(Storage(nowhere, 0, 0), 0, value.shape, [0] * value.dim(), value.dtype, value.device)
    probe.tensor = value
    return probe


# --- adopting the file's tensors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    """Where a module holds a parameter or a persistent buffer."""

    key: str
    entries: dict[str, Any]
    name: str
    tensor: torch.Tensor


def _adopt(state: OrderedDict[str, Any], keys: set[str]) -> None:
    """Puts mapped tensors into a state dict, in place of stored ones that a module will take."""
    contents: dict[int, torch.Tensor] = {}
    # A storage of its own for each of the file's: saving one tensor must not save the whole file.
    storages: dict[int, torch.UntypedStorage] = {}
    for key, value in state.items():
        if key not in keys or not isinstance(value, StoredTensor):
            continue
        storage = value.storage_in_file
        stays = value.tensor is None and value.dtype == value.dtype_in_file and value.location.type == "cpu"
        if not (stays and value.can_be_mapped and storage.file.access == "map" and value.numel()):
            state[key] = in_memory(value).detach()
            continue
        storage.file.check()
        if id(storage.file) not in contents:
            contents[id(storage.file)] = storage.file.mapped_privately()
        if id(storage) not in storages:
            part = contents[id(storage.file)][storage.offset : storage.offset + storage.n_bytes]
            storages[id(storage)] = torch.frombuffer(part.numpy(), dtype=torch.uint8).untyped_storage()
        state[key] = value.over(storages[id(storage)])


def _settle(module: nn.Module, before: Sequence[_Slot]) -> None:
    """Gives adopted parameters the ``requires_grad`` of those they replace, and ties them where those were tied."""
    adopted: dict[int, torch.Tensor] = {}
    for slot in before:
        new = slot.entries.get(slot.name)
        if new is not None and new is not slot.tensor:
            if isinstance(new, nn.Parameter) and new.is_floating_point():
                new.requires_grad_(slot.tensor.requires_grad)
            adopted.setdefault(id(slot.tensor), new)
    for slot in before:
        if id(slot.tensor) in adopted:
            slot.entries[slot.name] = adopted[id(slot.tensor)]


# --- mmengine's smaller functions ------------------------------------------------------------------------------------


def _load_checkpoint_to_model(
    model: nn.Module,
    checkpoint: Any,
    strict: bool = False,
    logger: logging.Logger | str | None = None,
    revise_keys: Revisions = STRIP_MODULE,
) -> Any:
    """Loads a checkpoint that has been read already, and returns it."""
    load_state_dict(model, state_dict_of(checkpoint, "", revise_keys), strict, logger)
    return checkpoint


def _load_checkpoint(
    filename: str | os.PathLike[str], map_location: Any = None, logger: logging.Logger | str | None = None
) -> Any:
    """Reads a checkpoint into memory, whole."""
    return CheckpointLoader.load_checkpoint(filename, map_location, logger)


def _load_checkpoint_with_prefix(
    prefix: str, filename: str | os.PathLike[str], map_location: Any = None
) -> dict[str, Any]:
    """Returns the part of a checkpoint whose keys begin with a prefix, without it; nothing else is read.

    Raises:
        AssertionError: no key begins with it.
    """
    request = Request(filename, prefix, reading=Reading(map_location))
    return read_everything(request.state_dict(request.tree()))  # type: ignore[no-any-return]


# --- planning --------------------------------------------------------------------------------------------------------


def plan_copy(
    module: nn.Module, request: Request, *, names: Names, offline: bool, trees: dict[int, Any], rule: str, info: str
) -> Copy:
    """Returns what loading a checkpoint into ``module`` would copy; reads names and shapes.

    What modules with a ``_load_from_state_dict`` or hooks of their own do to keys shows only when it is loaded.

    Args:
        module: the one that the checkpoint is for.
        request: what of which checkpoint.
        names: of the root.
        offline: a checkpoint that would have to be downloaded stays unknown.
        trees: checkpoints that are open, by the id of their request; it is planned more than once before it is loaded.
        rule, info: as for ``Copy``.

    Raises:
        AssertionError: a prefix that no key begins with.
        FileNotFoundError, RuntimeError: as ``load_checkpoint``.
    """
    source = str(request.checkpoint)
    try:
        if id(request) not in trees:
            trees[id(request)] = request.tree(offline=offline)
        state_dict = request.state_dict(trees[id(request)])
    except NotDownloaded:

        def not_yet() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
            raise RuntimeError(f"{source} was not downloaded when the plan was made")

        return Copy(module, (), source, rule, info, request.assign, False, not_yet, "not downloaded yet")

    def entries(slots: Iterable[_Slot]) -> tuple[CopyEntry, ...]:
        once: dict[int, _Slot] = {}
        for slot in slots:  # a tied tensor by its first key
            once.setdefault(id(slot.tensor), slot)
        return tuple(
            CopyEntry(names.name_of(slot.tensor, module, without_wrappers(slot.key)), slot.tensor, slot.key)
            for slot in once.values()
        )

    check_taken(state_dict, (slot.key for slot in _slots(module)))
    _check_assign(request.assign, (slot for slot in _slots(module) if slot.key in state_dict))

    def fits(slot: _Slot) -> bool:
        value = state_dict.get(slot.key)
        return isinstance(value, torch.Tensor) and (nn.parameter.is_lazy(slot.tensor) or _fits(value, slot.tensor))

    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        where = f"{request.prefix} in model" if request.prefix is not None else "model"
        own_logger.info("load %s from: %s", where, source)
        trees.pop(id(request), None)
        result = _load(module, state_dict, request.strict, "current", request.assign)
        if request.assign:
            names.renew()
        copied = set(result.copied)
        return result, entries(slot for slot in _slots(module) if slot.key in copied)

    planned = entries(slot for slot in _slots(module) if fits(slot))
    return Copy(module, planned, source, rule, info, request.assign, _runs_own_code(module), load)


def _check_assign(assign: bool, slots: Iterable[_Slot]) -> None:
    for slot in slots:
        if assign and is_sharded(slot.tensor):
            raise RuntimeError(
                f"{slot.key!r} is distributed, and assign=True would put all of it in the place of the part that is "
                f"here: leave assign out, so that each rank reads its part"
            )


def _fits(value: torch.Tensor, tensor: torch.Tensor) -> bool:
    # Scalars had one dimension before torch 0.4; torch still takes them.
    return value.shape == tensor.shape or (tensor.dim() == 0 and value.shape == (1,))


def _slots(module: nn.Module, prefix: str = "") -> Iterator[_Slot]:
    """Yields the parameters and persistent buffers of a module, by the keys of its state dict."""
    module = _unwrapped(module)
    held: Iterable[tuple[dict[str, Any], str, torch.Tensor | None]] = (
        *((module._parameters, name, tensor) for name, tensor in module._parameters.items()),
        *(
            (module._buffers, name, buffer)
            for name, buffer in module._buffers.items()
            if name not in module._non_persistent_buffers_set
        ),
    )
    for entries, name, tensor in held:
        if tensor is not None:
            yield _Slot(prefix + name, entries, name, tensor)
    for name, child in module._modules.items():
        if child is not None:
            yield from _slots(child, f"{prefix}{name}.")


def _unwrapped(module: nn.Module) -> nn.Module:
    mmengine = sys.modules.get("mmengine.model")
    test_time = mmengine is not None and isinstance(module, mmengine.BaseTTAModel)
    return module.module if is_model_wrapper(module) or test_time else module  # type: ignore[return-value]
