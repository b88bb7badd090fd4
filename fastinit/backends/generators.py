"""What a backend that draws from torch's generators is given under a seed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch


class Generators(Protocol):
    """The generators to draw from, where they are not the default ones."""

    def own(self, device: torch.device) -> torch.Generator | None:
        """Returns the generator for draws on a device, None: the default one."""

    def next_draw(self, device: torch.device) -> AbstractContextManager[None]:
        """Returns a context in which the default generator of a device gives what is next."""
