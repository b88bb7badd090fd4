"""Temporaries that go into parts of a parameter (a fused qkv, `cat`, `stack`) are drawn by the parameter's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capturing import cpp
from helpers import same_bits
from torch import nn

import fastinit

HEADS, SIZE, WIDTH = 2, 4, 8


class Fused(nn.Module):
    """Draws q, k and v and interleaves them head by head, as torchtitan's Llama does."""

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.Linear(WIDTH, 3 * HEADS * SIZE, bias=False)
        parts = [torch.empty(HEADS * SIZE, WIDTH) for _ in range(3)]
        for part in parts:
            nn.init.trunc_normal_(part, std=0.02)
        with torch.no_grad():
            heads = self.wqkv.weight.view(HEADS, 3, SIZE, WIDTH)
            for i, part in enumerate(parts):
                heads[:, i].copy_(part.view(HEADS, SIZE, WIDTH))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.cat([torch.randn(4, 8), torch.zeros(2, 8), torch.randn(3, 8)]))


class JoinedAlong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.cat([torch.randn(4, 8), torch.zeros(4, 2)], dim=1))


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.stack([torch.randn(4, 8) for _ in range(3)], dim=1))


class JoinedAndCopied(nn.Module):
    """Joins q, k and v head by head before it copies them, as torchtitan 0.3 does."""

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.Linear(WIDTH, 3 * HEADS * SIZE, bias=False)
        parts = [torch.empty(HEADS, 1, SIZE, WIDTH) for _ in range(3)]
        for part in parts:
            nn.init.trunc_normal_(part, std=0.02)
        with torch.no_grad():
            self.wqkv.weight.copy_(torch.cat(parts, dim=1).reshape(-1, WIDTH))


KINDS = [Fused, Joined, JoinedAlong, Stacked, JoinedAndCopied]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def weight_of(model: nn.Module) -> torch.Tensor:
    (weight,) = model.parameters()
    return weight


@cpp
def test_a_fused_weight_is_that_of_one_fill_of_the_whole() -> None:
    whole = nn.ModuleDict({"wqkv": nn.Linear(WIDTH, 3 * HEADS * SIZE, bias=False)})
    rule = dict(type="TruncNormal", std=0.02, layer="Linear")
    fastinit.initialize(whole, rule, backend="cpp", seed=0)
    assert same_bits(weight_of(fastinit.build(Fused, backend="cpp", seed=0)), weight_of(whole))


@cpp
@kinds
def test_no_draw_goes_by_order(kind: Callable[[], nn.Module]) -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = nn.Sequential(kind(), kind())
    assert recipe.report.unkeyed == ()
    alone = fastinit.build(kind, backend="cpp", seed=0, prefix="1")
    assert same_bits(weight_of(model[1]), weight_of(alone))


@cpp
@kinds
@pytest.mark.parametrize("backend", [None, "cpp"])
def test_a_recipe_of_the_meta_device_gives_what_build_gives(kind: Callable[[], nn.Module], backend: str | None) -> None:
    with fastinit.capture(backend=backend) as recipe, torch.device("meta"):
        model = kind()
    assert not recipe.unknown and not recipe.computed
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    assert same_bits(weight_of(model), weight_of(fastinit.build(kind, backend="cpp", seed=0)))


@kinds
def test_on_torch_the_bits_are_those_of_the_code_alone(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    expected = weight_of(kind())
    torch.manual_seed(0)
    assert same_bits(weight_of(fastinit.build(kind, backend="torch")), expected)


@cpp
def test_a_part_that_is_read_before_it_is_joined_keeps_its_values() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        part = torch.randn(4, 8)
        before = part.sum().item()
        joined = torch.cat([part, torch.randn(2, 8)])
    assert part.sum().item() == before and same_bits(joined[:4], part)


@cpp
def test_parts_that_live_on_have_the_values_of_the_whole() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        parts = [torch.randn(4, 8), torch.randn(2, 8)]
        viewed = torch.empty(4, 8).normal_()
        model = nn.ParameterDict({"w": nn.Parameter(torch.cat(parts)), "v": nn.Parameter(torch.empty(2, 2, 8))})
        with torch.no_grad():
            model["v"].copy_(viewed.view(2, 2, 8))
    assert same_bits(torch.cat(parts), model["w"].detach())
    assert same_bits(viewed.view(2, 2, 8), model["v"].detach())


@cpp
def test_tensors_of_several_dtypes_and_none_are_joined_as_torch_joins_them() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        mixed = torch.cat([torch.zeros(2), torch.ones(2, dtype=torch.float64)])
        with_nothing = torch.cat([torch.zeros(0), torch.ones(2, 2).flatten()])
        in_columns = torch.cat([torch.ones(2, 3).t(), torch.zeros(3, 2)])
    assert mixed.dtype == torch.float64 and mixed.tolist() == [0, 0, 1, 1]
    assert with_nothing.tolist() == [1] * 4 and in_columns.sum() == 6
    with pytest.raises(RuntimeError), fastinit.capture(backend="cpp", seed=0):
        torch.cat([torch.zeros(2, 2), torch.zeros(3, 3)])


# --- draws by order are listed, whatever becomes of them --------------------------------------------------------------


class Computed(nn.Module):
    """As state-space layers do it: the draw is read, and overwritten by what is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(16))
        with torch.no_grad():
            self.a.copy_(self.a.uniform_(1.0, 16.0).log())


class Changed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(8).normal_().abs_())


class OfATemporary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4).exp())


@cpp
@pytest.mark.parametrize("kind", [Computed, Changed])
def test_a_draw_that_is_overwritten_by_what_is_computed_from_it_is_listed(kind: Callable[[], nn.Module]) -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = nn.Sequential(kind(), kind())
    assert recipe.report.unkeyed == ("0.a", "1.a") and len(model) == 2


@cpp
def test_a_temporary_that_is_gone_is_listed_with_its_place() -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = OfATemporary()
    (told,) = recipe.report.unkeyed
    assert told.startswith("#0 (4, test_fused_weights.py:") and model.a.shape == (4,)
