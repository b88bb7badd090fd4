"""Initializers of any kind: what each asks for as items, and running one on its own."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..execution.calls import Step, open_call
from ..execution.scope import Scope
from ..plans import Call, Item


class Planned:
    """Base of initializers that say what they would write before they do."""

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns the items for ``module`` and everything below it; nothing is written."""
        raise NotImplementedError

    def __call__(self, module: nn.Module) -> None:
        """Initializes ``module`` and everything below it now, as a part of the open call if there is one."""
        with open_call(module) as call:
            items = partial(self.plan_items, module, call.scope, type(self).__name__)
            with call.pending.own_work():
                steps = [Step(module, items(), items)]
            call.check(steps)
            call.run(steps)


def is_planned(initializer: object) -> bool:
    """Tells whether an initializer is run by its plan: it has ``plan_items``, and no ``__call__`` of its own."""
    if not hasattr(initializer, "plan_items"):
        return False
    return not callable(initializer) or type(initializer).__call__ is Planned.__call__


def items_of(initializer: Any, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
    """Returns the items of an initializer: its plan or, for opaque code, one ``Call``."""
    if is_planned(initializer):
        return initializer.plan_items(module, scope, rule)  # type: ignore[no-any-return]
    describe = getattr(initializer, "_get_init_info", None)
    info = describe() if callable(describe) else _label(initializer)
    path = scope.names.path_of(module)
    label = f"{_label(initializer)}({path or type(module).__name__})"
    return [Call(module, label, rule, info, lambda: initializer(module))]


def _label(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)
