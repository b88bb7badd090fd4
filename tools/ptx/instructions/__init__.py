"""Instructions by kind: each module registers builders of the functions that execute them."""

from __future__ import annotations

from . import arithmetic, bits, comparison, control, conversion, data
from .building import Unsupported, built

__all__ = ["Unsupported", "arithmetic", "bits", "built", "comparison", "control", "conversion", "data"]
