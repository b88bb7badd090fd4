"""Numbers that are tensors: recipes of the meta device know the same ones as blocks with memory, so streams are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn

import fastinit
from fastinit import plans

pytestmark = needs.mark(needs.CPP)
BEFORE = torch.tensor(0.25)


class Layers(nn.Module):
    """Two layers, and code that changes them before they have names."""

    def __init__(self, change: Callable[[Any], object]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        with torch.no_grad():
            change(self)


def set_gain(model: Any) -> None:
    model.gain = nn.Parameter(torch.tensor(2.0))
    model.a.weight.mul_(model.gain)


KNOWN: dict[str, Callable[[Any], object]] = {
    "from data": lambda m: m.a.weight.mul_(torch.tensor(0.5)),
    "a fill": lambda m: m.a.weight.mul_(torch.full((), 0.5)),
    "from before the block": lambda m: m.a.weight.add_(BEFORE, alpha=2),
    "computed": lambda m: m.a.weight.mul_(torch.sqrt(torch.tensor(2 / 3))),
    "changed data": lambda m: m.a.weight.mul_(torch.tensor(0.5).mul_(3)),
    "a changed fill": lambda m: m.a.weight.mul_(torch.full((), 0.5).mul_(3)),
    "a copy": lambda m: m.a.weight.mul_(torch.tensor(0.5).clone()),
    "computed of two": lambda m: m.a.weight.mul_(torch.tensor(0.5) + torch.tensor(1)),
    "a parameter": set_gain,
    "a value": lambda m: m.a.weight.fill_(torch.tensor(2.0)),
}
UNKNOWN: dict[str, Callable[[Any], object]] = {
    "a draw": lambda m: m.a.weight.mul_(torch.rand(())),
    "a draw to fill with": lambda m: m.a.weight.fill_(torch.rand(())),
    "an element of a table": lambda m: m.a.weight.mul_(torch.linspace(0, 1, 4)[2]),
    "a norm": lambda m: m.a.weight.div_(m.a.weight.norm()),
    "an element of another": lambda m: m.a.weight.add_(m.b.weight[0, 0]),
    "a vector of another": lambda m: m.a.weight.add_(m.b.bias[:, None]),
    "bounds": lambda m: m.a.weight.clamp_(torch.tensor(-0.1), torch.tensor(0.1)),
    "another of two casts": lambda m: m.a.weight.add_(m.b.weight.to(torch.bfloat16), alpha=0.5),
}


def built(change: Callable[[Any], object]) -> tuple[Layers, fastinit.Recipe]:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = Layers(change)
    return model, recipe


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_a_recipe_of_the_meta_device_gives_what_build_gives(name: str) -> None:
    change = (KNOWN | UNKNOWN)[name]
    with fastinit.capture() as recipe, torch.device("meta"):
        model = Layers(change)
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    for found, expected in zip(model.state_dict().values(), built(change)[0].state_dict().values()):
        assert same_bits(found, expected)


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_on_torch_the_bits_are_those_of_the_code_alone(name: str) -> None:
    change = (KNOWN | UNKNOWN)[name]
    torch.manual_seed(0)
    plain = Layers(change)
    torch.manual_seed(0)
    made = fastinit.build(Layers, change, backend="torch")
    for found, expected in zip(made.state_dict().values(), plain.state_dict().values()):
        assert same_bits(found, expected)


@pytest.mark.parametrize("name", KNOWN)
def test_a_fill_that_a_known_number_changes_goes_by_name(name: str) -> None:
    assert built(KNOWN[name])[1].report.unkeyed == ()


def test_a_number_that_was_written_since_is_not_taken_for_what_it_was_made_of() -> None:
    def change(model: Any) -> None:
        number = torch.tensor(0.5)
        number.uniform_(2, 3)
        model.a.weight.fill_(1).mul_(number)

    model, _ = built(change)
    assert 2 <= model.a.weight[0, 0] <= 3


def test_a_known_number_is_rounded_as_its_tensor_is() -> None:
    _, recipe = built(lambda m: m.a.bias.fill_(torch.tensor(0.1, dtype=torch.bfloat16)))
    assert recipe.fills["a.bias"][0].distribution == plans.Constant(0.10009765625)
