"""Code that fills views of a parameter whose memory is in another order than its elements."""

from __future__ import annotations

from collections.abc import Callable

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.recording.recipes import Recipe

pytestmark = needs.mark(needs.CPP)


def captured(weight: torch.Tensor, code: Callable[[torch.Tensor], object]) -> tuple[torch.Tensor, Recipe]:
    """Returns a parameter called ``w`` after code on it was captured, and the recipe."""
    model = nn.Module()
    model.w = nn.Parameter(weight)
    with fastinit.capture(model, backend="cpp", seed=0) as recipe, torch.no_grad():
        code(model.w)
    return model.w.detach(), recipe


@pytest.mark.parametrize(
    "view",
    [lambda w: w[::2], lambda w: w[1], lambda w: w[:, 2:7:3], lambda w: w.diagonal()],
    ids=["every other row", "a row", "some columns", "the diagonal"],
)
def test_a_view_of_a_transposed_parameter_gets_that_part_of_its_values(view):
    weight, _ = captured(torch.zeros(8, 4).t(), lambda w: view(w).normal_())
    whole = torch.empty(4, 8)
    cpp_backend.run([plans.Fill.whole("w", whole, plans.Normal(0, 1), "", "")], 0)
    assert same_bits(view(weight), view(whole))


def test_a_flat_view_of_memory_in_another_order_has_no_values_of_the_parameter_by_name():
    weight = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    _, recipe = captured(weight, lambda w: w.permute(0, 2, 3, 1).reshape(-1).normal_())
    assert recipe.report.unkeyed == ("w",)
