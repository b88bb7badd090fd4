"""Rules that type checkers accept, and, marked as ignored, rules that they refuse; mypy and pyright check the file.

`make lint` runs both on it, with an error for each mark that is not needed.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

import fastinit
from fastinit import rules

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DepthScaledInit(fastinit.BaseInit):
    """An initializer of a user's own, not registered."""

    def __init__(self, depth: float, **kwargs: Unpack[rules.Selectors]) -> None:
        super().__init__(**kwargs)
        self.depth = depth


kaiming: rules.KaimingRule = {"type": "Kaiming", "layer": ["Conv2d", "Linear"], "mode": "fan_in"}
depth = r"re:layers\.(?P<i>\d+)\.wo\.weight"

# Each rule, and the dict that it is.
SAME: list[tuple[Any, dict[str, Any]]] = [
    (kaiming, dict(type="Kaiming", layer=["Conv2d", "Linear"], mode="fan_in")),
    (rules.Kaiming(layer="Conv2d", a=0.1), dict(type="Kaiming", layer="Conv2d", a=0.1)),
    (rules.Constant(val=1, layer=nn.BatchNorm2d), dict(type="Constant", val=1, layer=nn.BatchNorm2d)),
    (rules.Normal(std="0.02 / (i + 1)", param=depth), dict(type="Normal", std="0.02 / (i + 1)", param=depth)),
    (rules.Uniform(a="-k", b="k", vars={"k": 1}), dict(type="Uniform", a="-k", b="k", vars=dict(k=1))),
    (
        rules.Normal(param=["*.qkv.weight[0:6]"], blocks=[3, 2]),
        dict(type="Normal", param=["*.qkv.weight[0:6]"], blocks=[3, 2]),
    ),
    (rules.TruncNormal(std=1, bounds="sigma"), dict(type="TruncNormal", std=1, bounds="sigma")),
    (rules.Lecun(distribution="uniform", fan_axes=(1, 0)), dict(type="Lecun", distribution="uniform", fan_axes=(1, 0))),
    (rules.Caffe2Xavier(layer="Linear", bias_prob=0.01), dict(type="Caffe2Xavier", layer="Linear", bias_prob=0.01)),
    (rules.VarianceScaling(mode="fan_avg", fan="layer"), dict(type="VarianceScaling", mode="fan_avg", fan="layer")),
    (
        rules.Pretrained(checkpoint="a.pth", prefix="backbone"),
        dict(type="Pretrained", checkpoint="a.pth", prefix="backbone"),
    ),
    (
        rules.Xavier(layer="Linear", override=rules.override("head", rules.Normal(std=0.01))),
        dict(type="Xavier", layer="Linear", override=dict(name="head", type="Normal", std=0.01)),
    ),
    (
        rules.Xavier(override=[rules.override("neck"), {"name": "head", "type": "Normal", "std": 0.01}]),
        dict(type="Xavier", override=[dict(name="neck"), dict(name="head", type="Normal", std=0.01)]),
    ),
    (rules.rule(DepthScaledInit, 16, layer="Linear"), dict(type=DepthScaledInit, depth=16, layer="Linear")),
    (rules.rule(DepthScaledInit, depth=16, bias="1 / 2"), dict(type=DepthScaledInit, depth=16, bias="1 / 2")),
]
config: rules.Config = [kaiming, {"type": "Zeros", "param": "*.bias"}, rules.Dirac(groups=2, layer="Conv2d")]

if TYPE_CHECKING:
    rules.Kaimin(layer="Conv2d")  # type: ignore[attr-defined]
    rules.Kaiming(layr="Conv2d")  # type: ignore[call-arg]
    rules.Kaiming(a=[1])  # type: ignore[arg-type]
    rules.Kaiming(mode="fan_avg")  # type: ignore[arg-type]
    rules.Constant(layer="Linear")  # type: ignore[call-arg]
    rules.Lecun(scale=2)  # type: ignore[call-arg]
    rules.Caffe2Xavier(a=2)  # type: ignore[call-arg]
    rules.Normal(layer=3)  # type: ignore[arg-type]
    rules.Normal(0.1)  # type: ignore[call-arg]
    rules.Zeros(val=0)  # type: ignore[call-arg]
    rules.Normal(blocks="3")  # type: ignore[arg-type]
    rules.Normal(bias_prob="0.1")  # type: ignore[arg-type]
    rules.Pretrained(checkpoint="a.pth", layer="Linear")  # type: ignore[call-arg]
    rules.Normal(override={"nam": "head"})  # type: ignore[arg-type]
    rules.Normal(override=rules.override("head", 3))  # type: ignore[arg-type]
    wrong_key: rules.KaimingRule = {"type": "Kaiming", "gain": 1}  # type: ignore[typeddict-unknown-key]
    without_type: rules.NormalRule = {"mean": 0}  # type: ignore[typeddict-item]
    wrong_value: rules.NormalRule = {"type": "Normal", "std": [1]}  # type: ignore[typeddict-item]
    wrong_type: rules.Rule = {"type": "Kaimin"}  # type: ignore[assignment,misc]
    rules.rule(DepthScaledInit, layer="Linear")  # type: ignore[call-arg]
    rules.rule(DepthScaledInit, depth="x")  # type: ignore[arg-type]
    rules.rule(DepthScaledInit, depth=1, layr="Linear")  # type: ignore[call-arg]
