"""Seeds, ``use`` and the choice of a backend."""

from __future__ import annotations

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit.contract.streams import fold_in

CFG = dict(type="Normal", layer="Linear")


def weights(run=None, **options) -> torch.Tensor:
    layer = nn.Linear(64, 64)
    if run is None:
        fastinit.initialize(layer, CFG, **options)
    else:
        run(layer)
    return layer.weight.detach()


def after_manual_seed(seed) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.empty(64, 64).normal_(0, 1)


def test_a_seed_gives_the_draws_of_manual_seed_and_leaves_the_callers_generator_alone():
    nn.Linear(64, 64)
    state = torch.get_rng_state()
    layer = nn.Linear(64, 64)
    torch.set_rng_state(state)
    fastinit.initialize(layer, CFG, seed=2**64 - 1)
    assert torch.equal(layer.weight, after_manual_seed(2**64 - 1))
    assert torch.equal(state, torch.get_rng_state())


def test_without_a_seed_two_calls_differ_and_manual_seed_governs_them():
    torch.manual_seed(1)
    first, second = weights(), weights()
    torch.manual_seed(1)
    assert torch.equal(weights(), first) and not torch.equal(first, second)


def test_a_failing_call_restores_the_generator():
    layer = nn.Linear(2, 2)
    state = torch.get_rng_state()
    with pytest.raises(KeyError):
        fastinit.initialize(layer, dict(type="Foo"), seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_use_seeds_each_call_in_a_block_differently_and_repeatably():
    def block():
        with fastinit.use(seed=7):
            return weights(), weights(), weights()

    first, second, third = block()
    assert torch.equal(first, after_manual_seed(7))
    assert torch.equal(second, after_manual_seed(fold_in((7, 0), 1)[0]))
    assert torch.equal(third, after_manual_seed(fold_in((7, 0), 2)[0]))
    assert all(torch.equal(a, b) for a, b in zip((first, second, third), block()))


def test_a_call_with_its_own_seed_or_prefix_does_not_advance_the_block():
    with fastinit.use(seed=7):
        assert torch.equal(weights(prefix="a."), after_manual_seed(7))
        assert torch.equal(weights(seed=3), after_manual_seed(3))
        assert torch.equal(weights(), after_manual_seed(7))


def test_a_plan_shows_the_seed_of_the_call_that_follows_it():
    with fastinit.use(seed=7):
        weights()
        expected = fastinit.plan(nn.Linear(2, 2), CFG).seed
        assert fastinit.plan(nn.Linear(2, 2), CFG).seed == expected == fold_in((7, 0), 1)[0]
        assert fastinit.initialize(nn.Linear(2, 2), CFG).seed == expected


def test_nested_blocks_inherit_what_they_do_not_set():
    with fastinit.use(seed=7):
        with fastinit.use(backend="torch"):
            assert torch.equal(weights(), after_manual_seed(7))
        with fastinit.use(seed=8):
            assert torch.equal(weights(), after_manual_seed(8))
        assert torch.equal(weights(), after_manual_seed(fold_in((7, 0), 1)[0]))
    assert fastinit.plan(nn.Linear(2, 2), CFG).seed is None


def test_use_seeds_functional_inits_and_initializer_objects_too():
    with fastinit.use(seed=7):
        assert torch.equal(weights(fastinit.normal_init), after_manual_seed(7))
        assert torch.equal(weights(fastinit.NormalInit(layer="Linear")), after_manual_seed(fold_in((7, 0), 1)[0]))
    with fastinit.use(seed=7):
        first = fastinit.trunc_normal_(torch.empty(50))
    with fastinit.use(seed=7):
        assert torch.equal(first, fastinit.trunc_normal_(torch.empty(50)))


def test_a_whole_tree_is_one_call_of_a_block():
    def tree():
        return fastinit.Sequential(
            fastinit.Sequential(nn.Linear(3, 3), init_cfg=CFG),
            nn.Linear(3, 3),
            init_cfg=dict(type="Xavier", layer="Linear"),
        )

    def run():
        made = tree()
        with fastinit.use(seed=7):
            made.init_weights()
            second = weights()
        return made, second

    (a, second_a), (b, second_b) = run(), run()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a[0][0].weight, a[1].weight)
    assert torch.equal(second_a, second_b) and torch.equal(second_a, after_manual_seed(fold_in((7, 0), 1)[0]))
    assert a.last_init_report.seed == 7
    torch.manual_seed(7)
    c = tree()
    torch.manual_seed(7)
    c.init_weights()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters()))


