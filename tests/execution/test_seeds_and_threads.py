"""Seeds disturb nobody: other code's draws, threads and forked processes, and nobody disturbs a seeded call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import needs
import pytest
import torch
from torch import nn

import fastinit

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])
CFG = [dict(type="Normal", layer="Linear"), dict(type="TruncNormal", param="0.bias")]
# Generous: what hangs would hang for ever.
WAIT_S = 60


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def values(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


@contextmanager
def drawing_all_the_time() -> Iterator[list[int]]:
    """Yields what a thread has drawn from torch's default generator, the whole time."""
    drawn: list[int] = []
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            drawn.append(int(torch.empty((), dtype=torch.int64).random_()))

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield drawn
    finally:
        stop.set()
        thread.join()


@backends
def test_a_thread_that_draws_sees_no_number_twice_and_gives_none_to_seeded_calls(backend: str) -> None:
    made = model()
    fastinit.initialize(made, CFG, seed=0, backend=backend)
    expected = values(made)
    with drawing_all_the_time() as drawn:
        for _ in range(2_000):
            fastinit.initialize(made, CFG, seed=0, backend=backend)
            assert torch.equal(values(made), expected)
    assert len(drawn) > 100 and len(set(drawn)) == len(drawn)


def on_meta() -> nn.Sequential:
    with torch.device("meta"):
        return model()


SEEDED: dict[str, tuple[Callable[[], nn.Module], Callable[..., object]]] = {
    "initialize": (model, lambda made, **options: fastinit.initialize(made, CFG, **options)),
    "build": (nn.Module, lambda made, **options: fastinit.build(model, **options)),
    "materialize": (on_meta, lambda made, **options: fastinit.materialize(made, CFG, **options)),
    "own code": (on_meta, lambda made, **options: fastinit.materialize(made, **options)),
}


@backends
@pytest.mark.parametrize("name", SEEDED)
def test_the_default_generator_is_not_touched(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, call = SEEDED[name]
    made, state = make(), torch.get_rng_state()
    monkeypatch.setattr(torch, "set_rng_state", lambda state: pytest.fail("other threads would draw from it"))
    call(made, seed=0, backend=backend)
    assert torch.equal(torch.get_rng_state(), state)


@backends
def test_calls_in_a_pool_within_a_seeded_block_end_and_are_right(backend: str) -> None:
    def part(i: int) -> nn.Module:
        made = nn.Linear(8, 8)
        fastinit.initialize(made, dict(type="Normal", layer="Linear"), seed=i, backend=backend)
        return made

    def parts() -> nn.ModuleList:
        with ThreadPoolExecutor(2) as pool:
            return nn.ModuleList([task.result(WAIT_S) for task in [pool.submit(part, i) for i in range(4)]])

    made = fastinit.build(parts, seed=0, backend=backend)
    assert all(torch.equal(values(made[i]), values(part(i))) for i in range(4))


@backends
def test_models_that_are_built_at_once_in_threads_are_those_built_alone(backend: str) -> None:
    def build(seed: int) -> torch.Tensor:
        return values(fastinit.build(model, seed=seed, backend=backend))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(build, range(40)))
    assert all(torch.equal(made[seed], build(seed)) for seed in range(40))


@backends
def test_what_a_seeded_block_draws_is_what_manual_seed_gives(backend: str) -> None:
    def draws() -> list[torch.Tensor]:
        layer = nn.Linear(3, 3)
        return [torch.randperm(5), torch.rand_like(layer.weight), nn.functional.dropout(torch.ones(9)), layer.weight]

    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = draws()
    with fastinit.capture(seed=7, backend=backend):
        made = draws()
    assert backend == "cpp" or all(map(torch.equal, made, expected))
    assert sorted(made[0].tolist()) == [0, 1, 2, 3, 4]


class Own(fastinit.BaseModule):
    """A module whose own code draws between the fills of rules."""

    def __init__(self) -> None:
        super().__init__(dict(type="Normal", layer="Linear"))
        self.a = nn.Linear(3, 3)
        self.child = Child()
        self.b = nn.Linear(3, 3)


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def init_weights(self) -> None:
        nn.init.uniform_(self.w)


def test_rules_and_own_code_draw_one_sequence() -> None:
    with fastinit.use(seed=5, backend="torch"):
        made = Own()
        made.init_weights()
        twice = [torch.rand(1) for _ in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = [torch.empty(3, 3).normal_(), torch.empty(3, 3).normal_(), torch.empty(3).uniform_()]
    assert all(map(torch.equal, (made.a.weight, made.b.weight, made.child.w), expected))
    assert not torch.equal(*twice)


def test_code_whose_seeds_overlap_in_time_leaves_the_generator_as_it_was() -> None:
    inside, leave = threading.Barrier(2), threading.Event()

    class Slow(Child):
        def init_weights(self) -> None:
            super().init_weights()
            inside.wait(WAIT_S)
            leave.wait(WAIT_S)

    def run(seed: int) -> None:
        with fastinit.use(seed=seed, backend="torch"):
            fastinit.Sequential(Slow()).init_weights()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
    state = torch.get_rng_state()
    for thread in threads:
        thread.start()
    leave.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert torch.equal(torch.get_rng_state(), state)


@needs.mark(needs.LINUX)
def test_a_process_that_is_forked_in_a_seeded_call_can_make_its_own() -> None:
    started, leave = threading.Event(), threading.Event()

    class Slow(Child):
        def init_weights(self) -> None:
            started.set()
            leave.wait(WAIT_S)

    def run() -> None:
        with fastinit.use(seed=0):
            fastinit.Sequential(Slow()).init_weights()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(WAIT_S)
    child = os.fork()
    if child == 0:
        made = model()
        fastinit.initialize(made, CFG, seed=0)
        with fastinit.use(seed=0):
            fastinit.Sequential(Child()).init_weights()
        os._exit(0)
    for _ in range(WAIT_S * 10):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        leave.wait(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        status = -1
    leave.set()
    thread.join(WAIT_S)
    assert status == 0
