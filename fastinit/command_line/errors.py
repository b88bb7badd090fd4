"""What users get to see in place of a traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

from .. import errors
from ..checkpoint.messages import printable
from ..errors import Error

_PACKAGE = Path(__file__).resolve().parents[1]


class CommandError(Error):
    """A command cannot do what it was asked for; the message says why, and what to do."""


class DamagedError(Error):
    """What a command was to look at is not whole; the message says where."""


def message_of(error: BaseException) -> str:
    """Returns what to tell a user of an error: its message and, of other code's errors, the kind and the line."""
    text = errors.message_of(error)
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    place = _place_of(error)
    if place or not isinstance(error, Error) or not text:
        text = f"{errors.kind_of(error)}: {text}".removesuffix(": ")
    return printable(f"{text} ({place}; --traceback shows more)" if place else text)


def _place_of(error: BaseException) -> str:
    """Returns the line of other code that raised an error, "" where it was fastinit."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or isinstance(error, (CommandError, DamagedError)):
        return ""
    last = frames[-1]
    return "" if _PACKAGE in Path(last.filename).resolve().parents else f"{last.filename}:{last.lineno}"
