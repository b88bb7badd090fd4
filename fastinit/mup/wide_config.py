"""The config of a wide model, from what a plan fills the base model with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InitValueError
from ..plans import (
    Call,
    Constant,
    Dirac,
    Distribution,
    Fill,
    Identity,
    Normal,
    Orthogonal,
    Plan,
    Sparse,
    TruncatedNormal,
    Uniform,
    describe,
    matrices_of,
)
from .rows import Scaled


def values_in(planned: Plan) -> dict[str, Distribution | None]:
    """Returns by name what a plan fills parameters with in the end; None where that is not one distribution."""
    found: dict[str, Distribution | None] = {}
    for item in planned.items:
        if isinstance(item, Fill):
            found[item.name] = None if item.is_part else item.distribution
        elif not isinstance(item, Call):
            found.update(dict.fromkeys(entry.name for entry in item.entries))
    return found


def scaled(known: Distribution, row: Scaled) -> Distribution:
    """Returns the distribution of the wide model's parameter."""
    factor = row.std
    if isinstance(known, (Constant, Identity, Dirac)) and row.kind != "matrix":
        return known
    if isinstance(known, Constant) and known.value == 0:
        return known
    if isinstance(known, Orthogonal) and row.kind in (
        "matrix",
        "fixed",
    ):  # whose elements have std gain / sqrt(rows or columns, whichever are more)
        longer = [max(matrices_of(known, shape)[1:]) for shape in (row.base_shape, row.shape)]
        ratio = factor * math.sqrt(longer[1] / longer[0])
        return known if math.isclose(ratio, 1) else replace(known, gain=known.gain * ratio)
    if isinstance(known, Sparse):
        return replace(known, std=known.std * factor)
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
    raise InitValueError(f"muP does not say what {describe(known)} becomes where {row.base_shape} becomes {row.shape}")


def rule_of(values: Distribution) -> dict[str, Any]:
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
    if isinstance(values, Sparse):
        return {"type": "Sparse", "sparsity": values.sparsity, "std": values.std}
    if isinstance(values, Dirac):
        return {"type": "Dirac", "groups": values.groups}
    return {"type": "Identity"}


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def shape_of_name(name: str) -> str:
    """Returns a name with its numbers left out."""
    return _NUMBER.sub("*", name)


def patterns_of(names: Sequence[str], every: Iterable[str]) -> str | list[str]:
    """Returns patterns that match the names and no other: one for those that differ only in the numbers of layers.

    What matches is asked of the patterns' own language: ``*`` may stand for more than a number.
    """
    wanted = set(names)
    others = set(every) - wanted
    found: dict[str, None] = {}
    for name in names:
        tail = "*." + name.rpartition(".")[2]
        glob = next((each for each in (tail, shape_of_name(name)) if _fits(each, wanted, others)), name)
        found[glob] = None
    patterns = list(found)
    return patterns[0] if len(patterns) == 1 else patterns


def _fits(glob: str, wanted: set[str], others: set[str]) -> bool:
    """Tells whether a glob matches several of the names, and none of the others."""
    if re.search(r"[\[\]?]", glob):  # a glob would not mean them as they are
        return False
    matches = re.compile(".*".join(map(re.escape, glob.split("*")))).fullmatch
    return sum(map(bool, map(matches, wanted))) > 1 and not any(map(matches, others))
