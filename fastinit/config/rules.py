"""Parses an init_cfg into rules: built initializers, each with its target module and its place in the config."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from ..errors import InitAttributeError, InitRuntimeError, InitTypeError, InitValueError, if_path, locating
from ..execution.calls import Step
from ..execution.scope import Scope
from ..plans import Item, Plan
from ..registry import WEIGHT_INITIALIZERS
from .initializers import BaseInit
from .kept_plans import KeptPlan
from .pretrained import PretrainedInit
from .running import is_planned, items_of


class Rule(NamedTuple):
    """One initializer and the module that it is applied to."""

    where: str
    """Its place in the config, e.g. ``init_cfg[2].override[0]``."""
    initializer: Any
    target: nn.Module
    after_children: bool
    """Whether it belongs to an item that loads a checkpoint; a BaseModule runs it after its children."""
    unheeded: str = ""
    """What the config says that has no effect, as it is in mmengine; "": nothing."""

    def items(self, scope: Scope) -> list[Item]:
        """Returns the rule's items; nothing is written. Errors name the rule's place."""
        with locating(self.where):
            if self.selects_nothing:
                message = "neither `layer`, `param` nor `override` selects what to fill; it fills nothing"
                scope.matches_nothing(self.where, type(self.initializer).__name__, message)
            if self.unheeded:
                scope.matches_nothing(self.where, type(self.initializer).__name__, self.unheeded)
            return items_of(self.initializer, self.target, scope, self.where)

    @property
    def loads_checkpoint(self) -> bool:
        """Whether it copies a checkpoint."""
        return isinstance(self.initializer, PretrainedInit)

    @property
    def selects_nothing(self) -> bool:
        """Whether it is one of fastinit's own initializers without a selector."""
        initializer = self.initializer
        if not isinstance(initializer, BaseInit) or not is_planned(initializer):
            return False
        return not (initializer.layer or initializer.param or initializer.wholemodule)


def parse(module: nn.Module, init_cfg: Any, where: str = "init_cfg") -> list[Rule]:
    """Returns the rules of a config in order, with every initializer built; the config is not modified.

    Args:
        module: the module that owns the config.
        init_cfg: a dict (or a built initializer, a recipe or a plan), or a list of them.
        where: what messages call the config.

    Raises:
        AttributeError, KeyError, RuntimeError, TypeError, ValueError: a mistake in the config, of mmengine's type for
            it; the message begins with the place in the config.
    """
    many = isinstance(init_cfg, list)
    if not (many or isinstance(init_cfg, (dict, Plan)) or _is_initializer(init_cfg)):
        raise InitTypeError(
            f"init_cfg must be a dict or a list of dict, but got {type(init_cfg)}",
            hint=if_path(
                init_cfg, ". fastinit.Plan.load(path) reads a plan from its file, json.load rules from theirs"
            ),
        )
    items = [(f"{where}[{index}]", item) for index, item in enumerate(init_cfg)] if many else [(where, init_cfg)]
    return [rule for place, item in items for rule in _parse_item(module, item, place)]


def steps_of(rules: Iterable[Rule], scope: Scope) -> list[Step]:
    """Plans rules in order, one step each; nothing is written."""
    return [Step(rule.target, rule.items(scope), partial(rule.items, scope)) for rule in rules]


def may_load_checkpoint(init_cfg: object) -> bool:
    """Tells whether a config may hold a rule that copies a checkpoint, by the types that it names; nothing is built."""
    if isinstance(init_cfg, (list, tuple)):
        return any(map(may_load_checkpoint, init_cfg))
    if not isinstance(init_cfg, dict):
        return isinstance(init_cfg, PretrainedInit)
    kind = init_cfg.get("type")
    if isinstance(kind, str):
        name = kind.rpartition(".")[2]
        kind = PretrainedInit if name == PretrainedInit.__name__ else WEIGHT_INITIALIZERS.get(name)
    is_one = isinstance(kind, type) and issubclass(kind, PretrainedInit)
    return is_one or may_load_checkpoint(init_cfg.get("override"))


def _is_initializer(item: object) -> bool:
    return (callable(item) or hasattr(item, "plan_items")) and not isinstance(item, (type, nn.Module))


def _parse_item(module: nn.Module, item: Any, where: str) -> list[Rule]:
    with locating(where):
        if not isinstance(item, dict):
            if not isinstance(item, Plan) and not _is_initializer(item):
                raise InitTypeError(
                    f"a rule must be a dict or an initializer, but got {item!r} of {type(item)}",
                    hint=if_path(item, ". fastinit.Plan.load(path) reads a plan from its file"),
                )
            initializer = KeptPlan(item) if isinstance(item, Plan) else item
            return [Rule(where, initializer, module, isinstance(initializer, PretrainedInit))]
        if others := [key for key in item if not isinstance(key, str)]:
            raise InitTypeError(f"the keys of a rule must be texts, but it has {others[0]!r} of {type(others[0])}")
        cfg = copy.deepcopy(item)
        override = cfg.pop("override", None)
        if cfg.get("param", "") is None:  # the same as absent, as for `layer` and `override`
            del cfg["param"]
        if "param" in cfg and (beside := sorted({"layer", "bias", "bias_prob"} & cfg.keys())):
            raise InitValueError(
                f"`param` selects parameters by name and the whole rule applies to each: {_quoted(beside)} can not "
                f"be combined with it",
                hint=". Use two rules",
            )
        if "param" in cfg and override is not None:
            raise InitValueError(
                "`override` can not be combined with `param`", hint=": write a second rule with its own `param`"
            )
        initializer = _build(cfg)
        main = Rule(where, initializer, module, isinstance(initializer, PretrainedInit))
        if override is None:
            return [main]
        rules = [] if main.selects_nothing else [main]  # then only the overrides apply
        cfg.pop("layer", None)
    return [*rules, *parse_overrides(main, cfg, override, f"{where}.override")]


