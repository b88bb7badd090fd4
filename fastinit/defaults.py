"""``use()``: what backend and seed stand for where a call names none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from .registry import allowing_imports
from .streams import check_seed, fold_in

ENVIRONMENT_VARIABLE = "FASTINIT_BACKEND"


@dataclass(frozen=True)
class _Defaults:
    backend: str | None = None
    seed: int | None = None
    calls: list[int] = field(default_factory=lambda: [0])
    """One number, shared by nested blocks: how many outermost calls took their seed from this block's."""


_current: ContextVar[_Defaults | None] = ContextVar("fastinit_defaults", default=None)


@contextmanager
def use(*, backend: str | None = None, seed: int | None = None, allow_imports: bool | None = None) -> Iterator[None]:
    """Sets the backend, the seed or both for all fastinit calls in a ``with`` block (or in a decorated function).

    What is None is taken from the ``use`` block around it. Under a seed, the first call in the block that gives
    neither ``seed`` nor ``prefix`` uses that seed itself and each later one a seed derived from it, so that two models
    made in one block differ and a second run repeats both. Every call counts, also one that fails or draws nothing;
    threads that are started in the block do not see it.

    ``allow_imports=False`` is for configs from strangers: ``type`` may only name what is registered, and a checkpoint
    may not have code run (``weights_only=False``, import paths in ``allow``). No block inside can allow it again. For
    all threads of a process, set the environment variable FASTINIT_ALLOW_IMPORTS to 0.

    Raises:
        TypeError, ValueError: the seed is not an integer from 0 to 2^64 - 1.

    Example:
        >>> import torch, fastinit
        >>> a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        >>> for layer in (a, b):
        ...     with fastinit.use(seed=7):
        ...         fastinit.normal_init(layer)
        >>> torch.equal(a.weight, b.weight)
        True
    """
    outer = _current.get() or _Defaults()
    backend = outer.backend if backend is None else backend
    seed_and_calls = (outer.seed, outer.calls) if seed is None else (check_seed(seed), [0])
    token = _current.set(_Defaults(backend, *seed_and_calls))
    try:
        with allowing_imports(allow_imports):
            yield
    finally:
        _current.reset(token)


def default_backend() -> str:
    """Returns the innermost ``use(backend=)``, else the environment variable FASTINIT_BACKEND, else "auto"."""
    defaults = _current.get()
    if defaults is not None and defaults.backend is not None:
        return defaults.backend
    return os.environ.get(ENVIRONMENT_VARIABLE) or "auto"


def default_seed(*, own_names: bool, take: bool) -> int | None:
    """Returns the seed for one more outermost call that gives none, or None where no ``use(seed=)`` is active.

    Args:
        own_names: the call brought a prefix; its names are its own, so the block's seed serves as it is.
        take: count this call. A plan only looks, so that the call that follows it gets the seed that it showed.
    """
    defaults = _current.get()
    if defaults is None or defaults.seed is None or own_names:
        return None if defaults is None else defaults.seed
    k = defaults.calls[0]
    defaults.calls[0] += take
    return defaults.seed if k == 0 else fold_in((defaults.seed, 0), k)[0]
