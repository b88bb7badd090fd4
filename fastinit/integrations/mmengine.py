"""Uses fastinit in mmengine: its initializers in mmengine's registry, or all of ``BaseModule.init_weights``.

Importing this module, as ``import fastinit`` does, adds mmengine to the core's hooks (hosts, model wrappers, keys of
provenance records). It does not import mmengine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..base_module import BaseModule, update_init_info
from ..execution.hosts import hosts
from ..execution.ledger import Ledger, check_no_new_parameters, computed_keys
from ..naming import wrapper_sources
from ..registry import WEIGHT_INITIALIZERS


class MMEngine:
    """mmengine as a host: it detects writes by comparing means, and logs on its own logger."""

    def is_initializing(self, module: nn.Module) -> bool:
        """Tells whether mmengine's own ``init_weights`` is running on a tree that holds ``module``."""
        return not isinstance(getattr(module, "_params_init_info", None), (Ledger, type(None)))

    def wrote(self, module: nn.Module, info: str) -> None:
        """Does what ``mmengine.model.update_init_info`` does.

        Raises:
            AssertionError: ``module`` is not in the tree, or has a parameter that was added since initialization began.
        """
        if not hasattr(module, "_params_init_info"):
            raise AssertionError(f"Can not find `_params_init_info` in {module}")
        records: Any = module._params_init_info
        check_no_new_parameters(module, records)
        for parameter in module.parameters():
            mean = _mean(parameter)
            entry = records[parameter]
            if entry["tmp_mean_value"] != mean:
                entry["init_info"] = info
                entry["tmp_mean_value"] = mean

    def logs(self, module: nn.Module) -> bool:
        """Lets a module of mmengine log as usual; it gets here where ``enable`` has replaced its ``init_weights``."""
        dump = getattr(module, "_dump_init_info", None)
        if dump is not None:
            dump()
        return dump is not None


def _mean(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().mean().cpu()


def _model_wrappers() -> Iterator[type]:
    """Yields the classes in mmengine's registry of model wrappers and in its child registries, such as mmdet's."""
    mmengine = sys.modules.get("mmengine.registry")  # a module can only be an instance of an imported class
    registries = [] if mmengine is None else [mmengine.MODEL_WRAPPERS]
    for registry in registries:  # grows while it is read
        yield from (each for each in registry.module_dict.values() if isinstance(each, type))
        registries.extend(registry.children.values())


hosts.append(MMEngine())
computed_keys["tmp_mean_value"] = _mean
wrapper_sources.append(_model_wrappers)

_replaced: dict[str, Callable[..., Any] | None] = {}
_patched: list[tuple[Any, str, Any]] = []


def register() -> None:
    """Registers fastinit's initializers in mmengine's WEIGHT_INITIALIZERS, replacing those of the same names.

    mmengine's ``initialize`` and ``BaseModule.init_weights``, and child registries such as mmdet's, then build
    fastinit's initializers. Another call adds those registered in fastinit since. Types that mmengine has not
    (``Orthogonal`` and its like) stay out of its registry, where users may want their names.

    Raises:
        ImportError: mmengine is not installed.
    """
    registry = _registry()
    for name, initializer in WEIGHT_INITIALIZERS.items():
        current = registry.module_dict.get(name)
        if current is not initializer and name not in WEIGHT_INITIALIZERS.replaceable:
            _replaced.setdefault(name, current)
            registry.register_module(name=name, module=initializer, force=True)


def unregister() -> None:
    """Restores mmengine's initializers."""
    registry = _registry()
    for name, initializer in _replaced.items():
        if initializer is None:
            registry.module_dict.pop(name)
        else:
            registry.register_module(name=name, module=initializer, force=True)
    _replaced.clear()


def enable() -> None:
    """Makes fastinit run ``init_weights`` of all mmengine modules; configs and Runner scripts need no change.

    A detector becomes one plan: fills by the modules' own ``init_weights`` are recorded, provenance is known without
    reading parameters back, and a contract backend fills everything in one launch. Backend and seed are those of
    ``fastinit.use`` or FASTINIT_BACKEND. On "torch", which "auto" means on the CPU, the weights are mmengine's, bit for
    bit. mmengine's logger gets the same lines as before. Includes ``register``.

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
    """Restores mmengine's initialization; includes ``unregister``."""
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
        import mmengine.model  # noqa: F401  (fills the registry; its decorators refuse names that are taken before)
        from mmengine import registry
    except ImportError as error:
        raise ImportError("fastinit.integrations.mmengine needs mmengine: pip install mmengine-lite") from error
    return registry.WEIGHT_INITIALIZERS
