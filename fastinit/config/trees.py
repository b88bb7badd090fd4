"""Trees of modules with configs of their own: which module is initialized by what, and in which order.

A module's own rules run first, then its children (a child overrides its parent), then the checkpoints in the module's
own config (a parent's checkpoint overrides its children).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..errors import InitTypeError
from ..execution.attached_ledgers import check_no_new_parameters, ledger_of
from ..execution.calls import OpenCall, Step
from ..execution.hosts import host_of, inside
from ..execution.scope import Scope
from ..logs import logger
from ..naming import join
from ..plans import Call
from .rules import Rule, may_load_checkpoint, parse, steps_of

ENABLE_HINT = (
    ": its init_weights is mmengine's own, and not fastinit's. `fastinit.integrations.mmengine.enable()` makes it "
    "fastinit's"
)
"""What to do about a BaseModule of mmengine's."""

own_methods: list[object] = []
"""The ``init_weights`` that do what ``run_tree`` does: BaseModule's, which is above."""


def has_own_configs(module: nn.Module) -> bool:
    """Tells whether a module is a BaseModule: fastinit's, or another library's whose ``init_weights`` is fastinit's."""
    return any(_is_own(vars(kind).get("init_weights")) for kind in type(module).__mro__)


def is_of_mmengine(module: nn.Module) -> bool:
    """Tells whether a module is a BaseModule of mmengine's, whose ``init_weights`` has not been made fastinit's."""
    kinds = [kind for kind in type(module).__mro__ if "init_weights" in vars(kind)]
    return not has_own_configs(module) and any(kind.__module__.partition(".")[0] == "mmengine" for kind in kinds)


def run_tree(root: nn.Module, call: OpenCall, *, checks_all_first: bool = False) -> None:
    """Runs ``root.init_weights()`` in a call that is open, and marks the modules as initialized.

    Args:
        root: the tree's.
        call: of the tree, or of a larger one.
        checks_all_first: the whole tree is planned and checked before the first write.
    """
    if checks_all_first:
        with call.pending.own_work():
            steps = steps_of_tree(root, call.scope)
        call.check(steps)
        call.scope.check_complete(item for step in steps for item in step.items)
    elif any(may_load_checkpoint(getattr(module, "init_cfg", None)) for module in root.modules()):
        with call.pending.own_work():
            _open_checkpoints(root, call.scope)
    call.scope.checkpoints.keep_ahead()

    def planned(rules: list[Rule]) -> list[Step]:
        with call.pending.own_work():
            return steps_of(rules, call.scope)

    for group in _own_groups(root, call.scope.path, _Walk(call.scope, planned, set(), is_run=True)):
        call.check([*group.steps, *group.ahead])
        call.run(group.steps)


def _open_checkpoints(root: nn.Module, scope: Scope) -> None:
    """Opens the checkpoints that the configs of a tree name, and compares names and shapes; nothing is written.

    Raises:
        OSError, RuntimeError, ...: one cannot be loaded. A file that is not there is no error yet where a user's
            ``init_weights``, which may make it, runs before.
    """

    def planned(rules: list[Rule]) -> list[Step]:
        return steps_of([rule for rule in rules if rule.loads_checkpoint], scope)

    runs_code = False
    try:
        for group in _own_groups(root, scope.path, _Walk(scope, planned, set(), is_run=False)):
            runs_code = runs_code or any(isinstance(item, Call) for step in group.steps for item in step.items)
    except FileNotFoundError:
        if not runs_code:
            raise


def steps_of_tree(root: nn.Module, scope: Scope) -> list[Step]:
    """Returns the steps of ``root.init_weights()``, the root of a call; nothing is written.

    Warns where there are none because it has run.
    """
    if _runs_config(root) and root.is_init:
        scope.warn_once(
            f"init_weights of {type(root).__name__}",
            "it has run (is_init is True) and does nothing more: no rule of this init_cfg, nor of those below it, is "
            "run or checked. Make the model anew, or set is_init = False on each module that is to be initialized "
            "again",
        )
        return []
    walk = _Walk(scope, lambda rules: steps_of(rules, scope), set(), is_run=False)
    return [step for group in _groups(root, scope.path, walk) for step in group.steps]


