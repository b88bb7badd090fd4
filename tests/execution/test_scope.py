"""The scope of a call: whose names, seed, backend and strictness count in a call within another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import fastinit
from fastinit.execution import seeds
from fastinit.execution.scope import Scope
from fastinit.plans import Copy, LoadResult


class Tree(nn.Module):
    """Two layers, and a buffer beside the first one's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.a.register_buffer("mask", torch.empty(2, device="meta"))


def outer_and_inner(**inner: object) -> tuple[Scope, Scope]:
    model = Tree()
    outer = Scope(model, None, seed=1)
    return outer, Scope(model.a, outer, **inner)  # type: ignore[arg-type]


def test_a_call_on_a_module_of_the_larger_one_is_part_of_it() -> None:
    outer, inner = outer_and_inner()
    assert inner.is_part and inner.names is outer.names and inner.launches is outer.launches


def test_a_call_with_a_prefix_has_names_of_its_own() -> None:
    inner = outer_and_inner(prefix="teacher")[1]
    assert not inner.is_part and list(inner.parameters().values()) == ["teacher.weight", "teacher.bias"]


def test_a_call_on_another_module_counts_its_launches_alone() -> None:
    outer = Scope(Tree(), None)
    inner = Scope(nn.Linear(2, 2), outer)
    assert not inner.is_part and inner.launches is not outer.launches


def test_a_part_knows_the_parameters_under_its_own_root_by_the_larger_names() -> None:
    assert list(outer_and_inner()[1].parameters().values()) == ["a.weight", "a.bias"]


def test_a_part_knows_the_devices_of_its_own_tensors_with_buffers() -> None:
    assert outer_and_inner()[1].devices == {torch.device("cpu"), torch.device("meta")}


def test_the_prefix_of_a_part_is_the_larger_calls_and_not_its_own() -> None:
    model = Tree()
    outer = Scope(model, None, prefix="whole")
    assert outer.prefix == "whole" and Scope(model.a, outer).prefix == ""


@pytest.mark.parametrize("own", [{"seed": 3}, {"backend": "torch"}, {"prefix": "teacher"}], ids=str)
def test_a_call_that_brings_its_own_is_its_own_effective_scope(own: dict[str, object]) -> None:
    assert (inner := outer_and_inner(**own)[1]).effective is inner


def test_the_effective_scope_of_a_part_of_a_part_is_the_outermost() -> None:
    outer, inner = outer_and_inner()
    assert Scope(inner.root, inner).effective is outer.effective is outer


def test_a_call_within_another_inherits_backend_and_strictness() -> None:
    model = Tree()
    outer = Scope(model, None, backend="torch", strict="complete")
    inner = Scope(model.a, outer)
    assert inner.backends.asked == "torch" and inner.strict == "complete"


def test_a_warning_is_issued_once_for_a_call_and_its_parts() -> None:
    outer, inner = outer_and_inner()
    with pytest.warns(UserWarning) as warned:
        inner.warn_once("init_cfg", "nothing matches")
        outer.warn_once("init_cfg[0]", "nothing matches")
        outer.warn_once("init_cfg[0]", "nothing fits")
    assert [str(each.message) for each in warned] == ["init_cfg: nothing matches", "init_cfg[0]: nothing fits"]


def test_a_call_of_its_own_names_still_shares_the_warnings() -> None:
    outer, inner = outer_and_inner(prefix="teacher")
    assert inner.warned is outer.warned


def a_copy(module: nn.Module, **kind: object) -> Copy:
    def load() -> tuple[LoadResult, tuple[()]]:
        raise AssertionError("only planned")

    made = {"replaces": False, "runs_own_code": False, **kind}
    return Copy(module, (), "c.pth", "init_cfg", "", load=load, **made)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [{"unknown": "not here yet"}, {"runs_own_code": True}], ids=str)
def test_a_complete_call_takes_a_copy_of_unknown_extent_to_write_its_module(kind: dict[str, object]) -> None:
    model = Tree()
    Scope(model, None, strict="complete").check_complete([a_copy(model, **kind)])


def test_a_complete_call_refuses_a_copy_that_is_known_to_write_nothing() -> None:
    model = Tree()
    with pytest.raises(RuntimeError, match="parameters that no rule reaches"):
        Scope(model, None, strict="complete").check_complete([a_copy(model)])


# --- the seed ---------------------------------------------------------------------------------------------------------


Asked = dict[object, list[str]]
Agreement = Callable[[Asked, int, bool], int]


@pytest.fixture
def agreed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Asked, int, bool]]:
    """What ranks were asked to agree on; they come to the seed 77."""
    asked: list[tuple[Asked, int, bool]] = []

    def agree(fills: Asked, seed: int, is_given: bool) -> int:
        asked.append((fills, seed, is_given))
        return 77

    monkeypatch.setattr(seeds, "agreed_seed", agree)
    return asked


