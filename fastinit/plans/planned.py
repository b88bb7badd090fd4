"""The plan: its items as rows, as a table, as JSON, and as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..errors import InitTypeError, InitValueError, if_path
from . import lock_file, lock_reader
from .alike import html_of_what_counts, what_counts
from .differences import PlanDiff, between, effects_of
from .items import Copy, Fill, Item, dtypes_of
from .rows import MAX_ROWS, Row, in_the_end, row_json, rows_of
from .texts import notes_of


@dataclass(frozen=True, eq=False)
class Plan:
    """What an ``initialize`` with the same arguments would do, before it is done.

    ``print(plan)`` shows a table. The items hold references to the module's tensors, never their values. A plan may
    take the place of a config: in ``initialize``, ``materialize`` and ``plan``, alone or in a list of rules.
    """

    items: tuple[Item, ...] = field(repr=False)
    backends: tuple[str, ...]
    """The backend that runs each item, "" for what is no fill, and in a plan from a file."""
    numbers: str
    """Which numbers the backends produce: "torch" (torch's own generators, device by device) or a contract version."""
    seed: int | None
    """The seed that was given, here or by ``use``; None: drawn or continued when the plan is executed."""
    unreached: tuple[str, ...]
    """Parameters that no row writes (rows of calls may still do so)."""
    device: torch.device | None = None
    """On which tensors without memory are to be, where that was said."""
    names: tuple[str, ...] = field(default=(), repr=False)
    """The model's parameters and buffers, in its order."""
    order: tuple[str, ...] = field(default=(), repr=False)
    """In a plan from a file: what its rows write, in the model's order, where that is not the order of the rows."""
    warnings: tuple[str, ...] = ()
    """What was warned of when the plan was made, e.g. of rules that match nothing; a file does not hold it."""
    source: str = ""
    """The path of the file that it was read from."""
    dtypes: Mapping[torch.Tensor, torch.dtype] = field(init=False, repr=False)
    """Of the items' tensors when the plan was made: casting a model changes its parameters in place."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtypes", dtypes_of(self.items))

    def __deepcopy__(self, memo: object) -> Plan:
        return self  # immutable: the configs of a tree, which are copied, may hold one with a whole model's tensors

    @property
    def rows(self) -> tuple[Row, ...]:
        """The items as plain data, a row for each tensor or call, in the order in which they take effect."""
        rows = rows_of(self.items, self.backends, self.dtypes)
        if self.device is None:
            return rows
        device = str(self.device)
        return tuple(row._replace(device=device) if row.device == "meta" else row for row in rows)

    @property
    def _values(self) -> list[Row]:
        """What ``in_the_end`` says of the rows."""
        return in_the_end(self.rows, self.names or self.order)

    def table(self, max_rows: int | None = MAX_ROWS, *, history: bool = False, collapse: bool = True) -> str:
        """Returns the plan as text: what each parameter gets in the end, in the model's order.

        Args:
            max_rows: of more rows the middle is left out; None: all of them.
            history: show all that is written, in the order in which it takes effect, with what is replaced later.
            collapse: show rows that differ in numbers of their names only as one, ``layers.{0..31}.wo.weight``. Where
                numbers go with the depth, the row has the first and the last: ``std=0.02..0.0018``.
        """
        return what_counts(self.rows, self.names or self.order, max_rows, history=history, collapse=collapse)

    def to_json(self, indent: int | None = None, *, history: bool = False) -> str:
        """Returns the plan as JSON: a row for each parameter, with what it gets in the end, in the model's order.

        Equal plans give equal text; the format's version is in ``fastinit_plan``.

        Args:
            indent: as for ``json.dumps``.
            history: all rows, in the order in which they take effect, those too that are replaced later.
        """
        document = {
            "fastinit_plan": 1,
            "numbers": self.numbers,
            "seed": self.seed,
            "rows": [row_json(row) for row in (self.rows if history else self._values)],
            "unreached": list(self.unreached),
        }
        if checkpoints := [_fit_json(item) for item in self.items if isinstance(item, Copy)]:
            document["checkpoints"] = checkpoints
        if self.warnings:
            document["warnings"] = list(self.warnings)
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def diff(self, other: Plan) -> PlanDiff:
        """Returns what ``other`` does to a model that this plan does not: by effect, whatever the rules are called.

        Rows are added, removed or changed; a difference in seed or numbers is told once, and not for each row. Devices,
        backends with the same numbers, rules and their order do not count.

        Example:
            >>> import fastinit, torch
            >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
            >>> old = fastinit.plan(model, dict(type="Xavier", layer="Linear"))
            >>> new = fastinit.plan(model, dict(type="Kaiming", layer="Linear"))
            >>> print(old.diff(new))
            from this plan to the other:
            changed:
              {0..3}.weight  64x64  float32  normal(mean=0, std=0.125) -> normal(mean=0, std=0.176777)
            4 changed, 0 added, 0 removed
            >>> bool(old.diff(old))
            False
        """
        if not isinstance(other, Plan):
            raise InitTypeError(
                f"diff needs another plan, but got {type(other)}",
                hint=if_path(other, ": fastinit.Plan.load(path) reads one from a file"),
            )
        draws: dict[str, Any] = {}
        pair = [each for each in (self, other) if any(isinstance(i, Fill) and i.is_drawn for i in each.items)]
        if len(pair) == 2:
            if self._drawn_numbers != other._drawn_numbers:
                draws["numbers"] = self._drawn_numbers, other._drawn_numbers
            if self.seed != other.seed:
                draws["seed"] = self.seed, other.seed
        old, new = (effects_of(each._in_order(each.items), each.backends, each.dtypes) for each in (self, other))
        sides = self.source or "this plan", other.source or "the other"
        return between(old, new, sides=sides, **draws)

    @property
    def _drawn_numbers(self) -> str:
        """Which numbers are drawn: what torch fills with constants is the same everywhere."""
        drawn = [name for item, name in zip(self.items, self.backends) if isinstance(item, Fill) and item.is_drawn]
        if lock_file.NUMBERS_OF_TORCH in drawn or (drawn and not all(drawn)):
            return self.numbers
        contracts = [each for each in self.numbers.split(" and ") if each != lock_file.NUMBERS_OF_TORCH]
        return " and ".join(contracts) or self.numbers

    # --- as a file ---------------------------------------------------------------------------------------------------

    @cached_property
    def why_not_exact(self) -> str:
        """Why a file cannot promise the bits of this plan: torch's numbers, no seed, code; "" if it can."""
        return lock_file.why_not_exact(self.items, self.backends, self.numbers, self.seed)

    def save(self, path: str | os.PathLike[str], *, exact: bool = True) -> None:
        """Writes the plan into a file, from which ``Plan.load`` reads it; the whole file or none.

        It holds names, shapes, dtypes and the numbers that rules came to, with the seed and the number contract, so
        that later changes of rules, presets and libraries do not change the weights. Of checkpoints it holds a digest
        of each tensor that is copied: they are read for that. docs/plans.md describes the format.

        Args:
            path: of the file.
            exact: refuse a plan whose bits a file cannot promise. False: such a plan is kept as well, to be compared
                (``diff``), or for its distributions; where it takes the place of a config, the call's seed and backend
                count. Checkpoints are not read.

        Raises:
            ValueError: a file cannot hold the plan, and why. Nothing is written.
            OSError: the file cannot be written.

        Example:
            >>> import fastinit, tempfile, torch
            >>> model = torch.nn.Linear(4, 2)
            >>> plan = fastinit.plan(model, dict(type="Xavier", layer="Linear"), seed=1, backend="cpp")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     plan.save(f"{folder}/model.plan.json")
            ...     kept = fastinit.Plan.load(f"{folder}/model.plan.json")
            >>> report = fastinit.initialize(model, kept)
            >>> report.numbers, report.seed
            ('contract 1', 1)
        """
        if exact and self.why_not_exact:
            raise InitValueError(
                f"the plan cannot promise its bits: {self.why_not_exact}", hint=". exact=False keeps what can be kept"
            )
        lock_file.write(path, self._text(exact))

    def _text(self, exact: bool) -> str:
        alive = lock_file.live(self.items)
        numbers = self._drawn_numbers if exact else self.numbers
        items = tuple(self._in_order(alive))
        order = lock_file.order_of(items, self.names) if self.names else self.order
        contents = lock_file.Contents(items, numbers, self.seed, self.unreached, order)
        return lock_file.text_of(contents, self.dtypes, has_digests=exact)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Returns the plan that ``save`` wrote into a file. It fits every model with its names and shapes.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not such a file, not of a version that is known here, or damaged; the message says where.
        """
        contents = lock_reader.read(Path(path).read_bytes(), os.fspath(path))
        return Plan(
            contents.items,
            ("",) * len(contents.items),
            contents.numbers,
            contents.seed,
            contents.unreached,
            order=contents.order,
            source=os.fspath(path),
        )

    def _in_order(self, items: Sequence[Item]) -> list[Item]:
        """Returns the items with fills in the model's order, where no copy and no code stands between them."""
        rank = {name: at for at, name in enumerate(self.names)}
        found: list[Item] = []
        fills: list[Fill] = []
        for item in items:
            if isinstance(item, Fill):
                fills.append(item)
                continue
            found += [*sorted(fills, key=lambda fill: rank.get(fill.name, len(rank))), item]
            fills = []
        return [*found, *sorted(fills, key=lambda fill: rank.get(fill.name, len(rank)))]

    def __str__(self) -> str:
        return f"{self.table()}\n{self._summary}"

    def _repr_html_(self) -> str:
        """Returns what ``print`` shows as HTML: notebooks look for this name."""
        return html_of_what_counts(self.rows, self.names or self.order, self._summary)

    @property
    def _summary(self) -> str:
        rows, values = self.rows, self._values
        n_elements = sum(row.n_elements for row in values)
        line = f"{len(values):,} rows, {n_elements:,} elements; numbers: {self.numbers}; seed: {self.seed}"
        if len(rows) > len(values):
            line += f"; {len(rows) - len(values):,} more are replaced: plan.table(history=True)"
        warnings = [f"warning: {each}" for each in self.warnings]
        return "\n".join([line, *notes_of(self.items, self.unreached), *warnings])


def _fit_json(copy: Copy) -> dict[str, Any]:
    """Returns how a checkpoint fits its module as JSON-ready data; null where only the load shows it."""
    found = copy.fit
    names = {name: None if found is None else list(getattr(found, name)) for name in _OF_A_FIT}
    return {"source": copy.source, "rule": copy.rule, **names}


_OF_A_FIT = ("missing", "unexpected", "mismatched")
