"""A plan in the place of a config: its items, bound by their names to the tensors of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InitRuntimeError
from ..execution.recorded_fills import RecordedFill
from ..execution.scope import Scope
from ..naming import Names, Prefix, join, renamed, walk
from ..plans import Call, Copy, Fill, Item, Plan, Replay, Strided, names_line
from ..plans.lock_file import geometry_of
from . import tied_plans
from .pretrained import PretrainedInit


class Held(NamedTuple):
    """A tensor of a model that a plan knows."""

    name: str
    """In the model."""
    tensor: torch.Tensor


class KeptPlan:
    """An initializer among others: does what a plan says, to the parameters and buffers of its names."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._copying: dict[int, PretrainedInit] = {}
        """By the place among the items: what opens its checkpoint, once."""

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns the plan's items for the tensors under ``module``; nothing is written.

        Raises:
            RuntimeError: names, shapes or dtypes do not fit the module (both sides are listed), a checkpoint holds
                something else than when the plan was kept, the plan holds calls, or the call asks for other numbers.
        """
        plan = self.plan
        if calls := [item.label for item in plan.items if isinstance(item, Call)]:
            raise InitRuntimeError(f"{names_line('calls of code that a plan holds the names of only', calls)}")
        own_seed = self._settled(scope)
        held = bound(plan, module, scope.names, scope.prefix, ". Nothing is written")
        self._tell(held, scope, rule)
        items: list[Item] = []
        for at, item in enumerate(plan.items):
            if isinstance(item, Fill):
                if item.name in held:  # else it is for another part of a larger model
                    items.append(fill_for(item, held[item.name], at, own_seed))
            elif isinstance(item, Copy) and any(entry.name in held for entry in item.entries):
                items.append(self._checked_copy(at, item, module, held, scope))
        return items

    def _settled(self, scope: Scope) -> int | None:
        """Gives the call the plan's numbers and seed; returns the seed that its fills must bring themselves."""
        plan, asked = self.plan, scope.asked_seed
        if plan.why_not_exact:
            if plan.seed is not None:
                scope.seed.keep(plan.seed)
            return None
        if plan.seed is None:  # nothing is drawn, or each fill has its own
            return None
        if asked is not None and asked != plan.seed:
            raise InitRuntimeError(
                f"the plan has seed {plan.seed}, but the call was given seed={asked}", hint=": leave it out"
            )
        scope.backends.need(plan.numbers)
        scope.seed.expect(scope.meshes())
        scope.seed.keep(plan.seed)
        return None if scope.seed.value == plan.seed else plan.seed

    def _tell(self, held: Mapping[str, Held], scope: Scope, rule: str) -> None:
        items, dtypes = self.plan.items, self.plan.dtypes
        computed = [entry.name for item in items if isinstance(item, Replay) for entry in item.entries]
        if kept := [name for name in computed if name in held and not held[name].tensor.is_meta]:
            scope.warn_once(
                rule,
                f"{names_line('tensors that code computes, of which a plan has names only', kept)}. They keep what "
                f"they have",
            )
        rounded = {
            f"{item.name} ({_dtype(dtypes[item.tensor])}, here {_dtype(held[item.name].tensor.dtype)})": None
            for item in items
            if isinstance(item, Fill) and item.name in held and dtypes[item.tensor] != held[item.name].tensor.dtype
        }
        if rounded:
            scope.warn_once(
                rule,
                f"{names_line('tensors of another dtype than in the plan', list(rounded))}. They get the same "
                f"numbers, rounded to their own dtype",
            )

    def copy(self, at: int, item: Copy, module: nn.Module, held: Mapping[str, Held], scope: Scope) -> Copy:
        """Returns a plan's copy of a checkpoint for the tensors of a model; nothing is read but names and shapes.

        Args:
            at: its place among the items.
            item: it, in the plan.
            module, held: the model, and its tensors by their names in the plan.
            scope: of the call.

        Raises:
            RuntimeError: the checkpoint holds other names or shapes than when the plan was made.
            Others: as for a ``Pretrained`` rule.
        """
        if not item.request:
            raise InitRuntimeError(
                f"{item.rule}: a plan cannot hold this copy: {item.why_not_kept or item.unknown}", place=item.rule
            )
        if at not in self._copying:
            self._copying[at] = PretrainedInit(**item.request)
        target = _module_at(module, item.path, scope.prefix)
        (copy,) = self._copying[at].plan_items(target, scope, item.rule)
        assert isinstance(copy, Copy)
        if copy.unknown:
            return copy
        wanted = {id(held[entry.name].tensor): (entry.name, entry.name_in_file, entry.shape) for entry in item.entries}
        found = {id(entry.tensor): (entry.name_in_file, entry.shape) for entry in copy.entries}
        others = [name for key, (name, *rest) in wanted.items() if found.get(key) != tuple(rest)]
        others += [entry.name for entry in copy.entries if id(entry.tensor) not in wanted]
        _must_be_same(item, others)
        return copy

    def _checked_copy(self, at: int, item: Copy, module: nn.Module, held: Mapping[str, Held], scope: Scope) -> Copy:
        """Returns it once the checkpoint has been found to hold the values of the plan."""
        copy = self.copy(at, item, module, held, scope)
        kept = {} if copy.unknown or scope.checkpoints.is_offline else dict(item.digests())
        if kept:
            now = copy.digests()
            here = {held[name].name: digest for name, digest in kept.items()}
            _must_be_same(item, [name for name, digest in here.items() if now.get(name) != digest])
        return copy


