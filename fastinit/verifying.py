"""``verify()``: whether a model holds exactly what a plan says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn

from .backends import AUTO, BACKENDS, Choice
from .config.kept_plans import Held, KeptPlan, bound, fill_for
from .errors import check_module
from .execution.calls import new_scope
from .execution.comparing import Found, difference, first_differences, note
from .execution.scope import Scope
from .naming import Prefix
from .plans import (
    Box,
    Call,
    Copy,
    DeltaOrthogonal,
    Fill,
    Item,
    Orthogonal,
    Plan,
    Replay,
    is_drawn,
    is_structured,
    names_line,
    row_major,
)
from .plans.lock_file import NUMBERS_OF_TORCH, geometry_of, live
from .shards.agreement import merged
from .shards.dtensor import boxes_of, is_sharded, like, local_part

# Orthogonal matrices are promised but for the last place of a few elements of a million.
_LAST_PLACES = 4.0
_FEW = 1e-3


@dataclass(frozen=True)
class Difference:
    """A tensor that does not hold what the plan says, from its first such element on."""

    name: str
    index: tuple[int, ...]
    """Of the first element that differs, in the whole tensor, row by row."""
    expected: Any
    found: Any


@dataclass(frozen=True)
class Verification:
    """Which tensors hold exactly what a plan says. True if none differs and every parameter could be verified."""

    held: tuple[str, ...] = field(repr=False)
    """Names of the tensors that hold, bit for bit, what the plan says."""
    differs: tuple[Difference, ...]
    """Those that do not."""
    unverified: Mapping[str, str]
    """Name -> why a plan cannot tell: torch's numbers, computed, copied from a checkpoint that is not here."""
    is_complete: bool
    """No parameter is among the unverified: buffers that modules' own code computes may be."""

    def __bool__(self) -> bool:
        return not self.differs and self.is_complete

    def to_json(self, indent: int | None = None) -> str:
        """Returns it as JSON; the format's version is in ``fastinit_verification``."""
        document = {
            "fastinit_verification": 1,
            "held": list(self.held),
            "differs": [
                {
                    "parameter": each.name,
                    "index": list(each.index),
                    "expected": str(each.expected),
                    "found": str(each.found),
                }
                for each in self.differs
            ],
            "unverified": dict(self.unverified),
            "is_complete": self.is_complete,
        }
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        lines = [f"{len(self.held):,} tensors hold what the plan says"]
        if self.differs:
            lines.append(f"{len(self.differs):,} differ:")
            lines += [
                f"  {each.name} from index {each.index} on: {each.expected!r} expected, {each.found!r} found"
                for each in self.differs
            ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.unverified.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"{names_line('not verified', names)} ({reason})" for reason, names in reasons.items()]
        return "\n".join(lines)


def verify(model: nn.Module, plan: Plan, *, prefix: Prefix = "") -> Verification:
    """Returns which parameters and buffers of a model hold exactly what a plan says, and where others depart from it.

    What the plan writes is drawn again, piece by piece, and compared: no second copy of the model is made, and of a
    tensor that differs nothing is drawn behind the first difference. Of distributed tensors each rank verifies
    what it has, and all ranks of a mesh return the same. A model in a narrower dtype than the plan's must hold the
    rounded values.

    Args:
        model: any module; tensors without memory are not verified.
        plan: of ``fastinit.plan`` or ``Plan.load``.
        prefix: as for ``initialize``: where the model is a part of what was planned, or names have changed.

    Raises:
        RuntimeError: names or shapes do not fit, a plan's numbers are not known here, or no contract backend runs.
        TypeError: ``plan`` is none.

    Example:
        >>> import fastinit, torch
        >>> model = torch.nn.Linear(64, 64)
        >>> cfg = dict(type="Xavier", layer="Linear")
        >>> plan = fastinit.plan(model, cfg, backend="cpp", seed=0)
        >>> report = fastinit.initialize(model, plan)
        >>> bool(fastinit.verify(model, plan))
        True
        >>> with torch.no_grad():
        ...     _ = model.weight[3, 2:].zero_()
        >>> print(fastinit.verify(model, plan))
        1 tensors hold what the plan says
        1 differ:
          weight from index (3, 2) on: -0.050155263394117355 expected, 0.0 found
    """
    check_module(model)
    if not isinstance(plan, Plan):
        raise TypeError(f"verify needs a plan, of fastinit.plan or Plan.load, but got {type(plan)}")
    scope = new_scope(model, prefix=prefix, is_dry=True, is_offline=True)
    meshes = scope.meshes()
    problem: BaseException | None = None
    outcome = _Outcome({}, {}, {})
    try:
        with torch.no_grad():
            outcome = _Verifying(model, plan, scope).outcome()
    except Exception as error:
        problem = error
        outcome.problems[""] = f"{type(error).__name__}: {error}"
    outcome = merged(meshes, outcome, _Outcome.merge)
    if problem is not None:
        raise problem
    if outcome.problems:
        raise RuntimeError(f"verify: another rank failed with {next(iter(outcome.problems.values()))}")
    return outcome.result(model, scope)


