"""``plan()``: the plan of an initialization, without running it."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base_module import has_own_configs, steps_of_tree
from .config.rules import parse, steps_of
from .errors import check_module
from .execution.calls import Step, new_scope
from .execution.defaults import Strict
from .execution.reports import plan_of
from .execution.runner import check
from .execution.scope import Scope
from .naming import Prefix, unwrapped
from .plans import Plan


def plan(
    module: nn.Module,
    init_cfg: Any = None,
    *,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
) -> Plan:
    """Returns the plan of ``initialize`` (with a config) or ``init_weights`` (without one); nothing is written.

    Works on meta models too. Only names and shapes of checkpoints are read. Nothing is downloaded: a checkpoint that is
    not on this machine yet is a single row.

    Args:
        module: any ``nn.Module``; without ``init_cfg`` a BaseModule.
        init_cfg, backend, seed, prefix, strict: as for ``initialize``.

    Raises:
        TypeError: ``init_cfg`` is None and ``module`` is not a BaseModule.
        Others: as for ``initialize``.

    Example:
        >>> import fastinit, torch
        >>> print(fastinit.plan(torch.nn.Linear(4, 2), dict(type="Xavier", layer="Linear"), seed=1))
        parameter  shape  dtype    device  distribution                 rule      backend
        ---------  -----  -------  ------  ---------------------------  --------  -------
        weight     2x4    float32  cpu     normal(mean=0, std=0.57735)  init_cfg  torch
        bias       2      float32  cpu     constant(0)                  init_cfg  torch
        2 rows, 10 elements; numbers: torch; seed: 1
    """
    check_module(module)
    scope = new_scope(module, backend=backend, seed=seed, prefix=prefix, strict=strict, is_dry=True, is_offline=True)
    items = [item for step in steps_for(module, init_cfg, scope) for item in step.items]
    check(items, scope, needs_memory=False)
    scope.check_complete(items)
    return plan_of(items, scope)


def steps_for(module: nn.Module, init_cfg: Any, scope: Scope) -> list[Step]:
    """Returns the steps of a config (or recipe) or, if it is None, of the module's own configs."""
    if init_cfg is not None:
        return steps_of(parse(module, init_cfg), scope)
    base = unwrapped(module)
    if not has_own_configs(base):
        raise TypeError(f"plan needs an init_cfg for {type(base).__name__}: only a BaseModule has its own")
    return steps_of_tree(base, scope)  # type: ignore[arg-type]
