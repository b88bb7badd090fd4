"""Uses fastinit in mmengine: its initializers in mmengine's registry, or all of ``BaseModule.init_weights``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..base_module import BaseModule, update_init_info
from ..errors import InitImportError
from ..logs import logger
from ..registry import WEIGHT_INITIALIZERS


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
        raise InitImportError(
            "fastinit.integrations.mmengine needs mmengine",
            hint=": pip install mmengine-lite, or onedl-mmengine, its fork",
        ) from error
    return registry.WEIGHT_INITIALIZERS