@dataclass
class _Outcome:
    """What one rank has found; by name in the model."""

    shapes: dict[str, tuple[int, ...]]
    """Of all that was looked at."""
    differences: dict[str, Found]
    unverified: dict[str, str]
    problems: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def merge(one: _Outcome, other: _Outcome) -> _Outcome:
        """Returns what two ranks have found: of each tensor the first difference."""
        found = dict(one.differences)
        for name, each in other.differences.items():
            note(found, name, each)
        return _Outcome(
            {**other.shapes, **one.shapes},
            found,
            {**other.unverified, **one.unverified},
            {**other.problems, **one.problems},
        )

    def result(self, model: nn.Module, scope: Scope) -> Verification:
        """Returns it for the user."""
        parameters = set(scope.names.parameters().values())
        return Verification(
            tuple(name for name in self.shapes if name not in self.differences and name not in self.unverified),
            tuple(
                Difference(name, _index(each.at, self.shapes[name]), each.expected, each.found)
                for name in self.shapes
                if (each := self.differences.get(name)) is not None and name not in self.unverified
            ),
            dict(self.unverified),
            not any(name in parameters or name not in self.shapes for name in self.unverified),
        )


class _Verifying:
    """One plan and one model, of which each tensor is compared in one of two ways: by pieces or as a whole."""

    def __init__(self, model: nn.Module, plan: Plan, scope: Scope) -> None:
        self.model, self.plan, self.scope = model, plan, scope
        self.kept = KeptPlan(plan)
        self.stored: dict[int, Mapping[str, torch.Tensor]] = {}
        """Copy (by id) -> the tensors in its file, by name in the model."""
        self.vague: set[int] = set()
        """Copies (by id) that modules' own loading code does, which may write something else."""
        self.held: Mapping[str, Held] = bound(plan, model, scope.names, scope.prefix)
        self.choice = Choice(AUTO)
        contracts = [each for each in plan.numbers.split(" and ") if each != NUMBERS_OF_TORCH]
        self.choice.need(contracts[0] if contracts else BACKENDS["cpp"].NUMBERS)
        self.found = _Outcome({}, {}, {})

    def outcome(self) -> _Outcome:
        """Verifies all tensors that the plan writes."""
        plan = self.plan
        why_not = {
            id(item): reason
            for at, (item, name) in enumerate(zip(plan.items, plan.backends))
            if (reason := self._why_not(at, item, name))
        }
        writers: dict[str, list[tuple[int, Item]]] = {}
        for at, item in enumerate(live(plan.items)):
            names = [item.name] if isinstance(item, Fill) else [each.name for each in getattr(item, "entries", ())]
            if isinstance(item, Call):
                self.found.unverified[f"call of {item.label}"] = why_not[id(item)]
            for name in names:
                if name in self.held and isinstance(item, Fill) and not item.is_part:
                    writers[name] = [(at, item)]  # what a checkpoint held there is gone
                elif name in self.held:
                    writers.setdefault(name, []).append((at, item))
        simple: list[Fill] = []
        for name, here in self.held.items():  # in the model's order
            if not (each := writers.get(name)):
                continue
            self.found.shapes[here.name] = tuple(here.tensor.shape)
            reason = next((why_not[id(item)] for _, item in each if id(item) in why_not), "")
            reason = "it has no memory" if _memory(here.tensor).is_meta else reason
            if reason:
                self.found.unverified[here.name] = reason
                continue
            (at, first), *others = each
            if not others and isinstance(first, Fill) and _is_simple(first):
                simple.append(fill_for(first, here, at, None))
            else:
                self._compare_whole(here, [item for _, item in each])
        for name, found in first_differences(simple, plan.seed, self.choice).items():
            note(self.found.differences, name, found)
        return self.found

    def _why_not(self, at: int, item: Item, backend: str) -> str:
        """Returns why a plan cannot tell what an item writes, "" if it can."""
        if isinstance(item, Call):
            return "code that a plan cannot see into"
        if isinstance(item, Replay):
            return "computed by the model's own code"
        if isinstance(item, Copy):
            return self._why_not_copy(at, item)
        if not is_drawn(item):
            return ""
        if NUMBERS_OF_TORCH in (backend or self.plan.numbers):
            return "torch's generators draw it, whose numbers depend on the order"
        return "" if self.plan.seed is not None or item.seed is not None else "the plan has no seed"

    def _why_not_copy(self, at: int, item: Copy) -> str:
        try:
            copy = self.kept.copy(at, item, self.model, self.held, self.scope)
        except (AssertionError, OSError, RuntimeError) as error:
            return f"its checkpoint cannot be read here: {error}"
        if copy.unknown:
            return f"its checkpoint is not here: {copy.unknown}"
        kept, now = item.digests(), copy.digests()
        if any(now.get(self.held[name].name) != digest for name, digest in kept.items()):
            return f"{item.source} is not the checkpoint that the plan was made with"
        self.stored[id(item)] = copy.stored()
        if copy.runs_own_code:
            self.vague.add(id(item))
        return ""

    # --- as a whole: several writers, structure, copies ---------------------------------------------------------------

    def _compare_whole(self, here: Held, items: Sequence[Item]) -> None:
        """Compares one tensor with a second one that the items write; no more than one is there at a time."""
        made = torch.empty_like(_memory(here.tensor).detach())
        expected = like(here.tensor, made) if is_sharded(here.tensor) else made
        fills: list[Fill] = []
        for at, item in enumerate(items):
            if isinstance(item, Copy):
                expected.copy_(self.stored[id(item)][here.name])
            elif isinstance(item, Fill):
                fills.append(fill_for(item, Held(here.name, expected), at, None))
        for own_seed, group in groupby(fills, key=lambda fill: fill.seed):
            seed = self.plan.seed if own_seed is None else own_seed
            BACKENDS[self.choice.on(made.device)].run(list(group), 0 if seed is None else seed)
        for box, other in zip(_boxes(here.tensor), _boxes(expected)):
            found = difference(box, other.tensor)
            if found is None or _is_rounding(fills, box.tensor, other.tensor):
                continue
            if any(id(item) in self.vague for item in items):
                reason = "it differs from its checkpoint, of which modules' own loading code may make something else"
                self.found.unverified[here.name] = reason
            else:
                note(self.found.differences, here.name, found)


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    return local_part(tensor) if is_sharded(tensor) else tensor


def _boxes(tensor: torch.Tensor) -> tuple[Box, ...]:
    return boxes_of(tensor) if is_sharded(tensor) else (Box.whole(tensor.detach()),)


def _is_simple(item: Fill) -> bool:
    """Tells whether a fill can be compared by pieces: all of a tensor, in order, each value by itself."""
    return not is_structured(item.distribution) and geometry_of(item) == (None, None)


def _is_rounding(fills: Sequence[Fill], here: torch.Tensor, there: torch.Tensor) -> bool:
    """Tells whether orthogonal matrices differ by no more than other processors may."""
    if not fills or not isinstance(fills[-1].distribution, (Orthogonal, DeltaOrthogonal)):
        return False
    differ = here != there
    at = differ.nonzero(as_tuple=True)
    a, b = here[at].double(), there[at].double()
    places = (a - b).abs() / (torch.finfo(here.dtype).eps * b.abs().clamp(min=torch.finfo(here.dtype).tiny))
    return bool(len(a) <= max(1.0, _FEW * here.numel()) and (places <= _LAST_PLACES).all())


def _index(row_major_index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(row_major_index // step % size for step, size in zip(row_major(shape), shape))
