"""Tensors that have no plain memory of their own, in blocks and in models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn

import fastinit

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])
layouts = pytest.mark.parametrize(
    "layout", [torch.strided, *([torch.jagged] if hasattr(torch, "jagged") else [])]
)  # since torch 2.2


def nested(layout: torch.layout) -> torch.Tensor:
    how: dict[str, Any] = {} if layout == torch.strided else {"layout": layout}  # an argument since torch 2.2
    return torch.nested.nested_tensor([torch.full((2, 3), 5.0), torch.full((4, 3), 6.0)], **how)


class Ragged(nn.Module):
    """Holds tensors of several lengths, and a layer."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("parts", nested(layout))


@backends
@layouts
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_buffers_are_made_in_a_block(layout: torch.layout, backend: str) -> None:
    made = fastinit.build(Ragged, layout, backend=backend, seed=0)
    assert [each.tolist() for each in made.parts.unbind()] == [each.tolist() for each in nested(layout).unbind()]


@backends
@layouts
@pytest.mark.parametrize("call", [fastinit.plan, fastinit.initialize])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_parameter_is_refused_by_name(call: Callable[..., object], layout: torch.layout, backend: str) -> None:
    module = nn.Module()
    module.w = nn.Parameter(nested(layout))
    with pytest.raises(
        RuntimeError, match="init_cfg: the parameter 'w' is a nested tensor, .* make its parts parameters"
    ):
        call(module, dict(type="Normal", param="w"), backend=backend)


@backends
def test_a_function_is_mapped_in_a_block(backend: str) -> None:
    def double() -> torch.Tensor:
        return torch.func.vmap(lambda x: x * 2 + 1)(torch.full((3,), 5.0))

    with fastinit.capture(backend=backend, seed=0):
        made = double()
    assert torch.equal(made, double())


class Spectral(nn.Module):
    """Weights in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat) * 0.1)
        self.v = nn.Parameter(torch.rand(4, dtype=torch.cdouble))


@needs.mark(needs.CPP)
def test_complex_draws_are_kept_without_memory() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = Spectral()
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    built = fastinit.build(Spectral, backend="cpp", seed=0)
    assert same_bits(torch.view_as_real(model.w), torch.view_as_real(built.w))
    assert same_bits(torch.view_as_real(model.v), torch.view_as_real(built.v))


class Legacy(nn.Module):
    """Made by a constructor that knows no default device."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.Tensor(64).uniform_())


@needs.mark(needs.CPP)
def test_a_parameter_that_has_memory_on_the_meta_device_is_drawn_by_the_block() -> None:
    def made() -> torch.Tensor:
        with fastinit.capture(backend="cpp", seed=0) as recipe, torch.device("meta"):
            model = Legacy()
        assert "p" in recipe.fills
        return model.p.detach()

    assert not made().is_meta
    assert same_bits(made(), fastinit.build(Legacy, backend="cpp", seed=0).p)


@needs.mark(needs.CPP)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_an_expanded_fill_is_built_as_it_is(backend: str) -> None:
    def made() -> nn.Module:
        module = nn.Linear(4, 4)
        module.register_buffer("s", torch.full((2, 1), 3.0).expand(2, 3))
        return module

    built = fastinit.build(made, backend=backend, seed=0)
    assert built.s.stride() == (1, 0) and built.s.eq(3).all()  # type: ignore[operator, union-attr]
