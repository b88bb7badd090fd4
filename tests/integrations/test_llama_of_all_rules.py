"""A Llama of 32 layers from one config: residuals by depth, parts of fused weights, muP, orthogonal experts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import llama
import needs
import pytest
import torch
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit import plans

KEPT = Path(__file__).parents[1] / "data" / "llama_plan.txt"
RATIO = llama.BASE_WIDTH / llama.WIDTH


def made(backend: str, dtype: torch.dtype = torch.float32) -> llama.Llama:
    model = llama.Llama().to(dtype)
    report = fastinit.initialize(model, llama.CONFIG, backend=backend, seed=7, strict="complete")
    assert report.unreached == ()
    return model


def test_the_plan_is_the_kept_one() -> None:
    plan = fastinit.plan(llama.on_meta(), llama.CONFIG, backend="cpp", seed=7)
    assert plan.unreached == ()
    rows = [json.dumps(row) for row in json.loads(plan.to_json())["rows"]]
    assert rows == KEPT.read_text().splitlines()


@needs.mark(needs.CPP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_value_goes_by_its_parameters_name(dtype: torch.dtype) -> None:
    width, model = llama.WIDTH, made("cpp", dtype)
    for i, layer in enumerate(model.layers):
        fused, depth = layer.wqkv.weight, 2 * (i + 1)  # type: ignore[union-attr]
        name, shape = f"layers.{i}.wqkv.weight", tuple(fused.shape)  # type: ignore[union-attr]
        query = named_fill(name, shape, plans.Normal(0, 0.02 * math.sqrt(RATIO)), dtype, seed=7)
        key = named_fill(name, shape, plans.Normal(0, 0.5 * math.sqrt(2 / (width + 2 * llama.HEAD))), dtype, seed=7)
        assert same_bits(fused[:width], query[:width]) and same_bits(fused[width:], key[width:])  # type: ignore[index]
        std = 0.02 * math.sqrt(RATIO / depth)
        out = named_fill(
            f"layers.{i}.wo.weight", (width, width), plans.TruncatedNormal(0, std, -3 * std, 3 * std), dtype, seed=7
        )
        assert same_bits(layer.wo.weight, out)  # type: ignore[union-attr,arg-type]
        if i % 2:
            gain = 1 / math.sqrt(depth)
            experts = named_fill(
                f"layers.{i}.experts", tuple(layer.experts.shape), plans.Orthogonal(gain, 1), dtype, seed=7
            )  # type: ignore[union-attr,arg-type]
            assert same_bits(layer.experts, experts)  # type: ignore[arg-type]


@needs.mark(needs.CPP)
def test_experts_are_orthogonal_and_shrink_with_depth() -> None:
    for i, layer in enumerate(made("cpp").layers):
        if i % 2:
            for expert in layer.experts.detach().double():  # type: ignore[operator,union-attr]
                gram = expert @ expert.T * 2 * (i + 1)
                assert (gram - torch.eye(llama.WIDTH)).abs().max() < 1e-6


def test_torch_draws_the_same_scales() -> None:
    by_torch = made("torch")
    planned = fastinit.plan(by_torch, llama.CONFIG, backend="torch", seed=7)
    for row in planned.rows:
        if row.values["kind"] == "normal":
            part = row.values.get("part", [[0, size] for size in row.shape or ()])
            values = by_torch.get_parameter(row.parameter)[tuple(slice(*each) for each in part)].detach()
            n_sigmas = abs(values.std() / row.values["std"] - 1) * math.sqrt(2 * values.numel())
            assert n_sigmas < 5, row
    for i, layer in enumerate(by_torch.layers):
        if i % 2:
            expert = layer.experts[0].detach()  # type: ignore[index,union-attr]
            assert (expert @ expert.T * 2 * (i + 1) - torch.eye(llama.WIDTH)).abs().max() < 1e-5


@needs.mark(needs.CPP)
def test_a_model_on_meta_gets_the_same_bits() -> None:
    model = llama.on_meta()
    fastinit.materialize(model, llama.CONFIG, backend="cpp", seed=7)
    other: nn.Module = made("cpp")
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert same_bits(mine, theirs)
