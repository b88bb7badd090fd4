"""What torch's operators do to tensors, by their schemas: what they write, and whether they draw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .draws import is_random


@dataclass(frozen=True)
class Effect:
    """What an operator does to tensors."""

    reads_nothing: bool
    """It makes a view, or a tensor without values."""
    moves: bool
    """It gives a tensor other memory or another shape, and writes no memory."""
    written: tuple[tuple[int, str], ...]
    """Position and name of the arguments that it writes into."""
    is_random: bool


# They look at shapes and dtypes only.
_SHAPES_ONLY = ("empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty")


@cache  # there are a few thousand operators
def effect_of(func: Any) -> Effect:
    """Returns what an operator does."""
    schema = func._schema
    written = tuple(
        (position if not argument.kwarg_only else len(schema.arguments), argument.name)
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    # torch 2.1 has no tag on set_.
    moves = torch.Tag.inplace_view in func.tags or schema.name == "aten::set_"
    if moves:
        written = ()
    is_view = not written and any(result.alias_info is not None for result in schema.returns)
    return Effect(is_view or schema.name.removeprefix("aten::") in _SHAPES_ONLY, moves, written, is_random(func))
