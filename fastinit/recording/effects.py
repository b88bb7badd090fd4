"""What torch's operators do to tensors, by their schemas: what they write, and whether they draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from ..execution.memory_book import MemoryBook
from .draws import is_random


class Effect(NamedTuple):
    """What an operator does to tensors."""

    reads_nothing: bool
    """It makes a view, or a tensor without values."""
    moves: bool
    """It gives a tensor other memory or another shape, and writes no memory."""
    written: tuple[tuple[int, str], ...]
    """Position and name of the arguments that it writes into."""
    is_random: bool
    changes: bool
    """What it writes depends on what was there."""


# Their schemas do not say that they write these arguments, by name.
_UNTOLD = dict.fromkeys(
    (
        "batch_norm_gather_stats",
        "batch_norm_gather_stats_with_counts",
        "batch_norm_update_stats",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "native_batch_norm",
    ),
    ("running_mean", "running_var"),
)
# In place, and whatever was there.
_OVERWRITE = ("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_")
# They look at shapes and dtypes only.
_SHAPES_ONLY = ("empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty")


@cache  # there are a few thousand operators
def effect_of(func: Any) -> Effect:
    """Returns what an operator does."""
    schema = func._schema
    untold = _UNTOLD.get(schema.name.removeprefix("aten::"), ())
    written = tuple(
        (position if not argument.kwarg_only else len(schema.arguments), argument.name)
        for position, argument in enumerate(schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in untold
    )
    # torch 2.1 has no tag on set_.
    moves = torch.Tag.inplace_view in func.tags or schema.name == "aten::set_"
    if moves:
        written = ()
    is_view = not written and any(result.alias_info is not None for result in schema.returns)
    name, draws = schema.name.removeprefix("aten::"), is_random(func)
    changes = bool(written) and name.endswith("_") and not draws and name not in _OVERWRITE
    return Effect(is_view or name in _SHAPES_ONLY, moves, written, draws, changes)


def arguments_written(effect: Effect, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Returns the arguments that an operator writes."""
    return [args[at] if at < len(args) else kwargs.get(name) for at, name in effect.written]


def without_protected(
    book: MemoryBook, effect: Effect, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """Returns the arguments with copies of the protected tensors that would be written; None if there are none."""
    positional, named, found = list(args), dict(kwargs), False
    for position, name in effect.written:
        values: Any = positional if position < len(args) else named
        key: Any = position if position < len(args) else name
        value = values[key] if position < len(args) else named.get(name)
        if isinstance(value, torch.Tensor):
            place = book.place_of(value)
            if place is not None and place.storage_id in book.protected:
                values[key], found = value.clone(), True
    return (tuple(positional), named) if found else None
