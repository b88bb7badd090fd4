"""What ``python -m fastinit demo`` shows fastinit with: a GPT-like model of plain torch.nn modules, and its ranks."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

import torch
from torch import distributed, nn

from .materializing import materialize


class Block(nn.Module):
    """A pre-norm transformer block: attention and a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)


class GPT(nn.Module):
    """The parameters of a GPT: embeddings, blocks, a final norm, and a head tied to the token embedding."""

    def __init__(self, layers: int, width: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight


def config(layers: int) -> list[dict[str, Any]]:
    """Returns GPT-2's initialization: std 0.02, over sqrt(2 * layers) for projections into the residual stream."""
    return [
        dict(type="Normal", std=0.02, layer=["Linear", "Embedding"]),
        dict(type="Constant", val=1, layer="LayerNorm"),
        dict(type="Normal", std=0.02 / (2 * layers) ** 0.5, param=["*.attention_out.weight", "*.down.weight"]),
    ]


def make(layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> GPT:
    """Returns the model on the meta device, where it has no memory."""
    with torch.device("meta"):
        return GPT(layers, width, vocabulary, context)


def digest_of_weights(model: nn.Module) -> str:
    """Returns a digest of the bytes of all parameters, in the model's order; sharded ones are gathered."""
    digest = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        digest.update(whole.detach().cpu().numpy().data)
    return digest.hexdigest()


def demo_shards(layers: int = 24, width: int = 1024, seed: int = 0) -> None:
    """Fills this rank's shards of a model; rank 0 prints a digest of the weights, the same for any number of ranks."""
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo")
    model = make(layers, width)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    report = materialize(model, config(layers), seed=seed, backend="cpp")
    digest = digest_of_weights(model)
    if distributed.get_rank() == 0:
        n_ranks, n_parameters = distributed.get_world_size(), sum(parameter.numel() for parameter in model.parameters())
        print(
            f"{n_ranks} rank{'s' * (n_ranks != 1)}, {n_parameters:,} parameters: each rank filled "
            f"{report.n_bytes / 1e6:,.0f} MB in {report.seconds:.2f} s; digest of all weights: {digest}"
        )
    distributed.barrier()
    # Destroying a gloo group occasionally aborts, at exit too (torch 2.13, also without fastinit).
    sys.stdout.flush()
    os._exit(0)
