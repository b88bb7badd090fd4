"""A small Llama with fused and stacked weights, and one config that starts all of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LAYERS, WIDTH, HEAD, VOCABULARY, EXPERTS = 32, 32, 8, 96, 4
BASE_WIDTH = 16
"""The width at which the standard deviations were found; muP says how they go with the width."""


def norm() -> nn.Module:
    """Returns what has the parameter of nn.RMSNorm, which torch has since 2.4 only."""
    return nn.LayerNorm(WIDTH, bias=False)


class Layer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.wqkv = nn.Linear(WIDTH, WIDTH + 4 * HEAD, bias=False)  # four heads of queries, two of keys and values
        self.wo = nn.Linear(WIDTH, WIDTH, bias=False)
        self.ffn_norm = norm()
        if index % 2:
            self.experts = nn.Parameter(torch.empty(EXPERTS, WIDTH, 2 * WIDTH))  # (experts, in, out)
        else:
            self.w13 = nn.Linear(WIDTH, 6 * WIDTH, bias=False)
            self.w2 = nn.Linear(3 * WIDTH, WIDTH, bias=False)


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(map(Layer, range(LAYERS)))
        self.norm = norm()
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)


def on_meta() -> Llama:
    with torch.device("meta"):
        return Llama()


# muP (Yang et al. 2022, table 8): the variance of matrix-like weights goes with 1 / fan_in, that of the output with
# 1 / fan_in^2, that of the embeddings stays.
_MUP = dict(vars=dict(base=BASE_WIDTH))

CONFIG: list[dict[str, Any]] = [
    dict(type="Constant", val=1, param="*norm.weight"),
    dict(type="Normal", std=0.02, param="tok_embeddings.weight"),
    dict(type="Normal", std="0.02 * sqrt(base / fan_in)", param=f"*.wqkv.weight[0:{WIDTH}]", **_MUP),
    dict(type="Xavier", gain=0.5, param=f"*.wqkv.weight[{WIDTH}:]", blocks=2),
    dict(type="Normal", std="0.02 * sqrt(base / fan_in)", param="*.w13.weight", blocks=2, **_MUP),
    dict(
        type="TruncNormal",
        std="0.02 * sqrt(base / fan_in / (2 * (i + 1)))",
        a=-3,
        b=3,
        bounds="sigma",
        param=r"re:layers\.(?P<i>\d+)\.(wo|w2)\.weight",
        **_MUP,
    ),
    dict(type="Orthogonal", gain="1 / sqrt(2 * (i + 1))", param=r"re:layers\.(?P<i>\d+)\.experts", batch_dims=1),
    dict(type="Normal", std="0.02 * base / fan_in", param="output.weight", **_MUP),
]
