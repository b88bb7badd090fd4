"""Uses fastinit in mmengine: its initializers in mmengine's registry, or all of ``BaseModule.init_weights``.

Importing this module, as ``import fastinit`` does, adds mmengine to the core's hooks (hosts, model wrappers, keys of
provenance records, registries of initializers, addresses of model zoos). It does not import mmengine.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base_module import BaseModule, update_init_info
from ..checkpoint.sources.url_schemes import further_loaders
from ..checkpoint.sources.zoos import further_tables
from ..execution.attached_ledgers import check_no_new_parameters
from ..execution.hosts import hosts
from ..execution.ledger import Ledger, computed_keys
from ..logs import logger
from ..naming import wrapper_sources
from ..registry import WEIGHT_INITIALIZERS, peers


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

    def is_model_wrapper(self, parent: nn.Module, child: object) -> bool | None:
        """Asks mmengine about children of its own modules, by the name that its users patch; None for any others."""
        base: Any = sys.modules.get("mmengine.model.base_module")
        return base.is_model_wrapper(child) if base is not None and isinstance(parent, base.BaseModule) else None

    def logs(self, module: nn.Module) -> bool:
        """Lets a module of mmengine log as usual; it gets here where ``enable`` has replaced its ``init_weights``."""
        dump = getattr(module, "_dump_init_info", None)
        if dump is not None:
            dump()
        return dump is not None


class Initializers:
    """mmengine's registry of initializers and its child registries, such as mmdet's."""

    def in_scope(self, name: str, scope: str | None) -> Callable[..., Any] | None:
        """Returns what the child registry of a scope has under a name; None: mmengine's own has the name, or nothing.

        Args:
            name: the ``type`` of a config.
            scope: the ``_scope_`` of a config; None: mmengine's default scope.
        """
        registry: Any = sys.modules.get("mmengine.registry")
        if registry is None or (scope is None and registry.DefaultScope.get_current_instance() is None):
            return None
        root = registry.WEIGHT_INITIALIZERS
        with root.switch_scope_and_registry(scope) as selected:
            found = None if selected is root else _get(selected, name)
        return None if found is root.module_dict.get(name) else found

    def get(self, name: str) -> Callable[..., Any] | None:
        """Returns what mmengine finds under a name, which may begin with the scope of a child registry."""
        registry: Any = sys.modules.get("mmengine.registry")
        return None if registry is None else _get(registry.WEIGHT_INITIALIZERS, name)


def _addresses(zoo: str) -> dict[str, str]:
    """Returns the table that an installed mmengine, or a fork of its import name, has for a model zoo."""
    file = {"open_mmlab": "openmmlab", "torchvision": "torchvision_0.12"}.get(zoo, zoo)
    spec = (
        find_spec("mmengine") if "mmengine" not in sys.modules else getattr(sys.modules["mmengine"], "__spec__", None)
    )
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "hub" / f"{file}.json"
        if path.is_file():
            table: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
            return table
    return {}


def _loader(name: str) -> Callable[..., Any] | None:
    """Returns the loader that a user registered in mmengine's ``CheckpointLoader`` for a checkpoint's name."""
    checkpoint: Any = sys.modules.get("mmengine.runner.checkpoint")
    loaders = {} if checkpoint is None else checkpoint.CheckpointLoader._schemes
    found: Any = next((loader for scheme, loader in loaders.items() if re.match(scheme, name)), None)
    return None if getattr(found, "__module__", None) == "mmengine.runner.checkpoint" else found


def _get(registry: Any, name: str) -> Callable[..., Any] | None:
    """Returns what a registry or one above it has under a name; names with a dot it may import."""
    if "." not in name:
        registry.import_from_location()
        while registry is not None and name not in registry.module_dict:
            registry = registry.parent
        return None if registry is None else registry.module_dict[name]  # type: ignore[no-any-return]
    try:
        found = registry.get(name)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it imports what the name says; not all are names
        return None
    return found if callable(found) else None


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
peers.append(Initializers())
further_tables.append(_addresses)
further_loaders.append(_loader)


class _ToMMEngine(logging.Filter):
    """Sends what fastinit logs to mmengine's logger as well, whose level and handlers decide what is shown.

    A filter of the logger, because its answer keeps the other handlers as they were: they get what they got before, and
    Python's last resort, which prints warnings where there are no handlers, does not print them a second time.
    """

    LEVEL = 1  # of fastinit's logger meanwhile, unless its user has set one; no level that users set

    def filter(self, record: logging.LogRecord) -> bool:
        """Logs a record there, and tells whether it goes on to the handlers of fastinit's logger."""
        from mmengine.logging import MMLogger

        MMLogger.get_current_instance().log(record.levelno, "%s", record.getMessage())
        unset = logger.level == self.LEVEL and logger.parent is not None
        level = logger.parent.getEffectiveLevel() if unset else logger.level  # type: ignore[union-attr]
        return record.levelno >= level and logger.hasHandlers()


_to_mmengine = _ToMMEngine()
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
    bit. mmengine's logger gets what it got before, and all else that fastinit logs. Includes ``register``.

    Raises:
        ImportError: mmengine is not installed.

    Example (in a training script, before the Runner): ``fastinit.integrations.mmengine.enable()``.
    """
    register()
    if _patched:
        return
    import mmengine.model
    from mmengine.model import base_module, weight_init

    _patch(base_module.BaseModule, "init_weights", BaseModule.init_weights)
    for place in (mmengine.model, base_module, weight_init):
        _patch(place, "update_init_info", update_init_info)
    logger.addFilter(_to_mmengine)
    if logger.level == logging.NOTSET:
        logger.setLevel(_ToMMEngine.LEVEL)


def disable() -> None:
    """Restores mmengine's initialization; includes ``unregister``."""
    while _patched:
        place, name, original = _patched.pop()
        setattr(place, name, original)
    logger.removeFilter(_to_mmengine)
    if logger.level == _ToMMEngine.LEVEL:
        logger.setLevel(logging.NOTSET)
    unregister()


def _patch(place: Any, name: str, value: Any) -> None:
    _patched.append((place, name, getattr(place, name)))
    setattr(place, name, value)


def _registry() -> Any:
    try:
        import mmengine.model  # noqa: F401  (fills the registry; its decorators refuse names that are taken before)
        from mmengine import registry
    except ImportError as error:
        raise ImportError(
            "fastinit.integrations.mmengine needs mmengine: pip install mmengine-lite, or onedl-mmengine, its fork"
        ) from error
    return registry.WEIGHT_INITIALIZERS
