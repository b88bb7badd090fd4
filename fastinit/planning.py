"""``plan()``: what an initialization would do, before it is done."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base_module import BaseModule, plan_tree
from .config.rules import parse, plan_rules
from .errors import check_module
from .execution.defaults import Strict
from .execution.session import Session
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
    """Returns what ``initialize`` (with a config) or ``init_weights`` (without) would do; nothing is written.

    Works on meta models too. Of checkpoints it reads names and shapes; one that is not on this machine yet stays one
    row, as nothing is downloaded.

    Args:
        module: any ``nn.Module``; without ``init_cfg`` a BaseModule.
        init_cfg, backend, seed, prefix, strict: as for ``initialize``.

    Raises:
        TypeError: no config, and ``module`` is no BaseModule.
        Others: as ``initialize``, for the same mistakes.

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
    opened = Session(module, backend=backend, seed=seed, prefix=prefix, strict=strict, dry=True, offline=True)
    return planned_in(opened, init_cfg)


def planned_in(opened: Session, init_cfg: Any) -> Plan:
    """Returns the plan for the root of a session, by a config or, without one, by its own."""
    module = opened.root
    assert module is not None
    if init_cfg is None:
        base = unwrapped(module)
        if not isinstance(base, BaseModule):
            raise TypeError(f"plan needs an init_cfg for {type(base).__name__}: only a BaseModule carries its own")
        items = plan_tree(base, opened)
    else:
        items = [item for items in plan_rules(parse(module, init_cfg), opened) for item in items]
    opened.check_complete(items)
    return opened.plan(items)
