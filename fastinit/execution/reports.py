"""What was done, as rows: the plan's rows and what came of them. Plain data: a report keeps no tensor alive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..plans import MAX_ROWS, LoadResult, Row, names_line, row_json, table_of


@dataclass(frozen=True)
class CheckpointReport:
    """How a checkpoint fitted the module that it was loaded into."""

    source: str
    """The checkpoint, as the user wrote it."""
    rule: str
    result: LoadResult


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
    """For every parameter under the root that was written: its name, and what its values came from."""
    unreached: tuple[str, ...]
    """Parameters that nothing wrote: they have the values that they had."""
    launches: Mapping[str, int] = field(default_factory=dict)
    """Device by device, how often a kernel of ``cpp``, ``triton`` or ``cuda`` was started. Other code between fills can
    make it more than one."""
    unkeyed: tuple[str, ...] = ()
    """What was drawn by order and not by name, where those backends draw: parameters, or ``#k`` with its shape and the
    place in the code for tensors that have no name."""

    def table(self, max_rows: int | None = MAX_ROWS) -> str:
        """Returns the rows as text; ``max_rows=None`` shows all of them."""
        return table_of(self.rows, max_rows)

    def summary(self) -> str:
        """Returns what was done in a few lines."""
        n_elements = sum(row.n_elements for row in self.rows)
        calls = sum(row.action == "call" for row in self.rows)
        lines = [
            f"{len(self.provenance):,} parameters initialized: {n_elements:,} elements, {self.n_bytes / 1e9:.3f} GB, "
            f"in {self.seconds:.3f} s" + (f", and {calls} calls of other code" if calls else "")
        ]
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
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        return f"{self.table()}\n{self.summary()}"
