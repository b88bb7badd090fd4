"""Recipes: what a block of code did to the parameters of a model, by name, to be done again elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..errors import InitRuntimeError, InitTypeError
from ..execution.owners import Owner, Owners, index_in, stream_of
from ..execution.pending_by_memory import ByMemory
from ..execution.recorded_fills import RecordedFill
from ..execution.reports import Report
from ..execution.scope import Scope
from ..execution.writes import PendingFill
from ..naming import Names, Prefix, join, renamed, walk
from ..plans import Fill, Item, Replay, ReplayEntry, Strided, describe, is_drawn, names_line
from ..plans.arithmetic import Chain
from ..shards.dtensor import is_sharded
from .journal import Computed, Journal, Ref, compute


class Recorded(NamedTuple):
    """What gave a parameter or buffer its values: fills alone."""

    name: str
    tensor: torch.Tensor
    fills: tuple[RecordedFill, ...]
    """In order."""


class Recipe:
    """What ``capture`` recorded. In the block it takes names, after it it has fills and a report."""

    def __init__(self, names: Names | None, prefix: Prefix, is_part: bool) -> None:
        self._names = names
        self._is_part = is_part
        self._prefix = prefix
        self._report: Report | None = None
        self.is_open = True
        self.bound: list[nn.Module] = []
        self.fills: Mapping[str, tuple[RecordedFill, ...]] = {}
        """Parameter or buffer -> what gave it its values, in order, where that was fills only."""
        self.computed: Mapping[str, Computed] = {}
        """Parameter or buffer without memory -> how to compute it again, where something else than fills wrote it."""
        self.unknown: Mapping[str, str] = {}
        """Parameter or buffer -> what wrote it that cannot be done again."""
        self.journal = Journal()
        """What leads to what is computed."""

    def of(self, name: str, prefix: Prefix = "") -> tuple[RecordedFill, ...] | None:
        """Returns the fills of a tensor by its name in a model: the recipe may be of a larger one, or of it alone."""
        return self.fills.get(renamed(name, prefix), self.fills.get(name))

    def why_unknown(self, name: str, prefix: Prefix = "") -> str | None:
        """Returns what wrote a tensor that the recipe cannot do again, None for any other tensor."""
        return self.unknown.get(renamed(name, prefix), self.unknown.get(name))

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns what was recorded for the parameters and buffers under a module; a tied one is filled once.

        This makes a recipe an initializer among others: ``init_cfg`` may be one, or hold one.
        """
        found: dict[torch.Tensor, Recorded] = {}
        computed: dict[torch.Tensor, tuple[ReplayEntry, Computed]] = {}
        for path, each in walk(module):
            for attribute, tensor in (*each._parameters.items(), *each._buffers.items()):
                if tensor is None or tensor in found or tensor in computed:
                    continue
                path_here = join(path, attribute)
                recorded = self.of(path_here, scope.prefix)
                if recorded is not None:
                    found[tensor] = Recorded(scope.names.name_of(tensor, each, attribute), tensor, recorded)
                    continue
                made = self.computed.get(renamed(path_here, scope.prefix), self.computed.get(path_here))
                if made is not None:
                    name = scope.names.name_of(tensor, each, attribute)
                    computed[tensor] = ReplayEntry(name, tensor, made.info), made
        if not found and not computed:
            message = f"the recipe holds no parameter of {type(module).__name__}"
            scope.matches_nothing(rule, "", message)
        items: list[Item] = list(in_order(found.values()))
        if computed:
            items.append(self._replay(module, list(computed.values()), rule))
        return items

    def _replay(self, module: nn.Module, entries: Sequence[tuple[ReplayEntry, Computed]], rule: str) -> Replay:
        """Returns the item that computes tensors.

        Raises:
            RuntimeError: some of them have another shape than when they were recorded, or are distributed; they are
                named.
        """
        how = {entry.name: made for entry, made in entries}
        if sharded := [f"{entry.name} ({made.info})" for entry, made in entries if is_sharded(entry.tensor)]:
            what = "distributed tensors are computed, which cannot be done for a part of one"
            raise InitRuntimeError(
                names_line(what, sharded), hint=". Give them values by rules, or materialize before sharding"
            )
        for entry, made in entries:
            if tuple(entry.tensor.shape) != made.ref.place.shape:
                raise InitRuntimeError(
                    f"{entry.name!r} was recorded with shape {made.ref.place.shape}, but is "
                    f"{tuple(entry.tensor.shape)} here",
                    place=f"parameter {entry.name!r}",
                )

        def run(entries: Sequence[ReplayEntry], scope: Scope) -> None:
            by_device: dict[torch.device, list[tuple[Computed, torch.Tensor]]] = {}
            for entry in entries:
                by_device.setdefault(entry.tensor.device, []).append((how[entry.name], entry.tensor))
            for device, wanted in by_device.items():
                compute(self.journal, wanted, scope, device)

        return Replay(module, tuple(entry for entry, _ in entries), rule, "computed", run)

    def bind(self, module: nn.Module, prefix: Prefix = "") -> None:
        """Names what was captured: parameters and buffers by their place under ``module``, ``prefix`` in front.

        Call it in the block, once for each model that is made there. In a part of a larger block it does nothing: there
        the larger one's names count.

        Raises:
            TypeError: ``module`` is no module.
            RuntimeError: the block is over or got its module at the start, or two parameters would have one name.
        """
        if not isinstance(module, nn.Module):
            raise InitTypeError(f"bind needs a torch.nn.Module, but got {type(module)}")
        if self._is_part:  # names are those of the larger block
            return
        if self._names is None:
            raise InitRuntimeError("bind: the module was given to capture itself")
        if not self.is_open and self._report is not None:
            raise InitRuntimeError(
                "bind: the block is over, and its draws have been made", hint=". Call it in the block"
            )
        prefix = prefix or self._prefix
        self._names.add(module, prefix)
        self.bound.append(module)

    @property
    def report(self) -> Report:
        """What was done.

        Raises:
            RuntimeError: the block is not over, or is part of a larger one, which has the report.
        """
        if self._report is None:
            raise InitRuntimeError(
                "the report is made when the block ends; that of a part of a larger block is the larger's"
            )
        return self._report

    def keep(self, pending: ByMemory, scope: Scope, journal: Journal) -> None:
        """Takes over what a call's code did to the parameters and buffers under its roots."""
        recorded, unknown = recorded_fills(pending, scope)
        self.fills = {each.name: each.fills for each in recorded}
        self.journal, self.computed, self.unknown = recorded_computations(pending, scope, journal, unknown)

    def finish(self, report: Report) -> None:
        """Sets the report."""
        self._report = report

    def __repr__(self) -> str:
        n = sum(map(len, self.fills.values()))
        computed = f"{len(self.computed)} computed; " if self.computed else ""
        unknown = f"{len(self.unknown)} written by other code"
        return f"<Recipe of {n} fills of {len(self.fills)} tensors; {computed}{unknown}>"

    def __str__(self) -> str:
        lines = [repr(self)]
        for name, fills in self.fills.items():
            for fill in fills:
                part = "" if fill.is_whole else f", part of {'x'.join(map(str, fill.shape))}"
                lines.append(f"{name}: {describe(fill.distribution)}{part}")
        lines += [f"{name}: computed, {made.info}" for name, made in self.computed.items()]
        lines += [f"{name}: {what}" for name, what in self.unknown.items()]
        return "\n".join(lines)