def parse_overrides(main: Rule, main_cfg: dict[str, Any], override: Any, where: str) -> list[Rule]:
    """Returns the rules of an ``override``: one, or a list of them.

    Args:
        main: the rule that has it.
        main_cfg: the config of that rule without its selectors, for entries that only have a name.
        override: the value of ``override``.
        where: what messages call it.

    Raises:
        TypeError, ValueError, RuntimeError, AttributeError, KeyError: a mistake in it, as for ``parse``.
    """
    if isinstance(override, dict):
        return [_parse_override(main, main_cfg, override, where)]
    if not isinstance(override, list):
        raise InitTypeError(
            f"{where.removesuffix('.override')}: override must be a dict or a list of dict, but got {type(override)}"
        )
    return [_parse_override(main, main_cfg, entry, f"{where}[{index}]") for index, entry in enumerate(override)]


def _parse_override(main: Rule, main_cfg: dict[str, Any], entry: Any, where: str) -> Rule:
    module = main.target
    with locating(where):
        if not isinstance(entry, dict):
            raise InitTypeError(f"override must be a dict or a list of dict, but it holds {entry!r} of {type(entry)}")
        cfg = copy.deepcopy(entry)
        name = cfg.pop("name", None)
        if name is None:
            raise InitValueError(f'`override` must contain the key "name",but got {cfg}')
        if "param" in cfg:
            raise InitValueError("`param` is not allowed in an override", hint=": write a separate rule with it")
        if not cfg:
            cfg = main_cfg  # only a name: the main rule, applied there
        elif "type" not in cfg:
            raise InitValueError(f'`override` need "type" key, but got {cfg}')
        if not isinstance(name, str):
            raise InitTypeError(
                f"`name` of an override must be the name of one attribute, but got {name!r} of {type(name)}",
                hint=". For several write a list of overrides, one for each",
            )
        if not hasattr(module, name):
            raise InitRuntimeError(
                f"module did not have attribute {name}, but init_cfg is {cfg}",
                hint=f". It must be a direct attribute of "
                f"{type(module).__name__}, one of: {', '.join(module._modules)}",
            )
        target = getattr(module, name)
        if not isinstance(target, nn.Module):
            advice = f". For a parameter write a rule with param={name!r}" if name in module._parameters else ""
            raise InitAttributeError(
                f"the attribute {name} of {type(module).__name__} is a {type(target).__name__}, not a module",
                hint=advice,
            )
        initializer = _build(cfg)
        initializer.wholemodule = True
        return Rule(where, initializer, target, main.after_children, _unheeded(initializer, name))


def _unheeded(initializer: Any, name: str) -> str:
    """Returns what to tell of a ``layer`` in an override, "" where there is none, or code of others may look at it."""
    if not isinstance(initializer, BaseInit) or not is_planned(initializer) or not initializer.layer:
        return ""
    layer = repr(initializer.layer[0] if len(initializer.layer) == 1 else initializer.layer)
    return (
        f"layer={layer} has no effect in an override, which fills everything below {name!r}, whatever its class. To "
        f"select below it, write a rule with param='{name}.*weight', or with a layer in the config of {name!r} itself"
    )


def _build(cfg: dict[str, Any]) -> Any:
    """Builds an initializer; the error for an unexpected argument lists the ones it takes."""
    try:
        built = WEIGHT_INITIALIZERS.build(cfg)
    except TypeError as error:
        kind = WEIGHT_INITIALIZERS.resolve(cfg["type"]) if "type" in cfg else None
        if "unexpected keyword" in str(error) and isinstance(kind, type):
            raise InitTypeError(f"{error}", hint=f". {kind.__name__} takes {', '.join(arguments_of(kind))}") from error
        raise
    if not callable(built):
        raise InitTypeError(f"type {cfg['type']!r} builds {built!r}, which can not be called on a module")
    return built


def arguments_of(kind: type) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a class by name, including those it passes to its bases as ``**kwargs``."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__:
        own = inspect.signature(vars(each)["__init__"]).parameters.values() if "__init__" in vars(each) else ()
        if each is not object:
            for parameter in own:
                if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                    found.setdefault(parameter.name, parameter)
            if own and not any(p.kind is p.VAR_KEYWORD for p in own):
                break
    fixed = getattr(kind, "_fixed", ())
    return {name: parameter for name, parameter in found.items() if name not in fixed}


def keys_of(kind: type) -> list[inspect.Parameter]:
    """Returns what a rule of a type may have, ``override`` too, as keyword-only parameters of a function."""
    found = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in arguments_of(kind).values()]
    found.sort(key=lambda each: each.default is not inspect.Parameter.empty)
    return [*found, inspect.Parameter("override", inspect.Parameter.KEYWORD_ONLY, default=None)]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
