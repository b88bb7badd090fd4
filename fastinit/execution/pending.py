"""Pending fills: requested but not yet written. One protocol, two implementations, chosen once when a call opens.

``LatestPerTensor`` is for calls that see only their own fills: of each tensor the last one runs. ``ByMemory``
(pending_by_memory.py) is for calls that watch memory (``capture``): a fill is known by the bytes that it is for, and
stays pending until something reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from ..backends import BACKENDS
from ..plans import Call, Copy, Fill, Replay
from .done import Done
from .ledger import FunctionSensor, Ledger
from .memory_book import MemoryBook
from .modes import entered
from .pending_by_memory import ByMemory
from .runner import ask_if_sharded, execute, prepare
from .scope import Scope


class Pending(Protocol):
    """What a call puts its fills into."""

    def put(self, fills: Sequence[Fill], scope: Scope, done: Done) -> None:
        """Takes checked fills over, in order: runs them at once, or keeps them where a later one may replace them."""

    def before(self, item: Copy | Replay | Call, scope: Scope, done: Done) -> None:
        """Runs what has to be written before a copy or a call."""

    def overwritten(self, tensor: torch.Tensor, by: str) -> None:
        """Notes that a copy has written a tensor."""

    def flush(self, scope: Scope, done: Done) -> None:
        """Runs everything that is pending."""

    def named(self) -> Iterable[Fill]:
        """Returns the fills that rules requested, as far as they are kept here."""

    def settle(self, scope: Scope, done: Done) -> tuple[str, ...]:
        """Notes as done what other code requested under names, and returns what was drawn without a name."""

    def for_part(self) -> Pending:
        """Returns what a call within this one puts its fills into."""

    def close(self, scope: Scope, done: Done) -> None:
        """Runs what must not outlive the call."""

    def sensing(self, ledger: Ledger) -> AbstractContextManager[object]:
        """Returns a context in which a ledger is told of what other code writes."""

    def own_work(self, *, has_subclasses: bool = False) -> AbstractContextManager[object]:
        """Returns a context for work of fastinit's own, which nobody needs to watch.

        Args:
            has_subclasses: it calls functions of tensor subclasses.
        """


class LatestPerTensor:
    """The fills of one call, by tensor: nobody else is watched, so they run before anybody else does."""

    def __init__(self) -> None:
        self._pending: list[Fill] = []

    def put(self, fills: Sequence[Fill], scope: Scope, done: Done) -> None:
        """Keeps fills of contract backends, of which the last one of each tensor counts; runs torch's at once."""
        start = 0
        while start < len(fills):
            name = scope.backends.of(fills[start])
            end = start + 1
            while end < len(fills) and scope.backends.of(fills[end]) == name:
                end += 1
            group, start = fills[start:end], end
            if BACKENDS[name].IS_CONTRACT:
                for fill in group:
                    ask_if_sharded(fill, scope)
                self._pending.extend(group)
                continue
            if {fill.tensor.device for fill in group} & {fill.tensor.device for fill in self._pending}:
                self.flush(scope, done)  # they may be of the same tensor
            execute(group, scope)
            done.filled(group)

    def before(self, item: Copy | Replay | Call, scope: Scope, done: Done) -> None:
        """Runs everything: what the item reads is not known."""
        self.flush(scope, done)

    def overwritten(self, tensor: torch.Tensor, by: str) -> None:
        """Does nothing: nothing is pending after ``before``."""

    def flush(self, scope: Scope, done: Done) -> None:
        """Runs the pending fills, of each tensor the last."""
        if not self._pending:
            scope.seed.agree()
            return
        fills, self._pending = self._pending, []
        if any(fill.is_part for fill in fills):  # what is left of the whole is known by its memory
            by_memory = ByMemory(MemoryBook())
            by_memory.put(fills, scope, done)
            by_memory.flush(scope, done)
            by_memory.settle(scope, done)
            return
        last = {id(fill.tensor): fill for fill in fills}
        fills = [fill for fill in fills if last[id(fill.tensor)] is fill]
        prepare(fills, scope)
        execute(fills, scope)
        done.filled(fills)

    def named(self) -> Iterable[Fill]:
        """Returns none: the ledger learns of fills when they have run."""
        return ()

    def settle(self, scope: Scope, done: Done) -> tuple[str, ...]:
        """Returns none: what other code draws is not seen."""
        return ()

    def for_part(self) -> Pending:
        """Returns others: what a part requests runs before the rest goes on."""
        return LatestPerTensor()

    def close(self, scope: Scope, done: Done) -> None:
        """Runs everything."""
        self.flush(scope, done)

    def sensing(self, ledger: Ledger) -> AbstractContextManager[object]:
        """As ``FunctionSensor``."""
        return entered(FunctionSensor(ledger))

    def own_work(self, *, has_subclasses: bool = False) -> AbstractContextManager[object]:
        """Keeps modes of the user's out: every look at a shape or a dtype would go through them."""
        return nullcontext() if has_subclasses else torch._C.DisableTorchFunction()
