"""muP: how initialization and learning rates go with the width of a model, so that what is tuned on a narrow one holds.

Maximal update parametrization as in table 8 of Yang et al., "Tensor Programs V" (arXiv 2203.03466), which the package
``mup`` has too. The widths are what differs between the shapes of two models: of a base model, on which numbers were
tuned, and of the one that is to be trained. For a parameter with m times as many inputs as in the base model:

================  ====================  ===============  ==============  =========================
dimensions that   standard deviation    learning rate    learning rate   output of the layer
are widths                              (Adam)           (SGD)
================  ====================  ===============  ==============  =========================
none              as in the base model  as there         as there        as there
one               as in the base model  as there         times m         divided by m, of the last layer
two (matrices)    divided by sqrt(m)    divided by m     m_out / m       as there
================  ====================  ===============  ==============  =========================
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import nn

from ..errors import InitTypeError, InitValueError
from ..naming import named_parameters
from ..planning import plan
from ..plans import Call, Fill, Plan
from .rows import OPTIMIZERS, Scaled, row_of
from .wide_config import patterns_of, rule_of, scaled, shape_of_name, values_in

__all__ = ["OPTIMIZERS", "Model", "Scaled", "Scaling", "attention_scale", "scaling"]

Model = Union[nn.Module, Callable[[], nn.Module]]
"""A module, on the meta device or with memory, or a function without arguments that makes one."""


@dataclass(frozen=True)
class Scaling:
    """How the parameters of a model go with its width. ``print(scaling)`` shows a table, like layers as one row."""

    rows: tuple[Scaled, ...]

    @property
    def output_multipliers(self) -> dict[str, float]:
        """By the name of each output weight, what the model has to multiply the layer's output (the logits) with."""
        return {row.name: row.output for row in self.rows if row.kind in ("output", "tied")}

    def multipliers(self, optimizer: str = "adam") -> dict[str, float]:
        """Returns by name the factor of each parameter's learning rate.

        Args:
            optimizer: "adam" (for all that adapts to the size of gradients) or "sgd".
        """
        return {row.name: row.factor(optimizer) for row in self.rows}

    def param_groups(
        self,
        model: nn.Module,
        lr: float,
        optimizer: str = "adam",
        *,
        weight_decay: float = 0.0,
        is_decoupled: bool = False,
    ) -> list[dict[str, Any]]:
        """Returns the groups of parameters for a torch optimizer, one for each learning rate.

        Args:
            model: with the names that were compared.
            lr: of the base model.
            optimizer: "adam" or "sgd".
            weight_decay: of the base model. The optimizers of torch multiply it with the learning rate; it is divided
                by the same factor, so that a weight decays as in the base model.
            is_decoupled: the optimizer does not multiply it with the learning rate.

        Raises:
            ValueError: the model has other parameters than those that were compared, or other shapes; both are listed.

        Example:
            >>> import torch, fastinit
            >>> def mlp(width):
            ...     return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Linear(width, width))
            >>> with torch.device("meta"):
            ...     scaling = fastinit.mup.scaling(mlp(64), mlp(256))
            >>> groups = scaling.param_groups(mlp(256), lr=0.01)
            >>> [(group["lr"], len(group["params"])) for group in groups]
            [(0.01, 3), (0.0025, 1)]
        """
        by_name = {name: parameter for parameter, names in named_parameters(model).items() for name in names}
        factors = self.multipliers(optimizer)
        first = {names[0] for names in named_parameters(model).values()}
        if factors.keys() != first:
            absent, more = sorted(factors.keys() - first), sorted(first - factors.keys())
            raise InitValueError(f"the model lacks {absent}, and has {more} that were not compared")
        shapes = {name: tuple(parameter.shape) for name, parameter in by_name.items()}
        _check_shapes("the model", shapes, {row.name: row.shape for row in self.rows})
        groups: dict[float, dict[str, Any]] = {}
        for name, factor in factors.items():
            decay = weight_decay if is_decoupled else weight_decay / factor
            group = groups.setdefault(factor, {"params": [], "lr": lr * factor, "weight_decay": decay})
            group["params"].append(by_name[name])
        return list(groups.values())

    def config(self, base: Model | Plan, init_cfg: Any = None) -> list[dict[str, Any]]:
        """Returns the config for the wide model: the base model's, with standard deviations that go with the width.

        A list of plain rules, to be printed, edited and kept as JSON. Those of parameters with the same values are one;
        layers that are alike have one pattern.

        Args:
            base: the base model. If it is a function, its model's own init counts, with ``init_cfg`` after it. Or a
                plan of it.
            init_cfg: its config.

        Raises:
            ValueError: the base model has a parameter that nothing fills, that was not compared, that had another
                shape then, or whose values no factor makes those of a wide model.

        Example:
            >>> import torch, fastinit
            >>> def mlp(width):
            ...     return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Linear(width, width))
            >>> with torch.device("meta"):
            ...     scaling = fastinit.mup.scaling(mlp(64), mlp(256))
            ...     for rule in scaling.config(mlp(64), dict(type="Normal", std=0.1, layer="Linear")):
            ...         print(rule)
            {'type': 'Normal', 'param': '0.weight', 'mean': 0.0, 'std': 0.1}
            {'type': 'Constant', 'param': '*.bias', 'val': 0}
            {'type': 'Normal', 'param': '1.weight', 'mean': 0.0, 'std': 0.05}
        """
        planned = base if isinstance(base, Plan) else plan(base, init_cfg)
        values = values_in(planned)
        shapes = {item.name: tuple(item.tensor.shape) for item in planned.items if isinstance(item, Fill)}
        _check_shapes("the base model", shapes, {row.name: row.base_shape for row in self.rows})
        if calls := [item.label for item in planned.items if isinstance(item, Call)]:
            raise InitValueError(f"what code does to the base model is not known, so it cannot be scaled: {calls[0]}")
        rules: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for row in self.rows:
            known = values.get(row.name)
            if known is None:
                given = "nothing fills it" if row.name not in values else "not one rule fills it"
                raise InitValueError(f"the plan of the base model does not say what {row.name!r} starts as: {given}")
            try:
                rule = rule_of(scaled(known, row))
            except ValueError as error:
                raise InitValueError(f"{row.name}: {error}", place=row.name, of=error) from None
            rules.setdefault(json.dumps(rule), (rule, []))[1].append(row.name)
        every = [name for row in self.rows for name in (row.name, *row.aliases)]
        return [
            {"type": rule.pop("type"), "param": patterns_of(names, every), **rule} for rule, names in rules.values()
        ]

    def to_json(self, indent: int | None = None) -> str:
        """Returns the rows as JSON; the format's version is in ``fastinit_mup``."""
        return json.dumps({"fastinit_mup": 1, "rows": [row._asdict() for row in self.rows]}, indent=indent)

    def __str__(self) -> str:
        head = ("parameter", "base", "shape", "kind", "std", "lr (Adam)", "lr (SGD)", "output")
        lines = [head]
        every = [name for row in self.rows for name in (row.name, *row.aliases)]
        groups: dict[Any, list[str]] = {}
        for row in self.rows:
            groups.setdefault((shape_of_name(row.name), row[1:-1]), []).append(row.name)
        shown: dict[str, Scaled] = {}
        patterns = {key: patterns_of(names, every) for key, names in groups.items()}
        for row in self.rows:
            pattern = patterns[shape_of_name(row.name), row[1:-1]]
            shown.setdefault(pattern if isinstance(pattern, str) else row.name, row)
        for pattern, (_, base, shape, kind, *factors, _) in shown.items():
            sizes = ("x".join(map(str, each)) or "()" for each in (base, shape))
            lines.append((pattern, *sizes, kind, *(f"{factor:.6g}" for factor in factors)))  # type: ignore[arg-type]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
        return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines)


