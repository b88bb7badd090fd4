"""orthogonal_ and its relatives on parts of parameters in recorded code, and as real libraries call them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import needs
import numpy as np
import pytest
import torch
from helpers import named_fill, orthogonal_by_hand_, same_bits
from torch import nn
from torch.nn.init import dirac_, eye_, orthogonal_, sparse_

import fastinit
from fastinit import plans

pytestmark = needs.mark(needs.CPP)
NORMAL = plans.Normal(0.0, 1.0)


def built(factory: Callable[[], nn.Module], **options: Any) -> Any:
    """Builds a model on cpp with seed 0, in which all draws have names."""
    with fastinit.capture(backend="cpp", seed=0, strict=True, **options):
        return factory()


def materialized(factory: Callable[[], nn.Module]) -> Any:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = factory()
    assert recipe.unknown == recipe.computed == {}
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    return model


def orthonormal_part(numbers: torch.Tensor) -> torch.Tensor:
    """Returns the orthogonal factor of a matrix, with a positive diagonal of R; of the transposed one if that is tall."""
    tall = numbers.double() if numbers.shape[0] >= numbers.shape[1] else numbers.double().T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return q if tall.shape == numbers.shape else q.T


def holding(shape: tuple[int, ...], code: Callable[[Any], object]) -> Callable[[], nn.Module]:
    """Returns a factory of modules whose parameter ``w`` is 0 but for what code writes into it."""

    def factory() -> nn.Module:
        module = nn.Module()
        module.w = nn.Parameter(torch.zeros(shape))
        with torch.no_grad():
            code(module.w)
        return module

    return factory


# Which part of w is orthogonal, and its gain is 2.
PARTS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "an expert": ((3, 6, 4), lambda w: w[1]),
    "a wide expert": ((3, 4, 6), lambda w: w[2]),
    "the first rows": ((12, 4), lambda w: w[:4]),
    "a gate": ((12, 4), lambda w: w.chunk(3)[1]),
    "columns": ((6, 12), lambda w: w[:, 3:9]),
    "a block": ((12, 12), lambda w: w[4:9, 2:6]),
    "every other row": ((12, 4), lambda w: w[::2]),
    "transposed": ((6, 4), lambda w: w.t()),
    "transposed and wide": ((4, 6), lambda w: w.T),
    "a transposed expert": ((3, 6, 4), lambda w: w[1].T),
    "the centre of a kernel": ((6, 4, 3, 3), lambda w: w[:, :, 1, 1]),
    "channels of a convolution": ((6, 4, 3, 3), lambda w: w[:, :2]),
    "another shape": ((4, 30), lambda w: w.view(20, 6)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_made_of_the_parameters_numbers_at_its_place(name: str) -> None:
    shape, part_of = PARTS[name]
    model = built(holding(shape, lambda w: orthogonal_(part_of(w), 2.0)))
    numbers, values = part_of(named_fill("w", shape, NORMAL)), part_of(model.w.detach())
    expected = 2 * orthonormal_part(numbers.flatten(1))
    torch.testing.assert_close(values.flatten(1).double(), expected, rtol=0, atol=1e-6)
    assert model.w.count_nonzero() == values.numel()


@pytest.mark.parametrize("name", PARTS)
def test_a_recipe_of_a_part_gives_what_build_gives(name: str) -> None:
    shape, part_of = PARTS[name]
    factory = holding(shape, lambda w: orthogonal_(part_of(w), 2.0))
    assert same_bits(materialized(factory).w, built(factory).w)


def test_stacked_matrices_one_by_one_are_those_of_the_type_with_batch_dims() -> None:
    model = built(holding((3, 6, 4), lambda w: [orthogonal_(each, 0.5) for each in w]))
    torch.testing.assert_close(model.w, named_fill("w", (3, 6, 4), plans.Orthogonal(0.5, 1)), rtol=0, atol=1e-7)


def test_the_centre_of_a_kernel_of_zeros_is_delta_orthogonal() -> None:
    model = built(holding((6, 4, 3, 3), lambda w: orthogonal_(w[:, :, 1, 1])))
    assert same_bits(model.w, named_fill("w", (6, 4, 3, 3), plans.DeltaOrthogonal(1.0)))


JOINED: dict[str, Callable[[], torch.Tensor]] = {
    "cat": lambda: torch.cat([orthogonal_(torch.empty(4, 4)) for _ in range(3)]),
    "stack": lambda: torch.stack([orthogonal_(torch.empty(4, 4)) for _ in range(3)]).view(12, 4),
}


@pytest.mark.parametrize("way", JOINED)
def test_matrices_that_are_joined_are_those_of_the_parts(way: str) -> None:
    def factory() -> nn.Module:
        module = nn.Module()
        module.w = nn.Parameter(JOINED[way]())
        return module

    expected = built(holding((12, 4), lambda w: [orthogonal_(each) for each in w.chunk(3)]))
    assert same_bits(built(factory).w, expected.w)


def test_matrices_that_are_copied_into_parts_are_those_of_the_parts() -> None:
    factory = holding((12, 4), lambda w: [each.copy_(orthogonal_(torch.empty(4, 4))) for each in w.chunk(3)])
    expected = built(holding((12, 4), lambda w: [orthogonal_(each) for each in w.chunk(3)]))
    assert same_bits(built(factory).w, expected.w) and same_bits(materialized(factory).w, expected.w)


def test_what_is_written_later_cuts_a_piece_out() -> None:
    factory = holding((12, 4), lambda w: (orthogonal_(w), nn.init.ones_(w[2:5])))
    expected = named_fill("w", (12, 4), plans.Orthogonal(1.0, 0))
    expected[2:5] = 1
    assert same_bits(built(factory).w, expected) and same_bits(materialized(factory).w, expected)


def test_a_copy_in_another_shape_has_the_values_of_the_matrix() -> None:
    matrix, other = nn.Parameter(torch.empty(8, 8)), torch.empty(4, 16)
    with fastinit.capture(nn.ParameterList([matrix]), backend="cpp", seed=0):
        other.copy_(orthogonal_(matrix.data).view(4, 16))
    assert same_bits(other.view(8, 8), matrix.detach())
    assert same_bits(other.view(8, 8), named_fill("0", (8, 8), plans.Orthogonal(1.0, 0)))


def test_sparse_parts_have_their_share_of_zeros_in_every_column() -> None:
    model = built(holding((12, 5), lambda w: (sparse_(w[:4], 0.5, 1.0), sparse_(w[4:], 0.25, 1.0))))
    assert ((model.w[:4] == 0).sum(0) == 2).all() and ((model.w[4:] == 0).sum(0) == 2).all()
    numbers = named_fill("w", (12, 5), NORMAL)
    assert torch.equal(model.w, numbers * (model.w != 0))


def test_parts_may_be_identities_and_diracs_convolutions() -> None:
    factory = holding((8, 4, 3), lambda w: (dirac_(w[:4]), eye_(w[4:, :, 0])))
    expected = torch.zeros(8, 4, 3)
    expected[:4, :, 1] = expected[4:, :, 0] = torch.eye(4)
    assert same_bits(built(factory).w, expected) and same_bits(materialized(factory).w, expected)


# --- as libraries call them ------------------------------------------------------------------------------------------


def layer_init(layer: Any, std: float = math.sqrt(2), bias_const: float = 0.0) -> Any:
    """As in CleanRL's agents."""
    torch.nn.init.orthogonal_(layer.weight, std)
    torch.nn.init.constant_(layer.bias, bias_const)
    return layer


