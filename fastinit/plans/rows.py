"""Rows: a plan or a report as plain data, line by line, as a table and as JSON."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .distributions import Distribution, describe, numbers_of
from .items import Call, Copy, Fill, Item, Replay, tensors_of


class Row(NamedTuple):
    """One line of a plan or a report: plain data, no tensors."""

    parameter: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    action: str
    """"fill", "copy", "compute" or "call"."""
    values: Mapping[str, Any]
    """The distribution with its numbers, or the checkpoint and key, or what is called."""
    description: str
    """``values`` for a person."""
    rule: str
    info: str
    backend: str
    replaced: bool = False
    """A later row writes the same parameter."""

    @property
    def n_elements(self) -> int:
        """How many elements the row writes, 0 where that is not known."""
        return 0 if self.shape is None else math.prod(self.shape)


@lru_cache(maxsize=256)
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_AS_THEY_ARE: Mapping[torch.Tensor, torch.dtype] = {}
_device_name = lru_cache(maxsize=256)(str)


def rows_of(
    items: Sequence[Item], backends: Sequence[str], dtypes: Mapping[torch.Tensor, torch.dtype] = _AS_THEY_ARE
) -> tuple[Row, ...]:
    """Returns the rows of the items, one for each tensor or call, in order.

    Args:
        items: in order.
        backends: of the items.
        dtypes: of their tensors, where these may have another one now.
    """
    last: dict[int, int] = {}  # tensor -> index of the last row that writes it
    n_rows = 0
    for item in items:
        if isinstance(item, Fill):
            if not item.is_part:
                last[id(item.tensor)] = n_rows
            n_rows += 1
            continue
        for tensor in tensors_of(item):
            last[id(tensor)] = n_rows
            n_rows += 1
        n_rows += isinstance(item, Call) or (isinstance(item, Copy) and bool(item.unknown))

    rows: list[Row] = []
    for item, backend in zip(items, backends):
        if isinstance(item, Fill):
            values, text = _values_of(item.distribution)
            replaced = last.get(id(item.tensor), 0) > len(rows)
            if (region := item.region) is not None:
                ends = zip(region.starts, region.shape)
                values = {**values, "part": [[start, start + size] for start, size in ends]}
                text += f", part [{', '.join(f'{start}:{end}' for start, end in values['part'])}]"
            if item.stream:
                text += f", the values of {item.stream}"
            rows.append(
                _tensor_row(
                    item, item.name, item.shape, item.tensor, "fill", dict(values), text, backend, replaced, dtypes
                )
            )
        elif isinstance(item, Copy) and item.unknown:
            values = {"kind": "copy", "checkpoint": item.source, "key": None}
            text = f"copy of what {item.source} holds ({item.unknown})"
            rows.append(Row("", None, "", "", "copy", values, text, item.rule, item.info, ""))
        elif isinstance(item, Copy):
            for entry in item.entries:
                values = {"kind": "copy", "checkpoint": item.source, "key": entry.name_in_file}
                text = f"copy of {entry.name_in_file} in {item.source}"
                replaced = last[id(entry.tensor)] > len(rows)
                rows.append(
                    _tensor_row(item, entry.name, entry.shape, entry.tensor, "copy", values, text, "", replaced, dtypes)
                )
        elif isinstance(item, Replay):
            for made in item.entries:
                replaced, dtype = last[id(made.tensor)] > len(rows), dtypes.get(made.tensor, made.tensor.dtype)
                row = row_of_computed(made.name, made.tensor, made.info)
                rows.append(row._replace(dtype=_dtype_name(dtype), rule=item.rule, info=item.info, replaced=replaced))
        else:
            values = {"kind": "call", "call": item.label}
            rows.append(Row("", None, "", "", "call", values, f"call of {item.label}", item.rule, item.info, ""))
    return tuple(rows)


def row_of_computed(name: str, tensor: torch.Tensor, how: str) -> Row:
    """Returns the row of a tensor that code computes, by whatever is told of it."""
    shape, dtype, device = tuple(tensor.shape), _dtype_name(tensor.dtype), _device_name(tensor.device)
    values = {"kind": "compute", "by": how}
    return Row(name, shape, dtype, device, "compute", values, f"computed: {how}", "", how, "")


def in_the_end(rows: Iterable[Row], names: Sequence[str]) -> list[Row]:
    """Returns the rows that count in the end, in the model's order; those of code come last.

    Args:
        rows: in the order in which they take effect.
        names: the model's parameters and buffers, in its order.
    """
    rank = {name: at for at, name in enumerate(names)}
    live = [row for row in rows if not row.replaced]
    return sorted(live, key=lambda row: rank.get(row.parameter, len(rank)) if row.parameter else len(rank) + 1)


@lru_cache(maxsize=4096)  # a large model has few different distributions and many fills
def _values_of(distribution: Distribution) -> tuple[Mapping[str, Any], str]:
    return {"kind": distribution.kind, **numbers_of(distribution)}, describe(distribution)


def _tensor_row(
    item: Fill | Copy,
    name: str,
    shape: tuple[int, ...],
    tensor: torch.Tensor,
    action: str,
    values: Mapping[str, Any],
    description: str,
    backend: str,
    replaced: bool,
    dtypes: Mapping[torch.Tensor, torch.dtype],
) -> Row:
    dtype, device = _dtype_name(dtypes.get(tensor, tensor.dtype)), _device_name(tensor.device)
    return Row(name, shape, dtype, device, action, values, description, item.rule, item.info, backend, replaced)


COLUMNS = ("parameter", "shape", "dtype", "device", "distribution", "rule", "backend")
# A terminal shows a screen or two; the rest is in `table(max_rows=None)` and the JSON.
MAX_ROWS = 60


def table_of(rows: Sequence[Row], max_rows: int | None = MAX_ROWS) -> str:
    """Returns the rows as a table of aligned columns; of more than ``max_rows`` the middle is left out."""
    head, tail = _shown(len(rows), max_rows)
    lines = [COLUMNS, *map(_cells, rows[:head]), *map(_cells, rows[tail:])]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    if tail > head:
        text.insert(2 + head, f"... {tail - head} more rows ...")
    return "\n".join(text)


def html_of(rows: Sequence[Row], summary: str) -> str:
    """Returns the rows that ``table_of`` shows as an HTML table, with a summary below; all texts are escaped."""
    head, tail = _shown(len(rows), MAX_ROWS)
    lines = [_html_line(COLUMNS, "th"), *(_html_line(_cells(row), "td") for row in rows[:head])]
    if tail > head:
        lines.append(f'<tr><td colspan="{len(COLUMNS)}">... {tail - head} more rows ...</td></tr>')
    lines += [_html_line(_cells(row), "td") for row in rows[tail:]]
    return "\n".join(["<table>", *lines, "</table>", f"<pre>{html.escape(summary)}</pre>"])


def _html_line(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _shown(n_rows: int, max_rows: int | None) -> tuple[int, int]:
    """Returns up to which row the head of a table goes, and from which on its tail; the same if all rows are shown."""
    if max_rows is None or n_rows <= max_rows:
        return n_rows, n_rows
    return max_rows - max_rows // 4, n_rows - max_rows // 4


def _cells(row: Row) -> tuple[str, ...]:
    shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "()"
    what = row.description + (" (replaced below)" if row.replaced else "")
    return row.parameter, shape, row.dtype, row.device, what, row.rule, row.backend


def row_json(row: Row) -> dict[str, Any]:
    """Returns a row as JSON-ready data. The keys and their order are part of the public format."""
    return {
        "parameter": row.parameter,
        "shape": None if row.shape is None else list(row.shape),
        "dtype": row.dtype,
        "device": row.device,
        "action": row.action,
        "values": {name: _plain(value) for name, value in row.values.items()},
        "rule": row.rule,
        "info": row.info,
        "backend": row.backend,
        "replaced": row.replaced,
    }


def _plain(value: Any) -> Any:
    # JSON has no complex numbers and no infinities: such numbers are written as text.
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
