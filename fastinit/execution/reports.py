"""What was done, as rows: the plan's rows and what came of them. Plain data: a report keeps no tensor alive."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..backends import engines_of, numbers_of
from ..errors import check_module
from ..naming import Names, Prefix
from ..plans import (
    MAX_ROWS,
    Digest,
    Fill,
    Item,
    Plan,
    Row,
    html_of_what_counts,
    in_the_end,
    n_bytes_of,
    names_line,
    row_json,
    rows_of,
    what_counts,
    written_in_full,
)
from .done import CheckpointReport, Done
from .ledger import Ledger
from .scope import Scope
from .told import with_changes, with_computed, with_places
from .value_bands import draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """What ``initialize`` or ``init_weights`` did. ``print(report)`` shows a table and a summary."""

    rows: tuple[Row, ...] = field(repr=False)
    """As the plan's, in the order in which they were executed."""
    checkpoints: tuple[CheckpointReport, ...]
    engine: str
    """What did the work, e.g. the instruction set and the number of threads."""
    numbers: str
    seed: int | None
    seconds: float
    """Wall-clock time of planning and execution."""
    n_bytes: int
    """Bytes that fills and copies wrote."""
    provenance: Mapping[str, str] = field(repr=False)
    """For every parameter under the root that was written: its name, and what wrote it last; behind that, as far as it
    was seen, what then changed it or wrote a part."""
    unreached: tuple[str, ...]
    """Parameters that nothing wrote: they have the values that they had, all or (where rules fill parts) some."""
    launches: Mapping[str, int] = field(default_factory=dict)
    """Device by device, how often a kernel of ``cpp``, ``triton`` or ``cuda`` was started. Other code between fills can
    make it more than one."""
    unkeyed: tuple[str, ...] = ()
    """Draws that are not keyed by a parameter's name, on backends whose draws otherwise are: parameters, or ``#k`` with
    its shape and the place in the code for tensors that have no name."""
    digest: Digest | None = field(default=None, repr=False)
    """Of all tensors of the model when the call ended, where it was asked for (``digest=True``)."""
    names: tuple[str, ...] = field(default=(), repr=False)
    """The model's parameters and buffers, in its order."""

    def table(self, max_rows: int | None = MAX_ROWS, *, history: bool = False, collapse: bool = True) -> str:
        """Returns the rows as text: what each parameter got in the end, in the model's order; as ``Plan.table``.

        Args:
            max_rows: of more rows the middle is left out; None: all of them.
            history: show all that was written, in that order, with what was replaced later.
            collapse: show rows that differ in numbers of their names only as one.
        """
        return what_counts(self.rows, self.names, max_rows, history=history, collapse=collapse)

    def summary(self) -> str:
        """Returns what was done in a few lines.

        Elements are counted as the plan counts them: those of what each parameter got in the end. Bytes are all that
        was written, with what was replaced later.
        """
        values = in_the_end(self.rows, self.names)
        n_elements, replaced = sum(row.n_elements for row in values), len(self.rows) - len(values)
        calls = sum(row.action == "call" for row in self.rows)
        lines = [
            f"{len(self.provenance):,} parameters initialized: {n_elements:,} elements, {self.n_bytes / 1e9:.3f} GB "
            f"written, in {self.seconds:.3f} s" + (f", and {calls} calls of other code" if calls else "")
        ]
        if replaced:
            lines[-1] += f"; {replaced:,} rows were replaced by later ones: report.table(history=True)"
        lines.append(f"by {self.engine}; numbers: {self.numbers}; seed: {self.seed}")
        if self.launches:
            lines[-1] += "; " + ", ".join(f"{n} launch{'es' * (n != 1)} on {on}" for on, n in self.launches.items())
        if self.unkeyed:
            lines.append(names_line("draws by order and not by name", self.unkeyed))
        for checkpoint in self.checkpoints:
            lines.append(f"{len(checkpoint.result.copied):,} tensors copied from {checkpoint.source}")
            if checkpoint.result.stripped:
                lines.append("  " + names_line("differences that wrappers made in names", checkpoint.result.stripped))
            for what in ("missing", "unexpected", "mismatched"):
                if names := getattr(checkpoint.result, what):
                    lines.append("  " + names_line(what, names))
        if self.unreached:
            lines.append(names_line("parameters that nothing wrote", self.unreached))
        if self.digest is not None:
            lines.append(f"digest of {len(self.digest):,} tensors: {self.digest.total}")
        return "\n".join(lines)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the report as JSON; the format's version is in ``fastinit_report``."""
        document: dict[str, Any] = {
            "fastinit_report": 1,
            "engine": self.engine,
            "numbers": self.numbers,
            "seed": self.seed,
            "seconds": self.seconds,
            "n_bytes": self.n_bytes,
            "rows": [row_json(row) for row in self.rows],
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
            "provenance": dict(self.provenance),
            "unreached": list(self.unreached),
            "launches": dict(self.launches),
            "unkeyed": list(self.unkeyed),
        }
        if self.digest is not None:
            document["digest"] = self.digest.total
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def plot(self, model: nn.Module, path: str | os.PathLike[str] | None = None, *, prefix: Prefix = "") -> Figure:
        """Draws what the model holds now of what was written: quantiles by layer, a histogram of what is there once.

        A panel stands for all tensors whose names differ in nothing but numbers; those that hold one value are named in
        a line. Up to 8192 elements of each tensor are looked at, fewer in models of thousands of tensors; of
        distributed tensors those of this rank. Nothing else is copied, nothing is changed, and no display is needed.

        Args:
            model: that was initialized; a report keeps no tensor alive.
            path: of a file to write, in the format that its suffix names: ``.svg``, ``.png``, ``.pdf``.
            prefix: as the call had it.

        Returns:
            matplotlib's figure.

        Raises:
            ImportError: matplotlib is not installed.
            RuntimeError: the model has none of the report's tensors, or no memory.
            TypeError: ``model`` is no module.
        """
        check_module(model)
        names = Names(model, prefix)
        named = {name: tensor for of_kind in (names.parameters(), names.buffers()) for tensor, name in of_kind.items()}
        return draw(self.rows, {name: named[name] for name in names.in_order()}, path)

    def __str__(self) -> str:
        return f"{self.table()}\n{self.summary()}"

    def _repr_html_(self) -> str:
        """Returns what ``print`` shows as HTML: notebooks look for this name."""
        return html_of_what_counts(self.rows, self.names, self.summary())


