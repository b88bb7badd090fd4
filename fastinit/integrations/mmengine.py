"""Puts fastinit's initializers into mmengine's registry, where mmdet's, mmseg's and mmpretrain's find them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..registry import WEIGHT_INITIALIZERS

_replaced: dict[str, Callable[..., Any] | None] = {}


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


def _registry() -> Any:
    try:
        from mmengine import registry
    except ImportError as error:
        raise ImportError("fastinit.integrations.mmengine needs mmengine: pip install mmengine-lite") from error
    return registry.WEIGHT_INITIALIZERS
