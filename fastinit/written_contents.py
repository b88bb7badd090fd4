"""From a model's items, or a plan's, to the contents of a checkpoint: what gives each tensor of it its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .checkpoint.writing.contents import Content, Draw, Drawn, Made
from .config.kept_plans import Held, fill_for
from .errors import InitRuntimeError
from .execution.runner import execute
from .execution.scope import Scope
from .naming import without_wrappers
from .plans import (
    Call,
    Copy,
    Dirac,
    Fill,
    Identity,
    Item,
    Plan,
    Replay,
    Strided,
    covered,
    is_structured,
    names_line,
    tensors_of,
)
from .plans.lock_file import written_by
from .shards.dtensor import is_sharded
from .slots import rebound
from .tied_names import without_ties

Place = tuple[int, torch.dtype, Strided]
"""A storage, and where a tensor lies in it: tied parameters, and what a state dict has of them, have one."""


def place_of(tensor: torch.Tensor) -> Place:
    """Returns where a tensor is, with memory or without."""
    return tensor.untyped_storage()._cdata, tensor.dtype, Strided.of(tensor)


@dataclass(frozen=True)
class ToWrite:
    """The tensors of a checkpoint, and what is not written."""

    contents: Sequence[Content]
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Names of tied tensors that are not written -> those of the same tensors that are."""


def of_model(
    model: nn.Module, items: Sequence[Item], n_asked: int, scope: Scope, why_unknown: Callable[[str], str]
) -> ToWrite:
    """Returns what a checkpoint of a model holds: its state dict, in which tied tensors come once.

    Args:
        model: on the meta device; what has memory keeps its values where no item writes it.
        items: that give it its values.
        n_asked: how many of them, the first ones, are those of rules and recipes, and not of modules' own code.
        scope: whose seed counts.
        why_unknown: returns what wrote a tensor, by its name, that a recipe cannot do again, "" for any other tensor.

    Raises:
        RuntimeError: tensors have no values that a plan knows; they are listed.
    """
    _must_be_plain(items)
    named: dict[str, Any] = dict(model.state_dict())
    if others := [name for name, each in named.items() if not isinstance(each, torch.Tensor)]:
        raise InitRuntimeError(f"write: {names_line('entries of the state dict are no tensors', others)}")
    _must_be_strided(named)
    kept, dropped = without_ties(named, model.named_modules(), model, place_of)
    owners = {place_of(each): each for each in (*model.parameters(), *model.buffers()) if not is_sharded(each)}
    of_place, asked = _items_by_place(items), _items_by_place(items[:n_asked])
    lost: list[str] = []
    contents = []
    for name in kept:
        tensor = named[name]
        owner, view = owners.get(place_of(tensor)), None
        if owner is None:
            owner, view = _part_of(tensor, owners.values())
        place = None if owner is None else place_of(owner)
        found = [] if place is None else of_place.get(place, [])
        why = _why_not(owner, found)
        if place not in asked and tensor.is_meta:  # a recipe's word counts more than what own code would give
            why = why_unknown(without_wrappers(name)) or why
        if owner is None or why is not None:
            lost.append(f"{name} ({why})" if why else name)
        else:
            origin = _origin(owner, found, scope, view)
            contents.append(Content(name, tensor.dtype, tuple(tensor.shape), origin))
    if lost:
        raise InitRuntimeError(
            f"write: {names_line('tensors have no values that a plan knows', lost)}. Add a rule with param=..., or put "
            f"tensors with values in their place before"
        )
    return ToWrite(contents, dropped)