class _Walk(NamedTuple):
    """One way through a tree."""

    scope: Scope
    plan: Callable[[list[Rule]], list[Step]]
    """Returns the steps of rules."""
    done: set[nn.Module]
    """Modules that have been walked."""
    is_run: bool
    """The caller runs each group that it gets; modules are marked as initialized."""


class _Group(NamedTuple):
    """Steps that are planned together and run together."""

    steps: list[Step]
    ahead: Sequence[Step] = ()
    """Steps of the same module that run later, but are to be checked now."""


def _groups(module: nn.Module, path: str, walk: _Walk, parent: nn.Module | None = None) -> Iterator[_Group]:
    """Yields what a module's ``init_weights`` does."""
    if _runs_config(module):  # the same as its init_weights, without opening a call
        yield from _own_groups(module, path, walk)
    else:
        yield _Group([_call_step(module, path, parent)])


def _own_groups(module: Any, path: str, walk: _Walk) -> Iterator[_Group]:
    """Yields a module's own rules, then its children's, then the checkpoints in its own config.

    Each group is planned when it is reached: the code that ran before may have changed modules and configs.
    """
    own, pretrained = _own_rules(module, path)
    if own or pretrained:  # checkpoints are planned early: a missing or damaged one raises before the first write
        yield _Group(walk.plan(own), walk.plan(pretrained))
    for child in module.children():
        child = inside(module, child)
        if hasattr(child, "init_weights") and child not in walk.done and not getattr(child, "is_init", False):
            at = walk.scope.names.path_of(child)
            yield from _groups(child, at, walk, parent=module)
    if pretrained:
        yield _Group(walk.plan(pretrained))
    walk.done.add(module)
    if walk.is_run:
        module._is_init = True


def _own_rules(module: Any, path: str) -> tuple[list[Rule], list[Rule]]:
    """Returns the rules of a module's config: those that run before its children, and those that run after them."""
    init_cfg = module.init_cfg
    if not init_cfg:
        return [], []
    logger.debug("initialize %s with init_cfg %s", type(module).__name__, init_cfg)
    if isinstance(init_cfg, tuple):
        init_cfg = list(init_cfg)
    rules = parse(module, init_cfg, join(path, "init_cfg"))
    return [rule for rule in rules if not rule.after_children], [rule for rule in rules if rule.after_children]


def _call_step(module: nn.Module, path: str, parent: nn.Module | None) -> Step:
    """Returns the call of a user-defined ``init_weights``."""
    label = join(path, "init_weights")
    _check_arguments(module, label)
    info = f"Initialized by user-defined `init_weights` in {type(module).__name__} "

    def function() -> None:
        module.init_weights()  # type: ignore[operator]
        if parent is None:
            return
        if (ledger := ledger_of(parent)) is not None:
            check_no_new_parameters(module, ledger)
        elif (host := host_of(parent)) is not None:
            host.wrote(module, info)

    items = [Call(module, f"{label}() of {type(module).__name__}", label, info, function)]
    return Step(module, items, lambda: items)


def _check_arguments(module: nn.Module, label: str) -> None:
    """Raises TypeError, with the place, if an ``init_weights`` cannot be called without arguments, as a parent does."""
    try:
        signature = inspect.signature(module.init_weights)  # type: ignore[arg-type]
    except ValueError:  # it has none that Python knows
        return
    try:
        signature.bind()
    except TypeError as error:
        raise InitTypeError(
            f"{label}() of {type(module).__name__}: {error}; parents call it without arguments",
            hint=". Give it defaults",
        ) from None


def _runs_config(module: nn.Module) -> bool:
    """Tells whether nothing of the user's stands between a module's ``init_weights`` and its config."""
    return _is_own(getattr(type(module), "init_weights", None)) and "init_weights" not in vars(module)


def _is_own(method: object) -> bool:
    return any(method is each for each in own_methods)
