"""Memory for tensors that are about to be filled."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def allocate_like(metas: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Returns uninitialized tensors on ``device``, each with shape, strides and dtype of one on the meta device.

    Nothing is touched here: whoever fills the tensors gives the memory its pages (backends/fresh_memory.py).
    """
    return [torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device=device) for meta in metas]
