"""Runs items in sequence: fills go to the pending fills; copies, computations and calls run where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby

import torch
from torch import nn

from ..errors import InitRuntimeError, locating
from ..plans import Call, Copy, CopyEntry, Fill, Item, LoadResult, Replay, nothing_copied
from .collector import uncollected
from .done import CheckpointReport, Done
from .ledger import Ledger
from .pending import LatestPerTensor, Pending
from .scope import Scope
from .version_counters import version_of


def run_items(items: Sequence[Item], scope: Scope, pending: Pending, done: Done, *, may_wait: bool = True) -> None:
    """Executes checked items in order, and notes what they wrote.

    Args:
        items: in order.
        scope, pending, done: of the call.
        may_wait: fills may be pending afterwards.
    """
    for is_fill, group in groupby(items, key=lambda item: isinstance(item, Fill)):
        if not is_fill:
            for item in group:
                _run(item, scope, pending, done)  # type: ignore[arg-type]
            continue
        with uncollected():
            fills = [item for item in group if isinstance(item, Fill)]
            done.request(fills)
            pending.put(fills, scope, done)
    if not may_wait:
        with uncollected():
            pending.flush(scope, done)


def _run(item: Copy | Replay | Call, scope: Scope, pending: Pending, done: Done) -> None:
    """Executes one item that is no fill."""
    pending.before(item, scope, done)
    ledger = done.open_ledger(pending.named())
    written: list[tuple[torch.Tensor, str]] = []
    checkpoint: CheckpointReport | None = None
    with locating(item.rule), _at_work(item, scope, pending, ledger):
        if isinstance(item, Copy):
            result, entries = _load(item, scope)
            item, checkpoint = replace(item, entries=entries), CheckpointReport(item.source, item.rule, result)
            written = [(entry.tensor, item.info) for entry in entries]
        elif isinstance(item, Replay):
            scope.note_write()
            item.compute(item.entries, scope)
            written = [(entry.tensor, entry.info) for entry in item.entries]
        else:
            scope.note_write()
            item.function()
    for tensor, info in written:
        ledger.record(tensor, info)
        pending.overwritten(tensor, info)
    if checkpoint is not None and scope.strict and not checkpoint.result.copied:
        told = nothing_copied(checkpoint.source, checkpoint.result)
        raise InitRuntimeError(f"{item.rule}: {told} (an error under strict)", place=item.rule)
    done.add([item], checkpoint)
    if exchanges_parameters(item):
        scope.names.renew()
        ledger.adopt(scope.names.parameters(), item.info)


def _load(copy: Copy, scope: Scope) -> tuple[LoadResult, tuple[CopyEntry, ...]]:
    """Loads a checkpoint, and notes that something was written, unless it fails before that."""
    if copy.runs_own_code:
        scope.note_write()
        return copy.load()
    before = [version_of(entry.tensor) for entry in copy.entries]
    try:
        loaded = copy.load()
    except BaseException:
        if any(version_of(entry.tensor) != version for entry, version in zip(copy.entries, before)):
            scope.note_write()
        raise
    scope.note_write()
    return loaded


@contextmanager
def _at_work(item: Copy | Replay | Call, scope: Scope, pending: Pending, ledger: Ledger) -> Iterator[None]:
    """Watches what an item does, where that is code of others: watching takes longer than loading a small model."""
    if isinstance(item, Call) or (isinstance(item, Copy) and item.runs_own_code):
        with attributing(item.module, item.info, scope, pending, ledger):
            yield
    else:
        with uncollected(), pending.own_work(has_subclasses=isinstance(item, Copy)):
            yield


@contextmanager
def attributing(module: nn.Module, info: str, scope: Scope, pending: Pending, ledger: Ledger) -> Iterator[None]:
    """Attributes what other code writes in the block to ``info``; it draws from the call's generators."""
    generators = scope.seed.generators
    with ledger.attributing(module, info, pending.sensing):
        # In a call that watches memory each draw is seen and done with the call's own generator.
        is_seen = generators is None or not isinstance(pending, LatestPerTensor)
        with nullcontext() if is_seen else generators.lent(scope.devices):  # type: ignore[union-attr]
            yield


def exchanges_parameters(item: Item) -> bool:
    """Tells whether an item may put other parameters into the modules."""
    return isinstance(item, Call) or (isinstance(item, Copy) and item.replaces)
