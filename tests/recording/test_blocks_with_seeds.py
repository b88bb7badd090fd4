"""Blocks within blocks that bring a seed, and the names of draws that have none."""

from __future__ import annotations

import contextvars

import needs
import pytest
import torch
from helpers import orthogonal_by_hand_
from torch import nn

import fastinit

pytestmark = needs.mark(needs.CPP)


def encoder(seed: int = 1) -> nn.Linear:
    """Makes a layer as a library does that always builds with a seed of its own."""
    return fastinit.build(nn.Linear, 4, 4, backend="cpp", seed=seed)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.student = encoder()
        self.teacher = encoder()


class Orthogonal(nn.Module):
    """A module that draws before its tensors have names."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(8, 8)
        orthogonal_by_hand_(self.w.weight)


class Stage(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: Orthogonal()})


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_two_seeded_builds_in_a_larger_one_give_what_they_give_alone(backend: str) -> None:
    made = fastinit.build(Pair, backend=backend, seed=0)
    assert torch.equal(made.student.weight, encoder().weight) and torch.equal(made.teacher.bias, encoder().bias)


def test_a_seeded_block_leaves_the_larger_ones_draws_as_they_are() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        made = nn.ModuleDict({"head": nn.Linear(4, 4)})
        with fastinit.capture(backend="cpp", seed=5):
            made["child"] = nn.Linear(4, 4)
    alone = fastinit.build(lambda: nn.ModuleDict({"head": nn.Linear(4, 4)}), backend="cpp", seed=0)
    assert torch.equal(made["head"].weight, alone["head"].weight)


def test_the_larger_blocks_report_knows_what_a_seeded_block_wrote() -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        made = Pair()
    assert len(list(made.parameters())) == 6 and recipe.report.provenance.keys() == {
        f"{part}.{name}" for part in ("head", "student", "teacher") for name in ("weight", "bias")
    }
    assert {row.parameter for row in recipe.report.rows} == {"head.weight", "head.bias"}


def test_a_recipe_keeps_the_seeds_of_blocks_within_its_own() -> None:
    with fastinit.capture(seed=0, backend="cpp") as recipe, torch.device("meta"):
        made = Pair()
    fastinit.materialize(made, recipe=recipe, backend="cpp", seed=0)
    expected = fastinit.build(Pair, backend="cpp", seed=0)
    assert all(map(torch.equal, made.parameters(), expected.parameters()))


def test_models_of_one_seed_and_two_prefixes_share_no_unnamed_draws() -> None:
    a, b = (fastinit.build(Orthogonal, backend="cpp", seed=0, prefix=each) for each in ("generator", "discriminator"))
    assert not torch.equal(a.w.weight, b.w.weight)


def test_stages_that_a_map_of_names_tells_apart_share_no_unnamed_draws() -> None:
    made = []
    for index in "02":
        with fastinit.capture(backend="cpp", seed=0, prefix={"layers.0": f"layers.{index}"}):
            made.append(Stage("0"))
    assert not torch.equal(made[0].layers["0"].w.weight, made[1].layers["0"].w.weight)


def test_unnamed_draws_without_a_prefix_keep_their_streams() -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        made = Orthogonal()
        drawn = torch.randn(3)
    assert recipe.report.unkeyed[-1].startswith("#1 (3, ") and made.w.weight.shape == (8, 8)
    named = torch.empty(3)
    fastinit.initialize(
        nn.ParameterDict({"#1": nn.Parameter(named)}), dict(type="Normal", std=1, param="#1"), backend="cpp", seed=0
    )
    assert torch.equal(drawn, named)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_code_in_a_context_of_its_own_is_recorded_as_the_blocks(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0) as recipe:
        made = nn.ParameterDict()
        made["a"] = nn.Parameter(contextvars.Context().run(torch.ones, 3))
    assert made["a"].tolist() == [1, 1, 1] and recipe.fills.keys() == {"a"}
