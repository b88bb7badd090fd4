"""``plan()``: the plan of an initialization, without running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .config.rules import Rule, parse, steps_of
from .config.trees import ENABLE_HINT, has_own_configs, is_of_mmengine, steps_of_tree
from .errors import InitTypeError, check_module, locating, noting_warnings
from .execution.calls import Step, new_scope, open_call
from .execution.collector import uncollected
from .execution.defaults import Strict
from .execution.reports import plan_of
from .execution.runner import check
from .execution.scope import Scope
from .materializing import with_memory
from .naming import Names, Prefix, unwrapped, walk
from .own_code import own_code_for, run_own_code
from .plans import Item, Plan, Replay, ReplayEntry, tensors_of
from .recording.capturing import capture, recording
from .recording.recipes import Recipe
from .slots import Slot, put_back, put_stand_ins, slots_in


def plan(
    module: nn.Module | Callable[[], nn.Module],
    init_cfg: Any = None,
    *,
    device: torch.device | str | None = None,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
) -> Plan:
    """Returns the plan of an initialization; nothing is written.

    It is that of ``initialize`` (with a config or recipe) or of ``init_weights`` (without one). With ``device`` it is
    that of ``materialize``, with the rows that modules' own code writes. For a function or class that makes a model it
    is that of ``build``, and where it makes a BaseModule, of its ``init_weights`` after that: the function runs on the
    meta device.

    Works on meta models too. Only names and shapes of checkpoints are read. Nothing is downloaded: a checkpoint that is
    not on this machine yet is a single row.

    Args:
        module: any ``nn.Module``; without ``init_cfg`` and ``device`` a BaseModule. Or a function or class that makes
            one, without arguments; a config that is given with it comes after its own init.
        init_cfg: as for ``initialize``; also what ``capture`` gave, or a plan.
        device: where ``materialize`` is to put the model, which is on the meta device.
        backend, seed, prefix, strict: as for ``initialize``.

    Raises:
        TypeError: ``init_cfg`` is None and ``module`` is not a BaseModule; or the function needs arguments.
        RuntimeError: modules' own code looks at values, which are not there yet.
        Others: as for ``initialize``, and as the function.

    Example:
        >>> import fastinit, torch
        >>> print(fastinit.plan(torch.nn.Linear(4, 2), dict(type="Xavier", layer="Linear"), seed=1))
        parameter  shape  dtype    device  distribution                 rule      backend
        ---------  -----  -------  ------  ---------------------------  --------  -------
        weight     2x4    float32  cpu     normal(mean=0, std=0.57735)  init_cfg  torch
        bias       2      float32  cpu     constant(0)                  init_cfg  torch
        2 rows, 10 elements; numbers: torch; seed: 1
    """
    recipe = None
    root: Any = module
    with noting_warnings() as warned:
        if is_factory(module):
            root, recipe = made_without_memory(module)
            device = torch.empty(0).device if device is None else device
        how: dict[str, Any] = dict(backend=backend, seed=seed, prefix=prefix, strict=strict)
        found = planned_items(root, init_cfg, recipe, device, how)
    return plan_of(found.items, found.scope, found.device, tuple(warned))


class Planned(NamedTuple):
    """The items of an initialization, which can all run."""

    items: list[Item]
    scope: Scope
    device: torch.device | None
    """That the module is to be on, where that was said."""
    n_asked: int
    """How many of the items, the first ones, are those of rules and recipes; modules' own code gives the others."""


def planned_items(
    root: nn.Module, init_cfg: Any, recipe: Recipe | None, device: torch.device | str | None, how: dict[str, Any]
) -> Planned:
    """Returns the items of an initialization; nothing is written.

    Args:
        root, init_cfg, device: as for ``plan``.
        recipe: what was recorded when a function made the module; None: no function did.
        how: the call's ``backend``, ``seed``, ``prefix`` and ``strict``.
    """
    target = None if device is None else with_memory(device)
    check_module(root)
    how = dict(how, is_dry=True, is_offline=True)
    scope = new_scope(root, meta=target, **how)
    rules = [] if recipe is None else [Rule("the function", recipe, root, False)]
    with uncollected():  # a record for each parameter: a full collection would take as long as planning
        steps = steps_of(rules, scope)
        if recipe is not None:
            steps += _steps_of_init_weights(root, scope)
        if recipe is None or init_cfg is not None:
            steps += _steps_for(root, init_cfg, scope, is_needed=target is None)
        items = [item for step in steps for item in step.items]
    n_asked = len(items)
    if target is not None and recipe is None:
        items += own_items(root, items, target, how)
    with uncollected():
        check(items, scope, needs_memory=False)
        scope.check_complete(items)
    return Planned(items, scope, target, n_asked)


def is_factory(source: object) -> bool:
    """Tells whether what a user gave makes a model, and is none: a function or a class."""
    return callable(source) and not isinstance(source, nn.Module)


