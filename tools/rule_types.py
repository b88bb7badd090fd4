"""Writes fastinit/rules.pyi, the types of ``fastinit.rules``, from the signatures of the initializers.

Run ``python tools/rule_types.py`` after a change of one of them; a test fails until you do.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fastinit
from fastinit.config import schemes
from fastinit.config.rules import keys_of

STUB = Path(fastinit.__file__).parent / "rules.pyi"

HEAD = '''\
"""Types of rules. Generated from the initializers' signatures: run ``python tools/rule_types.py``, do not edit."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeAlias, Union

import torch
from typing_extensions import Required, TypedDict

Number: TypeAlias = Union[float, str]
Layers: TypeAlias = Union[str, type, list[str], list[type], list[Union[str, type]]]
Names: TypeAlias = Union[str, list[str]]
_Mode: TypeAlias = Literal[{modes}]
_ScalingMode: TypeAlias = Literal[{scaling_modes}]
_ScalingDistribution: TypeAlias = Literal[{scaling_distributions}]
_Nonlinearity: TypeAlias = Literal[
    {nonlinearities},
]
_Axes: TypeAlias = Union[tuple[int, int], list[int]]
_P = ParamSpec("_P")
'''

TAIL = '''\
Rule: TypeAlias = Union[
    {rules},
]
Config: TypeAlias = Union[Rule, list[Rule]]

def override(name: str, rule: Rule | Mapping[str, Any] | None = None) -> Override:
    """Returns an entry for the ``override`` of a rule: what fills everything below an attribute."""

def rule(kind: Callable[_P, object], /, *args: _P.args, **kwargs: _P.kwargs) -> dict[str, Any]:
    """Returns the rule for an initializer class of your own; its arguments are compared with its signature."""
'''

# By the argument's name, and by the type of rule where it means something else in one; None may be left out everywhere.
TYPES = {
    "a": "Number",
    "access": 'Literal["auto", "map", "read"]',
    "allow": "Sequence[Any]",
    "assign": "bool",
    "b": "Number",
    "batch_dims": "int",
    "bias": "Number",
    "bias_prob": "float | None",
    "blocks": "int | Sequence[int]",
    "bounds": 'Literal["absolute", "sigma"]',
    "checkpoint": "str | os.PathLike[str]",
    "distribution": 'Literal["normal", "uniform"]',
    "dtype": "torch.dtype | str | None",
    "fan": 'Literal["torch", "layer"]',
    "fan_axes": "_Axes | None",
    "gain": "Number",
    "groups": "int",
    "key": "str | None",
    "layer": "Layers | None",
    "map_location": "Any",
    "mean": "Number",
    "mode": "_Mode",
    "nonlinearity": "_Nonlinearity",
    "override": "Override | list[Override] | None",
    "param": "Names | None",
    "prefix": "str | None",
    "revise_keys": "Sequence[tuple[str, str]] | None",
    "scale": "Number",
    "sparsity": "Number",
    "std": "Number",
    "strict": "bool",
    "val": "Number",
    "vars": "Mapping[str, float] | None",
    "weights_only": "bool",
}
SCALING = {"mode": "_ScalingMode", "distribution": "_ScalingDistribution"}


def generated() -> str:
    """Returns the text of rules.pyi for the initializers that fastinit registers."""
    registered = fastinit.WEIGHT_INITIALIZERS.module_dict.items()
    kinds: dict[str, Any] = {name: kind for name, kind in registered if kind.__module__.startswith("fastinit.config.")}
    modes, scaling = _texts(schemes.FAN_MODES), _texts(schemes.SCALING_MODES)
    nonlinearities = _texts((*schemes.NONLINEARITIES, *schemes._GAINS), ",\n    ")
    head = HEAD.format(
        modes=modes,
        scaling_modes=scaling,
        scaling_distributions=_texts(schemes.SCALING_DISTRIBUTIONS),
        nonlinearities=nonlinearities,
    )
    selectors = [each.name for each in keys_of(fastinit.BaseInit) if each.name != "override"]
    every = dict.fromkeys(each.name for kind in kinds.values() for each in keys_of(kind))
    for not_there in ("override", "param", "layer"):
        del every[not_there]
    pieces = [
        head,
        _typed_dict("Selectors", {name: TYPES[name] for name in selectors}),
        _typed_dict(
            "Override",
            {
                "name": "Required[str]",
                "type": "Any",
                **{name: "Any" for name in every if name not in ("override", "param")},
            },
        ),
    ]
    for name, kind in kinds.items():
        types = {each.name: _type_of(kind, each.name) for each in keys_of(kind)}
        needed = {each.name for each in keys_of(kind) if each.default is inspect.Parameter.empty}
        keys = {key: f"Required[{text}]" if key in needed else text for key, text in types.items()}
        pieces.append(_typed_dict(f"{name}Rule", {"type": f"Required[Literal[{_text(name)}]]", **keys}))
    for name, kind in kinds.items():
        pieces.append(_function(name, kind))
    pieces.append(TAIL.format(rules=",\n    ".join(f"{name}Rule" for name in kinds)))
    return "\n".join(pieces)


def _texts(names: Iterable[str], separator: str = ", ") -> str:
    return separator.join(map(_text, names))


def _text(name: str) -> str:
    return f'"{name}"'


def _type_of(kind: type, name: str) -> str:
    if name in SCALING and issubclass(kind, fastinit.VarianceScalingInit):
        return SCALING[name]
    return TYPES[name]


def _typed_dict(name: str, keys: dict[str, str]) -> str:
    lines = [f"    {key}: {text}" for key, text in keys.items()]
    return "\n".join([f"class {name}(TypedDict, total=False):", *lines, ""])


def _function(name: str, kind: type) -> str:
    lines = []
    for each in keys_of(kind):
        default = "" if each.default is inspect.Parameter.empty else f" = {_default(each.default)}"
        lines.append(f"    {each.name}: {_type_of(kind, each.name)}{default},")
    first = (inspect.getdoc(kind) or "").splitlines()[0]
    return "\n".join([f"def {name}(", "    *,", *lines, f") -> {name}Rule:", f"    {_docstring(first)}", ""])


def _default(value: object) -> str:
    return _text(value) if isinstance(value, str) else repr(value)


def _docstring(text: str) -> str:
    return f'"""{text}"""' if not text.endswith('"') else f'"""{text[:-1]}\\""""'


if __name__ == "__main__":
    STUB.write_text(generated())