def _check_shapes(whose: str, shapes: Mapping[str, tuple[int, ...]], compared: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError where a model is not as wide as the one that was compared: all its factors would be wrong."""
    wrong = [name for name, shape in compared.items() if shapes.get(name, shape) != shape]
    if wrong:
        name = wrong[0]
        raise InitValueError(
            f"{whose} has {name!r} of shape {shapes[name]}, and {compared[name]} was compared; {len(wrong)} differ",
            hint=": make the scaling of this model, fastinit.mup.scaling(base, model)",
        )


def scaling(
    base: Model, target: Model, *, delta: Model | None = None, fan_in: Mapping[str, int] | None = None
) -> Scaling:
    """Returns how the parameters of a model go with its width.

    Args:
        base: the narrow model, on which numbers were tuned. A module, on the meta device for one without memory, or a
            function that makes one, which runs on the meta device.
        target: the model that is to be trained, with the same names.
        delta: a third model, which differs from ``base`` in all dimensions that are widths: for those that are as large
            in the target as in the base model.
        fan_in: by a parameter's name, which of its dimensions the inputs are. Known are those of torch's layers, of
            classes that are called something with Linear, and of ``Conv1D`` of transformers. Of others it is needed if
            two dimensions become wider by different factors, or if it is the weight of an output layer.

    Raises:
        TypeError: one of the models is none.
        ValueError: the models have other names or numbers of dimensions; a parameter has more than two dimensions that
            are widths; or it is not known which of two the inputs are.

    Example:
        >>> import torch, fastinit
        >>> def mlp(width):
        ...     layers = [torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, width)]
        ...     return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(width, 10))
        >>> print(fastinit.mup.scaling(lambda: mlp(64), lambda: mlp(256)))
        parameter  base   shape    kind    std  lr (Adam)  lr (SGD)  output
        ---------  -----  -------  ------  ---  ---------  --------  ------
        0.weight   64x8   256x8    input   1    1          4         1
        0.bias     64     256      input   1    1          4         1
        2.weight   64x64  256x256  matrix  0.5  0.25       1         1
        2.bias     64     256      input   1    1          4         1
        4.weight   10x64  10x256   output  1    1          4         0.25
        4.bias     10     10       fixed   1    1          1         1
    """
    wide = _made(target, "target")
    shapes, names_of = _shapes(wide), {names[0]: names for names in named_parameters(wide).values()}
    of_base = _compared(_shapes(_made(base, "base")), shapes, "base")
    of_delta = of_base if delta is None else _compared(_shapes(_made(delta, "delta")), of_base, "delta")
    unknown = sorted(set(fan_in or {}) - shapes.keys())
    if unknown:
        raise InitValueError(f"fan_in names {unknown}, which the models have not")
    others = shapes if delta is None else of_delta
    rows = []
    for name, shape in shapes.items():
        each = [
            row_of(alias, of_base[name], shape, others[name], wide, (fan_in or {}).get(name))
            for alias in names_of[name]
        ]
        kinds = {row.kind for row in each}
        tied = dict(kind="tied", output=min(row.output for row in each))
        row = each[0]._replace(**tied) if kinds == {"input", "output"} else each[0]  # type: ignore[arg-type]
        rows.append(row._replace(aliases=tuple(names_of[name][1:])))
    return Scaling(tuple(rows))


def attention_scale(head_dim: int, base_head_dim: int) -> float:
    """Returns the factor of the products of queries and keys in a model whose heads grow with the width.

    Where the base model has 1 / sqrt(base_head_dim), it goes with 1 / head_dim (table 8's footnote, definition 4.1).
    """
    return math.sqrt(base_head_dim) / head_dim


def _made(model: Model, what: str) -> nn.Module:
    if callable(model) and not isinstance(model, (nn.Module, type)):
        with torch.device("meta"):
            model = model()
    if not isinstance(model, nn.Module):
        raise InitTypeError(
            f"{what} must be a module, or a function that returns one, but got {model!r} of {type(model)}"
        )
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {names[0]: tuple(parameter.shape) for parameter, names in named_parameters(model).items()}


def _compared(
    one: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]], what: str
) -> dict[str, tuple[int, ...]]:
    """Returns the first, if it has the names and numbers of dimensions of the other."""
    if one.keys() != other.keys():
        fewer, more = sorted(other.keys() - one.keys()), sorted(one.keys() - other.keys())
        raise InitValueError(
            f"the {what} model must have the names of the other: it lacks {fewer[:5]}, and has {more[:5]} besides"
        )
    if differing := [name for name, shape in one.items() if len(shape) != len(other[name])]:
        name = differing[0]
        raise InitValueError(
            f"the {what} model's {name!r} has another number of dimensions: {one[name]} and {other[name]}"
        )
    return one
