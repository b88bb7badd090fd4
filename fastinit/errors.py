"""Errors and warnings that name their origin: the place in the config, and the user's line."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# Errors whose only argument is a message can be rebuilt with the place in front. All others pass unchanged.
_PLAIN_ERRORS = (
    AssertionError,
    AttributeError,
    FileNotFoundError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    pickle.UnpicklingError,
)


def warn_user(message: str) -> None:
    """Issues a UserWarning that points to the user's line, the innermost one outside fastinit."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fastinit", "contextlib"):
        level += 1
        frame = frame.f_back  # type: ignore[assignment]
    warnings.warn(message, UserWarning, stacklevel=level + 1)


@contextmanager
def locating(where: str) -> Iterator[None]:
    """Prefixes the messages of errors in the block with ``where``; type and traceback are kept."""
    try:
        yield
    except _PLAIN_ERRORS as error:
        if type(error) not in _PLAIN_ERRORS:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        located = type(error)(f"{where}: {message}" if str(message) else where)
        raise located.with_traceback(error.__traceback__) from None


def check_module(module: object) -> None:
    """Raises TypeError unless ``module`` is an ``nn.Module``, RuntimeError if FSDP1 has flattened its parameters."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module, but got {type(module)}. For a tensor use torch.nn.init or "
            f"fastinit.trunc_normal_"
        )
    # A module can only be an instance of an imported class.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(each, fsdp.FullyShardedDataParallel) for each in module.modules()):
        raise RuntimeError(
            f"{type(module).__name__} is wrapped in FullyShardedDataParallel, which flattens and splits parameters, so "
            f"that their names and shapes are lost. Use fully_shard (FSDP2) instead; or initialize before wrapping, on "
            f"rank 0, and wrap with sync_module_states=True"
        )
