"""``verify()``: whether a model holds exactly what a plan says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .errors import InitRuntimeError, check_module, kind_of
from .execution.calls import new_scope, not_recording
from .execution.comparing import Found, difference, first_differences, note
from .execution.scope import Scope
from .naming import Prefix
from .plans import Box, DeltaOrthogonal, Fill, Item, Orthogonal, Plan, names_line, row_major
from .progress import expect, showing
from .redrawing import PlannedValues, check_plan
from .shards.agreement import check_groups, merged
from .shards.dtensor import boxes_of, is_sharded, local_part

# Orthogonal matrices are promised but for the last place of a few elements of a million.
_LAST_PLACES = 4.0
_FEW = 1e-3


@dataclass(frozen=True)
class Difference:
    """A tensor that does not hold what the plan says: from its first such element on, or in its dtype."""

    name: str
    index: tuple[int, ...]
    """Of the first element that differs, in the whole tensor, row by row; of another dtype ()."""
    expected: Any
    """The element, or the plan's dtype, a ``torch.dtype``."""
    found: Any

    @property
    def is_dtype(self) -> bool:
        """Whether the dtype is another than the plan's. The values were not compared then."""
        return isinstance(self.expected, torch.dtype)


@dataclass(frozen=True)
class Verification:
    """Which tensors hold exactly what a plan says. True if none differs and every parameter could be verified.

    What the plan says nothing of is not verified, so with a parameter that no row writes it is false. Buffers are named
    in ``unverified``, and do not make it false.
    """

    held: tuple[str, ...] = field(repr=False)
    """Names of the tensors that hold, bit for bit, what the plan says, be it of some of their elements."""
    differs: tuple[Difference, ...]
    """Those that do not."""
    unverified: Mapping[str, str]
    """Name -> why a plan cannot tell: torch's numbers, computed, copied from a checkpoint that is not here; no row of
    the plan writes it, or rows write only a part of it."""
    is_complete: bool
    """No parameter is among the unverified: buffers may be."""
    rounded: tuple[str, ...] = ()
    """Those of ``held`` that have another dtype than in the plan, and its values rounded to it: only on request."""

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
            "rounded": list(self.rounded),
        }
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        lines = [f"{len(self.held):,} tensors hold what the plan says"]
        if self.rounded:
            lines.append(names_line("of them hold it rounded to another dtype than the plan's", self.rounded))
        if self.differs:
            lines.append(f"{len(self.differs):,} differ:")
        lines += [
            f"  {each.name} from index {each.index} on: {each.expected!r} expected, {each.found!r} found"
            for each in self.differs
            if not each.is_dtype
        ]
        dtypes: dict[str, list[str]] = {}
        for each in self.differs:
            if each.is_dtype:
                dtypes.setdefault(f"{each.expected} expected, {each.found} found", []).append(each.name)
        lines += [f"  {names_line(f'in dtype, {which}', names)}" for which, names in dtypes.items()]
        if dtypes:
            lines.append("  (with rounded=True, or --rounded, values count that are rounded to another dtype)")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.unverified.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"{names_line('not verified', names)} ({reason})" for reason, names in reasons.items()]
        return "\n".join(lines)


def verify(model: nn.Module, plan: Plan, *, prefix: Prefix = "", rounded: bool = False) -> Verification:
    """Returns which parameters and buffers of a model hold exactly what a plan says, and where others depart from it.

    What the plan writes is drawn again, piece by piece, and compared: no second copy of the model is made, and of a
    tensor that differs nothing is drawn behind the first difference. Of distributed tensors each rank verifies
    what it has, and all ranks of a mesh return the same. Parameters and buffers that the plan does not write are named
    as not verified; with such a parameter the answer is false (``differs`` alone tells of what the plan does say). Of
    buffers, ``digest`` says whether they are the same: of those that are not persistent (rotary tables) with
    ``non_persistent_buffers=True``.

    Args:
        model: any module; tensors without memory are not verified.
        plan: of ``fastinit.plan`` or ``Plan.load``.
        prefix: as for ``initialize``: where the model is a part of what was planned, or names have changed.
        rounded: a tensor of another floating-point dtype than the plan's holds it if it has the plan's values, rounded
            to its own dtype, as ``initialize`` gives them. Without it, another dtype is a difference.

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
    check_plan(plan, "verify")
    check_module(model)
    scope = new_scope(model, prefix=prefix, is_dry=True, is_offline=True)
    meshes = scope.meshes()
    check_groups(meshes)
    problem: BaseException | None = None
    outcome = _Outcome()
    try:
        with not_recording(), torch.no_grad():
            outcome = _outcome(PlannedValues(model, plan, scope, "verify"), scope, rounded)
    except Exception as error:
        problem = error
        outcome.problems[""] = f"{kind_of(error)}: {error}"
    outcome = merged(meshes, outcome, _Outcome.merge)
    if problem is not None:
        raise problem
    if outcome.problems:
        raise InitRuntimeError(f"verify: another rank failed with {next(iter(outcome.problems.values()))}")
    return outcome.result(scope, rounded)


@dataclass
class _Outcome:
    """What one rank has found; by name in the model."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of all that was looked at."""
    differences: dict[str, Found] = field(default_factory=dict)
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]] = field(default_factory=dict)
    """The plan's and the model's, where they are not the same."""
    unverified: dict[str, str] = field(default_factory=dict)
    unplanned: dict[str, str] = field(default_factory=dict)
    """What the plan says nothing of, or nothing of some elements."""
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
            {**other.dtypes, **one.dtypes},
            {**other.unverified, **one.unverified},
            {**other.unplanned, **one.unplanned},
            {**other.problems, **one.problems},
        )

    def result(self, scope: Scope, rounded: bool) -> Verification:
        """Returns it for the user."""
        parameters = set(scope.names.parameters().values())
        known = [name for name in self.shapes if name not in self.unverified]
        differs = {name: each for name in known if (each := self._difference(name, rounded)) is not None}
        held = tuple(name for name in known if name not in differs)
        is_complete = not any(name in parameters or name not in self.shapes for name in self.unverified)
        left = {**self.unverified, **self.unplanned}
        for name in scope.names.non_persistent():
            if left.get(name, _NO_MEMORY) != _NO_MEMORY:
                left[name] += _IN_A_DIGEST
        return Verification(
            held,
            tuple(differs.values()),
            left,
            is_complete and parameters.isdisjoint(self.unplanned),
            tuple(name for name in held if name in self.dtypes),
        )

    def _difference(self, name: str, rounded: bool) -> Difference | None:
        if name in self.dtypes and not rounded:
            return Difference(name, (), *self.dtypes[name])
        found = self.differences.get(name)
        return found and Difference(name, _index(found.at, self.shapes[name]), found.expected, found.found)


