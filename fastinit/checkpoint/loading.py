"""Loads checkpoints into models, by the rules of mmengine.runner.checkpoint and with its messages."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from ..logs import logger as own_logger
from ..naming import Names, without_wrappers
from ..plans import Copy, CopyEntry, LoadResult, nothing_copied
from ..shards.dtensor import is_sharded
from .formats.by_content import Reading
from .mmengine_log import log
from .module_versions import with_metadata
from .modules import Descent, Slot, Tree
from .request import STRIP_MODULE, Request, Revisions, check_taken, state_dict_of
from .sources.addresses import shown_address
from .sources.downloads import NotDownloaded
from .sources.url_schemes import CheckpointLoader
from .storage.copying import check
from .storage.current import loading
from .storage.digests import digests_of
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
        access: "map", "read" (by ``pread``: for files that another process might truncate), or "auto": tensors that
            are copied unchanged are read, converted ones are read or mapped, whichever is faster, and adopted ones are
            mapped; on network file systems all are read.
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
    with uncollected():
        state_dict = request.state_dict(tree)
    result, _ = _load(model, state_dict, strict, logger, assign, request.checkpoint)
    if default_strict() and not result.copied:
        raise InitRuntimeError(f"{nothing_copied(shown_address(request.checkpoint), result)} (an error under strict)")
    _log_notes(request, tree, result, logger)
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
    _load(module, state_dict, strict, logger)


def _load(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    strict: bool,
    logger: logging.Logger | str | None,
    assign: bool = False,
    source: object = "the state dict",
) -> tuple[LoadResult, list[Slot]]:
    """Returns the copied and the mismatched names, and the model's slots after the load."""
    with uncollected():
        tree = Tree.of(module)
        match = matched(state_dict, tree, source)
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
        descent = Descent(match.metadata, current, assign, strict)
        descent.run(module, state)
        found = descent.found
        # Older checkpoints lack this counter, which does not matter for the weights.
        missing = [key for key in found.missing if "num_batches_tracked" not in key and key not in match.optional]
        # Without modules' own code, all mismatches are known by now, and nothing has been written.
        text = found.text(_without_tied(missing, tree.slots, match.state_dict))
        if strict and text and not tree.own_code:
            raise InitRuntimeError(text)
        descent.commit()
        if assign:
            _settle(module, tree.slots)
    with uncollected():
        # By versions, as hooks rename keys and copies may fail: this is what was really written.
        now = Tree.of(module).slots if assign or tree.own_code else tree.slots
        changed = (slot for slot in now if before.get(slot.name) != (id(slot.tensor), version_of(slot.tensor)))
        copied = tuple(slot.name for slot in changed)
        missing = _without_tied(missing, now, copied)
    if text := found.text(missing):
        if strict:
            raise InitRuntimeError(text + descent.own_code_line())
        if is_rank_zero():
            log(text, logger, logging.WARNING)
    mismatched = tuple(key[1] for error in found.errors if (key := re.match(r"size mismatch for (\S+):", error)))
    return LoadResult(copied, tuple(missing), tuple(found.unexpected), mismatched, match.stripped), now


def _check_taken(module: nn.Module, taken: Sequence[Slot], state_dict: Mapping[str, Any], assign: bool) -> None:
    """Raises RuntimeError if one of these slots cannot take its value."""
    check_taken(state_dict, (slot.name_in_file for slot in taken))
    _check_assign(assign, taken)
    if not assign and (metas := [slot.name for slot in taken if slot.tensor.is_meta and not is_lazy(slot.tensor)]):
        raise InitRuntimeError(
            f"{metas[0]!r} of {type(module).__name__} is on the meta device and has no memory to copy into: pass "
            f"assign=True to give the model the checkpoint's tensors, or fastinit.materialize(model, ...) for memory"
        )


def _without_tied(missing: Sequence[str], slots: Sequence[Slot], written: Collection[str]) -> list[str]:
    """Returns the missing keys, except those of tied tensors that were written under another name."""
    if not missing:
        return []
    tensors = {id(slot.tensor) for slot in slots if slot.name in written}
    tied = {slot.name for slot in slots if id(slot.tensor) in tensors}
    return [key for key in missing if key not in tied]


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


# --- planning --------------------------------------------------------------------------------------------------------