def of_plan(plan: Plan, scope: Scope) -> ToWrite:
    """Returns what a checkpoint of a plan alone holds: what it writes that a state dict has, under its name there.

    Raises:
        RuntimeError: the plan copies or calls, it leaves parameters out, or two of its tensors have one name.
        ValueError: a part of a distributed tensor is filled that is no rectangle.
    """
    _must_be_plain(plan.items)
    if plan.unreached:
        raise InitRuntimeError(
            f"write: {names_line('parameters have no values: no row of the plan writes', plan.unreached)}"
        )
    items = _for_whole_tensors(plan)
    left_out = set(plan.non_persistent)
    tensors: dict[Place, tuple[str, torch.Tensor]] = {}
    for item in items:
        named = [(item.name, item.tensor)] if isinstance(item, Fill) else []
        named += [(entry.name, entry.tensor) for entry in item.entries] if isinstance(item, Replay) else []
        for name, tensor in named:
            if name not in left_out:
                tensors.setdefault(place_of(tensor), (name, tensor))
    _must_be_strided(dict(tensors.values()))
    if len(dict(tensors.values())) < len(tensors):
        raise InitRuntimeError(
            "write: the plan has several tensors of one name: give the model with it, write(model, path, plan)"
        )
    of_place = _items_by_place(items)
    contents, lost = [], []
    for place, (name, tensor) in tensors.items():
        if (why := _why_not(tensor, of_place[place])) is not None:
            lost.append(f"{name} ({why})" if why else name)
        origin = _origin(tensor, of_place[place], scope, None)
        contents.append(Content(name, tensor.dtype, tuple(tensor.shape), origin))
    if lost:
        raise InitRuntimeError(
            f"write: {names_line('tensors have no values that the plan knows', lost)}",
            hint=": code computes them, which is in the model. Give that, and the plan as its config: "
            "write(make_model, path, plan), or `fastinit write MODEL PATH --config PLAN`",
        )
    has_values = left_out | written_by(items).keys()
    if absent := [name for name in plan.names if name not in has_values]:
        scope.warn_once(
            "write",
            f"{names_line('buffers of the model are in no row of the plan', absent)}. The checkpoint lacks them: a "
            f"model that loads it keeps its own. Give the model with the plan, write(model, path, plan), and it has "
            f"them",
        )
    return ToWrite(contents)


def _for_whole_tensors(plan: Plan) -> list[Item]:
    """Returns a plan's items, as one from a file has them: for whole tensors, in the dtypes that they were planned in.

    Raises:
        ValueError: a part of a distributed tensor is filled that is no rectangle.
    """
    new = {
        tensor: torch.empty(tensor.shape, dtype=dtype, device="meta")
        for tensor, dtype in plan.dtypes.items()
        if is_sharded(tensor) or (tensor.dtype != dtype and not nn.parameter.is_lazy(tensor))
    }
    if not new:
        return list(plan.items)
    return [
        fill_for(item, Held(item.name, new[item.tensor]), at, None)
        if isinstance(item, Fill) and item.tensor in new
        else rebound([item], new)[0]
        for at, item in enumerate(plan.items)
    ]


# --- what is refused ------------------------------------------------------------------------------------------------


def _must_be_plain(items: Iterable[Item]) -> None:
    for item in items:
        if isinstance(item, Copy):
            raise InitRuntimeError(
                f"{item.rule}: write draws and computes values, and {item.source} would be copied: materialize the "
                f"model, and save it",
                place=item.rule,
            )
        if isinstance(item, Call):
            raise InitRuntimeError(
                f"{item.rule}: {item.label} is code whose effects are not known before it runs: materialize the model, "
                f"and save it",
                place=item.rule,
            )


def _must_be_strided(named: Mapping[str, torch.Tensor]) -> None:
    if sharded := [name for name, each in named.items() if is_sharded(each)]:
        raise InitRuntimeError(
            f"write: {names_line('tensors are distributed over ranks', sharded)}. Give the model before it is sharded, "
            f"or its plan, write(fastinit.plan(model, ...), path): they have the same values, and need no memory"
        )
    others = {
        f"{name} ({type(each).__name__ if each.layout == torch.strided else each.layout})": None
        for name, each in named.items()
        if is_traceable_wrapper_subclass(each) or each.layout != torch.strided or nn.parameter.is_lazy(each)
    }
    if others:
        raise InitRuntimeError(f"write: {names_line('tensors are not plain strided ones', list(others))}")


def _why_not(owner: torch.Tensor | None, items: Sequence[Item]) -> str | None:
    """Returns why a tensor has no known values ("": nothing is known of it), None if it has."""
    if owner is None:
        return "a hook of state_dict() computes it"
    if not owner.numel():
        return None
    computed = [item for item in items if isinstance(item, Replay)]
    if unknown := [item.unknown for item in computed if item.unknown]:
        return unknown[-1]
    if computed or not owner.is_meta:
        return None
    fills = [item for item in items if isinstance(item, Fill)]
    if not fills:
        return ""
    draws = [Draw(fill, *where) for fill in fills for where in _parts(fill) or ()]
    is_whole = any(fill.parts is None for fill in fills) or _cover(draws, owner)
    return None if is_whole else f"only a part of it is filled: {fills[-1].info or fills[-1].rule}"


