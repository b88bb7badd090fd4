"""What a user with type hints writes, of calls of public names; mypy and pyright check it in their strict modes (`make lint`).

To both, a result that has no type is an error, and so is one of another type than `assert_type` says. Mistakes are marked as
ignored; a mark that is not needed is an error, too.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from typing_extensions import assert_type

import fastinit
from fastinit import rules

CONFIG: rules.Config = [
    rules.Kaiming(layer="Linear", mode="fan_in"),
    {"type": "Constant", "val": 1, "layer": "LayerNorm"},
]


class Net(nn.Module):
    """A small model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)


class Block(fastinit.BaseModule):
    """A module that brings its config."""

    def __init__(self, init_cfg: rules.Config | None = None) -> None:
        super().__init__(init_cfg)
        self.body = nn.Linear(4, 4)


def main(folder: Path) -> str:
    """Uses what most users use; returns what a script would print."""
    model = Net()
    planned = assert_type(fastinit.plan(model, CONFIG, seed=0), fastinit.Plan)
    report = assert_type(fastinit.initialize(model, CONFIG, seed=0, strict=True), fastinit.Report)
    said = [planned.table(max_rows=4), report.summary()]

    built = fastinit.build(Net, seed=0)
    assert_type(built.body, nn.Linear)

    Block([rules.Normal(std=0.1, layer="Linear")]).init_weights()

    with torch.device("meta"):
        unmade = Net()
    fastinit.materialize(unmade, CONFIG, seed=0, backend="cpp")
    said.append(str(assert_type(fastinit.digest(unmade), fastinit.Digest)))

    with fastinit.capture() as recipe:
        nn.Linear(3, 3)
    assert_type(recipe, fastinit.Recipe)

    path = folder / "weights.safetensors"
    fastinit.write(model, path, seed=0)
    assert_type(fastinit.values("body.weight", (4, 8), rules.Normal(std=0.02), seed=0), torch.Tensor)
    for name, why in fastinit.available_backends().items():
        said.append(f"{name}: {why or 'can run'}")
    try:
        fastinit.initialize(model, rules.Kaiming(layer="Liner"), strict=True)
    except fastinit.Error as error:
        said.append(f"{error.place}: {error.hint}")
    return "\n".join(said)


if TYPE_CHECKING:
    fastinit.initialize(Net(), CONFIG, sed=0)  # type: ignore[call-arg]
    fastinit.initialize(Net(), CONFIG, seed="0")  # type: ignore[arg-type]
    fastinit.plan("net", CONFIG)  # type: ignore[arg-type]