def test_a_part_and_the_larger_call_agree_on_their_fills_together(agreed: list[tuple[Asked, int, bool]]) -> None:
    outer, inner = outer_and_inner()
    inner.seed.ask("mesh", "a.weight")
    outer.seed.agree()
    assert [asked for asked, _, _ in agreed] == [{"mesh": ["a.weight"]}]
    inner.seed.agree()
    assert len(agreed) == 1


def test_a_call_of_its_own_names_agrees_on_its_fills_alone(agreed: list[tuple[Asked, int, bool]]) -> None:
    outer, inner = outer_and_inner(prefix="teacher")
    inner.seed.ask("mesh", "teacher.weight")
    outer.seed.agree()
    assert agreed == []


def test_ranks_agree_once_on_a_fill(agreed: list[tuple[Asked, int, bool]]) -> None:
    scope = Scope(Tree(), None)
    scope.seed.ask("mesh", "a.weight")
    scope.seed.agree()
    scope.seed.agree()
    assert len(agreed) == 1


def test_a_seed_that_was_drawn_is_not_called_given(agreed: list[tuple[Asked, int, bool]]) -> None:
    scope = Scope(Tree(), None, backend="cpp")
    scope.seed.ask("mesh", "a.weight")
    scope.seed.agree()
    scope.seed.ask("mesh", "a.bias")
    scope.seed.agree()
    assert [is_given for _, _, is_given in agreed] == [False, False]


def test_the_seed_that_ranks_agree_on_is_the_larger_calls_too(agreed: list[tuple[Asked, int, bool]]) -> None:
    model = Tree()
    outer = Scope(model, None, backend="cpp")
    inner = Scope(model.a, outer)
    inner.seed.ask("mesh", "a.weight")
    inner.seed.agree()
    assert inner.seed.value == outer.seed.value == 77


def test_a_seed_of_its_own_stays_out_of_the_larger_call(agreed: list[tuple[Asked, int, bool]]) -> None:
    outer, inner = outer_and_inner(seed=5)
    inner.seed.ask("mesh", "a.weight")
    inner.seed.agree()
    assert outer.seed.value == 1


def test_a_part_draws_the_seed_of_the_larger_call() -> None:
    model = Tree()
    outer = Scope(model, None, backend="cpp")
    inner = Scope(model.a, outer)
    state = torch.get_rng_state()
    drawn = inner.seed.drawn()
    assert drawn is not None and drawn == inner.seed.drawn() == outer.seed.drawn()
    assert not torch.equal(state, torch.get_rng_state())


def test_a_call_without_a_seed_has_the_larger_calls() -> None:
    assert outer_and_inner()[1].seed.value == 1


def test_a_call_on_torch_draws_no_seed() -> None:
    scope = Scope(Tree(), None, backend="torch")
    state = torch.get_rng_state()
    assert scope.seed.drawn() is None
    assert torch.equal(state, torch.get_rng_state())


def test_a_block_of_use_gives_its_seed_to_the_outermost_call_only() -> None:
    model = Tree()
    with fastinit.use(seed=7):
        outer = Scope(model, None)
        assert outer.seed.given == 7 and Scope(model.a, outer).seed.given is None


# --- torch's generators -----------------------------------------------------------------------------------------------


class Generators:
    """Stands for torch.cuda: a generator for each of two devices, with a number for its state."""

    def __init__(self) -> None:
        self.states = {0: 10, 1: 11}
        self.current = 0

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, self.current if device.index is None else device.index
        yield
        self.current = before

    def get_rng_state(self, index: int | None = None) -> int:
        return self.states[self.current if index is None else index]

    def set_rng_state(self, state: int, index: int | None = None) -> None:
        self.states[self.current if index is None else index] = state

    def manual_seed(self, seed: int) -> None:
        self.states[self.current] = seed


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> Generators:
    made = Generators()
    monkeypatch.setattr(torch, "cuda", made)
    return made


def test_the_generators_of_devices_are_seeded_and_get_their_states_back(generators: Generators) -> None:
    with seeds.Generators(5).lent([torch.device("cuda", 1)]):
        assert generators.states == {0: 10, 1: 5}
    assert generators.states == {0: 10, 1: 11}


def test_a_device_without_an_index_is_the_current_one(generators: Generators) -> None:
    with seeds.Generators(5).lent([torch.device("cuda")]):
        assert generators.states == {0: 5, 1: 11}
    assert generators.states == {0: 10, 1: 11}


def test_generators_get_their_states_back_after_an_error(generators: Generators) -> None:
    state = torch.get_rng_state()
    with pytest.raises(OSError, match="disk"), seeds.Generators(5).lent([torch.device("cuda", 1)]):
        raise OSError("disk")
    assert generators.states == {0: 10, 1: 11} and torch.equal(state, torch.get_rng_state())
