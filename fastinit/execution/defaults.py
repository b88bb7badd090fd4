"""``use()``: what backend, seed and strictness a call has that names none, and what configs may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Union

from ..backends import checked
from ..contract.streams import check_seed, fold_in
from ..errors import InitValueError
from ..registry import allowing_imports

ENVIRONMENT_VARIABLE = "FASTINIT_BACKEND"
STRICT_VARIABLE = "FASTINIT_STRICT"

Strict = Union[bool, Literal["complete"]]
"""False; True: a rule that matches nothing is an error; "complete": a parameter that no rule reaches is one, too."""


@dataclass(frozen=True)
class _Defaults:
    backend: str | None = None
    seed: int | None = None
    strict: Strict | None = None
    calls: list[int] = field(default_factory=lambda: [0])
    """One number, shared by nested blocks: how many outermost calls took their seed from this block's."""


_STRICT_TEXTS: dict[str, Strict] = {"": False, "0": False, "false": False, "1": True, "true": True}
_STRICT_TEXTS["complete"] = "complete"

_current: ContextVar[_Defaults | None] = ContextVar("fastinit_defaults", default=None)


@contextmanager
def use(
    *,
    backend: str | None = None,
    seed: int | None = None,
    strict: Strict | None = None,
    allow_imports: bool | None = None,
) -> Iterator[None]:
    """Sets what the arguments say for all fastinit calls in a ``with`` block (or in a decorated function).

    What is None is taken from the ``use`` block around it. Under a seed, the first call in the block that gives
    neither ``seed`` nor ``prefix`` uses that seed itself and each later one a seed derived from it, so that two models
    made in one block differ and a second run repeats both. Every call counts, also one that fails or draws nothing;
    threads that are started in the block do not see it. ``strict`` is what ``initialize`` says of it.

    ``allow_imports=False`` is for configs from strangers: ``type`` may only name what is registered, and a checkpoint
    may not have code run (``weights_only=False``, import paths in ``allow``). No block inside can allow it again. For
    all threads of a process, set the environment variable FASTINIT_ALLOW_IMPORTS to 0.

    Raises:
        TypeError, ValueError: the seed is not an integer from 0 to 2^64 - 1, or ``strict`` is none of its values.

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
    seed, calls = (outer.seed, outer.calls) if seed is None else (check_seed(seed), [0])
    strict = outer.strict if strict is None else check_strict(strict)
    token = _current.set(_Defaults(backend, seed, strict, calls))
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
    check_default_backend()
    return os.environ.get(ENVIRONMENT_VARIABLE) or "auto"


def check_default_backend() -> None:
    """Raises ValueError if the environment variable FASTINIT_BACKEND names no backend; the message names it."""
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    try:
        checked(name or "auto")
    except ValueError as error:
        raise InitValueError(f"the environment variable {ENVIRONMENT_VARIABLE}: {error}", of=error) from None


def default_strict() -> Strict:
    """Returns the innermost ``use(strict=)``, else what the environment variable FASTINIT_STRICT says, else False."""
    defaults = _current.get()
    if defaults is not None and defaults.strict is not None:
        return defaults.strict
    text = os.environ.get(STRICT_VARIABLE, "").lower()
    if text not in _STRICT_TEXTS:
        raise InitValueError(f"{STRICT_VARIABLE} must be one of 0, 1 and complete, but it is {text!r}")
    return _STRICT_TEXTS[text]


def check_strict(strict: object) -> Strict:
    """Returns ``strict``.

    Raises:
        ValueError: it is none of False, True and "complete".
    """
    if strict is True or strict is False or strict == "complete":
        return strict  # type: ignore[return-value]
    raise InitValueError(f"strict must be False, True or 'complete', but got {strict!r}")


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
