"""Layer-sequential unit variance: what becomes of layers, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn

import fastinit

BATCH = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 5 + 2


def network(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=bias),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16 * 36, 32, bias=bias),
        nn.Tanh(),
        nn.Linear(32, 10, bias=bias),
    )


def stds(model: nn.Module, batch: Any) -> list[float]:
    found: list[float] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda _, __, output: found.append(output.std().item()))
    model.eval()
    model(batch)
    return found


@needs.mark(needs.CPP)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_outputs_have_unit_variance(backend: str) -> None:
    model = network()
    scaled = fastinit.lsuv(model, BATCH, backend=backend, seed=0)
    assert [row.name for row in scaled] == ["0", "5", "7"]
    assert stds(model, BATCH) == pytest.approx([1, 1, 1], abs=0.02)
    assert [row.std_after for row in scaled] == pytest.approx([1, 1, 1], abs=0.02)
    assert abs(scaled[0].std_before - 1) > 1


def test_weights_are_orthogonal_up_to_the_factor() -> None:
    model = network()
    scaled = fastinit.lsuv(model, BATCH, seed=0)
    for row in scaled:
        layer = model.get_submodule(row.name)
        w = layer.weight.flatten(1) / row.factor  # type: ignore[union-attr, operator]
        w = w if w.shape[0] < w.shape[1] else w.T
        assert (w @ w.T - torch.eye(len(w))).abs().max() < 1e-5 and (layer.bias == 0).all()  # type: ignore[union-attr]


@needs.mark(needs.CPP)
def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = network(), network()
    fastinit.lsuv(one, BATCH, backend="cpp", seed=3)
    fastinit.lsuv(two, BATCH, backend="cpp", seed=3)
    assert all(same_bits(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def test_weights_that_are_there_can_be_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    before = model[0].weight.clone()
    scaled = fastinit.lsuv(model, torch.randn(50, 4), orthogonal=False, tolerance=1e-3)
    assert torch.allclose(model[0].weight, before * scaled[0].factor, rtol=1e-5)


def test_a_layer_without_a_bias_takes_one_step() -> None:
    assert [row.n_steps for row in fastinit.lsuv(network(bias=False), BATCH, seed=0)] == [1, 1, 1]


def test_modes_statistics_hooks_and_generators_are_as_before() -> None:
    model = network()
    model[2].eval()
    modes = [module.training for module in model.modules()]
    mean, state = model[2].running_mean.clone(), torch.get_rng_state()  # type: ignore[union-attr, operator]
    fastinit.lsuv(model, BATCH, seed=0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[2].running_mean, mean)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled() and model[0].weight.requires_grad


def test_arguments_may_be_a_tuple_or_a_dict() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x) + y)  # type: ignore[no-any-return]

    x, y = torch.randn(30, 4), torch.randn(30, 4)
    for batch in ((x, y), dict(y=y, x=x)):
        assert [row.name for row in fastinit.lsuv(Two(), batch, seed=0)] == ["first", "second"]


def test_a_layer_that_is_called_twice_is_scaled_by_its_first_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.l(self.l(x) * 100)  # type: ignore[no-any-return]

    (row,) = fastinit.lsuv(Twice(), torch.randn(300, 4), seed=0)
    assert row.factor == pytest.approx(1, abs=0.2)


def test_a_shared_weight_is_scaled_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert [row.name for row in fastinit.lsuv(model, torch.randn(30, 4), seed=0)] == ["0"]


def test_the_result_prints_as_a_table() -> None:
    lines = str(fastinit.lsuv(network(), BATCH, seed=0)).splitlines()
    assert (
        lines[0].split() == ["layer", "std", "before", "std", "after", "weight", "times", "steps"] and len(lines) == 4
    )


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (nn.Sequential(nn.ReLU()), BATCH, "has no layer of Linear"),
        (nn.Sequential(nn.Linear(4, 4)), torch.zeros(9, 4), "the output of '0' has standard deviation 0.0"),
        (nn.Sequential(nn.Linear(4, 4)), torch.full((9, 4), float("nan")), "has standard deviation nan"),
        (nn.Sequential(nn.Linear(4, 4, device="meta")), torch.ones(9, 4), "'0' is on the meta device"),
    ],
    ids=["no layers", "constant", "not finite", "meta"],
)
def test_what_cannot_be_scaled_is_told(model: nn.Module, batch: torch.Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        fastinit.lsuv(model, batch, seed=0)
    assert model.training


def test_what_is_left_out_is_warned_about() -> None:
    class Unused(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[0](x)  # type: ignore[no-any-return]

    with pytest.warns(UserWarning, match="does not reach these layers, which are not scaled: 1"):
        fastinit.lsuv(Unused(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(30, 4), seed=0)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="'0' is computed from other parameters"):
        fastinit.lsuv(normed, torch.randn(30, 4), seed=0)
    biased = nn.Sequential(nn.Linear(4, 4))
    with warnings.catch_warnings(), pytest.warns(UserWarning, match="not yet 1 within 0.02 after 0 steps: 0"):
        fastinit.lsuv(biased, torch.randn(30, 4) * 9, seed=0, max_steps=0)
