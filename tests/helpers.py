"""What several test files share: a model's tensors, and what "the same" means."""

from __future__ import annotations

import torch
from torch import nn


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of all parameters and buffers by name."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in named}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tells whether two tensors have the same dtype, shape and bits; NaN equals itself, -0.0 is not 0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    a, b = (each.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for each in (a, b))
    return torch.equal(a, b)


def assert_same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    different = [name for name in ours if not same_bits(ours[name], theirs[name])]
    assert not different, f"these differ: {different}"
