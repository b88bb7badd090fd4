"""The plan: immutable records of what will be written where. The waist of the hourglass: no config, no backend here.

A plan is a sequence of items in the order in which they take effect:

- ``Fill``: one tensor gets the values of one distribution,
- ``Copy``: tensors get what a checkpoint holds,
- ``Call``: code that fastinit cannot see into runs as it is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Final, NamedTuple, Union

import torch

Number = Union[bool, int, float, complex]


# --- distributions ---------------------------------------------------------------------------------------------------
# An impossible distribution can not be constructed; the error types are torch's own for the same numbers.


class _Numbers:
    """Compares distributions by their exact numbers: 1, 1.0 and True differ, and so do 0.0 and -0.0."""

    __match_args__: ClassVar[tuple[str, ...]]
    _exact: tuple[object, ...]
    _hash: int

    def _settle(self, **numbers: Number) -> None:
        """Sets the numbers, as plain Python ones; the records are frozen but for this."""
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        exact = (type(self), *map(repr, numbers.values()))
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_hash", hash(exact))

    def __reduce__(self) -> tuple[object, ...]:  # a hash holds in one process only
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and self._exact == other._exact

    def __hash__(self) -> int:
        return self._hash  # asked for with every fill


@dataclass(frozen=True, eq=False)
class Constant(_Numbers):
    """Every element is ``value``."""

    kind: ClassVar[str] = "constant"
    value: Number

    def __post_init__(self) -> None:
        self._settle(value=_scalar("val", self.value))


@dataclass(frozen=True, eq=False)
class Uniform(_Numbers):
    """Independent draws from [low, high); rounded to the dtype of a parameter, some may be ``high``."""

    kind: ClassVar[str] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        self._settle(low=_float("low", self.low), high=_float("high", self.high))
        if not self.low <= self.high:
            raise RuntimeError(f"uniform expects low <= high, but found low={self.low}, high={self.high}")


@dataclass(frozen=True, eq=False)
class Normal(_Numbers):
    """Independent draws from the normal distribution."""

    kind: ClassVar[str] = "normal"
    mean: float
    std: float

    def __post_init__(self) -> None:
        self._settle(mean=_float("mean", self.mean), std=_float("std", self.std))
        if not self.std >= 0:
            raise RuntimeError(f"normal expects std >= 0.0, but found std {self.std}")


@dataclass(frozen=True, eq=False)
class TruncatedNormal(_Numbers):
    """Independent draws from the normal distribution on [low, high]; absolute bounds, not in units of std."""

    kind: ClassVar[str] = "trunc_normal"
    mean: float
    std: float
    low: float
    high: float

    def __post_init__(self) -> None:
        self._settle(
            mean=_float("mean", self.mean),
            std=_float("std", self.std),
            low=_float("low", self.low),
            high=_float("high", self.high),
        )
        if self.std == 0:
            raise ZeroDivisionError("trunc_normal expects std > 0.0, but found std 0.0; a Constant needs no std")
        if not self.std > 0:
            raise RuntimeError(f"trunc_normal expects std > 0.0, but found std {self.std}")
        if not self.low <= self.high:
            raise RuntimeError(f"trunc_normal expects bounds a <= b, but found a={self.low}, b={self.high}")


Distribution = Union[Constant, Uniform, Normal, TruncatedNormal]


def _scalar(what: str, value: Any) -> Any:
    """Returns a plain Python number for a number, a numpy scalar or a tensor of one element."""
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, (bool, int, float, complex)):
        raise TypeError(f"{what} must be a number, but got {value!r} of {type(value)}")
    return value


def _float(what: str, value: Any) -> float:
    number = _scalar(what, value)
    if isinstance(number, complex):
        raise TypeError(f"{what} must be a real number, but got {number!r}")
    return float(number)


def numbers_of(distribution: Distribution) -> dict[str, Number]:
    """Returns the distribution's numbers by name, in their order."""
    return {name: getattr(distribution, name) for name in distribution.__match_args__}


