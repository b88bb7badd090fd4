"""Recipes of the meta device compute again what no fill wrote: the same bits as a model that is built with memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import needs
import numpy
import pytest
import torch
from helpers import orthogonal_by_hand_, same_bits
from torch import nn

import fastinit

pytestmark = needs.mark(needs.CPP)


def materialized(factory: Callable[[], nn.Module], backend: str = "cpp") -> Any:
    """Makes a model on the meta device, and gives it memory and the recipe's values."""
    with fastinit.capture() as recipe, torch.device("meta"):
        model = factory()
    assert recipe.unknown == {}
    fastinit.materialize(model, recipe=recipe, backend=backend, seed=0)
    return model


def holding(make: Callable[[], torch.Tensor]) -> Callable[[], nn.Module]:
    """Returns a factory of modules that hold a tensor."""

    def factory() -> nn.Module:
        module = nn.Module()
        tensor = make()
        if tensor.is_floating_point() or tensor.is_complex():
            module.x = nn.Parameter(tensor)
        else:
            module.register_buffer("x", tensor)
        return module

    return factory


def batch_statistics() -> torch.Tensor:
    """Returns the running mean of a layer that has seen a batch: the operator's schema does not tell that it writes it."""
    layer = nn.BatchNorm1d(3)
    layer(torch.arange(6.0).view(2, 3))
    assert layer.running_mean is not None
    return layer.running_mean


