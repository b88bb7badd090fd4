"""A model with layers by number, and what a plan makes of a config with arithmetic as text."""

from __future__ import annotations

import needs
import pytest
import torch
from torch import nn

import fastinit

BACKENDS = ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))]
LAYER = r"re:layers\.(?P<i>\d+)\..*"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(8, 8)
        self.wo = nn.Linear(8, 8, bias=False)
        self.w2 = nn.Linear(16, 8, bias=False)
        self.norm = nn.LayerNorm(8)


class Net(nn.Module):
    def __init__(self, n_layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([Block() for _ in range(n_layers)])
        self.experts = nn.Parameter(torch.zeros(4, 16, 8))
        self.conv = nn.Conv2d(3, 6, 5)


def values_of(cfg: dict, model: nn.Module | None = None) -> dict[str, dict]:
    """Returns the distribution's numbers of each parameter that a rule reaches."""
    rows = fastinit.plan(model or Net(), cfg).rows
    return {row.parameter: {name: value for name, value in row.values.items() if name != "kind"} for row in rows}


def error_of(cfg: object, model: nn.Module | None = None) -> str:
    with pytest.raises((TypeError, ValueError)) as raised:
        fastinit.plan(model or Net(), cfg)
    return str(raised.value)
