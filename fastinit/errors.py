"""Where an error came from: the place goes in front of the message once, at the layer that knows it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

# Errors whose only argument is a message: they can be made anew with the place in front. Others pass as they are.
_PLAIN_ERRORS = (
    AssertionError,
    AttributeError,
    FileNotFoundError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    pickle.UnpicklingError,
)


@contextmanager
def locating(where: str) -> Iterator[None]:
    """Puts ``where`` in front of the message of an error in the block; its type and its traceback stay."""
    try:
        yield
    except _PLAIN_ERRORS as error:
        if type(error) not in _PLAIN_ERRORS:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        located = type(error)(f"{where}: {message}" if str(message) else where)
        raise located.with_traceback(error.__traceback__) from None
