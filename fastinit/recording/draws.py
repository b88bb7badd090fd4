"""Operators that draw from torch's generators, done with those of a call that has a seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from ..execution.seeds import Generators
from ..execution.version_counters import tensors_in


def draw(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], generators: Generators | None) -> Any:
    """Runs an operator that draws, with the generators of its call: code of others need not seed the default ones."""
    if generators is None or kwargs.get("generator") is not None:
        return func(*args, **kwargs)
    tensor = next(iter(tensors_in((*args, *kwargs.values()))), None)
    device = torch.device(kwargs.get("device") or ("cpu" if tensor is None else tensor.device))
    if device.type == "meta":
        return func(*args, **kwargs)
    if _takes_generator(func):
        own = generators.own(device)
        return func(*args, **kwargs) if own is None else func(*args, **kwargs, generator=own)
    with generators.next_draw(device):
        return func(*args, **kwargs)


@cache  # there are a few thousand operators
def is_random(func: Any) -> bool:
    """Tells whether an operator draws from torch's generators."""
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)