class Agent(nn.Module):
    """CleanRL's PPO for Atari games, with its recurrent layer, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(1, 8, 4, stride=2)), nn.ReLU(), nn.Flatten(), layer_init(nn.Linear(72, 16)), nn.ReLU()
        )
        self.lstm = nn.LSTM(16, 8)
        for name, param in self.lstm.named_parameters():
            if "bias" in name:
                nn.init.constant_(param, 0)
            elif "weight" in name:
                nn.init.orthogonal_(param, 1.0)
        self.actor = layer_init(nn.Linear(8, 4), std=0.01)
        self.critic = layer_init(nn.Linear(8, 1), std=np.float64(1))


class ActorCritic(nn.Module):
    """As Stable-Baselines3 builds its policies: gains by module, ``init_weights`` through ``apply`` and a partial."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.policy_net = nn.Linear(8, 16), nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.action_net = nn.Linear(16, 2)
        gains = {self.features: np.sqrt(2), self.policy_net: np.sqrt(2), self.action_net: 0.01}
        for module, gain in gains.items():
            module.apply(lambda each, gain=gain: self.init_weights(each, gain))  # type: ignore[misc]

    @staticmethod
    def init_weights(module: nn.Module, gain: float = 1) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.orthogonal_(module.weight, gain=gain)
            if module.bias is not None:
                module.bias.data.fill_(0.0)