def describe(distribution: Distribution) -> str:
    """Returns e.g. ``normal(mean=0, std=0.02)``."""
    values = numbers_of(distribution)
    if isinstance(distribution, Constant):
        return f"constant({_short(distribution.value)})"
    return f"{distribution.kind}({', '.join(f'{name}={_short(value)}' for name, value in values.items())})"


def _short(number: Number) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)


# --- items -----------------------------------------------------------------------------------------------------------
# A model may have 20,000 parameters. The records that there is one of for each are immutable to the type checker only
# (Final): a frozen dataclass takes five times as long to make, a microsecond.


@dataclass(slots=True, eq=False)
class Box:
    """A rectangular part of a parameter: where it lies in the full tensor, and the memory that holds it."""

    tensor: Final[torch.Tensor] = field(repr=False)
    """The local memory, any strides; its shape is the box's."""
    offset: Final[tuple[int, ...]]
    """Index of the box's first element in the full tensor, in elements, one number a dimension."""
    steps: Final[tuple[int, ...] | None] = None
    """What a step along each dimension of ``tensor`` adds to the row-major index in the full tensor, where the box is
    no rectangle of it but another view (reshaped, transposed, strided); ``offset`` is one number then, the row-major
    index of the first element. None: the steps are those of the full tensor."""


@dataclass(slots=True, eq=False)
class Fill:
    """One parameter (or the parts of it that are here) gets the values of one distribution."""

    name: Final[str]
    """Canonical, from the root that the user passed; the key of the parameter's random stream."""
    tensor: Final[torch.Tensor] = field(repr=False)
    """The object that the module holds."""
    distribution: Final[Distribution]
    rule: Final[str]
    """Where it was asked for, e.g. ``init_cfg[2].override``."""
    info: Final[str]
    """What provenance logs say of it, e.g. ``NormalInit: mean=0, std=0.01, bias=0``; "": leave that to the caller."""
    shape: Final[tuple[int, ...]] = ()
    """Of the full, unsharded tensor; of the part, where only a part of it is filled."""
    parts: Final[tuple[Box, ...] | None] = None
    """The parts to write, which together hold what is here of the full tensor; None: it is here in one piece."""
    key: Final[str] = ""
    """The name of the random stream, where it is not ``name``: the values are those of another parameter."""

    @property
    def stream_name(self) -> str:
        """The name whose random stream gives the values."""
        return self.key or self.name

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The parts to write."""
        return (Box(self.tensor, (0,) * self.tensor.dim()),) if self.parts is None else self.parts

    @property
    def is_part(self) -> bool:
        """Whether only a part of the parameter is filled: a row, a slice."""
        return self.tensor.shape != self.shape

    @staticmethod
    def whole(name: str, tensor: torch.Tensor, distribution: Distribution, rule: str, info: str) -> Fill:
        """Returns the fill of a tensor that is here in one piece."""
        return Fill(name, tensor, distribution, rule, info, tuple(tensor.shape))


@dataclass(frozen=True, slots=True, eq=False)
class CopyEntry:
    """One tensor that a checkpoint has values for."""

    name: str
    tensor: torch.Tensor = field(repr=False)
    key: str
    """Its name in the checkpoint, after prefix and revisions."""
    shape: tuple[int, ...]
    """The checkpoint's: a lazy parameter has none before it is loaded."""


@dataclass(frozen=True)
class LoadResult:
    """What became of the names of a module and the keys of a checkpoint."""

    copied: tuple[str, ...]
    """Names that got values."""
    missing: tuple[str, ...]
    """Names that the checkpoint lacks: they kept their values."""
    unexpected: tuple[str, ...]
    """Keys of the checkpoint that nothing in the module is called by."""
    mismatched: tuple[str, ...]
    """Names whose shape differs: they kept their values."""
    stripped: tuple[str, ...] = ()
    """What wrappers (DDP, torch.compile) put into names, where it was left out of account: what, and in how many."""


