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
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Union

import torch
from torch import nn

from .config.matching import owner_of
from .naming import named_parameters
from .planning import plan
from .plans import (
    Call,
    Constant,
    Dirac,
    Distribution,
    Fill,
    Identity,
    Normal,
    Orthogonal,
    Plan,
    TruncatedNormal,
    Uniform,
    describe,
)

Model = Union[nn.Module, Callable[[], nn.Module]]
"""A module, on the meta device or with memory, or a function without arguments that makes one."""
OPTIMIZERS = ("adam", "sgd")
# Layers whose weight is (in, out, ...), and not (out, in, ...).
_TRANSPOSED = ("Conv1D", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


class Scaled(NamedTuple):
    """How one parameter goes with the width."""

    name: str
    base_shape: tuple[int, ...]
    shape: tuple[int, ...]
    kind: str
    """"matrix" (two dimensions are widths), "input" (one is, that of the outputs; biases and norms too), "output" (one
    is, that of the inputs), "tied" (an embedding that is the output layer's weight too), or "fixed" (none is)."""
    std: float
    """Factor of the standard deviation."""
    adam: float
    """Factor of the learning rate of Adam, and of what adapts to the size of gradients as it does."""
    sgd: float
    """Factor of the learning rate of SGD."""
    output: float
    """Factor of what the output layer gives, which the model has to apply; 1 for all but "output" and "tied"."""

    def factor(self, optimizer: str) -> float:
        """Returns the factor of the learning rate.

        Raises:
            ValueError: ``optimizer`` is none of ``OPTIMIZERS``.
        """
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, but got {optimizer!r}")
        return self.adam if optimizer == "adam" else self.sgd


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
            ValueError: the model has other parameters than those that were compared; both are listed.

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
            raise ValueError(f"the model lacks {absent}, and has {more} that were not compared")
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
            ValueError: the base model has a parameter that nothing fills, that was not compared, or whose values no
                factor makes those of a wide model.

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
        values = _values_in(planned)
        rules: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for row in self.rows:
            known = values.get(row.name)
            if known is None:
                given = "nothing fills it" if row.name not in values else "not one rule fills it"
                raise ValueError(f"the plan of the base model does not say what {row.name!r} starts as: {given}")
            try:
                rule = _rule(_scaled(known, row))
            except ValueError as error:
                raise ValueError(f"{row.name}: {error}") from None
            rules.setdefault(json.dumps(rule), (rule, []))[1].append(row.name)
        every = [row.name for row in self.rows]
        return [{"type": rule.pop("type"), "param": _patterns(names, every), **rule} for rule, names in rules.values()]

    def to_json(self, indent: int | None = None) -> str:
        """Returns the rows as JSON; the format's version is in ``fastinit_mup``."""
        return json.dumps({"fastinit_mup": 1, "rows": [row._asdict() for row in self.rows]}, indent=indent)

    def __str__(self) -> str:
        head = ("parameter", "base", "shape", "kind", "std", "lr (Adam)", "lr (SGD)", "output")
        lines = [head]
        every = [row.name for row in self.rows]
        groups: dict[Any, list[str]] = {}
        for row in self.rows:
            groups.setdefault((_shape_of_name(row.name), row[1:]), []).append(row.name)
        shown: dict[str, Scaled] = {}
        for row in self.rows:
            pattern = _patterns(groups[_shape_of_name(row.name), row[1:]], every)
            shown.setdefault(pattern if isinstance(pattern, str) else row.name, row)
        for pattern, (_, base, shape, kind, *factors) in shown.items():
            sizes = ("x".join(map(str, each)) or "()" for each in (base, shape))
            lines.append((pattern, *sizes, kind, *(f"{factor:.6g}" for factor in factors)))  # type: ignore[arg-type]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
        return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines)


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
        raise ValueError(f"fan_in names {unknown}, which the models have not")
    others = shapes if delta is None else of_delta
    rows = []
    for name, shape in shapes.items():
        each = [
            _row(alias, of_base[name], shape, others[name], wide, (fan_in or {}).get(name)) for alias in names_of[name]
        ]
        kinds = {row.kind for row in each}
        tied = dict(kind="tied", output=min(row.output for row in each))
        rows.append(each[0]._replace(**tied) if kinds == {"input", "output"} else each[0])  # type: ignore[arg-type]
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
        raise TypeError(f"{what} must be a module, or a function that returns one, but got {model!r} of {type(model)}")
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {names[0]: tuple(parameter.shape) for parameter, names in named_parameters(model).items()}


def _compared(
    one: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]], what: str
) -> dict[str, tuple[int, ...]]:
    """Returns the first, if it has the names and numbers of dimensions of the other."""
    if one.keys() != other.keys():
        fewer, more = sorted(other.keys() - one.keys()), sorted(one.keys() - other.keys())
        raise ValueError(
            f"the {what} model must have the names of the other: it lacks {fewer[:5]}, and has {more[:5]} besides"
        )
    if differing := [name for name, shape in one.items() if len(shape) != len(other[name])]:
        name = differing[0]
        raise ValueError(f"the {what} model's {name!r} has another number of dimensions: {one[name]} and {other[name]}")
    return one


