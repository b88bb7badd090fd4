"""``build()`` and ``materialize()``: models whose parameters get memory and values once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .base_module import BaseModule
from .config.rules import parse, run_rules
from .errors import check_module
from .execution.defaults import Strict, check_strict, default_strict
from .execution.memory import allocate_like
from .execution.provenance import Provenance
from .execution.reports import Report
from .execution.session import Session, session
from .naming import Prefix, join, unwrapped, walk
from .planning import planned_in
from .plans import Call, names_line, tensors_of
from .recording.blocks import capture, recording
from .recording.libraries import models_own_code, own_code
from .recording.operators import is_contract
from .recording.recipes import Recipe, RecordedFill, in_order, recorded_fills
from .shards.dtensor import is_sharded, like, local_part

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class _Slot:
    """Where a module holds a tensor that is on the meta device."""

    module: nn.Module
    path: str
    entries: dict[str, Any]
    """The module's parameters, or its buffers."""
    key: str

    @property
    def name(self) -> str:
        return join(self.path, self.key)

    @property
    def tensor(self) -> torch.Tensor:
        return self.entries[self.key]  # type: ignore[no-any-return]


def build(
    factory: Callable[..., Model],
    /,
    *args: Any,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
    **kwargs: Any,
) -> Model:
    """Calls a function or class that makes a model, and fills each parameter once instead of drawing values twice.

    The constructor's and the library's own init code runs as it is and is recorded (``capture``): its memory is not
    touched before all is known, and then filled in one launch. What it computes otherwise, it computes. Under "torch",
    which is "auto" on the CPU, the model is the one that ``factory`` makes alone, bit for bit.

    Args:
        factory: e.g. a model's class, ``AutoModel.from_config``, ``timm.create_model``. Its own arguments called
            ``device``, ``dtype``, ``backend``, ``seed``, ``prefix`` or ``strict`` go in by a lambda.
        device: that ``torch.device`` stands for in the call; None: as outside.
        dtype: the default dtype in the call; None: as outside.
        backend, seed, prefix, strict: as for ``capture``.

    Raises:
        TypeError: ``factory`` returned no module.
        ValueError: the device is "meta": make the model under ``capture`` and ``torch.device("meta")``, and give the
            recipe to ``materialize``.
        Others: as ``capture``, and as ``factory``.

    Example:
        >>> import torch, fastinit
        >>> a = fastinit.build(torch.nn.Linear, 512, 512, backend="cpp", seed=0)
        >>> b = fastinit.build(lambda: torch.nn.Linear(512, 512, dtype=torch.bfloat16), backend="cpp", seed=0)
        >>> torch.equal(a.weight.to(torch.bfloat16), b.weight)
        True
    """
    if device is not None and torch.device(device).type == "meta":
        raise ValueError(
            "device='meta' has no memory to fill: `with fastinit.capture() as recipe, torch.device('meta'): ...` makes "
            "such a model, and `fastinit.materialize(model, recipe=recipe)` gives it memory and values"
        )
    with capture(backend=backend, seed=seed, prefix=prefix, strict=strict) as recipe:
        with _defaults(device, dtype):
            model = factory(*args, **kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(f"build needs a factory that returns a torch.nn.Module, but it returned {type(model)}")
        recipe.bind(model)
    return model


@contextmanager
def _defaults(device: torch.device | str | None, dtype: torch.dtype | None) -> Iterator[None]:
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(torch.device(device))
        if dtype is not None:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(dtype)
        yield


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
        device: where the memory is to be. On the CPU it is backed by huge pages where the system has them.
        backend, seed, prefix: as for ``initialize``.
        strict: as for ``initialize``, and as for ``capture`` of the modules' own code. Every tensor gets values or the
            call fails, so "complete" asks for no more than True.

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
    target = torch.device(device)
    if target.type == "meta":
        raise ValueError("device='meta' has no memory: give the device that the model is to be on, e.g. 'cpu'")
    strict = bool(default_strict() if strict is None else check_strict(strict))
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be what fastinit.capture gives, but got {type(recipe)}")
    slots = list(_slots(model))
    of_cfg = None
    if init_cfg is not None or isinstance(unwrapped(model), BaseModule):
        dry = Session(model, backend=backend, seed=seed, prefix=prefix, strict=strict, dry=True)
        of_cfg = planned_in(dry, init_cfg)
    items = () if of_cfg is None else of_cfg.items
    reached = {id(tensor) for item in items for tensor in tensors_of(item)}
    of_recipe = {} if recipe is None else {slot.name: recipe.of(slot.name, prefix) for slot in slots}
    recorded = {name: fills for name, fills in of_recipe.items() if fills is not None}
    rest = [slot for slot in slots if id(slot.tensor) not in reached and slot.name not in recorded]
    of_models = models_own_code(model)
    if not any(isinstance(item, Call) for item in items):  # code of the user's might write anything
        without = [slot.name for slot in rest if own_code(slot.module) is None and slot.module not in of_models]
        _must_not_be_empty(without, "their modules have no reset_parameters", recipe)
    with _restoring(model, slots):
        _allocate(slots, target)
        new = {id(slot.tensor) for slot in rest}
        opening = session(model, backend=backend, seed=seed, prefix=prefix, strict=strict)
        with opening as opened, recording(opened):
            _note_as_new(slots, opened)
            _run_own_code(rest, [slot for slot in slots if id(slot.tensor) not in new], of_models, opened)
            _run_recipe(slots, recorded, opened)
            if init_cfg is not None:
                run_rules(parse(model, init_cfg), opened)
            elif of_cfg is not None:
                unwrapped(model).init_weights()  # type: ignore[operator]
            empty = _without_values(slots, opened)
            _must_not_be_empty(empty, "their modules' own code does not write them", recipe)
            report = opened.report()
    return report


def _run_recipe(slots: Sequence[_Slot], recorded: Any, opened: Session) -> None:
    """Does to the new tensors what was recorded of those of their names, in the order in which it was."""
    once = {id(slot.tensor): slot for slot in reversed(slots) if slot.name in recorded}
    fills = in_order(
        (opened.names.name_of(slot.tensor, slot.module, slot.key), slot.tensor, recorded[slot.name])
        for slot in once.values()
    )
    opened.check(fills)
    opened.run(fills)


def _note_as_new(slots: Sequence[_Slot], opened: Session) -> None:
    deferred = opened.deferred
    assert deferred is not None, "it is recorded"
    with deferred.paused():
        for place in map(deferred.place_of, (slot.tensor for slot in slots)):
            assert place is not None, "it was allocated just now"
            deferred.is_new(place)


def _without_values(slots: Sequence[_Slot], opened: Session) -> list[str]:
    """Returns the names of the tensors that nothing has written, or will."""
    deferred = opened.deferred
    assert deferred is not None, "it is recorded"
    with deferred.paused():
        places = [(slot.name, deferred.place_of(slot.tensor)) for slot in slots]
        return [name for name, place in places if place is not None and not deferred.is_written(place)]


def _slots(model: nn.Module) -> Iterator[_Slot]:
    """Yields where meta tensors are held; one for each holder of a tied tensor."""
    seen: set[nn.Module] = set()
    for path, module in walk(model):
        if module in seen:
            continue
        seen.add(module)
        for entries in (module._parameters, module._buffers):
            for key, tensor in entries.items():
                if tensor is None or not tensor.is_meta:
                    continue
                slot = _Slot(module, path, entries, key)
                if nn.parameter.is_lazy(tensor):
                    raise RuntimeError(f"{slot.name!r} is lazy: it has no shape before the model has seen an input")
                if is_sharded(tensor):
                    yield slot
                    continue
                if is_traceable_wrapper_subclass(tensor) or tensor.layout != torch.strided:
                    kind = type(tensor).__name__ if tensor.layout == torch.strided else tensor.layout
                    raise RuntimeError(f"materialize makes plain strided tensors, but {slot.name!r} is a {kind}")
                yield slot


def _allocate(slots: Sequence[_Slot], device: torch.device) -> None:
    """Puts tensors with memory into the slots, one for each meta tensor; of a distributed one only what is here."""
    olds = list({id(slot.tensor): slot.tensor for slot in slots}.values())
    here = [local_part(old) if is_sharded(old) else old for old in olds]
    new: dict[int, torch.Tensor] = {}
    for old, tensor in zip(olds, allocate_like(here, device)):
        if is_sharded(old):
            tensor = like(old, tensor)
            if isinstance(old, nn.Parameter):
                tensor = nn.Parameter(tensor, old.requires_grad)
        elif isinstance(old, nn.Parameter):
            tensor = torch.Tensor._make_subclass(type(old), tensor, old.requires_grad)  # type: ignore[arg-type]
        noted = {key: value for key, value in vars(old).items() if key not in ("_local_tensor", "_spec")}
        vars(tensor).update(noted)
        new[id(old)] = tensor
    for slot in slots:
        slot.entries[slot.key] = new[id(slot.tensor)]


def _run_own_code(
    rest: Sequence[_Slot],
    reached: Sequence[_Slot],
    of_models: Mapping[nn.Module, Callable[[], object]],
    opened: Session,
) -> None:
    """Runs the own code of the modules that hold what neither a rule nor the recipe reaches.

    What they reach stands on the meta device meanwhile: drawing values for it would be in vain. So does what is
    distributed, in full: the code sees the tensor that it was written for, and what it does is done to the parts.
    """
    books = opened.track()  # with the names of what is about to be taken out
    in_parts = [slot for slot in rest if is_sharded(slot.tensor) and is_contract(opened, slot.tensor.device)]
    held = [(slot, slot.tensor) for slot in (*reached, *in_parts)]
    stand_ins: dict[int, torch.Tensor] = {}
    for slot, tensor in held:
        if id(tensor) not in stand_ins:
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            stand_ins[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if is_parameter else meta
        slot.entries[slot.key] = stand_ins[id(tensor)]
    recorded: Mapping[str, tuple[RecordedFill, ...]] = {}
    try:
        for module, path in {slot.module: slot.path for slot in rest}.items():
            function = own_code(module)
            if function is not None:
                _call(function, function.__name__, module, path, books, opened)
        if rest:  # a model's code for a module may set what belongs to another
            paths = {module: path for path, module in reversed(walk(opened.root))}  # type: ignore[arg-type]
            for module, function in of_models.items():
                _call(function, "_init_weights", module, paths[module], books, opened)
        if in_parts:
            recorded = _recorded_of(opened, in_parts)
    finally:
        for slot, tensor in held:
            slot.entries[slot.key] = tensor
        if held and opened.deferred is not None:
            opened.deferred.generation += 1
    _run_recipe(in_parts, recorded, opened)


def _recorded_of(opened: Session, slots: Sequence[_Slot]) -> Mapping[str, tuple[RecordedFill, ...]]:
    """Returns what has been recorded of tensors, by their names here."""
    assert opened.deferred is not None, "it is recorded"
    opened.deferred.generation += 1
    with opened.deferred.paused():
        fills, _ = recorded_fills(opened)
        names = {slot.name: opened.names.name_of(slot.tensor, slot.module, slot.key) for slot in slots}
    return {here: fills[name] for here, name in names.items() if name in fills}


def _call(
    function: Callable[[], object], what: str, module: nn.Module, path: str, books: Provenance, opened: Session
) -> None:
    info = f"`{what}` of {type(module).__name__}"
    before = len(books.written)
    with books.attributing(module, info), torch.no_grad():
        function()
    if len(books.written) > before or what != "_init_weights":  # most modules of a model have nothing to do there
        opened.did([Call(module, f"{join(path, what)}() of {type(module).__name__}", "materialize", info, function)])


@contextmanager
def _restoring(model: nn.Module, slots: Sequence[_Slot]) -> Iterator[None]:
    """Puts the meta tensors back if the block fails."""
    before = [(slot.entries, slot.key, slot.entries[slot.key]) for slot in slots]
    done = [(module, module._is_init) for module in model.modules() if isinstance(module, BaseModule)]
    try:
        yield
    except BaseException:
        for entries, key, tensor in before:
            entries[key] = tensor
        for module, is_init in done:
            module._is_init = is_init
        raise


def _must_not_be_empty(names: Sequence[str], why: str, recipe: Recipe | None) -> None:
    if not names:
        return
    unknown = {} if recipe is None else recipe.unknown
    told = [f"{name} ({unknown[name]})" for name in names if name in unknown]
    by_code = f" The recipe has no values of theirs but those of other code: {', '.join(told[:3])}." if told else ""
    raise RuntimeError(
        f"materialize: {names_line('tensors would get memory but no values', names)}. No rule reaches them, and "
        f"{why}.{by_code} Add a rule with param=..., or put tensors with values in their place before"
    )