@dataclass(frozen=True, eq=False)
class Copy:
    """The tensors of a module that a checkpoint holds are overwritten."""

    module: torch.nn.Module = field(repr=False)
    entries: tuple[CopyEntry, ...]
    source: str
    """The checkpoint, as the user wrote it."""
    rule: str
    info: str
    replaces: bool
    """The module gets the checkpoint's tensors in place of its own."""
    runs_own_code: bool
    """Modules have loading code or hooks of their own, which may write anything."""
    load: Callable[[], tuple[LoadResult, tuple[CopyEntry, ...]]] = field(repr=False)
    """Copies, and tells what was copied; modules with loading code of their own may differ from ``entries``."""
    unknown: str = ""
    """Why ``entries`` are not known."""


@dataclass(frozen=True, eq=False)
class Call:
    """Code that fastinit cannot see into."""

    module: torch.nn.Module = field(repr=False)
    """The one that the code is called for."""
    label: str
    """What is called, e.g. ``backbone.init_weights()``."""
    rule: str
    info: str
    function: Callable[[], object] = field(repr=False)


Item = Union[Fill, Copy, Call]


def tensors_of(item: Item) -> list[torch.Tensor]:
    """Returns the tensors that an item is known to write."""
    if isinstance(item, Fill):
        return [item.tensor]
    return [entry.tensor for entry in item.entries] if isinstance(item, Copy) else []


def n_bytes_of(item: Item) -> int:
    """Returns how many bytes an item writes, as far as that is known."""
    if isinstance(item, Fill):
        return item.tensor.nbytes if item.parts is None else sum(box.tensor.nbytes for box in item.parts)
    return sum(tensor.nbytes for tensor in tensors_of(item))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns what a step along each dimension adds to the row-major index."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def may_overlap(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Tells whether two elements may share memory: a dimension does not step over all that the smaller ones span."""
    span = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape) if size > 1):
        if step < span:
            return True
        span += (size - 1) * step
    return False


def byte_span(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the addresses of a strided tensor's first byte and of the byte behind its last."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return start, start + (last + 1) * tensor.element_size()


# --- rows: what a person or a program reads --------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of a plan or a report: plain data, no tensors."""

    parameter: str
    shape: tuple[int, ...] | None
    dtype: str
    device: str
    action: str
    """"fill", "copy" or "call"."""
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


_device_name = lru_cache(maxsize=256)(str)


def rows_of(items: Sequence[Item], backends: Sequence[str]) -> tuple[Row, ...]:
    """Returns the rows of the items, one for each tensor or call, in order; ``backends`` are those of the items."""
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
            if item.key:
                text += f", the values of {item.key}"
            rows.append(
                _tensor_row(item, item.name, item.shape, item.tensor, "fill", dict(values), text, backend, replaced)
            )
        elif isinstance(item, Copy) and item.unknown:
            values = {"kind": "copy", "checkpoint": item.source, "key": None}
            text = f"copy of what {item.source} holds ({item.unknown})"
            rows.append(Row("", None, "", "", "copy", values, text, item.rule, item.info, ""))
        elif isinstance(item, Copy):
            for entry in item.entries:
                values = {"kind": "copy", "checkpoint": item.source, "key": entry.key}
                text = f"copy of {entry.key} in {item.source}"
                replaced = last[id(entry.tensor)] > len(rows)
                rows.append(
                    _tensor_row(item, entry.name, entry.shape, entry.tensor, "copy", values, text, "", replaced)
                )
        else:
            values = {"kind": "call", "call": item.label}
            rows.append(Row("", None, "", "", "call", values, f"call of {item.label}", item.rule, item.info, ""))
    return tuple(rows)


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
) -> Row:
    dtype, device = _dtype_name(tensor.dtype), _device_name(tensor.device)
    return Row(name, shape, dtype, device, action, values, description, item.rule, item.info, backend, replaced)