def _row(
    name: str,
    base: tuple[int, ...],
    shape: tuple[int, ...],
    other: tuple[int, ...],
    model: nn.Module,
    fan_in: int | None,
) -> Scaled:
    widths = [dim for dim, size in enumerate(base) if size != other[dim]]
    if still := [dim for dim, size in enumerate(base) if size != shape[dim] and dim not in widths]:
        raise ValueError(f"dimension {still[0]} of {name!r} differs in the target ({base} and {shape}), not in delta")
    if 0 in base:
        raise ValueError(f"{name!r} has no elements in the base model: its width cannot be compared")
    factors = {dim: shape[dim] / base[dim] for dim in widths}
    if not widths:
        return Scaled(name, base, shape, "fixed", 1.0, 1.0, 1.0, 1.0)
    inputs = _input_dim(name, base, model, fan_in)
    if len(widths) == 1:
        m = factors[widths[0]]
        is_output = widths[0] == inputs
        return Scaled(name, base, shape, "output" if is_output else "input", 1.0, 1.0, m, 1 / m if is_output else 1.0)
    if len(widths) > 2:
        raise ValueError(f"dimensions {widths} of {name!r} become wider ({base} to {shape}): muP has rules for two")
    if inputs not in widths:
        if len(set(factors.values())) > 1:
            raise ValueError(
                f"dimensions {widths} of {name!r} become wider by different factors ({base} to {shape}), and it is not "
                f"known which the inputs are: give fan_in={{{name!r}: dimension}}"
            )
        inputs = widths[0]
    (outputs,) = set(widths) - {inputs}
    m = factors[inputs]  # type: ignore[index]
    return Scaled(name, base, shape, "matrix", m**-0.5, 1 / m, factors[outputs] / m, 1.0)


def _input_dim(name: str, shape: Sequence[int], model: nn.Module, given: int | None) -> int | None:
    """Returns which dimension of a parameter the inputs are, None where that is not known or where there is none."""
    if given is not None:
        return given % len(shape)
    owner = owner_of(model, name)
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or len(shape) < 2:
        return None
    if type(owner).__name__ in _TRANSPOSED:
        return 0
    return 1 if isinstance(owner, nn.modules.conv._ConvNd) or "Linear" in type(owner).__name__ else None


# --- as a config -----------------------------------------------------------------------------------------------------


def _values_in(planned: Plan) -> dict[str, Distribution | None]:
    """Returns by name what a plan fills parameters with in the end; None where that is not one distribution."""
    found: dict[str, Distribution | None] = {}
    for item in planned.items:
        if isinstance(item, Fill):
            found[item.name] = None if item.is_part else item.distribution
        elif not isinstance(item, Call):
            found.update(dict.fromkeys(entry.name for entry in item.entries))
    return found


def _scaled(known: Distribution, row: Scaled) -> Distribution:
    """Returns the distribution of the wide model's parameter."""
    factor = row.std
    if isinstance(known, (Constant, Identity, Dirac)) and row.kind != "matrix":
        return known
    if isinstance(known, Constant) and known.value == 0:
        return known
    if isinstance(known, Orthogonal) and row.kind in ("matrix", "fixed"):
        return known  # whose elements go with 1 / sqrt(fan_in) by themselves
    if isinstance(known, Normal):
        return Normal(known.mean * factor, known.std * factor)
    if isinstance(known, Uniform):
        return Uniform(known.low * factor, known.high * factor)
    if isinstance(known, TruncatedNormal):
        return replace(
            known,
            mean=known.mean * factor,
            std=known.std * factor,
            low=known.low * factor,
            high=known.high * factor,
        )
    raise ValueError(f"muP does not say what {describe(known)} becomes where {row.base_shape} becomes {row.shape}")


def _rule(values: Distribution) -> dict[str, Any]:
    """Returns a distribution as the type and numbers of a rule."""
    if isinstance(values, Constant):
        return {"type": "Constant", "val": values.value}
    if isinstance(values, Normal):
        return {"type": "Normal", "mean": values.mean, "std": values.std}
    if isinstance(values, Uniform):
        return {"type": "Uniform", "a": values.low, "b": values.high}
    if isinstance(values, TruncatedNormal):
        return {"type": "TruncNormal", "mean": values.mean, "std": values.std, "a": values.low, "b": values.high}
    if isinstance(values, Orthogonal):
        batch = {"batch_dims": values.batch_dims} if values.batch_dims else {}
        return {"type": "Orthogonal", "gain": values.gain, **batch}
    if isinstance(values, Dirac):
        return {"type": "Dirac", "groups": values.groups}
    return {"type": "Identity"}


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def _shape_of_name(name: str) -> str:
    """Returns a name with its numbers left out."""
    return _NUMBER.sub("*", name)


def _patterns(names: Sequence[str], every: Iterable[str]) -> str | list[str]:
    """Returns patterns that match the names and no other: one for those that differ only in the numbers of layers.

    What matches is asked of the patterns' own language: ``*`` may stand for more than a number.
    """
    wanted = set(names)
    others = set(every) - wanted
    found: dict[str, None] = {}
    for name in names:
        tail = "*." + name.rpartition(".")[2]
        glob = next((each for each in (tail, _shape_of_name(name)) if _fits(each, wanted, others)), name)
        found[glob] = None
    patterns = list(found)
    return patterns[0] if len(patterns) == 1 else patterns


def _fits(glob: str, wanted: set[str], others: set[str]) -> bool:
    """Tells whether a glob matches several of the names, and none of the others."""
    matches = re.compile(".*".join(map(re.escape, glob.split("*")))).fullmatch
    return sum(map(bool, map(matches, wanted))) > 1 and not any(map(matches, others))