def plan_copy(
    module: nn.Module, request: Request, *, names: Names, offline: bool, trees: dict[int, Any], rule: str, info: str
) -> Copy:
    """Returns the copies that loading a checkpoint into ``module`` would make; reads only names and shapes.

    Changes of keys by modules with a ``_load_from_state_dict`` or hooks of their own only show during the load.

    Args:
        module: the module to load into.
        request: which part of which checkpoint.
        names: of the root.
        offline: download nothing; the contents of a checkpoint that is not cached stay unknown.
        trees: open checkpoints by the id of their request; one request is planned several times before it is loaded.
        rule, info: as for ``Copy``.

    Raises:
        AssertionError: a prefix that no key begins with.
        FileNotFoundError, RuntimeError: as ``load_checkpoint``.
    """
    source = shown_address(request.checkpoint)
    try:
        if id(request) not in trees:
            trees[id(request)] = request.tree(offline=offline)
        state_dict = request.state_dict(trees[id(request)])
    except NotDownloaded:

        def not_yet() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
            raise InitRuntimeError(f"{source} was not downloaded when the plan was made")

        return Copy(module, (), source, rule, info, request.assign, False, not_yet, "not downloaded yet")

    with uncollected():
        return _planned(module, request, state_dict, names=names, trees=trees, rule=rule, info=info)


def _planned(
    module: nn.Module,
    request: Request,
    state_dict: OrderedDict[str, Any],
    *,
    names: Names,
    trees: dict[int, Any],
    rule: str,
    info: str,
) -> Copy:
    source = shown_address(request.checkpoint)
    tree = Tree.of(module)
    match = matched(state_dict, tree, source)

    def entries(slots: Iterable[Slot]) -> tuple[CopyEntry, ...]:
        once: dict[int, Slot] = {}
        for slot in slots:  # a tied tensor under its first name
            once.setdefault(id(slot.tensor), slot)
        return tuple(
            CopyEntry(
                names.name_of(slot.tensor, module, without_wrappers(slot.name)),
                slot.tensor,
                match.key_of.get(slot.name_in_file, slot.name_in_file),
                _shape_of(match.state_dict[slot.name_in_file]) if is_lazy(slot.tensor) else tuple(slot.tensor.shape),
            )
            for slot in once.values()
        )

    check_taken(match.state_dict, (slot.name_in_file for slot in tree.slots))
    _check_assign(request.assign, (slot for slot in tree.slots if slot.name_in_file in match.state_dict))

    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        where = f"{request.prefix} in model" if request.prefix is not None else "model"
        own_logger.info("load %s from: %s", where, source)
        whole = trees.pop(id(request), None)
        result, slots = _load(module, state_dict, request.strict, "current", request.assign, source)
        _log_notes(request, whole, result, "current")
        if request.assign:
            names.renew()
        copied = set(result.copied)
        with uncollected():
            return result, entries(slot for slot in slots if slot.name in copied)

    fitting = [slot for slot in tree.slots if _fits(match.state_dict.get(slot.name_in_file), slot.tensor)]
    planned = entries(fitting)

    def stored() -> dict[str, torch.Tensor]:
        found = {id(slot.tensor): match.state_dict[slot.name_in_file] for slot in reversed(fitting)}
        return {entry.name: found[id(entry.tensor)] for entry in planned}

    arguments, why_not = {}, ""
    try:
        arguments = request.arguments()
    except ValueError as error:
        why_not = str(error)
    return Copy(
        module,
        planned,
        source,
        rule,
        info,
        request.assign,
        bool(tree.own_code),
        load,
        path=names.path_of(module),
        request=arguments,
        why_not_kept=why_not,
        stored=stored,
        digests=lambda: digests_of(stored()),
    )


def _check_assign(assign: bool, slots: Iterable[Slot]) -> None:
    for slot in slots:
        if assign and is_sharded(slot.tensor):
            raise InitRuntimeError(
                f"{slot.name!r} is distributed, and assign=True would replace its local part by the whole tensor",
                place=f"parameter {slot.name!r}",
                hint=": leave assign out, so that each rank reads its part",
            )


def _fits(value: Any, tensor: torch.Tensor) -> bool:
    if not isinstance(value, torch.Tensor) or is_lazy(tensor):
        return isinstance(value, torch.Tensor)
    shape = _shape_of(value)
    # Scalars had one dimension before torch 0.4; torch still takes them.
    return shape == tensor.shape or (tensor.dim() == 0 and shape == (1,))


def _shape_of(value: torch.Tensor) -> tuple[int, ...]:
    return value.geometry.shape if type(value) is StoredTensor else tuple(value.shape)


def _log_notes(request: Request, tree: Any, result: LoadResult, logger: logging.Logger | str | None) -> None:
    """Logs the name parts that were ignored, and hints about the checkpoint."""
    if not is_rank_zero():
        return
    if result.stripped:
        log(f"names were matched without the parts that wrappers add: {', '.join(result.stripped)}", logger)
    for hint in request.hints(tree, result.copied, result.unexpected):
        log(hint, logger, logging.WARNING)
