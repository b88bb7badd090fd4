"""Open calls: one initialization from its first item to its report.

Every public function reads: open a call; items; ``check``; ``run``; ``report``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import InitRuntimeError, kind_of, locating
from ..logs import logger
from ..naming import Prefix
from ..plans import Call, Fill, Item
from ..shards.agreement import check_groups
from .collector import uncollected
from .defaults import Strict
from .done import Done
from .hosts import host_of
from .ledger import Ledger
from .modes import state_of_thread
from .pending import LatestPerTensor, Pending
from .reports import Report, report_of
from .runner import check
from .scope import Scope
from .sequence import attributing, exchanges_parameters, run_items

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


class Step(NamedTuple):
    """What one source (a rule, a recipe) gives for a module, planned before anything is written."""

    module: nn.Module
    items: Sequence[Item]
    plan_again: Callable[[], Sequence[Item]]
    """Plans it anew, where an earlier step has put other parameters into the modules."""


class OpenCall:
    """One call that is open: its scope, what is pending, and what has been done.

    Args:
        root: the module whose names count; None for tensors that have no names.
        outer: the innermost call that is open.
        arguments: more of ``Scope``.
    """

    def __init__(self, root: nn.Module | None, outer: OpenCall | None, **arguments: Any) -> None:
        self.scope: Scope = Scope(root, None if outer is None else outer.scope, **arguments)
        self._outer = outer
        self.is_open = True
        self.done: Done = Done(self.scope, None if outer is None else outer.done)
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
    def has_contract(self) -> bool:
        """Whether a contract backend fills tensors on one of the call's devices: such fills may stay pending."""
        return any(map(self.scope.backends.is_contract, self.scope.devices))

    def check(self, steps: Iterable[Step]) -> None:
        """Raises RuntimeError if an item cannot run; nothing is written."""
        with self.pending.own_work():
            check(chain.from_iterable(step.items for step in steps), self.scope)

    def run(self, steps: Iterable[Step]) -> None:
        """Executes checked steps in order, and notes what they wrote."""
        is_stale = False
        for step in steps:
            if is_stale:  # the modules may have other parameters now
                with self.pending.own_work():
                    step = step._replace(items=step.plan_again())
                self.check([step])
            items = step.items
            self.has_begun = self.has_begun or bool(items)
            host = host_of(step.module)
            run_items(items, self.scope, self.pending, self.done, may_wait=host is None)
            if host is not None:
                host.wrote(step.module, getattr(items[-1], "info", "") if items else "")
            is_stale = is_stale or any(map(exchanges_parameters, items))

    def fill(self, fills: Sequence[Fill]) -> None:
        """Checks fills and executes them."""
        with self.pending.own_work():
            check(fills, self.scope)
        self.run_items(fills)

    def run_items(self, items: Sequence[Item]) -> None:
        """Executes checked items in order, and notes what they wrote."""
        self.has_begun = self.has_begun or bool(items)
        run_items(items, self.scope, self.pending, self.done)

    def flush(self) -> None:
        """Runs everything that is pending."""
        with uncollected():
            self.pending.flush(self.scope, self.done)

    def run_code(self, code: Call) -> bool:
        """Runs code that is no step, and attributes to it what it writes; tells whether that was any parameter."""
        ledger = self.ledger()
        before = len(ledger.written)
        attributed = attributing(code.module, code.info, self.scope, self.pending, ledger)
        with locating(code.label), attributed, torch.no_grad():
            code.function()
        return len(ledger.written) > before

    def ledger(self) -> Ledger:
        """Returns the ledger of the parameters under the root, from here on."""
        return self.done.open_ledger(self.pending.named())

    def report(self) -> Report:
        """Returns what was done since the call began, once everything has run."""
        self.flush()
        with uncollected():
            unkeyed = self.pending.settle(self.scope, self.done)
            return report_of(self.done, self.ledger(), unkeyed)


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
    given = None if devices is None else frozenset(devices)
    call = OpenCall(root, outer, backend=backend, seed=seed, prefix=prefix, strict=strict, devices=given, **dry)
    scope = call.scope
    restore = state_of_thread()
    try:
        _current.set(call)
        if outer is None and not dry and call.has_contract:
            meshes = scope.meshes()
            check_groups(meshes)
            scope.seed.expect(meshes)
        yield call
        if _current.get() is not call:
            raise InitRuntimeError(
                "a block of fastinit ends while one that was opened within it is still open (two generators that take "
                "turns?)",
                hint=": let the inner one end first",
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
                kind_of(error),
                what,
                f" after {n_done} fills, copies and calls" if n_done else "",
            )
        raise
    finally:
        try:
            call.leave()
        finally:  # an interrupt may come there, too
            call.leave()