def test_a_nested_call_continues_the_draws_of_the_outer_one():
    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def init_weights(self):
            fastinit.initialize(self.fc, CFG)
            self.first = self.fc.weight.clone()
            fastinit.initialize(self.fc, CFG)
            self.second = self.fc.weight.clone()
            fastinit.initialize(self.fc, CFG, seed=5)

    root = fastinit.Sequential(Custom())
    with fastinit.use(seed=7):
        root.init_weights()
    assert torch.equal(root[0].first, after_manual_seed(7))
    assert not torch.equal(root[0].second, root[0].first)
    assert torch.equal(root[0].fc.weight, after_manual_seed(5))


def test_seeded_calls_in_threads_restore_the_generator():
    from concurrent.futures import ThreadPoolExecutor

    layers = [nn.Linear(300, 300) for _ in range(32)]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda layer: fastinit.initialize(layer, CFG, seed=5), layers))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(layer.weight, layers[0].weight) for layer in layers)


def test_the_same_seed_on_siblings_gives_equal_weights_by_design():
    assert torch.equal(weights(seed=1), weights(seed=1))


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (2**64, ValueError), ("1", TypeError), (1.5, TypeError)])
def test_bad_seeds_are_refused_before_anything_is_written(seed, error):
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(error, match="seed must be an integer"):
        fastinit.initialize(layer, CFG, seed=seed)
    with pytest.raises(error, match="seed must be an integer"), fastinit.use(seed=seed):
        pass
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("how", ["argument", "use", "environment"])
def test_an_unknown_backend_is_refused_with_the_known_ones(how, monkeypatch):
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match="unknown backend 'fast'; choose from auto, torch, cpp"):
        if how == "argument":
            fastinit.initialize(layer, CFG, backend="fast")
        elif how == "use":
            with fastinit.use(backend="fast"):
                fastinit.initialize(layer, CFG)
        else:
            monkeypatch.setenv("FASTINIT_BACKEND", "fast")
            fastinit.initialize(layer, CFG)
    assert torch.equal(layer.weight, before)


def test_an_argument_wins_over_use_and_use_over_the_environment(monkeypatch):
    monkeypatch.setenv("FASTINIT_BACKEND", "nonsense")
    with fastinit.use(backend="torch"):
        fastinit.initialize(nn.Linear(2, 2), CFG)
    fastinit.initialize(nn.Linear(2, 2), CFG, backend="auto")
    monkeypatch.setenv("FASTINIT_BACKEND", "")
    fastinit.initialize(nn.Linear(2, 2), CFG)


@needs.mark(needs.CPP)
def test_a_backend_that_can_run_is_listed_without_a_reason():
    assert fastinit.available_backends()["cpp"] is None


def test_unavailable_backends_are_listed_with_the_reason(monkeypatch):
    from fastinit.backends import cpp_backend

    monkeypatch.setattr(cpp_backend, "_native", None)
    monkeypatch.setattr(cpp_backend, "_WHY_NOT", "no compiler", raising=False)
    available = fastinit.available_backends()
    assert available["torch"] is None and available["cpp"] == "no compiler"
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="the backend 'cpp' cannot fill the parameter 'weight'.*: no compiler"):
        fastinit.initialize(layer, CFG, backend="cpp")
    fastinit.initialize(layer, CFG)
