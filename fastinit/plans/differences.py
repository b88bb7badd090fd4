"""What one plan does that another does not: by parameters and their values, whatever rules they come from."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .alike import collapsed, with_ranges
from .distributions import Constant
from .items import Call, Fill, Item
from .lock_file import geometry_of, live
from .rows import Row, row_json, rows_of
from .texts import heading

Key = tuple[str, Hashable]
"""A name, and the part of it that is written."""


@dataclass(frozen=True)
class PlanDiff:
    """What has to be done to one plan to get another. Empty (false) if both give a model the same values.

    ``print(diff)`` shows it, like layers as one line.
    """

    added: tuple[Row, ...]
    """What the other plan writes in addition."""
    removed: tuple[Row, ...]
    """What it does not write."""
    changed: tuple[tuple[Row, Row], ...]
    """What it writes with other values, or in another shape or dtype: (here, there)."""
    numbers: tuple[str, str] | None = None
    """Which numbers are drawn here and there, where that differs: "contract 1" or "torch"."""
    seed: tuple[int | None, int | None] | None = None
    """The seeds, where they differ and something is drawn: all draws differ then, which are not listed one by one."""
    sides: tuple[str, str] = field(default=("this plan", "the other"), compare=False)
    """What the two are called: the paths of files; (here, there)."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.numbers or self.seed)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the difference as JSON; the format's version is in ``fastinit_plan_diff``."""
        document = {
            "fastinit_plan_diff": 1,
            "sides": list(self.sides),
            "numbers": None if self.numbers is None else list(self.numbers),
            "seed": None if self.seed is None else list(self.seed),
            "added": [row_json(row) for row in self.added],
            "removed": [row_json(row) for row in self.removed],
            "changed": [{"old": row_json(old), "new": row_json(new)} for old, new in self.changed],
        }
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        if not self:
            return "no difference"
        lines = [heading(self.sides)]
        lines += [f"numbers: {self.numbers[0]} -> {self.numbers[1]}"] if self.numbers else []
        lines += [f"seed: {self.seed[0]} -> {self.seed[1]}, so that all draws differ"] if self.seed else []
        pairs = zip(*(with_ranges([pair[side] for pair in self.changed]) for side in (0, 1)))
        lines += _section("changed", [(old.parameter, _change(old, new)) for old, new in pairs])
        lines += _section("added", [(row.parameter, _told(row)) for row in with_ranges(self.added)])
        lines += _section("removed", [(row.parameter, _told(row)) for row in with_ranges(self.removed)])
        counts = {"changed": self.changed, "added": self.added, "removed": self.removed}
        return "\n".join([*lines, ", ".join(f"{len(rows):,} {what}" for what, rows in counts.items())])


def _section(title: str, named: Sequence[tuple[str, str]]) -> list[str]:
    if not named:
        return []
    lines = collapsed(named)
    width = max(len(name) for name, _ in lines)
    return [f"{title}:", *(f"  {name.ljust(width)}  {text}".rstrip() for name, text in lines)]


def _told(row: Row) -> str:
    return "  ".join(text for text in (_shape(row), row.dtype, row.description) if text)


def _shape(row: Row) -> str:
    return "" if row.shape is None else "x".join(map(str, row.shape)) or "()"


def _change(old: Row, new: Row) -> str:
    parts = [
        before if before == after else f"{before} -> {after}"
        for before, after in ((_shape(old), _shape(new)), (old.dtype, new.dtype))
    ]
    same = old.description == new.description
    return "  ".join([*parts, old.description if same else f"{old.description} -> {new.description}"])


# --- finding it -----------------------------------------------------------------------------------------------------


def effects_of(
    items: Sequence[Item], backends: Sequence[str], dtypes: Mapping[torch.Tensor, torch.dtype]
) -> dict[Key, tuple[Hashable, Row]]:
    """Returns what items do in the end: for each part of each tensor what is compared, and the row that shows it.

    Args:
        items, backends, dtypes: as for ``rows_of``.
    """
    alive = live(items)
    backend_of = {id(item): backend for item, backend in zip(items, backends)}
    rows = iter(rows_of(alive, [backend_of[id(item)] for item in alive], dtypes))
    found: dict[Key, tuple[Hashable, Row]] = {}
    for item in alive:
        if isinstance(item, Fill):
            row = next(rows)
            key, what = _of_fill(item)
            found[key] = (*what, row.dtype, tuple(item.tensor.shape)), row
        elif isinstance(item, Call):
            row = next(rows)
            found[row.description, None] = ("call",), row
        elif not item.entries:
            if getattr(item, "unknown", ""):
                row = next(rows)
                found[row.description, None] = ("unknown",), row
        else:
            for _ in item.entries:
                row = next(rows)
                # Where in the code something is computed, which a release moves, says nothing of its values.
                what = ("compute",) if row.action == "compute" else tuple(row.values.items())
                found[row.parameter, None] = (*what, row.dtype, row.shape), row
    return found


def _of_fill(fill: Fill) -> tuple[Key, tuple[Hashable, ...]]:
    try:
        part, numbers = geometry_of(fill)
    except ValueError:  # a part of a distributed tensor, by what is here of it
        part, numbers = (tuple((box.first_index, box.indices) for box in fill.boxes), None)  # type: ignore[assignment]
    if isinstance(fill.distribution, Constant) and fill.tensor.dtype.is_floating_point:
        # 1 and 1.0 are one value there, and -0.0 is another than 0.0.
        value = fill.distribution.value
        return (fill.name, part), ("constant", repr(value if isinstance(value, complex) else float(value)))
    if not fill.is_drawn:
        return (fill.name, part), (fill.distribution,)
    return (fill.name, part), (fill.distribution, fill.stream_name, numbers, fill.seed)


def between(old: Mapping[Key, tuple[Hashable, Row]], new: Mapping[Key, tuple[Hashable, Row]], **more: Any) -> PlanDiff:
    """Returns the difference of two plans' effects; ``more`` are the other fields of ``PlanDiff``."""
    return PlanDiff(
        added=tuple(row for key, (_, row) in new.items() if key not in old),
        removed=tuple(row for key, (_, row) in old.items() if key not in new),
        changed=tuple((row, new[key][1]) for key, (what, row) in old.items() if key in new and new[key][0] != what),
        **more,
    )