def made_without_memory(factory: Callable[[], nn.Module], called: str = "plan", **how: Any) -> tuple[nn.Module, Recipe]:
    """Returns the model that a function makes, on the meta device, and what gave it its values.

    Args:
        factory: the function.
        called: the function that the user called.
        how: arguments of ``capture``.

    Raises:
        TypeError: it needs arguments, or returns no module.
        Others: as it.
    """
    _check_needs_no_arguments(factory, called)
    with capture(**how) as recipe, torch.device("meta"):
        model = factory()
        if not isinstance(model, nn.Module):
            raise InitTypeError(
                f"{called} needs a module or a function that returns one, but it returned {type(model)}"
            )
        recipe.bind(model)
    return model, recipe


def _check_needs_no_arguments(factory: Callable[..., object], called: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # it has none that Python knows
        return
    try:
        signature.bind()
    except TypeError as error:
        name = getattr(factory, "__name__", type(factory).__name__)
        raise InitTypeError(
            f"{called} calls {name} without arguments, and that needs some: {error}",
            hint=f". Give them by a function: {called}(lambda: {name}(...))",
        ) from None


def _steps_of_init_weights(root: nn.Module, scope: Scope) -> list[Step]:
    """Returns the steps of the ``init_weights`` of a model that was made just now; none for what is no BaseModule."""
    base = unwrapped(root)
    if has_own_configs(base):
        return [] if base.is_init else steps_of_tree(base, scope)
    if is_of_mmengine(base):
        scope.warn_once("plan", f"the init_cfg of {type(base).__name__} is not in the plan{ENABLE_HINT}")
    return []


def _steps_for(module: nn.Module, init_cfg: Any, scope: Scope, *, is_needed: bool) -> list[Step]:
    """Returns the steps of a config (or recipe) or, if it is None, of the module's own configs."""
    if init_cfg is not None:
        return steps_of(parse(module, init_cfg), scope)
    base = unwrapped(module)
    if has_own_configs(base):
        return steps_of_tree(base, scope)
    if is_needed:
        if is_of_mmengine(base):
            raise InitTypeError(f"plan needs an init_cfg for {type(base).__name__}", hint=ENABLE_HINT)
        raise InitTypeError(
            f"plan needs an init_cfg for {type(base).__name__}: only a BaseModule has its own",
            hint=". For the plan of `materialize`, which runs modules' own code, give a device",
        )
    return []


def own_items(model: nn.Module, items: Sequence[Item], device: torch.device, how: dict[str, Any]) -> list[Item]:
    """Returns what modules' own code writes where a model gets memory and no item reaches: it runs on the meta device.

    Args:
        model: on the meta device; it is as before in the end.
        items: of rules and recipes.
        device: that the model is to be on.
        how: arguments of the call's scope.
    """
    places = walk(model)
    slots = list(slots_in(places))
    own = own_code_for(places, slots, items)
    before = [(slot, slot.tensor) for slot in slots]
    recipe = Recipe(None, "", False)
    try:
        with open_call(model, devices={device}, meta=device, **how) as call, recording(call, is_lost=True) as watch:
            with watch.book.paused():  # the code sees whole tensors; what it does to them is planned for the parts
                put_stand_ins([slot for slot in own.rest if slot.is_distributed])
                call.scope.names.renew()
            call.fill(run_own_code(own, call, call.ledger(), watch, is_reached_there=False))
            watch.book.generation += 1
            with watch.book.paused(), uncollected():
                call.scope.names.renew()
                recipe.keep(watch.pending, call.scope, watch.operators.journal)
    finally:
        put_back(before)
    scope = new_scope(model, meta=device, **how)
    names = {slot.name_in(scope.names) for slot in own.rest}
    recipe.fills = {name: fills for name, fills in recipe.fills.items() if name in names}
    recipe.computed = {name: made for name, made in recipe.computed.items() if name in names}
    found: list[Item] = []
    if recipe.fills or recipe.computed:
        with locating("materialize", is_place=False):
            found = recipe.plan_items(model, scope, "materialize")
    written = {id(tensor) for item in found for tensor in tensors_of(item)}
    return [*found, *_made_anew([slot for slot in own.rest if id(slot.tensor) not in written], scope.names)]


def _made_anew(slots: Sequence[Slot], names: Names) -> list[Item]:
    """Returns items for what own code computes or puts in place of what was there: its values are not known."""
    items: list[Item] = []
    for slot in {id(slot.tensor): slot for slot in slots}.values():
        info = f"own code of {type(slot.module).__name__}"
        entry = ReplayEntry(slot.name_in(names), slot.tensor, info)
        why = f"no rule reaches it, and what {info} gives it is not known before it has memory"
        items.append(Replay(slot.module, (entry,), "materialize", info, lambda entries, scope: None, why))
    return items
