"""BaseModule and its containers: modules that carry their own init_cfg, in mmengine's order of initialization.

A module's own rules come first, then its children (so a child wins over its parent), then the checkpoints that the
module itself names (so a parent's checkpoint wins over its children). ``from fastinit.base_module import ...``
replaces ``from mmengine.model.base_module import ...``.
"""

from __future__ import annotations

import copy
from abc import ABCMeta
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from .config.rules import Rule, parse, plan_rules, run_rules
from .execution.defaults import Strict
from .execution.provenance import Provenance, check_no_new_parameters, log_provenance, logger, update_init_info
from .execution.reports import Report
from .execution.session import Session, session
from .naming import is_model_wrapper, join, original
from .plans import Call, Item
from .recording.blocks import recording
from .recording.operators import is_contract

__all__ = ["BaseModule", "ModuleDict", "ModuleList", "Sequential", "is_model_wrapper", "update_init_info"]


class BaseModule(nn.Module, metaclass=ABCMeta):
    """An ``nn.Module`` that knows how to initialize itself and its children: ``init_weights()``.

    Args:
        init_cfg: the config of the module's own parameters and those below it; not looked at before ``init_weights``.

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
    """What the last ``init_weights()`` did that was called on this module itself (not by its parent)."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()
        self._is_init = False
        self.init_cfg = copy.deepcopy(init_cfg)

    @property
    def is_init(self) -> bool:
        """Whether ``init_weights`` has run; set it to True to keep it from running."""
        return self._is_init

    @is_init.setter
    def is_init(self, value: bool) -> None:
        self._is_init = value

    def init_weights(self, *, strict: Strict | None = None) -> None:
        """Initializes the module and its children by their configs, once; the report is left in ``last_init_report``.

        What every parameter's values came from is logged at INFO on the logger ``fastinit``.

        Args:
            strict: as for ``initialize``. The whole tree is planned first then, so that nothing is written before a
                rule without a match is known, as far as its modules are BaseModules without code of their own.

        Raises:
            TypeError, ValueError, KeyError, RuntimeError, ...: a mistake in a config. The message begins with the
                place, e.g. ``backbone.init_cfg[1]``. Each module's rules are checked before its first write; what
                stood before it in the tree has been initialized by then, and a warning in the log says so.
        """
        if _is_in_progress(self):  # a parent is being initialized and reports for all
            with session(self) as opened:
                _init_tree(self, _Runner(opened))
            return
        if self._is_init:
            _warn_twice(self)
            return
        with session(self, strict=strict) as opened, _tracking(self, opened) as provenance:
            if opened.strict:
                opened.check_complete(plan_tree(self, opened))
            with recording(opened) if _may_wait(self, opened) else nullcontext():
                _init_tree(self, _Runner(opened))
            opened.flush()
            if hasattr(self, "_dump_init_info"):  # an mmengine module logs it mmengine's way (integrations.mmengine)
                self._dump_init_info()  # type: ignore[operator]
            else:
                log_provenance(provenance, opened.parameters())
            self.last_init_report = opened.report()

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


def _may_wait(module: nn.Module, opened: Session) -> bool:
    """Tells whether fills of a tree may wait for each other, so that what modules do in code joins the plan."""
    return any(is_contract(opened, device) for device in {parameter.device for parameter in module.parameters()})


# --- the walk, for running and for planning --------------------------------------------------------------------------


class _Runner:
    """Does what the walk comes to."""

    def __init__(self, opened: Session) -> None:
        self.opened = opened

    def rules(self, rules: list[Rule]) -> None:
        run_rules(rules, self.opened)

    def child(self, parent: BaseModule, child: nn.Module) -> None:
        if _plans_itself(child):  # what its init_weights would come to, without opening a session of its own
            _init_tree(child, self)  # type: ignore[arg-type]
            return
        known = getattr(parent, "_params_init_info", None)
        if isinstance(known, Provenance):
            with known.attributing(child, _by_user_code(child)):
                child.init_weights()  # type: ignore[operator]
            check_no_new_parameters(child, known)
            self.opened.did([call_of_init_weights(child, self.opened)])
        else:  # within an mmengine tree, which keeps its own books
            child.init_weights()  # type: ignore[operator]
            if known is not None:
                update_init_info(child, _by_user_code(child))

    def is_done(self, module: nn.Module) -> bool:
        return bool(getattr(module, "is_init", False))

    def done(self, module: BaseModule) -> None:
        module._is_init = True


