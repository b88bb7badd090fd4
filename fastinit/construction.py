"""``materialize()``: memory and values for a model that stands on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .base_module import BaseModule
from .execution import Session, session
from .memory import allocate_like
from .naming import join, unwrapped, walk
from .planning import planned_in
from .plans import Call, names_line, tensors_of
from .reports import Report
from .rules import check_module, parse, run_rules

# Written into tensors that no rule reaches, to see whether the modules' own code did. No float, bool or index is likely
# to consist of it.
_UNTOUCHED = 0xFB
_OWN_CODE = ("reset_parameters", "_reset_parameters")


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


def materialize(
    model: nn.Module,
    init_cfg: Any = None,
    *,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    seed: int | None = None,
    prefix: str = "",
) -> Report:
    """Gives a model on the meta device memory, and initializes it; each parameter is allocated and filled once.

    Parameters get their values from the config (a BaseModule's own where none is given). Those that no rule reaches,
    and buffers, get them from their modules' own ``reset_parameters``, which draws from torch's generators. Tied
    parameters stay tied; what is not on the meta device stays as it is.

    Args:
        model: any ``nn.Module``, e.g. made under ``torch.device("meta")``.
        init_cfg: as for ``initialize``.
        device: where the memory is to be. On the CPU it is backed by huge pages where the system has them.
        backend, seed, prefix: as for ``initialize``.

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
    slots = list(_slots(model))
    planned = None
    if _has_cfg(model, init_cfg):
        planned = planned_in(Session(model, backend=backend, seed=seed, prefix=prefix, dry=True), init_cfg)
    items = () if planned is None else planned.items
    reached = {id(tensor) for item in items for tensor in tensors_of(item)}
    rest = [slot for slot in slots if id(slot.entries[slot.key]) not in reached]
    if not any(isinstance(item, Call) for item in items):  # code of the user's might write anything
        _must_not_be_empty(
            [slot.name for slot in rest if _own_code(slot.module) is None], "their modules have no reset_parameters"
        )
    with _restoring(model, slots):
        _allocate(slots, target)
        new = {id(tensor): tensor for tensor in (slot.entries[slot.key] for slot in rest)}
        for tensor in new.values():
            _bytes_of(tensor).fill_(_UNTOUCHED)
        with session(model, backend=backend, seed=seed, prefix=prefix) as opened:
            _run_own_code(rest, [slot for slot in slots if id(slot.entries[slot.key]) not in new], opened)
            if init_cfg is not None:
                run_rules(parse(model, init_cfg), opened)
            elif planned is not None:
                unwrapped(model).init_weights()  # type: ignore[operator]
            report = opened.report()
        empty = [slot.name for slot in rest if _is_untouched(slot.entries[slot.key])]
        _must_not_be_empty(empty, "the reset_parameters of their modules does not write them")
    return report


def _has_cfg(model: nn.Module, init_cfg: Any) -> bool:
    return init_cfg is not None or isinstance(unwrapped(model), BaseModule)


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
                if is_traceable_wrapper_subclass(tensor) or tensor.layout != torch.strided:
                    kind = type(tensor).__name__ if tensor.layout == torch.strided else tensor.layout
                    raise RuntimeError(f"materialize makes plain strided tensors, but {slot.name!r} is a {kind}")
                yield slot


def _allocate(slots: Sequence[_Slot], device: torch.device) -> None:
    """Puts tensors with memory into the slots, one for each meta tensor."""
    olds = list({id(slot.entries[slot.key]): slot.entries[slot.key] for slot in slots}.values())
    new: dict[int, torch.Tensor] = {}
    for old, tensor in zip(olds, allocate_like(olds, device)):
        if isinstance(old, nn.Parameter):
            tensor = torch.Tensor._make_subclass(type(old), tensor, old.requires_grad)  # type: ignore[arg-type]
        vars(tensor).update(vars(old))
        new[id(old)] = tensor
    for slot in slots:
        slot.entries[slot.key] = new[id(slot.entries[slot.key])]


def _own_code(module: nn.Module) -> Callable[[], object] | None:
    return next((getattr(module, name) for name in _OWN_CODE if callable(getattr(module, name, None))), None)


def _run_own_code(rest: Sequence[_Slot], reached: Sequence[_Slot], opened: Session) -> None:
    """Runs ``reset_parameters`` of the modules that hold what no rule reaches.

    What the rules reach stands on the meta device meanwhile: drawing values for it would be in vain.
    """
    books = opened.track()  # with the names of what is about to be taken out
    held = [(slot, slot.entries[slot.key]) for slot in reached]
    for slot, tensor in held:
        meta = tensor.detach().to("meta")
        slot.entries[slot.key] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    try:
        for module, path in {slot.module: slot.path for slot in rest}.items():
            function = _own_code(module)
            if function is None:
                continue
            name, info = join(path, function.__name__), f"`{function.__name__}` of {type(module).__name__}"
            with books.attributing(module, info):
                function()
            opened.did([Call(module, f"{name}() of {type(module).__name__}", "materialize", info, function)])
    finally:
        for slot, tensor in held:
            slot.entries[slot.key] = tensor


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


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())  # type: ignore[call-overload, no-any-return]


def _is_untouched(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 0 and bool((_bytes_of(tensor) == _UNTOUCHED).all())


def _must_not_be_empty(names: Sequence[str], why: str) -> None:
    if names:
        raise RuntimeError(
            f"materialize: {names_line('tensors would get memory but no values', names)}. No rule reaches them, and "
            f"{why}. Add a rule with param=..., or put tensors with values in their place before"
        )
