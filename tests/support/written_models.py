"""Models for tests of ``write``, and what their checkpoints are to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastinit


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20), nn.Linear(20, 30), nn.BatchNorm1d(3))


class Tied(nn.Module):
    """A head whose weight is that of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(6, 4)
        self.lm_head = nn.Linear(4, 6, bias=False)
        self.lm_head.weight = self.wte.weight


def of_all_kinds() -> nn.Module:
    """Fills of wholes and parts, joined and transposed ones, what code computes, buffers, what is empty or in memory."""
    model = nn.Sequential(
        nn.Embedding(7, 5, padding_idx=2),
        nn.LSTM(5, 4, 2),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        nn.MultiheadAttention(8, 2),
    )
    if torch.get_default_dtype().itemsize > 2:  # torch has no QR of narrower ones
        nn.init.orthogonal_(model[4].out_proj.weight)
    model[3].bias.data.uniform_().mul_(3)
    with torch.no_grad():
        model[4].in_proj_weight[:, ::3].fill_(0.25)
    model.register_buffer("table", torch.arange(10.0).sin())
    model.register_buffer("not_kept", torch.ones(3), persistent=False)
    model.register_buffer("held", torch.tensor([1, 2, 3], device="cpu"))
    model.register_buffer("flags", torch.ones(5, dtype=torch.bool))
    model.register_parameter("fused", nn.Parameter(torch.cat([torch.randn(3, 4) * i for i in (1, 2)])))
    model.register_parameter("scalar", nn.Parameter(torch.tensor(2.65)))
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 3)))
    model.register_parameter("transposed", nn.Parameter(torch.randn(4, 6).t().contiguous()))
    model.register_parameter("in_half", nn.Parameter(torch.randn(9, 3).half()))
    model.register_parameter("in_double", nn.Parameter(torch.randn(9, 3, dtype=torch.float64)))
    return model


def built(make: Callable[[], nn.Module], **how: Any) -> dict[str, torch.Tensor]:
    """Returns the state dict of the model with memory, row-major."""
    model = fastinit.build(make, backend="cpp", seed=3, **how)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def by_name(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items()))


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
