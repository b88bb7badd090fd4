"""Blocks whose code takes turns in one thread: right, or refused; never other weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastinit
from fastinit.execution.calls import current_call


async def made(seed: int, wait_s: float) -> torch.Tensor:
    with fastinit.capture(seed=seed, backend="torch"):
        layer = nn.Linear(4, 4)
        await asyncio.sleep(wait_s)
        nn.init.normal_(layer.weight)
    return layer.weight.detach()


def alone(seed: int) -> torch.Tensor:
    return asyncio.run(made(seed, 0))


def test_a_task_that_begins_while_another_has_a_block_open_is_refused() -> None:
    async def both() -> list[torch.Tensor | BaseException]:
        return await asyncio.gather(made(0, 0.02), made(1, 0.01), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, torch.Tensor) and torch.equal(first, alone(0))
    assert isinstance(second, RuntimeError) and "another task of this thread" in str(second)


def test_tasks_one_after_the_other_are_right() -> None:
    async def both() -> list[torch.Tensor]:
        return [await made(seed, 0.001) for seed in range(2)]

    assert all(torch.equal(weight, alone(seed)) for seed, weight in enumerate(asyncio.run(both())))


def test_tasks_in_threads_are_right() -> None:
    async def both() -> list[torch.Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(alone, seed) for seed in range(4)))

    assert all(torch.equal(weight, alone(seed)) for seed, weight in enumerate(asyncio.run(both())))


def test_calls_without_a_block_may_take_turns() -> None:
    async def initialized(seed: int) -> torch.Tensor:
        layer = nn.Linear(4, 4)
        with fastinit.use(seed=seed):
            await asyncio.sleep(0.001)
            fastinit.initialize(layer, dict(type="Normal", layer="Linear"))
        return layer.weight.detach()

    async def all_of_them() -> list[torch.Tensor]:
        return await asyncio.gather(*(initialized(seed) for seed in range(8)))

    together = asyncio.run(all_of_them())
    assert all(torch.equal(weight, asyncio.run(initialized(seed))) for seed, weight in enumerate(together))


def test_generators_that_take_turns_are_refused() -> None:
    def making(seed: int) -> Iterator[nn.Module]:
        with fastinit.capture(seed=seed, backend="torch"):
            layer = nn.Linear(4, 4)
            yield layer
            nn.init.normal_(layer.weight)

    first, second = making(0), making(1)
    next(first), next(second)
    with pytest.raises(RuntimeError, match="still open"):
        next(first)
    second.close()


def test_a_refused_block_leaves_no_trace() -> None:
    test_generators_that_take_turns_are_refused()
    weight = fastinit.build(nn.Linear, 4, 4, seed=0).weight
    assert torch.equal(weight, fastinit.build(nn.Linear, 4, 4, seed=0).weight)
    assert len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()) == 0
    assert current_call() is None