def tell_what_is_left(recipe: Recipe, where: str, items: Iterable[Item], scope: Scope) -> None:
    """Warns of parameters that a recipe does not hold and no item writes; in a strict call, raises RuntimeError.

    Args:
        recipe: one that the user gave.
        where: its place in the config.
        items: of the whole call.
        scope: of the call.
    """
    if left := scope.not_reached(items):
        told = [f"{name} ({why})" if (why := recipe.why_unknown(name)) else name for name in left]
        text = names_line("parameters are not in the recipe, and no other rule reaches them", told)
        scope.matches_nothing(where, "", f"{text}. They keep what they have")


def in_order(recorded: Iterable[Recorded]) -> list[Fill]:
    """Returns recorded fills as fills of their tensors, in the order in which they were recorded."""
    fills = [(each.order, each.fill(name, tensor)) for name, tensor, found in recorded for each in found]
    return [fill for _, fill in sorted(fills, key=lambda each: each[0])]


def recorded_fills(pending: ByMemory, scope: Scope) -> tuple[list[Recorded], dict[str, str]]:
    """Returns what a call's code did to the parameters and buffers under its roots: fills, and what was none."""
    book, owners = pending.book, pending.owners(scope)
    known: list[Recorded] = []
    unknown: dict[str, str] = {}
    for owner in owners:
        writes = book.writes_at(owner.place)
        found = [each for each in writes if isinstance(each, PendingFill)]
        if len(found) < len(writes) or any(isinstance(each.values, Chain) for each in found):
            unknown[owner.name] = book.history(owner.place, writes)
        elif found:
            recorded = [_recorded(each, owner, owners, scope) for each in found]
            if all(recorded):
                fills = tuple(each for each in recorded if each is not None)
                known.append(Recorded(owner.name, owner.tensor, fills))
            else:
                unknown[owner.name] = f"{found[-1].info}, on a view that is no part of the parameter"
    return known, unknown


def recorded_computations(
    pending: ByMemory, scope: Scope, journal: Journal, unknown: Mapping[str, str]
) -> tuple[Journal, dict[str, Computed], dict[str, str]]:
    """Returns how to compute what is no fill, where it was seen without memory, and what is still unknown.

    The journal that is returned holds no more than that takes.
    """
    computed: dict[str, Computed] = {}
    left = dict(unknown)
    owners = [owner for owner in pending.owners(scope) if owner.name in unknown]
    owners = [owner for owner in owners if owner.tensor.is_meta and not is_sharded(owner.tensor)]
    for owner in owners:
        journal.note_fills_at(owner.place, pending)
    problem_of: dict[int, str | None] = {}  # of a storage that several may share; None: nothing leads to it
    for owner in owners:
        storage_id = owner.place.storage_id
        if storage_id not in problem_of:
            leading = journal.leading_to([storage_id])
            problem_of[storage_id] = next((each.problem for each in leading if each.problem), "") if leading else None
        problem = problem_of[storage_id]
        if problem or problem is None:
            left[owner.name] += f" ({problem})" if problem else ""
        else:
            ref = Ref(owner.place, owner.tensor.is_conj(), owner.tensor.is_neg())
            computed[owner.name] = Computed(ref, left.pop(owner.name))
    return journal.pruned(made.ref.storage_id for made in computed.values()), computed, left


def _recorded(pending: PendingFill, owner: Owner, owners: Owners, scope: Scope) -> RecordedFill | None:
    place = pending.place
    part = index_in(owner, place)
    if part is None or place.dtype != owner.place.dtype:
        return None
    stream, numbers = "", Strided.whole(place.shape)
    if is_drawn(pending.distribution):
        stream, numbers, _ = stream_of(pending, owners)
    return RecordedFill(
        pending.distribution,
        owner.place.shape,
        part,
        "" if stream == owner.name else stream,
        numbers,
        pending.order,
        pending.rule,
        pending.info,
        None if pending.scope is scope else pending.scope.seed.given,
    )
