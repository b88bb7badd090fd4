"""``materialize()``: a model on the meta device gets memory and values, each parameter once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .base_module import has_own_configs, steps_of_tree
from .config.rules import Rule, parse, steps_of
from .digesting import digest as digest_of
from .errors import check_module
from .execution.allocation import allocate_like
from .execution.calls import OpenCall, open_call
from .execution.collector import uncollected
from .execution.defaults import Strict, check_strict, default_strict
from .execution.memory_book import MemoryBook
from .execution.reports import Report
from .execution.runner import check
from .naming import Prefix, unwrapped, walk
from .own_code import Slot, adopt, by_reach, own_code_for, protecting, put_back, run_own_code
from .own_init import warn_of_own_init
from .plans import Call, Copy, Fill, Item, Replay, names_line
from .recording.capturing import recording
from .recording.libraries import models_own_code
from .recording.recipes import Recipe
from .shards.dtensor import is_sharded, like, local_part


def materialize(
    model: nn.Module,
    init_cfg: Any = None,
    *,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
    digest: bool = False,
) -> Report:
    """Gives a model on the meta device memory, and initializes it; each parameter is allocated and filled once.

    Parameters get their values from the config (a BaseModule's own where none is given), else from the recipe. Those
    that neither reaches, and buffers, get them from their modules' own code: ``reset_parameters``, and in models of
    transformers their ``_init_weights``. That code is recorded as in ``capture``: on the contract backends its draws
    go by name and are part of the one plan. Tied parameters stay tied; what is not on the meta device stays as it is.

    Args:
        model: any ``nn.Module``, e.g. made under ``torch.device("meta")``.
        init_cfg: as for ``initialize``.
        recipe: what ``capture`` recorded when the model was made, here or on another device.
        device: where the memory is to be. On the CPU its pages are huge or small, whichever cost less just now.
        backend, seed, prefix: as for ``initialize``.
        strict: as for ``initialize``, and as for ``capture`` of the modules' own code. Every tensor gets values or the
            call fails, so "complete" asks for no more than True.
        digest: as for ``initialize``.

    Raises:
        RuntimeError: parameters or buffers would stay without values; they are listed. The model is on the meta device
            then, as after any other error.
        Others: as ``initialize``.

    Example:
        >>> import fastinit, torch
        >>> with torch.device("meta"):
        ...     model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.BatchNorm1d(512))
        >>> cfg = dict(type="TruncNormal", std=0.02, layer="Linear")
        >>> report = fastinit.materialize(model, cfg, backend="cpp", seed=0)
        >>> model[0].weight.device.type, model[1].running_var.sum().item()
        ('cpu', 512.0)
    """
    check_module(model)
    target = with_memory(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device={str(device)!r}: torch {torch.__version__} finds no CUDA device")
    strict = bool(default_strict() if strict is None else check_strict(strict))
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be what fastinit.capture gives, but got {type(recipe)}")
    slots = list(slots_of(model))
    is_tree = init_cfg is None and has_own_configs(unwrapped(model))
    opening = open_call(model, backend=backend, seed=seed, prefix=prefix, strict=strict, devices={target})
    with _restoring(model, slots), opening as call, recording(call, is_lost=True) as watch:
        call.is_lost = not any(
            tensor.numel() and not tensor.is_meta for tensor in (*model.parameters(), *model.buffers())
        )
        rules = [] if recipe is None else [Rule("recipe", recipe, model, False)]
        if init_cfg is not None:
            rules += parse(model, init_cfg)
        of_models = models_own_code(model)
        with watch.book.paused(), uncollected():
            steps = steps_of(rules, call.scope)
            of_tree = steps_of_tree(unwrapped(model), call.scope) if is_tree else []  # type: ignore[arg-type]
            items = [item for step in (*steps, *of_tree) for item in step.items]
            check(items, call.scope, needs_memory=False)
            rest, others = by_reach(slots, items)
            _must_be_known(rest, rules, call)
            if not any(isinstance(item, Call) for item in items):  # code of the user's might write anything
                without = [slot for slot in own_code_for(model, rest)[1] if slot.module not in of_models]
                _must_not_be_empty(without, "their modules have no reset_parameters", recipe)
            if not is_tree:
                warn_of_own_init(model, rest, call.scope)
            # What rules and the recipe write can be there before the modules' own code runs, which may read it.
            are_known = not is_tree and all(map(_is_known, items))
            new = _allocate(slots, target)
            steps = [replace(step, items=rebound(step.items, new)) for step in steps]
            watch.book.generation += 1
            call.scope.names.renew()
            _note_as_new(slots, watch.book)
        allocated = {id(tensor): tensor for tensor in new.values()}
        if are_known:
            call.check(steps)
            call.run(steps)
            hidden = [slot for slot in others if is_sharded(slot.tensor)]
            with protecting([slot for slot in others if not is_sharded(slot.tensor)], call, watch.book):
                run_own_code(rest, hidden, of_models, call, watch)
        else:
            run_own_code(rest, others, of_models, call, watch)
            call.check(steps)
            call.run(steps)
        if is_tree:
            unwrapped(model).init_weights()  # type: ignore[operator]
        replaced = [slot for slot in slots if id(slot.tensors.get(slot.attribute)) not in allocated]
        adopt(replaced, target, call, watch)
        empty = _without_values([slot for slot in slots if slot not in replaced], watch.book)
        _must_not_be_empty(empty, "their modules' own code does not write them", recipe)
        report = call.report()
    return replace(report, digest=digest_of(model, prefix=prefix)) if digest else report


def _note_as_new(slots: Sequence[Slot], book: MemoryBook) -> None:
    for place in map(book.place_of, (slot.tensor for slot in slots)):
        assert place is not None, "it was allocated just now"
        book.is_new(place)


def _without_values(slots: Sequence[Slot], book: MemoryBook) -> list[Slot]:
    """Returns the slots whose tensors nothing has written, or will."""
    with book.paused():
        places = [(slot, book.place_of(slot.tensor)) for slot in slots]
        return [slot for slot, place in places if place is not None and not book.is_written(place)]


def _must_be_known(rest: Sequence[Slot], rules: Sequence[Rule], call: OpenCall) -> None:
    """Raises RuntimeError if a recipe knows that a tensor got values that it cannot give again."""
    for recipe in (rule.initializer for rule in rules if isinstance(rule.initializer, Recipe)):
        lost = {slot.name: recipe.why_unknown(slot.name, call.scope.prefix) for slot in rest}
        told = [f"{name} ({why})" for name, why in lost.items() if why is not None]
        if told:
            raise RuntimeError(
                f"materialize: {names_line('tensors were given values by code that cannot be run again', told)}. Add a "
                f"rule with param=..., or put tensors with values in their place before"
            )


def _is_known(item: Item) -> bool:
    """Tells whether an item writes what it says and nothing else."""
    if isinstance(item, Copy):
        return not (item.runs_own_code or item.replaces or item.unknown)
    return isinstance(item, (Fill, Replay))


def with_memory(device: torch.device | str) -> torch.device:
    """Returns the device that a model is to be on.

    Raises:
        ValueError: it is the meta device.
    """
    target = torch.device(device)
    if target.type == "meta":
        raise ValueError("device='meta' has no memory: give the device that the model is to be on, e.g. 'cpu'")
    return target


def slots_of(model: nn.Module) -> Iterator[Slot]:
    """Yields where meta tensors are held; one for each holder of a tied tensor.

    Raises:
        RuntimeError: one of them cannot get memory.
    """
    seen: set[nn.Module] = set()
    for path, module in walk(model):
        if module in seen:
            continue
        seen.add(module)
        for tensors in (module._parameters, module._buffers):
            for attribute, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                slot = Slot(module, path, tensors, attribute)
                if nn.parameter.is_lazy(tensor):
                    raise RuntimeError(f"{slot.name!r} is lazy: it has no shape before the model has seen an input")
                if is_sharded(tensor):
                    yield slot
                    continue
                if is_traceable_wrapper_subclass(tensor) or tensor.layout != torch.strided:
                    kind = type(tensor).__name__ if tensor.layout == torch.strided else tensor.layout
                    raise RuntimeError(f"materialize makes plain strided tensors, but {slot.name!r} is a {kind}")
                yield slot


def _allocate(slots: Sequence[Slot], device: torch.device) -> dict[torch.Tensor, torch.Tensor]:
    """Puts tensors with memory into the slots, one for each meta tensor; of a distributed one only what is here.

    Returns the new tensors by the old ones.
    """
    olds = list({id(slot.tensor): slot.tensor for slot in slots}.values())
    here = [local_part(old) if is_sharded(old) else old for old in olds]
    new: dict[torch.Tensor, torch.Tensor] = {}
    for old, tensor in zip(olds, allocate_like(here, device)):
        if is_sharded(old):
            tensor = like(old, tensor)
            if isinstance(old, nn.Parameter):
                tensor = nn.Parameter(tensor, old.requires_grad)
        elif isinstance(old, nn.Parameter):
            tensor = torch.Tensor._make_subclass(type(old), tensor, old.requires_grad)  # type: ignore[arg-type]
        noted = {key: value for key, value in vars(old).items() if key not in ("_local_tensor", "_spec")}
        vars(tensor).update(noted)
        new[old] = tensor
    for slot in slots:
        slot.tensors[slot.attribute] = new[slot.tensor]
    return new


def rebound(items: Sequence[Item], new: Mapping[torch.Tensor, torch.Tensor]) -> list[Item]:
    """Returns items that were planned for tensors without memory, for those that took their places."""
    return [_rebound(item, new) for item in items]


def _rebound(item: Item, new: Mapping[torch.Tensor, torch.Tensor]) -> Item:
    if isinstance(item, Replay):
        return replace(item, entries=tuple(replace(e, tensor=new.get(e.tensor, e.tensor)) for e in item.entries))
    if isinstance(item, Copy):
        return replace(item, entries=tuple(replace(e, tensor=new.get(e.tensor, e.tensor)) for e in item.entries))
    if not isinstance(item, Fill) or item.tensor not in new:
        return item
    tensor = new[item.tensor]
    if item.parts is None:
        return replace(item, tensor=tensor)
    old, here = (local_part(each) if is_sharded(each) else each for each in (item.tensor, tensor))
    boxes = []
    for box in item.parts:
        view, offset = box.tensor, box.tensor.storage_offset() - old.storage_offset() + here.storage_offset()
        boxes.append(replace(box, tensor=here.detach().as_strided(view.shape, view.stride(), offset)))
    return replace(item, tensor=tensor, parts=tuple(boxes))


@contextmanager
def _restoring(model: nn.Module, slots: Sequence[Slot]) -> Iterator[None]:
    """Puts the meta tensors back if the block fails."""
    before = [(slot, slot.tensor) for slot in slots]
    trees: list[Any] = [module for module in model.modules() if has_own_configs(module)]
    done = [(module, module._is_init) for module in trees]
    try:
        yield
    except BaseException:
        put_back(before)
        for module, is_init in done:
            module._is_init = is_init
        raise


def _must_not_be_empty(slots: Sequence[Slot], why: str, recipe: Recipe | None) -> None:
    if not slots:
        return
    names = [slot.name for slot in slots]
    unknown = {} if recipe is None else recipe.unknown
    told = [f"{name} ({unknown[name]})" for name in names if name in unknown]
    by_code = f" The recipe has no values of theirs but those of other code: {', '.join(told[:3])}." if told else ""
    put = "put tensors with values in their place before"
    is_for_rule = any(slot.tensors is slot.module._parameters for slot in slots)
    advice = f"Add a rule with param=..., or {put}" if is_for_rule else f"No rule writes buffers: {put}"
    raise RuntimeError(
        f"materialize: {names_line('tensors would get memory but no values', names)}. No rule reaches them, and "
        f"{why}.{by_code} {advice}"
    )
