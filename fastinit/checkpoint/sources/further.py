"""What integrations add to the places where checkpoints are found; known before any of them is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

further_tables: list[Callable[[str], Mapping[str, str]]] = []
"""Functions that return what an installed library has for a model zoo's table; integrations append theirs."""

Loader = Callable[..., Any]
"""Reads a checkpoint: (filename, map_location)."""

further_loaders: list[Callable[[str], Loader | None]] = []
"""Functions that return what users registered in another library for a name; integrations append theirs."""