def _must_be_same(item: Copy, others: Sequence[str]) -> None:
    if others:
        raise InitRuntimeError(
            f"{item.rule}: {item.source} is not the checkpoint that the plan was made with: "
            f"{names_line('tensors have other names, shapes or values', others)}",
            place=item.rule,
        )


def fill_for(fill: Fill, held: Held, order: int, seed: int | None) -> Fill:
    """Returns a plan's fill for a tensor of a model, with the numbers that it has in the plan whatever the names here.

    Args:
        fill: of the plan.
        held: the tensor that it is for.
        order: its position.
        seed: the plan's, where the call has another one.
    """
    part, numbers = geometry_of(fill)
    part = part or Strided.whole(fill.tensor.shape)
    stream = "" if fill.stream_name == held.name else fill.stream_name
    own_seed = seed if fill.seed is None and fill.is_drawn else fill.seed
    kept = RecordedFill(
        fill.distribution,
        tuple(fill.tensor.shape),
        part,
        stream,
        numbers or part,
        order,
        fill.rule,
        fill.info,
        own_seed,
    )
    return kept.fill(held.name, held.tensor)


def bound(plan: Plan, module: nn.Module, names: Names, prefix: Prefix, consequence: str = "") -> dict[str, Held]:
    """Returns by the plan's names the tensors under a module.

    Names in the plan may be those under the module, or those behind the prefix.

    Raises:
        RuntimeError: the plan writes names that the module lacks, the module has parameters that the plan does not
            know, or shapes or dtypes do not fit.
    """
    wanted = _written(plan)
    if isinstance(prefix, str) and prefix:  # of a plan for the larger model, what belongs to this part of it
        dotted = prefix.removesuffix(".") + "."
        wanted = {name: item for name, item in wanted.items() if name.startswith(dotted)} or wanted
    held: dict[str, Held] = {}
    free = set(plan.unreached)
    seen: set[torch.Tensor] = set()
    lacking: dict[str, tuple[int, ...]] = {}
    for path, each in walk(module):
        for tensors in (each._parameters, each._buffers):
            for attribute, tensor in tensors.items():
                if tensor is None or tensor in seen:
                    continue
                seen.add(tensor)
                plain = join(path, attribute)
                known = next((name for name in (renamed(plain, prefix), plain) if name in wanted), None)
                if known is not None:
                    held[known] = Held(names.name_of(tensor, each, attribute), tensor)
                elif tensors is each._parameters and free.isdisjoint((renamed(plain, prefix), plain)):
                    lacking[renamed(plain, prefix)] = () if is_lazy(tensor) else tuple(tensor.shape)
    absent = [name for name in wanted if name not in held]
    differing = [text for name, each in held.items() if (text := _difference(name, wanted[name], each.tensor))]
    told = (
        ("names of the plan that the model lacks", absent),
        ("parameters of the model that the plan lacks", list(lacking)),
        ("tensors of another shape or kind of dtype", differing),
    )
    if absent or lacking or differing:
        texts = [names_line(what, found) for what, found in told if found]
        shapes = {name: tuple(each.tensor.shape) for name, each in wanted.items()}
        texts += (ties := tied_plans.differing_ties(module, prefix, shapes, absent, lacking))
        raise InitRuntimeError(
            f"the plan does not fit {type(module).__name__}: {'; '.join(texts)}{consequence}",
            hint=tied_plans.HINT if ties else "",
        )
    return held


class _Written(NamedTuple):
    """A tensor as a plan has it."""

    tensor: torch.Tensor
    dtype: torch.dtype | None
    """None: any does, as a checkpoint's tensor takes the place of the model's."""
    is_drawn: bool


def _written(plan: Plan) -> dict[str, _Written]:
    """Returns by name what a plan's items write."""
    found: dict[str, _Written] = {}
    for item in plan.items:
        if isinstance(item, Fill):
            drawn = item.is_drawn or (item.name in found and found[item.name].is_drawn)
            found[item.name] = _Written(item.tensor, plan.dtypes[item.tensor], drawn)
        elif not isinstance(item, Call):
            for entry in item.entries:
                is_adopted = isinstance(item, Copy) and item.replaces
                found[entry.name] = _Written(entry.tensor, None if is_adopted else plan.dtypes[entry.tensor], False)
    return found


def _difference(name: str, kept: _Written, here: torch.Tensor) -> str:
    if is_lazy(here):
        return f"{name} (lazy: it has no shape yet)"
    dtype = here.dtype if kept.dtype is None else kept.dtype
    if kept.tensor.shape == here.shape and dtype == here.dtype:  # as nearly all are
        return ""
    old, new = _geometry(kept.tensor, dtype), _geometry(here, here.dtype)
    if kept.tensor.shape != here.shape:
        return f"{name} ({old} in the plan, {new} here)"
    dtypes = {dtype, here.dtype}
    are_floats = all(each.is_floating_point for each in dtypes)
    if are_floats and not (kept.is_drawn and torch.float64 in dtypes):
        return ""
    return f"{name} ({old} in the plan, {new} here, which has other numbers)"


def _geometry(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or '()'} {_dtype(dtype)}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _module_at(root: nn.Module, path: str, prefix: Prefix) -> nn.Module:
    for here, module in walk(root):
        if path == here or (here and path == renamed(here, prefix)):
            return module
    raise InitRuntimeError(f"the plan copies a checkpoint into {path!r}, which {type(root).__name__} lacks")
