"""``torch.rand`` gives numbers below 1, also where a recorded draw is rounded to fewer digits."""

from __future__ import annotations

from collections.abc import Callable

import needs
import pytest
import torch

import fastinit

pytestmark = needs.mark(needs.CPP)
N = 1 << 20
MAKES: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "rand": lambda dtype: torch.rand(N, dtype=dtype),
    "rand_like": lambda dtype: torch.rand_like(torch.empty(N, dtype=dtype)),
}


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_recorded_numbers_are_below_one(name: str, dtype: torch.dtype) -> None:
    with fastinit.capture(backend="cpp", seed=0):
        made = MAKES[name](dtype)
    assert made.max() < 1 and made.min() >= 0 and made.max() > 0.99
    assert made.double().mean().item() == pytest.approx(0.5, abs=0.003)


def test_the_default_dtype_counts() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with fastinit.capture(backend="cpp", seed=0):
            made = torch.rand(N)
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.dtype == torch.bfloat16 and made.max() < 1


def test_a_uniform_fill_may_round_to_its_upper_end() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        made = torch.empty(N, dtype=torch.bfloat16).uniform_()
    assert made.max() == 1