_NO_MEMORY = "it has no memory"
# What verify cannot tell of a buffer a digest can, and the default digest leaves out those that no checkpoint has.
_IN_A_DIGEST = "; not persistent: fastinit.digest(model, non_persistent_buffers=True) has it"


def _outcome(planned: PlannedValues, scope: Scope, rounded: bool) -> _Outcome:
    """Compares what is here: simple fills by pieces, others as a whole, one after the other."""
    outcome = _Outcome(unverified=dict(planned.calls), unplanned=_unplanned(planned, scope))
    simple: list[Fill] = []
    for name, here in planned.held.items():  # in the model's order
        if name not in planned.writers:
            continue
        outcome.shapes[here.name] = tuple(here.tensor.shape)
        if here.tensor.dtype != planned.dtypes[name]:
            outcome.dtypes[here.name] = planned.dtypes[name], here.tensor.dtype
            if not rounded:
                continue
        is_meta = (local_part(here.tensor) if is_sharded(here.tensor) else here.tensor).is_meta
        if reason := _NO_MEMORY if is_meta else planned.why_not(name):
            outcome.unverified[here.name] = reason
        elif (fill := planned.simple(name)) is not None:
            simple.append(fill)
        else:
            _compare_whole(name, planned, outcome)
    total = sum(box.tensor.nbytes for fill in simple for box in fill.boxes)
    with showing("verify", total):
        expect(total)
        found = first_differences(simple, planned.plan.seed, planned.backend_on)
    for name, difference_here in found.items():
        note(outcome.differences, name, difference_here)
    return outcome


def _unplanned(planned: PlannedValues, scope: Scope) -> dict[str, str]:
    """Returns name -> why, of tensors with elements that no row of the plan writes."""
    names_in_plan = {here.tensor: name for name, here in planned.held.items() if name in planned.writers}
    found: dict[str, str] = {}
    for kind, tensors in (("parameter", scope.names.parameters()), ("buffer", scope.names.buffers())):
        for tensor, name in tensors.items():
            if tensor not in names_in_plan:
                if is_lazy(tensor) or tensor.numel():
                    found[name] = f"a {kind} that no row of the plan writes"
            elif not planned.is_whole(names_in_plan[tensor]):
                found[name] = f"a {kind} of which the rows of the plan write a part only"
    return found


def _compare_whole(name: str, planned: PlannedValues, outcome: _Outcome) -> None:
    """Compares one tensor with a second one that the plan writes."""
    here, items = planned.held[name], planned.writers[name]
    expected = planned.made(name, here.tensor, here.tensor.dtype)
    for box, other in zip(_boxes(here.tensor), _boxes(expected)):
        found = difference(box, other.tensor)
        if found is None or _is_rounding(items, box.tensor, other.tensor):
            continue
        if any(id(item) in planned.vague for item in items):
            reason = "it differs from its checkpoint, of which modules' own loading code may make something else"
            outcome.unverified[here.name] = reason
        else:
            note(outcome.differences, here.name, found)


def _boxes(tensor: torch.Tensor) -> tuple[Box, ...]:
    return boxes_of(tensor) if is_sharded(tensor) else (Box.whole(tensor.detach()),)


def _is_rounding(items: Sequence[Item], here: torch.Tensor, there: torch.Tensor) -> bool:
    """Tells whether orthogonal matrices differ by no more than other processors may."""
    last = items[-1]
    if not isinstance(last, Fill) or not isinstance(last.distribution, (Orthogonal, DeltaOrthogonal)):
        return False
    at = (here != there).nonzero(as_tuple=True)
    # By bits: not every torch can index float8.
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[here.dtype.itemsize]
    a, b = (each.view(bits)[at].view(here.dtype).double() for each in (here, there))
    places = (a - b).abs() / (torch.finfo(here.dtype).eps * b.abs().clamp(min=torch.finfo(here.dtype).tiny))
    return bool(len(a) <= max(1.0, _FEW * here.numel()) and (places <= _LAST_PLACES).all())


def _index(row_major_index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(row_major_index // step % size for step, size in zip(row_major(shape), shape))
