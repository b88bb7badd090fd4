"""A small model with a plan in a file, and models of all kinds whose plans go through a file."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import same_bits
from torch import nn

import fastinit
from fastinit import Plan

INIT_CFG = [
    dict(type="Xavier", layer="Linear"),
    dict(type="TruncNormal", std=0.02, param="2.weight"),
    dict(type="Uniform", a=-1, b=1, layer="LayerNorm"),
]


def net(device: str = "cpu") -> nn.Module:
    """Returns a model of six parameters."""
    with torch.device(device):
        return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def kept(folder: Path) -> Plan:
    """Returns the plan of ``INIT_CFG`` under seed 7, from the file ``plan.json`` in a folder."""
    fastinit.plan(net(), INIT_CFG, backend="cpp", seed=7).save(folder / "plan.json")
    return Plan.load(folder / "plan.json")


def values(model: nn.Module) -> list[torch.Tensor]:
    """Returns the parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def agree(a: nn.Module, b: nn.Module) -> bool:
    """Tells whether two models have the same bits."""
    return all(same_bits(x, y) for x, y in zip(values(a), values(b), strict=True))


def initialized(seed: int = 7) -> nn.Module:
    """Returns the model that ``INIT_CFG`` gives."""
    model = net()
    fastinit.initialize(model, INIT_CFG, backend="cpp", seed=seed)
    return model


class Opaque(fastinit.BaseModule):
    """Initializes itself by code that a plan cannot see into."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)

    def init_weights(self) -> None:
        nn.init.ones_(self.a.weight)
