"""Rules with types and completion: ``rules.Kaiming(layer="Conv2d", a=0.1)`` is the dict that one writes by hand.

There is a function for each type of rule, and a TypedDict for dicts: ``rules.KaimingRule``. Both are made here from the
signatures of the initializers; what type checkers and editors read is in rules.pyi, which tools/rule_types.py writes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, Union

from .config.initializers import BaseInit
from .config.rules import arguments_of, keys_of
from .errors import InitAttributeError, InitTypeError
from .weight_init import WEIGHT_INITIALIZERS  # with all that fastinit registers

Number = Union[float, str]
"""A number, or arithmetic as text."""
Layers = Union[str, type, list[str], list[type], list[Union[str, type]]]
Names = Union[str, list[str]]

_KINDS: dict[str, Any] = WEIGHT_INITIALIZERS.module_dict  # those of fastinit: others come later


def _function(name: str, kind: type) -> Callable[..., dict[str, Any]]:
    signature = inspect.Signature(keys_of(kind))

    def make(**arguments: Any) -> dict[str, Any]:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise InitTypeError(f"{name}: {error}", hint=f". It takes {', '.join(signature.parameters)}") from None
        return {"type": name, **arguments}

    make.__name__ = make.__qualname__ = name
    make.__doc__ = kind.__doc__
    make.__signature__ = signature  # type: ignore[attr-defined]
    return make


def _keys(*kinds: type) -> dict[str, Any]:
    return dict.fromkeys(each.name for kind in kinds for each in keys_of(kind))


def _typed_dict(name: str, keys: Iterable[str]) -> Any:
    """Returns a TypedDict whose types are in rules.pyi alone."""
    return TypedDict(name, dict.fromkeys(keys, Any), total=False)  # type: ignore[operator]


Selectors = _typed_dict("Selectors", arguments_of(BaseInit))
Override = _typed_dict(
    "Override", ["name", "type", *(key for key in _keys(*_KINDS.values()) if key not in ("override", "param", "layer"))]
)
_RULES = {f"{name}Rule": _typed_dict(f"{name}Rule", ["type", *_keys(kind)]) for name, kind in _KINDS.items()}
globals().update({name: _function(name, kind) for name, kind in _KINDS.items()} | _RULES)
Rule = Union[tuple(_RULES.values())]  # type: ignore[valid-type]
Config = Union[Rule, list[Rule]]  # type: ignore[valid-type]


def override(name: str, rule: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns an entry for the ``override`` of a rule.

    Args:
        name: of a direct attribute of the module that has the config.
        rule: what fills everything below that attribute; None: the rule around it.

    Example:
        >>> from fastinit import rules
        >>> rules.Xavier(layer="Linear", override=rules.override("head", rules.Normal(std=0.01)))
        {'type': 'Xavier', 'layer': 'Linear', 'override': {'name': 'head', 'type': 'Normal', 'std': 0.01}}
    """
    return {"name": name, **(rule or {})}


def rule(kind: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the rule for an initializer class of your own, or a function that makes an initializer.

    Type checkers compare the arguments with its signature. ``**kwargs: Unpack[rules.Selectors]`` there gives types to
    those that it hands on to ``fastinit.BaseInit``.

    Args:
        kind: it. Where it is registered, the rule has its name, and else itself as the type.
        args, kwargs: its arguments.

    Raises:
        TypeError: it does not take these arguments; or it is a name.

    Example:
        >>> import fastinit
        >>> from fastinit import rules
        >>> @fastinit.WEIGHT_INITIALIZERS.register_module(name="Halves")
        ... class HalvesInit(fastinit.BaseInit):
        ...     def __init__(self, times: float, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.times = times
        >>> rules.rule(HalvesInit, 3, layer="Linear")
        {'type': 'Halves', 'times': 3, 'layer': 'Linear'}
    """
    if not callable(kind):
        named = WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else None
        found = getattr(named, "__name__", "MyInit")
        raise InitTypeError(
            f"rules.rule takes an initializer class or a function that makes one, but got {kind!r}",
            hint=f": write rules.rule({found}, ...)"
            + (f", or dict(type={kind!r}, ...)" if isinstance(kind, str) else ""),
        )
    name = next((name for name, each in WEIGHT_INITIALIZERS.module_dict.items() if each is kind), kind)
    signature = inspect.signature(kind)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise InitTypeError(f"{getattr(kind, '__name__', kind)}: {error}", hint=f". It takes {signature}") from None
    kinds = {each.name: each.kind for each in signature.parameters.values()}
    found: dict[str, Any] = {"type": name}
    for argument, value in given.items():
        if kinds[argument] is inspect.Parameter.VAR_POSITIONAL:
            raise InitTypeError(f"a rule has no arguments without names, but got {value!r}")
        found.update(value if kinds[argument] is inspect.Parameter.VAR_KEYWORD else {argument: value})
    return found


def __getattr__(name: str) -> Any:
    """Raises AttributeError; where an initializer has the name, or a similar one, it says so."""
    near = difflib.get_close_matches(name, __all__, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    if name in WEIGHT_INITIALIZERS:
        kind = getattr(WEIGHT_INITIALIZERS[name], "__name__", name)
        hint = f": rules.rule({kind}, ...) makes the rule of an initializer that you have registered"
    raise InitAttributeError(f"module {__name__!r} has no attribute {name!r}", hint=hint)


_OTHERS = ("Config", "Layers", "Names", "Number", "Override", "Rule", "Selectors", "override", "rule")
__all__ = sorted([*_OTHERS, *_KINDS, *_RULES])
