"""A model from the meta device to initialized memory: ours against ``to_empty`` plus torch.nn.init, in fresh memory.

Each measurement runs in its own process (see fresh.py). Values are checked first: the moments of every tensor, and the
bits against ``initialize``. Writes ``results/bench_materialize.csv``. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import fresh
import machine
import torch
from tables import write
from torch import nn

import fastinit
from fastinit.demo import GPT, config

ROUNDS = 5
LAYERS, WIDTH, VOCABULARY, CONTEXT = 27, 1280, 50257, 1024  # 597 million parameters
TRUNCATED = [
    dict(type="TruncNormal", std=0.02, a=-0.04, b=0.04, layer=["Linear", "Embedding"]),
    dict(type="Constant", val=1, layer="LayerNorm"),
]


def on_meta(layers: int, width: int) -> GPT:
    """Returns the model without memory."""
    with torch.device("meta"):
        return GPT(layers, width, VOCABULARY, CONTEXT)


def by_torch(model: GPT, truncated: bool) -> GPT:
    """The way that users write today."""
    model = model.to_empty(device="cpu")
    model.head.weight = model.tokens.weight  # to_empty unties it
    scaled = (".attention_out.weight", ".down.weight")
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and module is not model.head:
            std = 0.02 / (2 * len(model.blocks)) ** 0.5 if f".{name}.weight".endswith(scaled) else 0.02
            if truncated:
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            else:
                nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def by_fastinit(model: GPT, truncated: bool) -> GPT:
    """Ours."""
    fastinit.materialize(model, TRUNCATED if truncated else config(len(model.blocks)), backend="cpp", seed=0)
    return model


def must_be_right() -> None:
    """Raises SystemExit unless both give the same distributions, and ours the bits of ``initialize``."""
    for truncated in (False, True):
        theirs, ours, again = (
            way(on_meta(2, 256), truncated)
            for way in (by_torch, by_fastinit, by_torch)  # type: ignore[operator]
        )
        fastinit.initialize(again, TRUNCATED if truncated else config(2), backend="cpp", seed=0)
        for name, tensor in ours.state_dict().items():
            other, bits = theirs.state_dict()[name], again.state_dict()[name]
            if not torch.equal(tensor, bits):
                raise SystemExit(f"{name}: materialize and initialize differ")
            std = other.std().item()
            if abs(tensor.mean() - other.mean()) > 0.02 * std or abs(tensor.std().item() - std) > 0.02 * std:
                raise SystemExit(f"{name}: {tensor.mean()}, {tensor.std()} and {other.mean()}, {other.std()}")
            if tensor.abs().max() > 0.04 * truncated + 2 * (not truncated) and "norm" not in name:
                raise SystemExit(f"{name}: out of bounds")


def main() -> None:
    """Measures in turns, and writes the table."""
    fresh.check(must_be_right)
    model = on_meta(LAYERS, WIDTH)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    rows: list[dict[str, Any]] = []
    for truncated in (False, True):
        ways: list[Callable[[GPT, bool], GPT]] = [by_torch, by_fastinit]
        found: list[list[tuple[float, float]]] = [[], []]
        for _ in range(ROUNDS if not truncated else 3):  # torch takes most of a minute for truncated normals
            for way, measured in zip(ways, found):
                measured.append(fresh.seconds_and_gigabytes(partial(way, model, truncated), 4 * n_parameters))
        (torch_s, ours_s), (torch_gb, ours_gb) = (
            [statistics.median(each[i] for each in measured) for measured in found] for i in (0, 1)
        )
        rows.append(
            {
                "model": f"GPT, {n_parameters / 1e6:.0f}M parameters, float32",
                "weights": "trunc_normal, 2 sigma" if truncated else "normal",
                "to_empty and torch.nn.init, s": f"{torch_s:.2f}",
                "materialize, cpp, s": f"{ours_s:.2f}",
                "GB/s": f"{4 * n_parameters / ours_s / 1e9:.1f}",
                "peak memory, torch, GB": f"{torch_gb:.2f}",
                "peak memory, ours, GB": f"{ours_gb:.2f}",
                "times faster": f"{torch_s / ours_s:.1f}",
            }
        )
    write("bench_materialize.csv", rows)


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    main()
