"""What several test files share: a model's tensors, and what "the same" means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from fastinit import plans
from fastinit.backends import cpp_backend


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


def orthogonal_by_hand_(tensor: torch.Tensor) -> torch.Tensor:
    """Does in code of its own what torch.nn.init.orthogonal_ does: to fastinit an unnamed draw and what is made of it."""
    rows = tensor.size(0)
    q, r = torch.linalg.qr(tensor.new_empty((rows, tensor.numel() // rows)).normal_())
    with torch.no_grad():
        return tensor.view_as(q).copy_(q * r.diagonal().sign()).mul_(1)


def named_fill(
    name: str, shape: Sequence[int], distribution: plans.Distribution, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Returns what the contract gives a parameter of this name."""
    tensor = torch.empty(tuple(shape), dtype=dtype)
    cpp_backend.run([plans.Fill.whole(name, tensor, distribution, "", "")], seed)
    return tensor


def differing_kind(one: torch.Tensor, other: torch.Tensor) -> str | None:
    """Returns why two tensors are not two draws of one kind at six standard errors (2e-9 each), None if they may be."""
    if (one.shape, one.dtype, one.stride()) != (other.shape, other.dtype, other.stride()):
        return "shape, dtype or layout"
    if not one.is_floating_point() or one.numel() < 2 or one.double().std() == 0:
        return None if torch.equal(one, other) else "constants"
    a, b, n = one.detach().double(), other.detach().double(), one.numel()
    if torch.equal(one, other):
        return None
    if b.std() == 0:
        return "one is constant"
    if (a.mean() - b.mean()).abs() > 6 * math.sqrt(2 / n) * a.std():
        return "means"
    if n >= 32 and not 1 / (1 + 6 / math.sqrt(n)) < a.std() / b.std() < 1 + 6 / math.sqrt(n):
        return "spreads"
    # How far out one value in a hundred lies tells a uniform from a normal. (The farthest would not do: erfinv draws a
    # truncated normal's bound itself now and then, however far out that is.)
    far = [x.abs().flatten().kthvalue(math.ceil(0.99 * n)).values for x in (a, b)]
    if n >= 2048 and not 0.85 < far[0] / far[1] < 1.18:
        return "tails"
    return None
