"""``materialize()``: a model on the meta device gets memory and values, each parameter once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .config.rules import Rule, parse, steps_of
from .config.trees import has_own_configs, steps_of_tree
from .digesting import digest as digest_of
from .errors import InitRuntimeError, InitTypeError, InitValueError, check_module, if_path
from .execution.calls import open_call
from .execution.collector import uncollected
from .execution.defaults import Strict, check_strict, default_strict
from .execution.memory_book import MemoryBook
from .execution.reports import Report
from .execution.runner import check
from .naming import Prefix, unwrapped, walk
from .own_code import own_code_for, run_own_code
from .own_init import warn_of_own_init
from .plans import Call, Copy, Fill, Item, Replay, names_line
from .recording.capturing import recording
from .recording.recipes import Recipe
from .slots import Slot, adopt, allocate, rebound, restoring


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
        raise InitRuntimeError(f"device={str(device)!r}: torch {torch.__version__} finds no CUDA device")
    strict = bool(default_strict() if strict is None else check_strict(strict))
    if recipe is not None and not isinstance(recipe, Recipe):
        raise InitTypeError(
            f"recipe must be what fastinit.capture gives, but got {type(recipe)}",
            hint=if_path(recipe, ". A plan from a file takes the place of the config: fastinit.Plan.load(path)"),
        )
    places = walk(model)
    base = unwrapped(model)
    is_tree = init_cfg is None and has_own_configs(base)
    opening = open_call(model, backend=backend, seed=seed, prefix=prefix, strict=strict, devices={target})
    with restoring(places) as slots, opening as call, recording(call, is_lost=True) as watch:
        call.is_lost = not any(
            tensor.numel() and not tensor.is_meta for tensor in (*model.parameters(), *model.buffers())
        )
        rules = [] if recipe is None else [Rule("recipe", recipe, model, False)]
        if init_cfg is not None:
            rules += parse(model, init_cfg)
        with watch.book.paused(), uncollected():
            steps = steps_of(rules, call.scope)
            of_tree = steps_of_tree(base, call.scope) if is_tree else []
            items = [item for step in (*steps, *of_tree) for item in step.items]
            check(items, call.scope, needs_memory=False)
            own = own_code_for(places, slots, items)
            _must_be_known(own.rest, rules, call.scope.prefix)
            if not any(isinstance(item, Call) for item in items):  # code of the user's might write anything
                _must_have_values(own.without, "their modules have no reset_parameters", recipe)
            if not is_tree:
                warn_of_own_init(model, own.rest, call.scope)
            new = allocate(slots, target)
            steps = [step._replace(items=rebound(step.items, new)) for step in steps]
            watch.book.generation += 1
            call.scope.names.renew()
            _note_as_new(slots, watch.book)
        # What rules and the recipe write can be there before the modules' own code runs, which may read it.
        are_known = not is_tree and all(map(_is_known, items))
        if are_known:
            call.check(steps)
            call.run(steps)
        call.fill(run_own_code(own, call, call.ledger(), watch, is_reached_there=are_known))
        if not are_known:
            call.check(steps)
            call.run(steps)
        if is_tree:
            base.init_weights()  # type: ignore[operator]
        allocated = {id(tensor) for tensor in new.values()}
        replaced = [slot for slot in slots if id(slot.tensors.get(slot.attribute)) not in allocated]
        if replaced:
            adopt(replaced, target)
            watch.book.generation += 1
            call.scope.names.renew()
        empty = _without_values([slot for slot in slots if slot not in replaced], watch.book)
        _must_have_values(empty, "their modules' own code does not write them", recipe)
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
        raise InitValueError(
            "device='meta' has no memory", hint=": give the device that the model is to be on, e.g. 'cpu'"
        )
    return target


def _must_be_known(rest: Sequence[Slot], rules: Sequence[Rule], prefix: Prefix) -> None:
    """Raises RuntimeError if a recipe knows that a tensor got values that it cannot give again."""
    for recipe in (rule.initializer for rule in rules if isinstance(rule.initializer, Recipe)):
        lost = {slot.name: recipe.why_unknown(slot.name, prefix) for slot in rest}
        told = [f"{name} ({why})" for name, why in lost.items() if why is not None]
        if told:
            raise InitRuntimeError(
                f"materialize: {names_line('tensors were given values by code that cannot be run again', told)}. Add a "
                f"rule with param=..., or put tensors with values in their place before"
            )


def _must_have_values(slots: Sequence[Slot], why: str, recipe: Recipe | None) -> None:
    """Raises RuntimeError for slots that nothing gives values to.

    Args:
        slots: none, or those that get no values.
        why: own code gives them none.
        recipe: that the user gave.
    """
    if not slots:
        return
    names = [slot.name for slot in slots]
    unknown = {} if recipe is None else recipe.unknown
    told = [f"{name} ({unknown[name]})" for name in names if name in unknown]
    by_code = f" The recipe has no values of theirs but those of other code: {', '.join(told[:3])}." if told else ""
    put = "put tensors with values in their place before"
    is_for_rule = any(slot.tensors is slot.module._parameters for slot in slots)
    advice = f"Add a rule with param=..., or {put}" if is_for_rule else f"No rule writes buffers: {put}"
    raise InitRuntimeError(
        f"materialize: {names_line('tensors would get memory but no values', names)}. No rule reaches them, and "
        f"{why}.{by_code} {advice}"
    )
