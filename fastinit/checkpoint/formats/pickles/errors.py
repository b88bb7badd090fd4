"""Errors of the pickle reader."""

from __future__ import annotations

from ....errors import InitValueError


class PickleError(InitValueError):
    """A pickle is damaged, or does more than data ever need."""


class TruncatedError(PickleError):
    """The data end within the pickle."""