COLUMNS = ("parameter", "shape", "dtype", "device", "distribution", "rule", "backend")
# A terminal shows a screen or two; the rest is in `table(max_rows=None)` and the JSON.
MAX_ROWS = 60
# Enough to see what kind of name was left out; the report object has them all.
MAX_NAMES = 12


def table_of(rows: Sequence[Row], max_rows: int | None = MAX_ROWS) -> str:
    """Returns the rows as a table of aligned columns; of more than ``max_rows`` the middle is left out."""
    cut = max_rows is not None and len(rows) > max_rows
    head = len(rows) if max_rows is None or not cut else max_rows - max_rows // 4
    tail = len(rows) if max_rows is None or not cut else len(rows) - max_rows // 4
    lines = [COLUMNS, *map(_cells, rows[:head]), *map(_cells, rows[tail:])]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    if cut:
        text.insert(2 + head, f"... {tail - head} more rows ...")
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "()"
    what = row.description + (" (replaced below)" if row.replaced else "")
    return row.parameter, shape, row.dtype, row.device, what, row.rule, row.backend


def names_line(what: str, names: Sequence[str]) -> str:
    """Returns e.g. ``2 parameters that no rule reached: a, b``, of many names only the first.

    Names may come from a file: nothing in them controls a terminal, and none is longer than a line.
    """
    shown = ", ".join(
        name if name.isprintable() and len(name) <= 200 else ascii(name[:200])[1:-1] for name in names[:MAX_NAMES]
    )
    shown += ", ..." if len(names) > MAX_NAMES else ""
    return f"{len(names):,} {what}: {shown}"


def nothing_copied(source: str, result: LoadResult) -> str:
    """Returns what a checkpoint and a module have in place of common names."""
    told = [
        names_line(what, names)
        for what, names in (
            ("keys of the checkpoint that nothing is called by", result.unexpected),
            ("names that it lacks", result.missing),
            ("names of another shape", result.mismatched),
        )
        if names
    ]
    return f"nothing is copied from {source}" + (f": {'; '.join(told)}" if told else "")


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


@dataclass(frozen=True, eq=False)
class Plan:
    """What an ``initialize`` with the same arguments would do, before it is done.

    ``print(plan)`` shows a table. The items hold references to the module's tensors, never their values.
    """

    items: tuple[Item, ...] = field(repr=False)
    backends: tuple[str, ...]
    """The backend that runs each item, "" for what is no fill."""
    numbers: str
    """Which numbers the backends produce: "torch" (torch's own generators, device by device) or a contract version."""
    seed: int | None
    """The seed that was given, here or by ``use``; None: drawn or continued when the plan is executed."""
    unreached: tuple[str, ...]
    """Parameters that no row writes (rows of calls may still do so)."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The items as plain data, a row for each tensor or call."""
        return rows_of(self.items, self.backends)

    def table(self, max_rows: int | None = MAX_ROWS) -> str:
        """Returns the rows as text; ``max_rows=None`` shows all of them."""
        return table_of(self.rows, max_rows)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the plan as JSON. Equal plans give equal text; the format's version is in ``fastinit_plan``."""
        document = {
            "fastinit_plan": 1,
            "numbers": self.numbers,
            "seed": self.seed,
            "rows": [row_json(row) for row in self.rows],
            "unreached": list(self.unreached),
        }
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        rows = self.rows
        live = [row for row in rows if not row.replaced]
        lines = [
            table_of(rows),
            f"{len(rows):,} rows, {sum(row.n_elements for row in live):,} elements; numbers: {self.numbers}; "
            f"seed: {self.seed}",
        ]
        if self.unreached:
            lines.append(names_line("parameters that no row writes", self.unreached))
        return "\n".join(lines)
