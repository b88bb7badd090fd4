"""What a scheme makes of a checkpoint's name: where the file is on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..formats.by_content import Fetch


@dataclass(frozen=True)
class Located:
    """A checkpoint on this machine."""

    path: Path
    fetch: Fetch | None = None
    """Fetches the shards that an index names; None: they are beside it."""
    below: str | None = None
    """Only keys with this prefix are read, and it is removed from them."""
    is_copy: bool = False
    """Whether it was fetched, and can be fetched again."""


Locate = Callable[[str, bool], Located]
"""Finds or fetches a checkpoint: (its name, whether downloads are forbidden)."""
