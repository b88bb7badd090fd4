"""The command line ``fastinit``: a small module for each command; ``main`` runs them."""

from __future__ import annotations

from .running import main

__all__ = ["main"]
