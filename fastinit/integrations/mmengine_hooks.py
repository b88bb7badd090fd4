"""What the core knows of mmengine: hosts, model wrappers, keys of provenance records, registries, model zoos.

Importing this module, as ``import fastinit`` does, adds mmengine to the core's hooks. It does not import mmengine.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.sources.further import further_loaders, further_tables
from ..execution.attached_ledgers import check_no_new_parameters
from ..execution.hosts import hosts
from ..execution.ledger import Ledger, computed_keys
from ..naming import wrapper_sources
from ..registry import peers


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
