"""Where fastinit logs: the logger ``fastinit``, on one rank."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger("fastinit")


def is_rank_zero() -> bool:
    """Tells whether this process is the one that reports."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