# --- names ------------------------------------------------------------------------------------------------------------


def _part_of(
    tensor: torch.Tensor, owners: Iterable[torch.Tensor]
) -> tuple[torch.Tensor | None, Callable[[torch.Tensor], torch.Tensor] | None]:
    """Returns the parameter or buffer that a tensor is a view of, and how to see it there."""
    for owner in owners:
        if owner.untyped_storage()._cdata == tensor.untyped_storage()._cdata and owner.dtype == tensor.dtype:
            offset = int(tensor.storage_offset()) - int(owner.storage_offset())
            if Strided.of(tensor).within(Strided.of(owner)) is not None:
                return owner, partial(_seen, shape=tensor.shape, stride=tensor.stride(), offset=offset)
    return None, None


def _seen(made: torch.Tensor, shape: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
    return made.as_strided(shape, stride, int(made.storage_offset()) + offset)


# --- values -----------------------------------------------------------------------------------------------------------


def _items_by_place(items: Iterable[Item]) -> dict[Place, list[Item]]:
    """Returns what writes each place, in order; what a later fill of all of it replaces is left out."""
    found: dict[Place, list[Item]] = {}
    for item in items:
        for tensor in tensors_of(item):
            place = place_of(tensor)
            if isinstance(item, Fill) and item.parts is None:
                found[place] = []
            found.setdefault(place, []).append(item)
    return found


def _origin(
    tensor: torch.Tensor,
    items: Sequence[Item],
    scope: Scope,
    view: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Drawn | Made:
    """Returns what gives a tensor its values.

    Args:
        tensor: a parameter or buffer.
        items: what writes it, in order.
        scope: whose seed counts.
        view: how what is wanted is seen in it, if that is not all of it.
    """
    draws = _draws(items)
    if view is None and draws and tensor.numel() and _cover(draws, tensor):
        return Drawn(draws)

    def make() -> torch.Tensor:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if not tensor.is_meta:
            made.copy_(tensor.detach())
        for item in items:
            _run(item, tensor, made, scope)
        return (made if view is None else view(made)).contiguous()

    return Made(make)


def _draws(items: Iterable[Item]) -> list[Draw]:
    """Returns fills of which any range can be drawn, in order; none if one of the items is something else."""
    found: list[Draw] = []
    for item in items:
        if not isinstance(item, Fill):
            return []
        by_index = item.parts is None and isinstance(item.distribution, (Identity, Dirac))
        parts = _parts(item) if by_index or not is_structured(item.distribution) else None
        if parts is None:
            return []
        found += [Draw(item, part, numbers) for part, numbers in parts]
    return found


def _parts(fill: Fill) -> list[tuple[Strided, Strided]] | None:
    """Returns the indices of the elements that a fill writes, and those of their values; None: they have no pattern."""
    if fill.parts is None:
        whole = Strided.whole(fill.tensor.shape)
        return [(whole, whole)]
    whole = Strided.of(fill.tensor)
    found = [(Strided.of(box.tensor).within(whole), box.indices) for box in fill.parts]
    return None if any(part is None for part, _ in found) else found  # type: ignore[return-value]


def _cover(draws: Sequence[Draw], tensor: torch.Tensor) -> bool:
    """Tells whether fills write every element of a tensor."""
    return covered([draw.part for draw in draws], tensor.numel())


def _run(item: Item, tensor: torch.Tensor, made: torch.Tensor, scope: Scope) -> None:
    """Lets an item write a tensor that has memory, in place of one that has none."""
    if isinstance(item, Replay):
        place = place_of(tensor)
        entries = [replace(entry, tensor=made) for entry in item.entries if place_of(entry.tensor) == place]
        item.compute(entries, scope)
        return
    new: dict[Any, torch.Tensor] = dict.fromkeys(tensors_of(item), made)
    execute([each for each in rebound([item], new) if isinstance(each, Fill)], scope)
