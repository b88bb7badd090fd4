"""What readers of pickles raise."""

from __future__ import annotations


class PickleError(ValueError):
    """A pickle is damaged, or asks for what data never need."""


class TruncatedError(PickleError):
    """The data end before the pickle does."""
