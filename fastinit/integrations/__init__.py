"""Integrations with other libraries; importing them imports none of those libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..doors import door
from . import mmengine_hooks  # noqa: F401  (adds mmengine to the core's hooks)

if TYPE_CHECKING:
    from . import mmengine as mmengine
    from . import transformers as transformers
else:
    __getattr__, __dir__ = door(__name__, {"mmengine": (), "transformers": ()})

__all__ = ["mmengine", "transformers"]