class Recurrent(nn.Module):
    """Gate by gate, as code for Keras' defaults does."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, num_layers=2, bidirectional=True)
        for name, param in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                for i in range(0, param.size(0), self.rnn.hidden_size):
                    nn.init.orthogonal_(param[i : i + self.rnn.hidden_size])
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(param.data)


MODELS: dict[str, Callable[[], nn.Module]] = {"cleanrl": Agent, "stable-baselines": ActorCritic, "gates": Recurrent}


@pytest.mark.parametrize("name", MODELS)
def test_agents_and_recurrent_nets_are_drawn_by_name(name: str) -> None:
    model, other = built(MODELS[name]), materialized(MODELS[name])
    assert all(same_bits(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("name", MODELS)
def test_on_torch_agents_and_recurrent_nets_have_the_plain_codes_bits(name: str) -> None:
    torch.manual_seed(0)
    plain = MODELS[name]().state_dict()
    torch.manual_seed(0)
    made = fastinit.build(MODELS[name], backend="torch").state_dict()
    assert all(same_bits(made[key], value) for key, value in plain.items())


def test_an_agent_has_the_values_of_a_config() -> None:
    init_cfg = [
        dict(type="Orthogonal", layer=["Conv2d", "Linear"], gain=math.sqrt(2)),
        dict(type="Orthogonal", param="lstm.weight_*"),
        dict(type="Zeros", param="lstm.bias_*"),
        dict(type="Orthogonal", param="actor.weight", gain=0.01),
        dict(type="Orthogonal", param="critic.weight"),
    ]
    fastinit.initialize(expected := Agent(), init_cfg, backend="cpp", seed=0)
    model = built(Agent)
    assert all(same_bits(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values()))


def test_every_gate_is_orthogonal() -> None:
    for gate in built(Recurrent).rnn.weight_hh_l1_reverse.detach().chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6))


@needs.mark(needs.package("transformers"))
def test_rwkv_of_transformers_is_drawn_by_name() -> None:
    from transformers import RwkvConfig, RwkvModel

    config = RwkvConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, context_length=8, attention_hidden_size=16)
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = RwkvModel(config)
    kinds = {type(fill.distribution) for fill in recipe.fills["blocks.0.feed_forward.key.weight"]}
    assert plans.Orthogonal in kinds and not [name for name in recipe.report.unkeyed if "weight" in name]
    assert same_bits(
        model.blocks[0].attention.output.weight,
        named_fill(
            "blocks.0.attention.output.weight",
            (16, 16),
            recipe.fills["blocks.0.attention.output.weight"][-1].distribution,
        ),
    )


def test_code_that_decomposes_a_matrix_itself_stays_an_unnamed_draw() -> None:
    with fastinit.capture(layer := nn.Linear(8, 8), backend="cpp", seed=0) as recipe:
        orthogonal_by_hand_(layer.weight)
    (listed,) = recipe.report.unkeyed
    assert listed.startswith("#0 (8x8, ")
