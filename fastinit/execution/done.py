"""What one call has done so far, for its report and for the ledger of who wrote what."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..plans import Fill, Item, LoadResult
from .ledger import Ledger
from .scope import Scope


@dataclass(frozen=True)
class CheckpointReport:
    """How a checkpoint fitted the module that it was loaded into."""

    source: str
    """The checkpoint, as the user wrote it."""
    rule: str
    result: LoadResult


class Done:
    """The items that one call has executed. What a part of a larger call does, the larger one has done too."""

    def __init__(self, scope: Scope, outer: Done | None) -> None:
        self.scope = scope
        self._outer = outer if scope.is_part else None
        self.requested: list[Fill] = []
        """What was to be filled, whether something later has replaced it or not."""
        self.items: list[Item] = []
        """In the order in which they were executed."""
        self.checkpoints: list[CheckpointReport] = []
        self.seen: dict[torch.Tensor, str] = {}
        """Where memory is watched: all that gave a parameter its values, one write after the other."""
        self.computed: set[torch.Tensor] = set()
        """Those of them whose values are, all of them, what code has made, and not what one fill gives."""
        self.began = time.perf_counter()
        self.ledger: Ledger | None = None if self._outer is None else self._outer.ledger

    def request(self, fills: Sequence[Fill]) -> None:
        """Notes fills that are going to be pending."""
        self.requested.extend(fills)
        if self._outer is not None:
            self._outer.request(fills)

    def add(self, items: Sequence[Item], checkpoint: CheckpointReport | None = None) -> None:
        """Notes items that were executed, and how a checkpoint fitted that they copied."""
        self.items.extend(items)
        if checkpoint is not None:
            self.checkpoints.append(checkpoint)
        if self._outer is not None:
            self._outer.add(items, checkpoint)

    def filled(self, fills: Iterable[Fill]) -> None:
        """Notes fills that were executed, in the ledger too."""
        fills = list(fills)
        if self.ledger is not None:
            for fill in fills:
                if fill.info:
                    self.ledger.record(fill.tensor, fill.info, is_part=fill.is_part)
        self.add(fills)

    def open_ledger(self, pending: Iterable[Fill]) -> Ledger:
        """Returns the ledger of the parameters under the root; when first asked for it learns what was done so far.

        Args:
            pending: fills that are requested and not yet written.
        """
        if self.ledger is None and self._outer is not None:
            self.ledger = self._outer.open_ledger(pending)
        if self.ledger is None:
            self.ledger = Ledger(self.scope.names.parameters(), "")
            for item in (*self.items, *pending):
                if isinstance(item, Fill):
                    self.ledger.record(item.tensor, item.info, is_part=item.is_part)
        return self.ledger