WAYS: dict[str, Callable[[], torch.Tensor]] = {
    "tensor": lambda: torch.tensor(2.65),
    "tensor of integers": lambda: torch.tensor([[1, 2], [3, 4]]),
    "tensor of numpy's": lambda: torch.tensor(numpy.arange(3.0)),
    "as_tensor": lambda: torch.as_tensor([1.0, 2.0]),
    "asarray": lambda: torch.asarray([1.0, 2.0]),
    "arange": lambda: torch.arange(4.0),
    "linspace": lambda: torch.linspace(0, 1, 5),
    "logspace": lambda: torch.logspace(0, 1, 5),
    "eye": lambda: torch.eye(3),
    "tril": lambda: torch.ones(3, 3).tril(),
    "triu of integers": lambda: torch.triu(torch.full((3, 3), 7), 1),
    "tril_indices": lambda: torch.tril_indices(3, 3),
    "negative ones": lambda: -torch.ones(3),
    "sum": lambda: torch.ones(3) + torch.arange(3),
    "cat": lambda: torch.cat([torch.ones(2), torch.zeros(3)]),
    "stack": lambda: torch.stack([torch.zeros(2), torch.full((2,), 3.0)]),
    "where": lambda: torch.where(torch.arange(3) > 1, torch.ones(3), torch.zeros(3)),
    "outer": lambda: torch.outer(torch.arange(3.0), torch.arange(2.0)),
    "cumsum": lambda: torch.ones(4).cumsum(0),
    "meshgrid": lambda: torch.stack(torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij")),
    "index": lambda: torch.arange(10.0)[torch.tensor([1, 3, 5])],
    "view": lambda: torch.arange(6.0).view(2, 3).t(),
    "cast": lambda: torch.arange(4.0).to(torch.bfloat16),
    "bool": lambda: torch.arange(4) > 2,
    "complex": lambda: torch.polar(torch.ones(3), torch.arange(3.0)),
    "conjugated": lambda: torch.polar(torch.ones(3), torch.arange(3.0)).conj(),
    "no elements": lambda: torch.empty(0),
    "no elements, computed": lambda: torch.arange(0.0).exp(),
    "expanded": lambda: torch.arange(3.0).expand(2, 3),
    "several results": lambda: torch.arange(6.0).view(2, 3).max(dim=1).values,
    "one of a split": lambda: torch.arange(6.0).exp().chunk(2)[1],
    "statistics that a batch changes": lambda: batch_statistics(),
    "rope": lambda: torch.outer(torch.arange(4.0), 1e4 ** (-torch.arange(0, 8, 2) / 8)).cos(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_constants_that_are_computed(way: str, backend: str) -> None:
    plain = holding(WAYS[way])()
    made = materialized(holding(WAYS[way]), backend)
    assert same_bits(made.x.resolve_conj(), plain.x.resolve_conj()) and made.x.dtype == plain.x.dtype  # type: ignore[operator]


def _changed(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    def factory() -> nn.Module:
        layer = nn.Linear(8, 8)
        with torch.no_grad():
            change(layer)
        return layer

    return factory


DRAWS: dict[str, Callable[[], nn.Module]] = {
    "orthogonal": _changed(lambda m: orthogonal_by_hand_(m.weight).mul_(0.1)),
    "sparse": _changed(lambda m: nn.init.sparse_(m.weight, 0.5)),
    "eye": _changed(lambda m: nn.init.eye_(m.weight)),
    "a part": _changed(lambda m: m.bias.data[2:5].fill_(2)),
    "a part, added to": _changed(lambda m: m.bias.data[2:5].add_(2)),
    "its own logarithm": _changed(lambda m: m.weight.copy_(m.weight.uniform_(1.0, 16.0).log())),
    "absolute": _changed(lambda m: m.weight.normal_().abs_()),
    "clamped": _changed(lambda m: m.weight.clamp_(min=0)),
    "read, then scaled": _changed(lambda m: (m.bias.copy_(m.weight.abs().sum(1)), m.weight.mul_(2))),
    "filled, read and filled again": _changed(lambda m: (m.bias.copy_(m.weight.sum(1)), nn.init.normal_(m.weight))),
    "a part of another draw": _changed(lambda m: m.weight.copy_(torch.randn(16, 8)[4:12])),
    "divided by its norm": _changed(lambda m: m.weight.div_(m.weight.norm(dim=1, keepdim=True))),
    "of complex numbers": holding(lambda: torch.empty(3, dtype=torch.cfloat).normal_()),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "the plain layer": lambda: nn.Linear(8, 8),
}


@pytest.mark.parametrize("name", DRAWS)
def test_values_that_are_computed_from_draws(name: str) -> None:
    expected = fastinit.build(DRAWS[name], backend="cpp", seed=0).state_dict()
    made = materialized(DRAWS[name]).state_dict()
    assert made.keys() == expected.keys()
    assert not [key for key, value in made.items() if not same_bits(value, expected[key])]


def test_what_is_filled_only_needs_no_operator() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        torch.arange(1000.0).exp()  # of no concern for the model
    assert len(list(model.parameters())) == 4 and recipe.computed == {} and recipe.journal.entries == []


def test_a_plan_shows_what_is_computed() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = DRAWS["orthogonal"]()
    rows = {row.parameter: row for row in fastinit.plan(model, recipe).rows}
    assert rows["weight"].action == "compute" and rows["bias"].action == "fill"
    text = str(fastinit.plan(model, recipe))
    assert "computed: `copy_` at helpers.py" in text and "; then `aten.mul_.Tensor` at test_computed_values.py" in text


def test_a_report_says_what_computed_a_parameter() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = DRAWS["orthogonal"]()
    report = fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    by_hand, scaled, last = report.provenance["weight"].split("; then ")
    assert report.unreached == () and by_hand.startswith("`copy_` at helpers.py:")
    assert scaled.startswith("`aten.mul_.Tensor` at helpers.py:") and "at test_computed_values.py:" in last


def test_a_recipe_computes_into_another_model() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = DRAWS["orthogonal"]()
    fastinit.initialize(plain := nn.Linear(8, 8), recipe, backend="cpp", seed=0)
    expected = fastinit.build(DRAWS["orthogonal"], backend="cpp", seed=0)
    assert same_bits(plain.weight, expected.weight) and len(list(model.parameters())) == 2


def test_a_rule_wins_over_what_is_computed() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = DRAWS["orthogonal"]()
    fastinit.materialize(model, dict(type="Constant", val=3, param="weight"), recipe=recipe, backend="cpp", seed=0)
    assert (model.weight == 3).all()  # type: ignore[union-attr]


def test_what_is_computed_must_fit_the_shape() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        kept = DRAWS["orthogonal"]()
    with pytest.raises(RuntimeError, match=r"'weight' was recorded with shape \(8, 8\), but is \(8, 4\)"):
        fastinit.initialize(nn.Linear(4, 8), recipe)
    assert len(list(kept.parameters())) == 2


def test_values_of_inputs_with_memory_are_kept_as_they_were() -> None:
    table = torch.arange(3.0)

    def factory() -> nn.Module:
        module = nn.Module()
        module.x = nn.Parameter(torch.empty(3))
        with torch.no_grad():
            module.x.copy_(table)
        return module

    with fastinit.capture() as recipe, torch.device("meta"):
        model = factory()
    table.zero_()
    fastinit.materialize(model, recipe=recipe, seed=0)
    assert model.x.tolist() == [0, 1, 2]  # type: ignore[operator, union-attr]


def test_a_block_within_keeps_what_the_larger_one_computes() -> None:
    def factory() -> nn.Module:
        model = nn.Sequential(DRAWS["orthogonal"]())
        with fastinit.capture(seed=5):
            model.append(DRAWS["orthogonal"]())
        return model

    expected = fastinit.build(factory, backend="cpp", seed=0).state_dict()
    made = materialized(factory).state_dict()
    assert not [key for key, value in made.items() if not same_bits(value, expected[key])]


@pytest.mark.parametrize("name", ["CLIP", "Blip", "GroupViT", "AltCLIP", "ChineseCLIP", "CLIPSeg"])
def test_clip_and_its_relatives(name: str) -> None:
    transformers = needs.module("transformers")
    kind = getattr(transformers, f"{name}Config")
    small: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32,
        max_position_embeddings=8, projection_dim=16,
    )  # fmt: skip
    vision = {**small, "image_size": 16, "patch_size": 8}
    if name == "GroupViT":
        vision = {**vision, "depths": [1], "num_group_tokens": [0], "num_output_groups": [0]}
    config = kind(text_config=small, vision_config=vision, projection_dim=16)

    def factory() -> nn.Module:
        return transformers.AutoModel.from_config(config)  # type: ignore[no-any-return]

    expected = fastinit.build(factory, backend="cpp", seed=0).state_dict()
    made = materialized(factory).state_dict()
    assert not [key for key, value in made.items() if not same_bits(value, expected[key])]
