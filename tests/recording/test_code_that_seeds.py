"""Code in a recorded block that seeds torch's generator itself keeps its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])


class Projection(nn.Module):
    """A fixed random projection between layers, as models keep it out of their checkpoints."""

    def __init__(self, make: Callable[[], torch.Tensor] = lambda: torch.randn(8, 8)) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        with torch.random.fork_rng():
            torch.manual_seed(42)
            self.register_buffer("projection", make(), persistent=False)
        self.b = nn.Linear(8, 8)


def after(seed: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


MAKES: dict[str, Callable[[], torch.Tensor]] = {
    "randn": lambda: torch.randn(8, 8),
    "normal_": lambda: torch.empty(8, 8).normal_(),
    "rand_like": lambda: torch.rand_like(torch.zeros(8, 8)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(8, 8)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(8, 8)),
    "permutation": lambda: torch.randperm(8),
}


@backends
@pytest.mark.parametrize("name", MAKES)
def test_draws_in_a_fork_that_seeds_are_its_own(name: str, backend: str) -> None:
    make = MAKES[name]
    made = fastinit.build(lambda: Projection(make), backend=backend, seed=0)
    assert torch.equal(made.projection, after(42, make))  # type: ignore[arg-type]


@backends
def test_draws_around_the_fork_are_as_without_it(backend: str) -> None:
    made = fastinit.build(Projection, backend=backend, seed=0)
    if backend == "torch":
        expected = after(0, lambda: torch.cat([nn.Linear(8, 8).weight for _ in range(2)]))
        assert torch.equal(torch.cat([made.a.weight, made.b.weight]), expected)
    else:
        plain = fastinit.build(lambda: nn.ModuleDict(dict(a=nn.Linear(8, 8), b=nn.Linear(8, 8))), backend="cpp", seed=0)
        assert torch.equal(made.b.weight, plain["b"].weight)  # type: ignore[index]


@backends
def test_such_draws_are_no_unnamed_ones(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0, strict=True) as recipe:
        made = Projection()
    assert recipe.report.unkeyed == () and made.projection is not None


@needs.mark(needs.CPP)
def test_such_draws_cannot_be_done_again_by_a_recipe() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = Projection()
    assert "projection" in recipe.unknown
    with pytest.raises(RuntimeError, match="projection .*draws under a seed of its own"):
        fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)


def test_code_that_seeds_without_a_fork_draws_what_it_would_under_torch() -> None:
    def factory() -> nn.Module:
        torch.manual_seed(3)
        return nn.Linear(8, 8)

    state = torch.get_rng_state()
    made = fastinit.build(factory, backend="torch", seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(made.weight, after(3, lambda: nn.Linear(8, 8).weight))  # type: ignore[arg-type]


@needs.mark(needs.CPP)
def test_a_script_that_seeds_everything_has_draws_by_name() -> None:
    def factory() -> nn.Module:
        torch.manual_seed(3)
        return nn.Linear(8, 8)

    state = torch.get_rng_state()
    made = fastinit.build(factory, backend="cpp", seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(made.weight, fastinit.build(nn.Linear, 8, 8, backend="cpp", seed=0).weight)  # type: ignore[arg-type]


@needs.mark(needs.CPP)
def test_a_layer_made_under_a_seed_of_its_own_is_not_given_other_numbers_by_a_recipe() -> None:
    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(42)
            return nn.Linear(8, 8)

    with fastinit.capture() as recipe, torch.device("meta"):
        model = make()
    with pytest.raises(RuntimeError, match="weight .*draws under a seed of its own"):
        fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)


def restored(model: Any) -> None:
    state = torch.get_rng_state()
    model.a = nn.Linear(8, 8)
    torch.set_rng_state(state)
    model.b = nn.Linear(8, 8)


def seeded_and_restored(model: Any) -> None:
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    model.a = nn.Linear(8, 8)
    torch.random.set_rng_state(state)
    model.b = nn.Linear(8, 8)


def forked(model: Any) -> None:
    with torch.random.fork_rng():
        model.a = nn.Linear(8, 8)
    model.b = nn.Linear(8, 8)


def forked_in_a_fork(model: Any) -> None:
    with torch.random.fork_rng():
        model.a = nn.Linear(8, 8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model.b = nn.Linear(8, 8)
        model.c = nn.Linear(8, 8)
    model.d = nn.Linear(8, 8)


def not_forked(model: Any) -> None:
    with torch.random.fork_rng(enabled=False):
        model.a = nn.Linear(8, 8)
    model.b = nn.Linear(8, 8)


STATES = [restored, seeded_and_restored, forked, forked_in_a_fork, not_forked]


def made(code: Callable[[Any], None]) -> nn.Module:
    model = nn.Module()
    code(model)
    return model


@pytest.mark.parametrize("code", STATES)
@pytest.mark.parametrize("seed", [0, None])
def test_code_that_keeps_the_generators_state_draws_what_it_would_alone(
    code: Callable[[Any], None], seed: int | None
) -> None:
    plain = after(0, lambda: torch.cat([p.flatten() for p in made(code).parameters()]))

    def build() -> torch.Tensor:
        model = fastinit.build(made, code, backend="torch", seed=seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(after(0 if seed is None else 1, build), plain)


@backends
@pytest.mark.parametrize("code", STATES)
def test_such_code_leaves_the_callers_generator_alone_under_a_seed(code: Callable[[Any], None], backend: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fastinit.build(made, code, backend=backend, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
