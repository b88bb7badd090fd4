"""The logger ``fastinit``, used on rank 0 only."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger("fastinit")


def is_rank_zero() -> bool:
    """Tells whether this process logs: rank 0, or no process group."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
