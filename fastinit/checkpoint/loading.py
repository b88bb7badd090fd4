"""Loads checkpoints into models, by the rules of mmengine.runner.checkpoint and with its messages."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InitRuntimeError
from ..execution.collector import uncollected
from ..execution.defaults import default_strict
from ..execution.version_counters import version_of
from ..logs import is_rank_zero
from ..plans import LoadResult, nothing_copied
from ..shards.dtensor import is_sharded
from .fitting import counted_missing, does_not_fit, refusal, result_of, with_hints, without_tied
from .formats.by_content import Reading
from .mmengine_log import log
from .module_versions import with_metadata
from .modules import Descent, Slot, Tree
from .request import STRIP_MODULE, Request, Revisions, check_taken, state_dict_of
from .sources.addresses import shown_address
from .sources.url_schemes import CheckpointLoader
from .storage.copying import check
from .storage.current import loading
from .storage.files import File
from .storage.stored import StoredTensor, in_memory
from .storage.trees import read_everything
from .wrappers import matched

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

    Only the tensors the model needs are read, directly into its parameters. The tensors of the returned checkpoint are
    read when they are first used, so the file must not be overwritten in place before that (replacing it by rename, as
    ``save_checkpoint`` does, is safe). ``CheckpointLoader.load_checkpoint`` reads everything at once.

    Args:
        model: its parameters and buffers are overwritten where names and shapes match; they keep dtype and device.
        filename: a path or a name with a scheme: a file of safetensors or ``torch.save``, the index of a sharded
            checkpoint, or a folder.
        map_location: the device of the returned tensors, as for ``torch.load``; None: the CPU.
        strict: raise if names or shapes differ, rather than log one warning. Unless a module has loading code or hooks
            of its own, it raises before anything is written. Under ``fastinit.use(strict=...)`` or FASTINIT_STRICT,
            copying nothing at all is an error, too.
        logger: as for ``print_log``.
        revise_keys: (pattern, replacement) pairs that ``re.sub`` applies to every key, in order.
        prefix: load only the keys below it, with the prefix removed.
        key: of the weights; None: ``state_dict``, ``model`` or ``state_dict_ema``, else the top level.
        assign: replace the model's tensors by the file's, mapped copy-on-write: bytes are read when they are first
            used, training does not change the file, and models on the meta device get values. The file must not change
            while the model lives: truncating it kills the process (SIGBUS).
        dtype: floating-point tensors are rounded to it first; None: the model's (with ``assign``: the file's).
        access: "map" (copies are made out of a mapping, which can be faster for converted tensors of a file in the
            page cache), "read" (by ``pread``: for files that another process might truncate), or "auto": tensors that
            are copied are read, and adopted ones are mapped; on network file systems all are read.
        weights_only: False unpickles everything in the file, which can run code that the file brings.
        allow: further classes and functions that a pickle may use, or their import paths.

    Raises:
        AssertionError: no key begins with ``prefix``.
        FileNotFoundError: there is no such file.
        OSError: the file was changed while it was read: the model may be partly loaded.
        RuntimeError: the file is damaged, has no state dict, or holds more than data; or ``strict`` and a mismatch.

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
    source = shown_address(request.checkpoint)
    with uncollected():
        state_dict = request.state_dict(tree)
    result, _ = load_into(model, state_dict, strict, logger, assign, source, prefix=prefix)
    result = with_hints(result, request, tree)
    if default_strict() and not result.copied:
        raise InitRuntimeError(f"{nothing_copied(source, result)} (an error under strict)", place=source)
    log_notes(result, logger)
    return tree


def load_state_dict(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    strict: bool = False,
    logger: logging.Logger | str | None = None,
) -> None:
    """Copies a state dict into a module.

    Unlike in ``nn.Module.load_state_dict``, a tensor of another shape is skipped unless ``strict``, and all mismatches
    are reported in one message. The modules' hooks and ``_load_from_state_dict`` run as usual.

    Raises:
        RuntimeError: ``strict`` and a key is missing, unexpected or of another shape (on every rank).
    """
    load_into(module, state_dict, strict, logger)


def load_into(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    strict: bool,
    logger: logging.Logger | str | None,
    assign: bool = False,
    source: str = "",
    rule: str = "",
    prefix: str | None = None,
) -> tuple[LoadResult, list[Slot]]:
    """Copies a state dict into a module; returns what fitted, and the model's slots after the load.

    Args:
        module, state_dict, strict, logger: as for ``load_state_dict``.
        assign: as for ``load_checkpoint``.
        source: the checkpoint; "": there is none.
        rule: that asks for it, for the log.
        prefix: that the keys had in the checkpoint, for errors.
    """
    with uncollected():
        tree = Tree.of(module)
        match = matched(state_dict, tree, source or "the state dict")
        taken = [slot for slot in tree.slots if slot.name_in_file in match.state_dict]
        _check_taken(module, taken, match.state_dict, assign)
        before = {slot.name: (id(slot.tensor), version_of(slot.tensor)) for slot in tree.slots}
    if tree.own_code:  # some copies run before it: everything must be readable before the first one
        held = (slot for slot in taken if not is_lazy(slot.tensor))
        check((slot.tensor, match.state_dict[slot.name_in_file], slot.name) for slot in held)
    # A copy, as the modules' own code may add and remove keys.
    state = with_metadata(OrderedDict(match.state_dict), match.metadata)
    with loading() as current, nullcontext() if tree.own_code else uncollected():
        if assign:
            map_stored(state, {slot.name_in_file for slot in taken})
        descent = Descent(match.metadata, current, assign, strict, does_not_fit(source, module) if source else "")
        descent.run(module, state)
        found, missing = descent.found, counted_missing(descent.found, match)
        # Without modules' own code, all mismatches are known by now, and nothing has been written.
        if strict and not tree.own_code:
            absent = without_tied(missing, tree.slots, match.state_dict)
            if found.text(absent):
                raise refusal(found, absent, source, prefix)
        descent.commit()
        if assign:
            _settle(module, tree.slots)
    with uncollected():
        # By versions, as hooks rename keys and copies may fail: this is what was really written.
        now = Tree.of(module).slots if assign or tree.own_code else tree.slots
        changed = (slot for slot in now if before.get(slot.name) != (id(slot.tensor), version_of(slot.tensor)))
        copied = tuple(slot.name for slot in changed)
        missing = without_tied(missing, now, copied)
    if text := found.text(missing):
        if strict:
            raise refusal(found, missing, source, prefix, descent.own_code_line())
        if is_rank_zero():
            log(f"{rule}: {text}" if rule else text, logger, logging.WARNING)
    return result_of(found, missing, copied, match), now


def _check_taken(module: nn.Module, taken: Sequence[Slot], state_dict: Mapping[str, Any], assign: bool) -> None:
    """Raises RuntimeError if one of these slots cannot take its value."""
    check_taken(state_dict, (slot.name_in_file for slot in taken))
    check_assign(assign, taken)
    if not assign and (metas := [slot.name for slot in taken if slot.tensor.is_meta and not is_lazy(slot.tensor)]):
        raise InitRuntimeError(
            f"{metas[0]!r} of {type(module).__name__} is on the meta device and has no memory to copy into: pass "
            f"assign=True to give the model the checkpoint's tensors, or fastinit.materialize(model, ...) for memory"
        )


def check_assign(assign: bool, slots: Iterable[Slot]) -> None:
    """Raises RuntimeError if a distributed tensor would be replaced by a whole one."""
    for slot in slots:
        if assign and is_sharded(slot.tensor):
            raise InitRuntimeError(
                f"{slot.name!r} is distributed, and assign=True would replace its local part by the whole tensor",
                place=f"parameter {slot.name!r}",
                hint=": leave assign out, so that each rank reads its part",
            )


def log_notes(result: LoadResult, logger: logging.Logger | str | None) -> None:
    """Logs the name parts that were ignored, and hints about the checkpoint."""
    if not is_rank_zero():
        return
    if result.stripped:
        log(f"names were matched without the parts that wrappers add: {', '.join(result.stripped)}", logger)
    for hint in result.hints:
        log(hint if result.copied else f"nothing was copied; {hint}", logger, logging.WARNING)


# --- adopting the file's tensors -------------------------------------------------------------------------------------


def map_stored(state: OrderedDict[str, Any], keys: set[str]) -> None:
    """Replaces stored tensors of these keys by mapped ones, and by read ones where that cannot be."""
    contents: dict[File, torch.Tensor] = {}
    # One for each storage in the file: saving one of the tensors must not save the whole file.
    storages: dict[int, torch.UntypedStorage] = {}
    for key, value in state.items():
        if key not in keys or not isinstance(value, StoredTensor):
            continue
        storage = value.storage_in_file
        is_unread = type(value) is StoredTensor and not value.is_read
        is_as_in_file = is_unread and value.dtype == value.dtype_in_file and value.location.type == "cpu"
        file, offset = storage.stretch or (None, 0)
        # A mapping begins at a page, so elements must be at multiples of their size in the file.
        is_mappable = file is not None and file.access != "read" and offset % value.dtype_in_file.itemsize == 0
        if file is None or not (is_as_in_file and is_mappable and value.numel()):
            state[key] = in_memory(value).detach()
            continue
        file.check()
        if file not in contents:
            contents[file] = file.mapped_privately()
        if id(storage) not in storages:
            part = contents[file][offset : offset + storage.n_bytes]
            storages[id(storage)] = torch.frombuffer(part.numpy(), dtype=torch.uint8).untyped_storage()
        state[key] = value.over(storages[id(storage)])


def _settle(module: nn.Module, before: Sequence[Slot]) -> None:
    """Gives adopted parameters the ``requires_grad`` and the ties of those they replace."""
    adopted: dict[int, torch.Tensor] = {}
    for slot in before:
        new = slot.tensors.get(slot.attribute)
        if new is not None and new is not slot.tensor:
            if isinstance(new, nn.Parameter) and new.is_floating_point():
                new.requires_grad_(slot.tensor.requires_grad)
            adopted.setdefault(id(slot.tensor), new)
    for slot in before:
        if id(slot.tensor) in adopted:
            slot.tensors[slot.attribute] = adopted[id(slot.tensor)]


# --- mmengine's smaller functions ------------------------------------------------------------------------------------


def _load_checkpoint_to_model(
    model: nn.Module,
    checkpoint: Any,
    strict: bool = False,
    logger: logging.Logger | str | None = None,
    revise_keys: Revisions = STRIP_MODULE,
) -> Any:
    """Loads a checkpoint that is already in memory, and returns it."""
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
    """Reads the part of a checkpoint below a prefix, and returns it with the prefix removed.

    Raises:
        AssertionError: no key begins with it.
    """
    request = Request(filename, prefix, reading=Reading(map_location))
    return read_everything(request.state_dict(request.tree()))  # type: ignore[no-any-return]
