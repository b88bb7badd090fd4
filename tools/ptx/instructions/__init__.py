"""Instructions by kind: each module registers functions that build what executes one."""

from __future__ import annotations

from . import arithmetic, bits, comparison, control, conversion, data
from .building import Unsupported, built

__all__ = ["Unsupported", "arithmetic", "bits", "built", "comparison", "control", "conversion", "data"]
