"""Puts fastinit to work in mmengine: its initializers in the registry, or all of ``BaseModule.init_weights``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..base_module import BaseModule, update_init_info
from ..execution.hosts import hosts
from ..execution.ledger import Ledger
from ..registry import WEIGHT_INITIALIZERS


class MMEngine:
    """mmengine as a host: it compares means to see what was written, and logs by its own logger."""

    def is_initializing(self, module: nn.Module) -> bool:
        """Tells whether a module is part of an mmengine tree that is being initialized."""
        return not isinstance(getattr(module, "_params_init_info", None), (Ledger, type(None)))

    def wrote(self, module: nn.Module, info: str) -> None:
        """Does what ``mmengine.model.update_init_info`` does."""
        known: Any = module._params_init_info
        for parameter in module.parameters():
            mean = parameter.detach().mean().cpu()
            entry = known[parameter]
            if entry["tmp_mean_value"] != mean:
                entry["init_info"] = info
                entry["tmp_mean_value"] = mean

    def logs(self, module: nn.Module) -> bool:
        """Lets an mmengine module log as it does (``enable`` has put fastinit's ``init_weights`` there)."""
        dump = getattr(module, "_dump_init_info", None)
        if dump is not None:
            dump()
        return dump is not None


hosts.append(MMEngine())

_replaced: dict[str, Callable[..., Any] | None] = {}
_patched: list[tuple[Any, str, Any]] = []


def register() -> None:
    """Registers fastinit's initializers in mmengine's WEIGHT_INITIALIZERS, in place of its own of that name.

    From then on mmengine's ``initialize`` and ``BaseModule.init_weights``, and the registries of other libraries below
    mmengine's, build fastinit's. A second call adds what was registered in fastinit since the first.

    Raises:
        ImportError: mmengine is not installed.
    """
    registry = _registry()
    for name, initializer in WEIGHT_INITIALIZERS.items():
        current = registry.module_dict.get(name)
        if current is not initializer:
            _replaced.setdefault(name, current)
            registry.register_module(name=name, module=initializer, force=True)


def unregister() -> None:
    """Gives mmengine its own initializers back."""
    registry = _registry()
    for name, initializer in _replaced.items():
        if initializer is None:
            registry.module_dict.pop(name)
        else:
            registry.register_module(name=name, module=initializer, force=True)
    _replaced.clear()


def enable() -> None:
    """Lets ``init_weights`` of all mmengine modules run by fastinit; configs and Runner scripts stay as they are.

    A detector becomes one plan: what its modules do in ``init_weights`` of their own is recorded, the bookkeeping knows
    what was written and reads no parameter back, and on the contract backends everything is filled in one launch. The
    backend and the seed are those of ``fastinit.use`` or FASTINIT_BACKEND; on "torch", which is "auto" on the CPU, the
    weights are mmengine's, bit for bit. mmengine's logger gets its lines as before. Includes ``register``.

    Raises:
        ImportError: mmengine is not installed.

    Example (in a training script, before the Runner): ``fastinit.integrations.mmengine.enable()``.
    """
    register()
    if _patched:
        return
    import mmengine.model
    from mmengine.model import base_module, weight_init

    WEIGHT_INITIALIZERS.fallback = _registry().get
    _patch(base_module.BaseModule, "init_weights", BaseModule.init_weights)
    for place in (mmengine.model, base_module, weight_init):
        _patch(place, "update_init_info", update_init_info)


def disable() -> None:
    """Gives mmengine its own initialization back."""
    while _patched:
        place, name, original = _patched.pop()
        setattr(place, name, original)
    WEIGHT_INITIALIZERS.fallback = None
    unregister()


def _patch(place: Any, name: str, value: Any) -> None:
    _patched.append((place, name, getattr(place, name)))
    setattr(place, name, value)


def _registry() -> Any:
    try:
        from mmengine import registry
    except ImportError as error:
        raise ImportError("fastinit.integrations.mmengine needs mmengine: pip install mmengine-lite") from error
    return registry.WEIGHT_INITIALIZERS