def plan_of(
    items: Sequence[Item], scope: Scope, device: torch.device | None = None, warnings: tuple[str, ...] = ()
) -> Plan:
    """Returns items as a plan.

    Args:
        items: in order.
        scope: of the call that would run them.
        device: on which tensors without memory are to be, where that is known.
        warnings: what was warned of.
    """
    reached = written_in_full(items)
    unreached = tuple(name for tensor, name in scope.parameters().items() if tensor not in reached)
    backends = _backends_of(items, scope)
    numbers = numbers_of(scope.backends.used(backends))
    names = scope.names.in_order()
    return Plan(tuple(items), backends, numbers, scope.seed.value, unreached, device, names, warnings=warnings)


def report_of(done: Done, ledger: Ledger, unkeyed: tuple[str, ...]) -> Report:
    """Returns what a call has done since it began.

    Args:
        done: its items, all of them executed.
        ledger: what wrote its parameters.
        unkeyed: what was drawn without a name.
    """
    scope = done.scope
    partly = {fill.tensor for fill in done.requested if fill.is_part}
    left = set(scope.not_reached([*done.requested, *done.items])) if partly else set()
    names, backends = scope.parameters(), _backends_of(done.items, scope)
    used = scope.backends.used(backends)
    texts = {name: ledger[tensor]["init_info"] for tensor, name in names.items() if tensor in ledger.written}
    seen = {names[tensor]: history for tensor, history in done.seen.items() if tensor in names}
    computed = {name: (tensor, seen[name]) for tensor, name in names.items() if tensor in done.computed}
    rows = rows_of(done.items, backends)
    return Report(
        rows=with_computed(with_changes(rows, seen, texts), computed),
        checkpoints=tuple(done.checkpoints),
        engine=engines_of(used),
        numbers=numbers_of(used),
        seed=scope.seed.value,
        seconds=time.perf_counter() - done.began,
        n_bytes=sum(map(n_bytes_of, done.items)),
        provenance=with_places(texts, rows, done.items, names),
        unreached=tuple(
            name
            for tensor, name in names.items()
            if tensor not in ledger.written or (tensor in partly and name in left)
        ),
        launches={str(device): n for device, n in scope.launches.items()},
        unkeyed=unkeyed,
        names=scope.names.in_order(),
    )


def _backends_of(items: Iterable[Item], scope: Scope) -> tuple[str, ...]:
    """Returns the backend of each item, "" for what is no fill."""
    return tuple(scope.backends.of(item) if isinstance(item, Fill) else "" for item in items)
