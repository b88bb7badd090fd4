"""Open calls: one initialization from its first item to its report.

Every public function reads: open a call; items; ``check``; ``run``; ``report``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

import torch
from torch import nn

from ..errors import InitRuntimeError
from ..logs import logger
from ..naming import Prefix
from ..plans import Call, Copy, Fill, Item, Replay, nothing_copied
from .collector import uncollected
from .defaults import Strict
from .done import CheckpointReport, Done
from .hosts import host_of
from .ledger import Ledger
from .modes import state_of_thread
from .pending import LatestPerTensor, Pending
from .reports import Report, report_of
from .runner import check
from .scope import Scope

_current: ContextVar[OpenCall | None] = ContextVar("fastinit_call", default=None)


def current_call() -> OpenCall | None:
    """Returns the innermost call that is open in this context."""
    return _current.get()


def new_scope(root: nn.Module | None, **arguments: Any) -> Scope:
    """Returns the scope of a call within the innermost one that is open; the arguments are those of ``Scope``."""
    outer = _current.get()
    return Scope(root, None if outer is None else outer.scope, **arguments)


@contextmanager
def not_recording() -> Iterator[None]:
    """Runs what is pending in the open call, if there is one, and the block without its being recorded."""
    call = _current.get()
    if call is None:
        yield
        return
    call.flush()
    with call.pending.own_work(has_subclasses=True):
        yield


@dataclass(frozen=True)
class Step:
    """What one source (a rule, a recipe) gives for a module, planned before anything is written."""

    module: nn.Module
    items: Sequence[Item]
    plan_again: Callable[[], Sequence[Item]]
    """Plans it anew, where an earlier step has put other parameters into the modules."""


class OpenCall:
    """One call that is open: its scope, what is pending, and what has been done."""

    def __init__(self, scope: Scope, outer: OpenCall | None, devices: Set[torch.device] | None = None) -> None:
        self.scope = scope
        self._outer = outer
        self._devices = devices
        self.is_open = True
        self.done: Done = Done(scope, None if outer is None else outer.done)
        self.pending: Pending = LatestPerTensor() if outer is None else outer.pending.for_part()
        self.has_begun = False
        """It was given items to run."""
        self.is_lost = False
        """After an exception nobody has what was written."""

    def leave(self) -> None:
        """Ends it: the innermost call is the next larger one that is open, which a call that ends too early is not."""
        self.is_open = False
        if _current.get() is self:
            found = self._outer
            while found is not None and not found.is_open:
                found = found._outer
            _current.set(found)

    @property
    def devices(self) -> Set[torch.device]:
        """The devices of the tensors that are filled."""
        return self.scope.devices() if self._devices is None else self._devices

    # --- items, check -------------------------------------------------------------------------------------------------

    def check(self, steps: Iterable[Step]) -> None:
        """Raises RuntimeError if an item cannot run; nothing is written."""
        with self.pending.own_work():
            check(chain.from_iterable(step.items for step in steps), self.scope)

    # --- run ----------------------------------------------------------------------------------------------------------

    def run(self, steps: Iterable[Step]) -> None:
        """Executes checked steps in order, and notes what they wrote."""
        is_stale = False
        for step in steps:
            items = step.items
            if is_stale:  # the modules may have other parameters now
                with self.pending.own_work():
                    items = step.plan_again()
                    check(items, self.scope)
            self.run_items(items)
            if (host := host_of(step.module)) is not None:
                self.flush()
                host.wrote(step.module, getattr(items[-1], "info", "") if items else "")
            is_stale = is_stale or any(map(_exchanges_parameters, items))

    def run_items(self, items: Sequence[Item]) -> None:
        """Executes checked items in order, and notes what they wrote."""
        self.has_begun = self.has_begun or bool(items)
        for is_fill, group in groupby(items, key=lambda item: isinstance(item, Fill)):
            if is_fill:
                with uncollected():
                    fills = [item for item in group if isinstance(item, Fill)]
                    self.done.request(fills)
                    self.pending.put(fills, self.scope, self.done)
                continue
            for item in group:
                assert not isinstance(item, Fill)
                self.pending.before(item, self.scope, self.done)
                self.scope.note_write()
                if isinstance(item, Copy):
                    self._copy(item)
                elif isinstance(item, Replay):
                    self._compute(item)
                else:
                    with self.attributing(item.module, item.info):
                        item.function()
                    self.done.add([item])
                if _exchanges_parameters(item):
                    self.scope.names.renew()
                    self.ledger().adopt(self.scope.names.parameters(), item.info)

    def fill(self, fills: Sequence[Fill]) -> None:
        """Checks fills and executes them."""
        with self.pending.own_work():
            check(fills, self.scope)
        self.run_items(fills)

    def _compute(self, item: Replay) -> None:
        ledger = self.ledger()
        with self.pending.own_work():
            item.compute(item.entries, self.scope)
        for entry in item.entries:
            ledger.record(entry.tensor, entry.info)
            self.pending.overwritten(entry.tensor, entry.info)
        self.done.add([item])

    def _copy(self, item: Copy) -> None:
        # Code of others may make cycles that have to be freed.
        with nullcontext() if item.runs_own_code else uncollected():
            self._load(item)

    def _load(self, item: Copy) -> None:
        ledger = self.ledger()
        # Watching what is written takes longer than loading a small model: only code of others is watched.
        if item.runs_own_code:
            with self.attributing(item.module, item.info):
                result, entries = item.load()
        else:
            with self.pending.own_work(has_subclasses=True):
                result, entries = item.load()
        for entry in entries:
            ledger.record(entry.tensor, item.info)
            self.pending.overwritten(entry.tensor, item.info)
        self.done.loaded(CheckpointReport(item.source, item.rule, result))
        if self.scope.strict and not result.copied:
            raise InitRuntimeError(f"{item.rule}: {nothing_copied(item.source, result)} (an error under strict)")
        self.done.add([replace(item, entries=entries)])

    def flush(self) -> None:
        """Runs everything that is pending."""
        with uncollected():
            self.pending.flush(self.scope, self.done)

    def attributing(self, module: nn.Module, info: str) -> AbstractContextManager[None]:
        """Returns a context in which what other code writes is attributed to ``info``."""
        return self._attributing(module, info)

    @contextmanager
    def _attributing(self, module: nn.Module, info: str) -> Iterator[None]:
        generators = self.scope.seed.generators
        with self.ledger().attributing(module, info, self.pending.sensing):
            # In a call that watches memory each draw is seen and done with the call's own generator.
            is_seen = generators is None or not isinstance(self.pending, LatestPerTensor)
            with nullcontext() if is_seen else generators.lent(self.devices):  # type: ignore[union-attr]
                yield

    def ledger(self) -> Ledger:
        """Returns the ledger of the parameters under the root, from here on."""
        known = self.done.ledger
        return self.done.open_ledger(self.pending.named()) if known is None else known

    # --- report -------------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """Returns what was done since the call began, once everything has run."""
        self.flush()
        with uncollected():
            unkeyed = self.pending.settle(self.scope, self.done)
            return report_of(self.done, self.ledger(), unkeyed)


def _exchanges_parameters(item: Item) -> bool:
    """Tells whether an item may put other parameters into the modules."""
    return isinstance(item, Call) or (isinstance(item, Copy) and item.replaces)


@contextmanager
def open_call(
    root: nn.Module | None,
    *,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
    devices: Iterable[torch.device] | None = None,
    **dry: Any,
) -> Iterator[OpenCall]:
    """Opens a call for the block.

    Args:
        root: the module whose names count; None for tensors that have no names.
        backend, seed, prefix, strict: as the user gave them.
        devices: of the tensors that will be filled; None: those of ``root``.
        dry: more arguments of ``Scope``, where only a plan is wanted.
    """
    outer = _current.get()
    scope = new_scope(root, backend=backend, seed=seed, prefix=prefix, strict=strict, **dry)
    call = OpenCall(scope, outer, None if devices is None else frozenset(devices))
    restore = state_of_thread()
    try:
        _current.set(call)
        if outer is None and not dry and any(map(scope.backends.is_contract, call.devices)):
            scope.seed.expect(scope.meshes())
        yield call
        if _current.get() is not call:
            raise InitRuntimeError(
                "a block of fastinit ends while one that was opened within it is still open (two generators that take "
                "turns?): let the inner one end first"
            )
        call.pending.close(scope, call.done)
    except BaseException as error:
        if outer is None:
            if not isinstance(error, Exception):
                restore()  # an interrupt may have come within torch's own `no_grad`
            scope.seed.abandon(error)
        if outer is None and call.has_begun and scope.has_written and not call.is_lost:
            what = "a tensor" if root is None else type(root).__name__
            n_done = len(call.done.items)
            logger.warning(
                "%s stopped the initialization of %s%s: it is only partly initialized",
                type(error).__name__,
                what,
                f" after {n_done} fills, copies and calls" if n_done else "",
            )
        raise
    finally:
        try:
            call.leave()
        finally:  # an interrupt may come there, too
            call.leave()
