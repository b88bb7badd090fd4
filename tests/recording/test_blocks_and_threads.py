"""Blocks of ``capture``: nested, ended by an exception, in threads, and without a seed."""

from __future__ import annotations

import math
import threading

import pytest
import torch
import torch.nn.utils.prune
from capturing import Holder, cpp, is_uninstalled
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit import plans


@cpp
def test_a_nested_block_with_its_own_seed_has_its_own_plan():
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with fastinit.capture(backend="cpp", seed=9, prefix="teacher") as inner:
            teacher = nn.Linear(3, 3)
        seen = teacher.weight.detach().clone()
        model = nn.Linear(3, 3)
        recipe.bind(model)
    bound = plans.Uniform(-math.sqrt(1 / 3), math.sqrt(1 / 3))
    assert same_bits(teacher.weight, named_fill("teacher.weight", (3, 3), bound, seed=9))
    assert torch.equal(seen, teacher.weight)
    assert same_bits(model.weight, named_fill("weight", (3, 3), bound))
    assert inner.report.seed == 9


@cpp
def test_fastinits_own_calls_join_the_plan():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = Net()
        fastinit.normal_init(model.fc, std=0.3, bias=2)
        fastinit.constant_init(model.norm, 5)
    assert same_bits(model.fc.weight, named_fill("fc.weight", (4, 4), plans.Normal(0, 0.3)))
    assert (model.fc.bias == 2).all()
    assert (model.norm.weight == 5).all()
    assert recipe.report.launches == {"cpu": 1}
    model = Net()
    with fastinit.capture(model, backend="cpp", seed=0) as recipe:
        report = fastinit.initialize(model, dict(type="Xavier", layer="Linear"))
        model.head.bias.data.add_(1)
    assert report.launches == {"cpu": 1}
    assert len(report.rows) == 4
    assert (model.head.bias == 1).all()
    assert same_bits(model.fc.weight, named_fill("fc.weight", (4, 4), plans.Normal(0, 0.5)))
    before = model.fc.weight._version
    with fastinit.capture(model, backend="cpp", seed=0):
        fastinit.normal_init(model.fc)
        assert model.fc.weight._version > before  # counted where the code asks, not when it is done
        before = model.fc.weight._version
    assert model.fc.weight._version == before


@cpp
def test_pending_fills_run_when_a_block_ends_with_an_exception():
    model = Holder()
    with pytest.raises(OSError, match="disk"), fastinit.capture(model, backend="cpp", seed=0) as recipe:
        model.a.data.normal_()
        model.b.data.fill_(2)
        raise OSError("disk")
    assert same_bits(model.a, named_fill("a", (6, 4), plans.Normal(0, 1)))
    assert (model.b == 2).all()
    assert is_uninstalled()
    with pytest.raises(RuntimeError, match="report is made when the block ends"):
        recipe.report
    with pytest.raises(ValueError, match="unknown backend 'cp'"), fastinit.capture(backend="cp"):
        pass
    assert is_uninstalled()
    with pytest.raises(RuntimeError, match="needs a|cannot|finds no|missing|not installed"):
        with fastinit.capture(backend="cuda" if not torch.cuda.is_available() else "cpp"):
            raise RuntimeError("cannot") if torch.cuda.is_available() else AssertionError("entered")


@cpp
def test_blocks_without_a_seed_draw_once_from_torchs_generator():
    def run():
        torch.manual_seed(5)
        with fastinit.capture(backend="cpp") as recipe:
            model = nn.Linear(3, 3)
        return model, recipe.report.seed, torch.get_rng_state()

    (a, seed, state), (b, again, _) = run(), run()
    torch.manual_seed(5)
    assert same_bits(a.weight, b.weight)
    assert seed == again == int(torch.empty((), dtype=torch.int64).random_())
    assert torch.equal(state, torch.get_rng_state())
    with fastinit.use(backend="cpp", seed=seed):
        c = fastinit.build(nn.Linear, 3, 3)
    assert same_bits(a.weight, c.weight)


@cpp
def test_threads_record_separately_and_threads_of_a_block_join_it():
    results = {}

    def make(seed):
        for _ in range(20):
            with fastinit.capture(backend="cpp", seed=seed):
                model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
        results[seed] = model

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for seed, model in results.items():
        bound = plans.Uniform(-math.sqrt(1 / 8), math.sqrt(1 / 8))
        assert same_bits(model[3].weight, named_fill("3.weight", (8, 8), bound, seed=seed))

    model, seen = Holder(), []
    with fastinit.capture(model, backend="cpp", seed=0) as recipe, torch.no_grad():
        model.a.normal_()

        def work():
            seen.append(model.a.sum().item())
            with torch.no_grad():
                model.b.normal_()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        model.c.copy_(model.b.flatten())
    assert seen == [model.a.sum().item()]
    assert torch.equal(model.b.flatten(), model.c)
    assert is_uninstalled()
    assert same_bits(model.b, named_fill("b", (4, 6), plans.Normal(0, 1)))
    assert recipe.report.unkeyed == ()


@cpp
def test_a_thread_that_outlives_its_block_runs_unwatched():
    model, go, done = Holder(), threading.Event(), threading.Event()

    def work():
        go.wait(10)
        model.b.data.fill_(3)
        done.set()

    with fastinit.capture(model, backend="cpp", seed=0):
        thread = threading.Thread(target=work)
        thread.start()
        model.a.data.normal_()
    go.set()
    thread.join()
    assert done.is_set()
    assert (model.b == 3).all()
    assert is_uninstalled()
