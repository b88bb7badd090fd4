"""Plans the copy of a checkpoint into a module: only names and shapes are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InitRuntimeError
from ..execution.collector import uncollected
from ..execution.scope import OpenCheckpoints
from ..logs import logger as own_logger
from ..naming import Names, without_wrappers
from ..plans import Copy, CopyEntry, LoadResult
from .fitting import counted_missing, mismatches_of, refusal, result_of, with_hints, without_tied
from .loading import check_assign, load_into, log_notes
from .modules import Slot, Tree
from .request import Request, Selection, check_taken
from .sources.addresses import shown_address
from .sources.downloads import NotDownloaded
from .storage.digests import digests_of
from .storage.stored import StoredTensor
from .wrappers import matched


def plan_copy(
    module: nn.Module,
    request: Request,
    *,
    names: Names,
    opened: OpenCheckpoints,
    rule: str,
    info: str,
    asks_fit: bool = False,
) -> Copy:
    """Returns the copies that loading a checkpoint into ``module`` would make; reads only names and shapes.

    Changes of keys by modules with a ``_load_from_state_dict`` or hooks of their own only show during the load.

    Args:
        module: the module to load into.
        request: which part of which checkpoint.
        names: of the root.
        opened: the call's checkpoints; one request is planned several times before it is loaded. Where it is offline,
            nothing is downloaded, and the contents of a checkpoint that is not cached stay unknown.
        rule, info: as for ``Copy``.
        asks_fit: compare all names and shapes, not only if the request is strict.

    Raises:
        AssertionError: a prefix that no key begins with.
        RuntimeError: the request is strict, and a key is missing, unexpected or of another shape.
        FileNotFoundError, RuntimeError: as ``load_checkpoint``.
    """
    source = shown_address(request.checkpoint)
    try:
        tree = opened.tree(request, lambda: request.tree(offline=opened.is_offline))
        selection = request.selection(tree)
    except NotDownloaded:

        def not_yet() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
            raise InitRuntimeError(f"{source} was not downloaded when the plan was made")

        return Copy(module, (), source, rule, info, request.assign, False, not_yet, "not downloaded yet")

    with uncollected():
        copy = _planned(module, request, selection, names=names, opened=opened, rule=rule, info=info, asks_fit=asks_fit)
        return copy if copy.fit is None else replace(copy, fit=with_hints(copy.fit, request, tree))


def _planned(
    module: nn.Module,
    request: Request,
    selection: Selection,
    *,
    names: Names,
    opened: OpenCheckpoints,
    rule: str,
    info: str,
    asks_fit: bool,
) -> Copy:
    source = shown_address(request.checkpoint)
    tree = Tree.of(module)
    state_dict, key_of = selection.state_dict, selection.key_of
    match = matched(state_dict, tree, source)

    def entries(slots: Iterable[Slot]) -> tuple[CopyEntry, ...]:
        once: dict[int, Slot] = {}
        for slot in slots:  # a tied tensor under its first name
            once.setdefault(id(slot.tensor), slot)
        return tuple(map(entry, once.values()))

    def entry(slot: Slot) -> CopyEntry:
        key = match.key_of.get(slot.name_in_file, slot.name_in_file)
        value: Any = match.state_dict.get(slot.name_in_file)  # after a load, modules' own code may have renamed it
        return CopyEntry(
            names.name_of(slot.tensor, module, without_wrappers(slot.name)),
            slot.tensor,
            key_of.get(key, key),
            _shape_of(value) if is_lazy(slot.tensor) else tuple(slot.tensor.shape),
            (value.dtype, value.device) if request.assign and isinstance(value, torch.Tensor) else None,
        )

    check_taken(match.state_dict, (slot.name_in_file for slot in tree.slots))
    check_assign(request.assign, (slot for slot in tree.slots if slot.name_in_file in match.state_dict))

    fitting = [slot for slot in tree.slots if _fits(match.state_dict.get(slot.name_in_file), slot.tensor)]
    fit: LoadResult | None = None
    if asks_fit or request.strict:
        found = mismatches_of(module, match, tree, request.assign, source)
        if found is not None:
            missing = without_tied(counted_missing(found, match), tree.slots, match.state_dict)
            if request.strict and found.text(missing):
                raise refusal(found, missing, source, request.prefix)
            fit = result_of(found, missing, [slot.name for slot in fitting], match)

    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        where = f"{request.prefix} in model" if request.prefix is not None else "model"
        own_logger.info("load %s from: %s", where, source)
        whole = opened.take(request)
        result, slots = load_into(
            module, state_dict, request.strict, "current", request.assign, source, rule, request.prefix
        )
        result = with_hints(result, request, whole)
        log_notes(result, "current")
        if request.assign:
            names.renew()
        copied = set(result.copied)
        with uncollected():
            return result, entries(slot for slot in slots if slot.name in copied)

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
        fit=fit,
        path=names.path_of(module),
        request=arguments,
        why_not_kept=why_not,
        stored=stored,
        digests=lambda: digests_of(stored()),
    )


def _fits(value: Any, tensor: torch.Tensor) -> bool:
    if not isinstance(value, torch.Tensor) or is_lazy(tensor):
        return isinstance(value, torch.Tensor)
    shape = _shape_of(value)
    # Scalars had one dimension before torch 0.4; torch still takes them.
    return shape == tensor.shape or (tensor.dim() == 0 and shape == (1,))


def _shape_of(value: torch.Tensor) -> tuple[int, ...]:
    return value.geometry.shape if type(value) is StoredTensor else tuple(value.shape)
