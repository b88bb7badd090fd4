"""Functions of torch that read memory without an operator that could be seen find the values that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit

pytestmark = needs.mark(needs.CPP)


def number(value: float) -> torch.Tensor:
    """Returns a tensor without dimensions, whose fill waits in a block."""
    return torch.full((), value)


def of_index(value: int) -> torch.Tensor:
    """Returns an index, whose fill waits in a block."""
    return torch.full((1,), value, dtype=torch.long)


WAYS: dict[str, Callable[[], Any]] = {
    "tensor of tensors": lambda: torch.tensor([number(3), number(4)]),
    "tensor of tensors, by keyword": lambda: torch.tensor(data=[[number(3)], [number(4)]]),
    "tensor of the rows of a tensor": lambda: torch.tensor([[*torch.full((3,), 3.0)]]),
    "as_tensor of tensors": lambda: torch.as_tensor([number(3), 4]),
    "asarray of tensors": lambda: torch.asarray([number(3), 4]),
    "new_tensor of tensors": lambda: torch.ones(2).new_tensor([number(3), number(4)]),
    "new of tensors": lambda: torch.ones(2).new([number(3), number(4)]),
    "Tensor of tensors": lambda: torch.Tensor([number(3), number(4)]),
    "LongTensor of tensors": lambda: torch.LongTensor([of_index(3), of_index(4)]),
    "scalar_tensor": lambda: torch.scalar_tensor(number(3)),  # type: ignore[arg-type]
    "sparse values": lambda: torch.sparse_coo_tensor([[0, 1]], [number(3), number(4)], (2,)).to_dense(),  # type: ignore[arg-type]
    "a split by indices": lambda: torch.arange(6.0).tensor_split(of_index(2))[0],
    "a split by indices, as a function": lambda: torch.tensor_split(torch.arange(6.0), of_index(2))[0],
    "Sobol numbers": lambda: torch.quasirandom.SobolEngine(3).draw(4),  # type: ignore[no-untyped-call]
    "scrambled Sobol numbers": lambda: torch.quasirandom.SobolEngine(3, scramble=True, seed=3).draw(4),  # type: ignore[no-untyped-call]
    "later Sobol numbers": lambda: torch.quasirandom.SobolEngine(3).fast_forward(2).draw(2),  # type: ignore[no-untyped-call]
    "numbers of quantization": lambda: torch.tensor(
        torch.choose_qparams_optimized(torch.full((32,), 3.0), 32, 200, 0.16, 8)[0].tolist()
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_function_that_reads_unseen_finds_constants(way: str, backend: str) -> None:
    expected = WAYS[way]()
    with fastinit.capture(backend=backend, seed=0):
        found = WAYS[way]()
    assert torch.equal(found, expected)


def test_what_is_split_by_indices_stays_pending() -> None:
    def make() -> nn.Module:
        module = nn.Module()
        first, second = torch.randn(6).tensor_split(torch.tensor([2]))
        module.first, module.second = nn.Parameter(first), nn.Parameter(second)
        return module

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        make()
    assert recipe.report.launches == {}  # of a model that nobody has


@pytest.mark.parametrize("make", [torch.Tensor.new_tensor, torch.Tensor.new])
def test_data_that_a_tensor_without_memory_makes_one_of_is_kept(make: Callable[..., torch.Tensor]) -> None:
    def factory() -> nn.Module:
        module = nn.Module()
        module.x = nn.Parameter(make(torch.ones(2), [3.0, 4.0]))
        return module

    with fastinit.capture() as recipe, torch.device("meta"):
        model = factory()
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    assert model.x.tolist() == [3.0, 4.0]  # type: ignore[union-attr, operator]


def test_sizes_that_a_tensor_without_memory_makes_one_of_are_no_data() -> None:
    with fastinit.capture(), torch.device("meta"):
        assert torch.ones(2).new(3, 4).shape == torch.ones(2).new(torch.Size((3, 4))).shape == (3, 4)
