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


class Seeding:
    """Whether the code in a block has seeded torch's default generator itself: then it wants those numbers."""

    def __init__(self) -> None:
        self._is_set = False
        self._seed = torch.default_generator.initial_seed()
        self._forks: list[tuple[bool, int]] = []

    def set(self) -> None:
        """Notes a call of ``torch.manual_seed``."""
        self._is_set = True

    def enter_fork(self) -> None:
        """Notes the begin of ``torch.random.fork_rng``, which gives the generator its state back in the end."""
        self._forks.append((self._is_set, self._seed))
        self._is_set, self._seed = False, torch.default_generator.initial_seed()

    def leave_fork(self) -> None:
        """Notes its end."""
        self._is_set, self._seed = self._forks.pop()

    @property
    def _is_changed(self) -> bool:
        return self._is_set or torch.default_generator.initial_seed() != self._seed

    @property
    def is_own(self) -> bool:
        """Whether draws are to come from the default generator as it is now."""
        return self._is_changed or any(is_set for is_set, _ in self._forks)

    @property
    def is_own_in_fork(self) -> bool:
        """As ``is_own``, of code that keeps it to itself. A script's ``seed_everything`` means all that follows."""
        return bool(self._forks) and self._is_changed


@cache  # there are a few thousand operators
def is_random(func: Any) -> bool:
    """Tells whether an operator draws from torch's generators."""
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)
