"""Models of several widths, of the kinds in the examples of the package ``mup``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Readout = Callable[[int, int], nn.Module]
"""Makes the output layer; the package has a class of its own for it."""


class MLP(nn.Module):
    def __init__(self, width: int, readout: Readout = nn.Linear) -> None:
        super().__init__()
        self.first = nn.Linear(12, width)
        self.second = nn.Linear(width, 2 * width, bias=False)
        self.third = nn.Linear(2 * width, width)
        self.readout = readout(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.readout(hidden)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    def __init__(self, width: int, readout: Readout = nn.Linear) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.wider = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.shortcut = nn.Conv2d(width, 2 * width, 1)
        self.readout = readout(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.depthwise(self.wider(x)) + self.shortcut(x)
        return self.readout(x.mean((2, 3)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Decoder blocks whose heads get wider; attention goes with 1 / head width if ``is_mup``."""

    def __init__(self, width: int, readout: Readout = nn.Linear, layers: int = 2, is_mup: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.positions = nn.Parameter(torch.empty(16, width))
        self.blocks = nn.ModuleList(_Block(width, is_mup) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.readout = readout(width, 50)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))  # type: ignore[no-any-return]


class _Block(nn.Module):
    HEADS = 4
    BASE_HEAD = 16

    def __init__(self, width: int, is_mup: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        head = width // self.HEADS
        self.scale = self.BASE_HEAD**0.5 / head if is_mup else head**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            each.view(batch, length, self.HEADS, -1).transpose(1, 2) for each in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Uneven(nn.Module):
    """An MLP whose hidden layers do not get wider by the same factor."""

    def __init__(self, width: int, readout: Readout = nn.Linear) -> None:
        super().__init__()
        self.first = nn.Linear(12, width)
        self.second = nn.Linear(width, width * width // 16)
        self.readout = readout(width * width // 16, 10)


MODELS: dict[str, Any] = {"MLP": MLP, "Uneven": Uneven, "ResNet": ResNet, "Transformer": Transformer}
WIDTHS = {"base": 64, "delta": 72, "target": 256}
