"""BaseModule and its containers: modules with their own init_cfg, initialized in mmengine's order.

A module's own rules run first, then its children (a child overrides its parent), then the checkpoints in the module's
own config (a parent's checkpoint overrides its children). ``from fastinit.base_module import ...`` replaces
``from mmengine.model.base_module import ...``.
"""

from __future__ import annotations

import copy
from abc import ABCMeta
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

from torch import nn

from .config.trees import own_methods, run_tree
from .errors import InitTypeError
from .execution.attached_ledgers import attached, is_in_progress, log_ledger, update_init_info
from .execution.calls import open_call
from .execution.defaults import Strict
from .execution.hosts import hosts
from .execution.reports import Report
from .logs import logger
from .naming import is_model_wrapper
from .recording.capturing import recording

__all__ = ["BaseModule", "ModuleDict", "ModuleList", "Sequential", "is_model_wrapper", "update_init_info"]


class BaseModule(nn.Module, metaclass=ABCMeta):
    """An ``nn.Module`` that initializes itself and its children by their configs: ``init_weights()``.

    Args:
        init_cfg: as for ``initialize``, for the module and everything below it; copied now, and parsed by
            ``init_weights``.

    Example:
        >>> import torch, fastinit
        >>> class Head(fastinit.BaseModule):
        ...     def __init__(self, init_cfg=dict(type="Constant", layer="Linear", val=3, bias=1)):
        ...         super().__init__(init_cfg)
        ...         self.fc = torch.nn.Linear(2, 1)
        >>> head = Head()
        >>> head.init_weights()
        >>> head.fc.weight.tolist(), head.last_init_report.unreached
        ([[3.0, 3.0]], ())
    """

    last_init_report: Report | None = None
    """The report of the last ``init_weights()`` called on this module directly, not by its parent."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()
        self._is_init = False
        self.init_cfg = copy.deepcopy(init_cfg)

    @property
    def is_init(self) -> bool:
        """Whether ``init_weights`` has run; set it to True to make the next one skip the module."""
        return self._is_init

    @is_init.setter
    def is_init(self, value: bool) -> None:
        self._is_init = value

    def init_weights(self, *, strict: Strict | None = None, **unknown: NoReturn) -> None:
        """Initializes the module and its children by their configs, once; the report is in ``last_init_report``.

        Logs the provenance of every parameter at INFO on the logger ``fastinit``.

        Args:
            strict: as for ``initialize``. If set, the whole tree is planned first, so that rules without a match raise
                before the first write; modules with an ``init_weights`` of their own are excepted.
            unknown: none. Seed and backend are those of ``fastinit.use``.

        Raises:
            TypeError, ValueError, KeyError, RuntimeError, ...: a mistake in a config. The message begins with its
                place, e.g. ``backbone.init_cfg[1]``. All checkpoints of the tree are opened and compared before the
                first write. Each module's other rules are checked before its own first write, but modules earlier in
                the tree have been initialized by then; the log warns of that.
        """
        if unknown:
            raise InitTypeError(
                f"init_weights takes no {', '.join(unknown)}",
                hint=": `with fastinit.use(seed=..., backend=...):` around the call says what holds for it",
            )
        if self.is_init:
            logger.warning("init_weights of %s has been called more than once.", type(self).__name__)
            return
        is_part = is_in_progress(self)  # called by a parent, whose report covers this module too
        with (
            open_call(self, strict=None if is_part else strict) as call,
            nullcontext() if is_part else attached(self, call.done),
        ):
            # Fills may stay pending where some can, so that fills by the modules' own code join them.
            with nullcontext() if is_part or not call.has_contract else recording(call):
                run_tree(self, call, checks_all_first=bool(call.scope.strict) and not is_part)
            if is_part:
                return
            call.flush()
            if not any(host.logs(self) for host in hosts):
                log_ledger(call.ledger(), call.scope.parameters())
            self.last_init_report = call.report()

    def __repr__(self) -> str:
        text = super().__repr__()
        return f"{text}\ninit_cfg={self.init_cfg}" if self.init_cfg else text


class Sequential(BaseModule, nn.Sequential):
    """``nn.Sequential`` with an init_cfg."""

    def __init__(self, *args: Any, init_cfg: Any = None) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.Sequential.__init__(self, *args)


class ModuleList(BaseModule, nn.ModuleList):
    """``nn.ModuleList`` with an init_cfg."""

    def __init__(self, modules: Iterable[nn.Module] | None = None, init_cfg: Any = None) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.ModuleList.__init__(self, modules)


class ModuleDict(BaseModule, nn.ModuleDict):
    """``nn.ModuleDict`` with an init_cfg."""

    def __init__(self, modules: Mapping[str, nn.Module] | None = None, init_cfg: Any = None) -> None:
        BaseModule.__init__(self, init_cfg)
        nn.ModuleDict.__init__(self, modules)


own_methods.append(BaseModule.init_weights)