class _Planner:
    """Collects what the walk comes to."""

    def __init__(self, opened: Session) -> None:
        self.opened = opened
        self.items: list[Item] = []
        self._done: set[nn.Module] = set()

    def rules(self, rules: list[Rule]) -> None:
        for items in plan_rules(rules, self.opened):
            self.items.extend(items)

    def child(self, parent: BaseModule, child: nn.Module) -> None:
        if _plans_itself(child):
            _init_tree(child, self)  # type: ignore[arg-type]
        else:
            self.items.append(call_of_init_weights(child, self.opened))

    def is_done(self, module: nn.Module) -> bool:
        return bool(getattr(module, "is_init", False)) or module in self._done

    def done(self, module: BaseModule) -> None:
        self._done.add(module)


def _init_tree(module: BaseModule, doer: _Runner | _Planner) -> None:
    """Own rules, then the children, then the checkpoints that the module names itself."""
    if doer.is_done(module):
        _warn_twice(module)
        return
    own, pretrained = _own_rules(module, doer.opened)
    # A checkpoint that is not there, or damaged, is known before anything is written.
    if pretrained:
        plan_rules(pretrained, doer.opened)
    doer.rules(own)
    for child in module.children():
        if is_model_wrapper(child) and not hasattr(child, "init_weights"):
            child = child.module  # type: ignore[assignment]
        child = original(child)
        if hasattr(child, "init_weights") and not doer.is_done(child):
            doer.child(module, child)
    doer.rules(pretrained)
    doer.done(module)


def plan_tree(module: BaseModule, opened: Session) -> list[Item]:
    """Returns what ``module.init_weights()`` would do, without doing it."""
    planner = _Planner(opened)
    if _plans_itself(module):
        if not planner.is_done(module):
            _init_tree(module, planner)
    else:
        planner.items.append(call_of_init_weights(module, opened))
    return planner.items


def call_of_init_weights(module: nn.Module, opened: Session) -> Call:
    """Returns the ``Call`` of an ``init_weights`` that fastinit cannot see into."""
    label = join(opened.names.path_of(module), "init_weights")
    info = f"user-defined `init_weights` in {type(module).__name__}"
    return Call(module, f"{label}() of {type(module).__name__}", label, info, module.init_weights)  # type: ignore[arg-type]


def _own_rules(module: BaseModule, opened: Session) -> tuple[list[Rule], list[Rule]]:
    init_cfg = module.init_cfg
    if not init_cfg:
        return [], []
    logger.debug("initialize %s with init_cfg %s", type(module).__name__, init_cfg)
    if isinstance(init_cfg, tuple):
        init_cfg = list(init_cfg)
    rules = parse(module, init_cfg, join(opened.names.path_of(module), "init_cfg"))
    return [rule for rule in rules if not rule.after_children], [rule for rule in rules if rule.after_children]


def _plans_itself(module: nn.Module) -> bool:
    return getattr(type(module), "init_weights", None) is BaseModule.init_weights and "init_weights" not in vars(module)


def _is_in_progress(module: nn.Module) -> bool:
    books = getattr(module, "_params_init_info", None)
    return books is not None and not (isinstance(books, Provenance) and books.is_closed)


def _by_user_code(module: nn.Module) -> str:
    return f"Initialized by user-defined `init_weights` in {type(module).__name__} "


def _warn_twice(module: nn.Module) -> None:
    logger.warning("init_weights of %s has been called more than once.", type(module).__name__)


@contextmanager
def _tracking(root: BaseModule, opened: Session) -> Iterator[Provenance]:
    """Puts the books of one ``init_weights`` on all modules, and takes them off again whatever happens."""
    default = f"The value is the same before and after calling `init_weights` of {type(root).__name__} "
    larger = opened.provenance
    provenance = opened.provenance = Provenance(opened.parameters(), default)
    for parameter in larger.written if larger is not None else ():
        if parameter in provenance:
            provenance[parameter]["init_info"] = larger[parameter]["init_info"]  # type: ignore[index]
    modules = list(root.modules())
    for module in modules:
        module._params_init_info = provenance  # type: ignore[assignment]
    try:
        yield provenance
        if larger is not None:
            for parameter in provenance.written:
                larger.record(parameter, provenance[parameter]["init_info"])
    finally:
        provenance.is_closed = True
        # Modules that were taken out or put in meanwhile are cleaned too.
        for module in {*modules, *root.modules()}:
            vars(module).pop("_params_init_info", None)
