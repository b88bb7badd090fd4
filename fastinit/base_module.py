"""BaseModule and its containers: modules with their own init_cfg, initialized in mmengine's order.

A module's own rules run first, then its children (a child overrides its parent), then the checkpoints in the module's
own config (a parent's checkpoint overrides its children). ``from fastinit.base_module import ...`` replaces
``from mmengine.model.base_module import ...``.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from .config.rules import Rule, parse, steps_of
from .errors import InitTypeError
from .execution.calls import OpenCall, Step, open_call
from .execution.defaults import Strict
from .execution.hosts import host_of, hosts
from .execution.ledger import Ledger, attached, check_no_new_parameters, ledger_of, log_ledger, update_init_info
from .execution.reports import Report
from .execution.scope import Scope
from .logs import logger
from .naming import is_model_wrapper, join, original
from .plans import Call
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

    def init_weights(self, *, strict: Strict | None = None) -> None:
        """Initializes the module and its children by their configs, once; the report is in ``last_init_report``.

        Logs the provenance of every parameter at INFO on the logger ``fastinit``.

        Args:
            strict: as for ``initialize``. If set, the whole tree is planned first, so that rules without a match raise
                before the first write; modules with an ``init_weights`` of their own are excepted.

        Raises:
            TypeError, ValueError, KeyError, RuntimeError, ...: a mistake in a config. The message begins with its
                place, e.g. ``backbone.init_cfg[1]``. Each module's rules are checked before its first write, but
                modules earlier in the tree have been initialized by then; the log warns of that.
        """
        if _is_in_progress(self):  # called by a parent, whose report covers this module too
            with open_call(self) as call:
                run_tree(self, call)
            return
        if self._is_init:
            _warn_twice(self)
            return
        with open_call(self, strict=strict) as call, _keeping_ledger(self, call) as ledger:
            if call.scope.strict:
                with call.pending.own_work():
                    steps = steps_of_tree(self, call.scope)
                call.check(steps)
                call.scope.check_complete(item for step in steps for item in step.items)
            with recording(call) if _may_defer(self, call.scope) else nullcontext():
                run_tree(self, call)
            call.flush()
            if not any(host.logs(self) for host in hosts):
                log_ledger(ledger, call.scope.parameters())
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


def _may_defer(module: nn.Module, scope: Scope) -> bool:
    """Tells whether fills of a tree may stay pending, so that fills by the modules' own code join them."""
    return any(scope.backends.is_contract(device) for device in {parameter.device for parameter in module.parameters()})


# --- the walk --------------------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Steps that are planned together and run together."""

    steps: list[Step]
    ahead: Sequence[Step] = ()
    """Steps of the same module that run later, but are to be checked now."""


def run_tree(module: BaseModule, call: OpenCall) -> None:
    """Runs ``module.init_weights()`` in a call that is open."""

    def planned(rules: list[Rule]) -> list[Step]:
        with call.pending.own_work():
            return steps_of(rules, call.scope)

    for group in _groups(module, call.scope, planned, set(), is_run=True):
        call.check([*group.steps, *group.ahead])
        call.run(group.steps)


def steps_of_tree(module: BaseModule, scope: Scope) -> list[Step]:
    """Returns the steps of ``module.init_weights()``; nothing is written."""
    if not _plans_itself(module):
        return [_call_step(module, scope)]
    if module.is_init:
        return []
    groups = _groups(module, scope, partial(steps_of, scope=scope), set(), is_run=False)
    return [step for group in groups for step in group.steps]


def _groups(
    module: BaseModule, scope: Scope, plan: Callable[[list[Rule]], list[Step]], done: set[nn.Module], is_run: bool
) -> Iterator[_Group]:
    """Yields a module's own rules, then its children's, then the checkpoints in its own config.

    Each group is planned when it is reached: the code that ran before may have changed modules and configs.

    Args:
        module: the root of a tree.
        scope: of the call.
        plan: returns the steps of rules.
        done: modules that have been walked; updated.
        is_run: the caller runs each group that it gets; modules are marked as initialized.
    """
    if _is_done(module, done):
        _warn_twice(module)
        return
    own, pretrained = _own_rules(module, scope)
    if own or pretrained:  # checkpoints are planned early: a missing or damaged one raises before the first write
        yield _Group(plan(own), plan(pretrained))
    for child in module.children():
        if not hasattr(child, "init_weights") and _wraps_model(module, child):
            child = child.module  # type: ignore[assignment]
        child = original(child)
        if not hasattr(child, "init_weights") or _is_done(child, done):
            continue
        if _plans_itself(child):  # the same as its init_weights, without opening a call
            yield from _groups(child, scope, plan, done, is_run)  # type: ignore[arg-type]
        else:
            yield _Group([_call_step(child, scope, parent=module)])
    if pretrained:
        yield _Group(plan(pretrained))
    done.add(module)
    if is_run:
        module._is_init = True


def _wraps_model(parent: nn.Module, child: nn.Module) -> bool:
    answers = (host.is_model_wrapper(parent, child) for host in hosts)
    told = next((answer for answer in answers if answer is not None), None)
    return is_model_wrapper(child) if told is None else told


def _is_done(module: nn.Module, done: set[nn.Module]) -> bool:
    return module in done or bool(getattr(module, "is_init", False))


def _call_step(module: nn.Module, scope: Scope, parent: nn.Module | None = None) -> Step:
    """Returns the call of a user-defined ``init_weights``."""
    label = join(scope.names.path_of(module), "init_weights")
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
            f"{label}() of {type(module).__name__}: {error}; parents call it without arguments. Give it defaults"
        ) from None


def _own_rules(module: BaseModule, scope: Scope) -> tuple[list[Rule], list[Rule]]:
    init_cfg = module.init_cfg
    if not init_cfg:
        return [], []
    logger.debug("initialize %s with init_cfg %s", type(module).__name__, init_cfg)
    if isinstance(init_cfg, tuple):
        init_cfg = list(init_cfg)
    rules = parse(module, init_cfg, join(scope.names.path_of(module), "init_cfg"))
    return [rule for rule in rules if not rule.after_children], [rule for rule in rules if rule.after_children]


def has_own_configs(module: nn.Module) -> bool:
    """Tells whether a module is a BaseModule: fastinit's, or another library's whose ``init_weights`` is fastinit's."""
    return any(vars(kind).get("init_weights") is BaseModule.init_weights for kind in type(module).__mro__)


def _plans_itself(module: nn.Module) -> bool:
    return getattr(type(module), "init_weights", None) is BaseModule.init_weights and "init_weights" not in vars(module)


def _is_in_progress(module: nn.Module) -> bool:
    ledger = ledger_of(module)
    return host_of(module) is not None if ledger is None else not ledger.is_closed


def _warn_twice(module: nn.Module) -> None:
    logger.warning("init_weights of %s has been called more than once.", type(module).__name__)


@contextmanager
def _keeping_ledger(root: BaseModule, call: OpenCall) -> Iterator[Ledger]:
    """Attaches a new ledger to all modules for one ``init_weights``; what it records, the outer call's gets too."""
    default = f"The value is the same before and after calling `init_weights` of {type(root).__name__} "
    outer = call.done.ledger
    ledger = call.done.ledger = Ledger(call.scope.parameters(), default)
    for parameter in outer.written if outer is not None else ():
        if parameter in ledger:
            ledger[parameter]["init_info"] = outer[parameter]["init_info"]  # type: ignore[index]
    with attached(ledger, root):
        yield ledger
        if outer is not None:
            for parameter in ledger.written:
                outer.record(parameter, ledger[parameter]["init_info"])
