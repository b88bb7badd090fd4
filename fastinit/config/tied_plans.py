"""Why a plan does not fit a model that ties other names than the one that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..naming import Prefix, named_parameters, renamed

HINT = (
    ". Use a plan of a model that ties the same names, or tie them here as they were tied there (transformers: "
    "config.tie_word_embeddings)"
)
"""What to do about it."""

# A model ties its embeddings, in few places. Where more is lacking, it is another model.
_MOST_TIED = 4


def differing_ties(
    module: nn.Module,
    prefix: Prefix,
    shapes: Mapping[str, tuple[int, ...]],
    absent: Sequence[str],
    lacking: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """Returns what is tied to what on one side and not on the other, a text each; of plans that is a guess by shapes.

    Args:
        module, prefix: of the model.
        shapes: of all that the plan writes, by its names.
        absent: the names of them that the model lacks.
        lacking: names and shapes of the model's parameters that the plan lacks.
    """
    kind, missing, found = type(module).__name__, set(absent), {}
    for names in named_parameters(module).values():
        (first, *_), *others = ((renamed(name, prefix), name) for name in names)
        for name in (each for both in others for each in both):
            if name in missing:
                found[name] = f"{kind} ties {name} to {first} (one tensor), and the plan has two"
    if found:
        return list(found.values())
    if len(absent) + len(lacking) > _MOST_TIED or (absent and lacking):
        return []
    for name in absent:
        if other := _only_alike(name, shapes[name], shapes, missing):
            found[name] = f"if {kind} ties {name} to {other}, the plan is of a model that does not"
    for name, shape in lacking.items():
        if other := _only_alike(name, shape, shapes, missing):
            found[name] = f"if the plan is of a model that ties {name} to {other}, {kind} does not"
    return list(found.values())


def _only_alike(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], missing: set[str]) -> str:
    """Returns the only tensor of a plan, a matrix or more, that another can be tied to; "" if there is no such."""
    alike = [other for other, known in shapes.items() if known == shape and other != name and other not in missing]
    return alike[0] if len(alike) == 1 and len(shape) > 1 else ""
