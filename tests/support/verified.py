"""Models that hold a plan, and damage to them."""

from __future__ import annotations

import math
from typing import Any

import torch
from lock_files import INIT_CFG, net
from torch import nn

import fastinit
from fastinit import Plan

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def made(cfg: Any = None, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, Plan]:
    """Returns a model that was initialized by a plan, and the plan."""
    model = net() if model is None else model
    plan = fastinit.plan(model, cfg or INIT_CFG, **{"backend": "cpp", "seed": 7, **options})
    fastinit.initialize(model, plan)
    return model, plan


def flip(tensor: torch.Tensor, index: tuple[int, ...]) -> None:
    """Flips the lowest bit of an element."""
    bits = tensor.detach().view(INTEGERS[tensor.element_size()])
    bits[index] ^= 1


def differing(model: nn.Module, plan: Plan, **options: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(each.name, each.index) for each in fastinit.verify(model, plan, **options).differs]


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "normal": dict(type="Normal", std=0.5),
    "uniform": dict(type="Uniform", a=-1, b=3),
    "trunc_normal": dict(type="TruncNormal", std=1),
    "tail": dict(type="TruncNormal", std=1, a=5, b=math.inf),
    "constant": dict(type="Constant", val=0.1),
    "sparse": dict(type="Sparse", sparsity=0.3),
    "orthogonal": dict(type="Orthogonal"),
}
