"""Like rows as one: ``layers.{0..31}.wo.weight`` for the rows of 32 layers that say the same."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from .distributions import short
from .rows import Row, html_of, in_the_end, table_of

Payload = TypeVar("Payload", bound=Hashable)
Template = tuple[str, ...]
"""Parts of a name between dots, "" in the place of a number."""
Indices = tuple[int, ...]
"""The numbers of a name."""

# Python reads no number of thousands of digits, and names may come from a file.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
# From so many different numbers on, one row shows where they begin and end; fewer stay rows of their own.
_LEAST_RANGE = 4


def collapsed(named: Iterable[tuple[str, Payload]]) -> list[tuple[str, Payload]]:
    """Returns names with what is said of each, those of which the same is said as one pattern of names.

    A pattern stands for exactly the names that it is made of: each number takes each of its values, whatever the others
    are. Patterns come in the order of their first names.
    """
    groups: dict[tuple[Template, Payload], dict[Indices, int]] = {}
    for at, (name, payload) in enumerate(named):
        template, indices = _parted(name)
        groups.setdefault((template, payload), {}).setdefault(indices, at)
    found: list[tuple[int, str, Payload]] = []
    for (template, payload), first_at in groups.items():
        for box in _boxes(sorted(first_at)):
            at = min(first_at[indices] for indices in _product(box))
            found.append((at, _pattern(template, box), payload))
    found.sort(key=lambda each: each[0])
    return [(pattern, payload) for _, pattern, payload in found]


def _parted(name: str) -> tuple[Template, Indices]:
    parts = name.split(".")
    are_numbers = [_NUMBER.fullmatch(part) is not None for part in parts]
    template = tuple("" if is_number else part for part, is_number in zip(parts, are_numbers))
    return template, tuple(int(part) for part, is_number in zip(parts, are_numbers) if is_number)


Box = tuple[tuple[int, ...], ...]
"""For each number of a name the values that it takes."""


def _boxes(points: Sequence[Indices]) -> list[Box]:
    """Returns boxes that hold exactly these points, each once: as few as one look from the first number on finds."""
    if not points[0]:
        return [()]
    behind: dict[int, list[Indices]] = {}
    for first, *rest in points:
        behind.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[Indices, ...], list[int]] = {}
    for first, others in behind.items():
        alike.setdefault(tuple(others), []).append(first)
    return [(tuple(firsts), *box) for others, firsts in alike.items() for box in _boxes(others)]


def _product(box: Box) -> list[Indices]:
    found: list[Indices] = [()]
    for values in box:
        found = [(*indices, value) for indices in found for value in values]
    return found


def _pattern(template: Template, box: Box) -> str:
    values = iter(box)
    return ".".join(part or _range(next(values)) for part in template)


def _range(values: Sequence[int]) -> str:
    """Returns e.g. ``{0..31}``, ``{1,3..31}``, ``{0,1,5}``, or ``3`` of one alone."""
    if len(values) == 1:
        return str(values[0])
    steps = {b - a for a, b in pairwise(values)}
    if len(steps) == 1 and len(values) > 2:
        (step,) = steps
        return f"{{{values[0]}..{values[-1]}}}" if step == 1 else f"{{{values[0]},{values[1]}..{values[-1]}}}"
    return f"{{{','.join(map(str, values))}}}"


# --- rows -----------------------------------------------------------------------------------------------------------


class _Said(NamedTuple):
    """What a row says besides the name; rows of one shape and rule with other numbers differ in ``description``."""

    shape: tuple[int, ...] | None
    dtype: str
    device: str
    action: str
    rule: str
    backend: str
    replaced: bool
    description: str


def alike(rows: Sequence[Row]) -> list[Row]:
    """Returns rows of which each stands for all that differ in numbers of their names only; those of code come last."""
    named = with_ranges([row for row in rows if row.parameter])
    found: list[Row] = []
    for name, said in collapsed((row.parameter, _said(row)) for row in named):
        shape, dtype, device, action, rule, backend, replaced, text = said
        found.append(Row(name, shape, dtype, device, action, {}, text, rule, "", backend, replaced))
    return [*found, *(row for row in rows if not row.parameter)]


def what_counts(
    rows: Sequence[Row], names: Sequence[str], max_rows: int | None, *, history: bool, collapse: bool
) -> str:
    """Returns the table of a plan or a report: what each parameter gets in the end, in the model's order.

    Args:
        rows: in the order in which they take effect.
        names: the model's parameters and buffers, in its order.
        max_rows: of more rows the middle is left out; None: all of them.
        history: all rows instead, in their order.
        collapse: like rows are one.
    """
    if history:
        return table_of(rows, max_rows)
    values = in_the_end(rows, names)
    return table_of(alike(values) if collapse else values, max_rows)


def html_of_what_counts(rows: Sequence[Row], names: Sequence[str], summary: str) -> str:
    """Returns what ``what_counts`` shows of rows, like ones as one, as an HTML table with a summary below."""
    return html_of(alike(in_the_end(rows, names)), summary)


def _said(row: Row) -> _Said:
    description = row.description
    key = row.values.get("key") if row.action == "copy" else None
    if key is not None and _parted(str(key))[1] == _parted(row.parameter)[1]:  # the copy of layers.3 for layers.3
        description = description.replace(str(key), ".".join(part or "{..}" for part in _parted(str(key))[0]))
    return _Said(row.shape, row.dtype, row.device, row.action, row.rule, row.backend, row.replaced, description)


def with_ranges(rows: Sequence[Row]) -> list[Row]:
    """Returns the same rows, with one description for those whose numbers go with the depth.

    These are four different ones or more, in all layers, that only rise or only fall. The description has the first and
    the last: ``normal(mean=0, std=0.02..0.0018)``.
    """
    groups: dict[tuple[Template, _Said], list[int]] = {}
    for at, row in enumerate(rows):
        if row.action == "fill" and "then" not in row.values and row.description.endswith(")"):
            said = _said(row)._replace(description=row.values["kind"])
            groups.setdefault((_parted(row.parameter)[0], said), []).append(at)
    found = list(rows)
    for members in groups.values():
        if len({rows[at].description for at in members}) < _LEAST_RANGE:
            continue
        members.sort(key=lambda at: _parted(rows[at].parameter)[1])
        text = _range_of_numbers([rows[at].values for at in members])
        if text and len(_boxes([_parted(rows[at].parameter)[1] for at in members])) == 1:
            for at in members:
                found[at] = rows[at]._replace(description=text)
    return found


def _range_of_numbers(values: Sequence[Any]) -> str:
    """Returns a description of distributions of one kind whose numbers rise, or fall; "" if they do neither."""
    texts = []
    for name in values[0]:
        if name == "kind":
            continue
        numbers = [each[name] for each in values]
        if any(isinstance(number, complex) or math.isnan(number) for number in numbers):
            return ""
        first, last = short(numbers[0]), short(numbers[-1])
        if numbers not in (sorted(numbers), sorted(numbers, reverse=True)):
            return ""
        texts.append(f"{name}={first}" if numbers[0] == numbers[-1] else f"{name}={first}..{last}")
    return f"{values[0]['kind']}({', '.join(texts)})"
