"""What a recipe keeps of a fill: the part, its numbers and its stream, done again to another tensor of that shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capturing import cpp
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit.execution.scope import Scope
from fastinit.plans import Fill, Normal
from fastinit.recording.recipes import Recipe, in_order

DRAW = Normal(0, 1)


class Matrix(nn.Module):
    """One parameter, and perhaps another."""

    def __init__(self, names: str = "w", shape: tuple[int, ...] = (6, 4)) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def recipe_of(code: Callable[[nn.Module], object], model: nn.Module | None = None, **options: object) -> Recipe:
    """Returns what code does to a model."""
    model = Matrix() if model is None else model
    with fastinit.capture(model, backend="cpp", seed=0, **options) as recipe, torch.no_grad():  # type: ignore[arg-type]
        code(model)
    return recipe


def again(recipe: Recipe, model: nn.Module | None = None, **options: object) -> nn.Module:
    """Returns a model to which a recipe has been done."""
    model = Matrix() if model is None else model
    fastinit.initialize(model, recipe, backend="cpp", seed=0, **options)  # type: ignore[arg-type]
    return model


@cpp
@pytest.mark.parametrize("part", [(slice(2, 4),), (slice(None), 1), (3,)], ids=["rows", "column", "row"])
def test_a_part_gets_its_own_elements_of_the_whole(part: tuple[object, ...]) -> None:
    model = again(recipe_of(lambda m: m.w[part].normal_()))
    expected = torch.zeros(6, 4)
    expected[part] = named_fill("w", (6, 4), DRAW)[part]
    assert same_bits(model.w, expected)


@cpp
def test_a_transposed_fill_is_no_whole_one() -> None:
    recipe = recipe_of(lambda m: m.w.t().normal_(), Matrix(shape=(4, 4)))
    assert not recipe.fills["w"][0].is_whole


@cpp
def test_a_part_fits_a_parameter_that_begins_within_its_storage() -> None:
    memory, model = torch.zeros(40), Matrix()
    model.w = nn.Parameter(memory[8:32].view(6, 4).data)
    again(recipe_of(lambda m: m.w[2:4].normal_()), model)
    assert same_bits(memory[16:24].view(2, 4), named_fill("w", (6, 4), DRAW)[2:4])
    assert (memory[:16] == 0).all() and (memory[24:] == 0).all()


@cpp
def test_a_part_of_a_parameter_in_another_layout_has_the_same_values() -> None:
    recipe, model = recipe_of(lambda m: m.w[2:4].normal_()), Matrix()
    model.w = nn.Parameter(torch.zeros(4, 6).t())
    made = again(recipe, model)
    assert same_bits(made.w[2:4], named_fill("w", (6, 4), DRAW)[2:4])
    assert not made.w[:2].any() and not made.w[4:].any()


@cpp
def test_a_copy_of_a_whole_has_the_stream_of_its_source() -> None:
    recipe = recipe_of(lambda m: m.b.copy_(m.a.normal_()), Matrix("ab"))
    made = again(recipe, Matrix("ab"))
    assert same_bits(made.a, named_fill("a", (6, 4), DRAW)) and same_bits(made.b, made.a)


@cpp
def test_a_whole_that_is_part_of_anothers_numbers_takes_those() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(2, 4))

    def code(model: nn.Module) -> None:
        model.a[2:4].normal_()
        model.b.copy_(model.a[2:4])

    recipe = recipe_of(code, Halves())
    made = again(recipe, Halves())
    drawn = named_fill("a", (6, 4), DRAW)[2:4]
    assert recipe.unknown == {} and same_bits(made.a[2:4], drawn) and same_bits(made.b, drawn)


@cpp
def test_fills_are_done_again_in_the_order_in_which_they_were_recorded() -> None:
    def code(model: nn.Module) -> None:
        model.w.normal_()
        model.w[1].zero_()

    recorded = recipe_of(code).fills["w"]
    fills = in_order([("w", torch.zeros(6, 4), recorded[::-1])])
    assert [fill.shape for fill in fills] == [(6, 4), (4,)]


@cpp
def test_a_fill_that_was_computed_on_is_none_that_can_be_repeated() -> None:
    recipe = recipe_of(lambda m: m.w.uniform_().erfinv_())
    assert "w" not in recipe.fills and "w" in recipe.unknown


@cpp
def test_a_fill_of_the_bytes_in_another_dtype_is_none_of_the_parameter() -> None:
    recipe = recipe_of(lambda m: m.w.detach().view(torch.int32).fill_(7))
    assert "w" not in recipe.fills and recipe.unknown["w"].endswith("on a view that is no part of the parameter")


@cpp
def test_a_fill_of_memory_across_rows_is_no_part_of_the_parameter() -> None:
    model = Matrix()
    model.w = nn.Parameter(torch.zeros(4, 6).t())
    recipe = recipe_of(lambda m: m.w.detach().t().view(-1)[2:9].normal_(), model)
    assert "w" not in recipe.fills and recipe.unknown["w"].endswith("on a view that is no part of the parameter")


@cpp
def test_a_copy_of_a_constant_is_a_constant_of_its_own() -> None:
    recipe = recipe_of(lambda m: m.b.copy_(m.a.zero_()), Matrix("ab"))
    assert [fill.stream for fill in recipe.fills["b"]] == [""]


# --- names ------------------------------------------------------------------------------------------------------------


@cpp
def test_a_recipe_of_a_larger_model_is_found_under_the_prefix() -> None:
    whole = nn.ModuleDict({"left": Matrix(), "right": Matrix()})

    def code(model: nn.Module) -> None:
        model["left"].w.fill_(1)  # type: ignore[index]
        model["right"].w.fill_(2)  # type: ignore[index]

    assert (again(recipe_of(code, whole), prefix="right").w == 2).all()


@cpp
def test_a_recipe_of_the_part_alone_serves_under_a_prefix_too() -> None:
    made = again(recipe_of(lambda m: m.w.normal_()), prefix="right")
    assert same_bits(made.w, named_fill("right.w", (6, 4), DRAW))


@cpp
def test_the_name_in_the_larger_model_comes_before_the_parts_own() -> None:
    class Both(Matrix):
        def __init__(self) -> None:
            super().__init__()
            self.right = Matrix()

    def code(model: nn.Module) -> None:
        model.w.fill_(1)
        model.right.w.fill_(2)

    assert (again(recipe_of(code, Both()), prefix="right").w == 2).all()


@cpp
def test_a_tied_parameter_is_filled_once_as_its_first_name_says() -> None:
    model = nn.ModuleDict({"a": Matrix(), "b": Matrix()})

    def code(model: nn.Module) -> None:
        model["a"].w.normal_()  # type: ignore[index]
        model["b"].w.fill_(2)  # type: ignore[index]

    recipe = recipe_of(code, model)
    model["b"].w = model["a"].w
    items = recipe.plan_items(model, Scope(model, None), "init_cfg")
    assert [(item.name, item.distribution) for item in items if isinstance(item, Fill)] == [("a.w", DRAW)]


@cpp
def test_buffers_are_done_again() -> None:
    model, other = Matrix(), Matrix()
    for each in (model, other):
        each.register_buffer("mask", torch.zeros(3))
    assert (again(recipe_of(lambda m: m.mask.fill_(4), model), other).mask == 4).all()


@cpp
def test_what_else_wrote_a_parameter_is_told_in_order() -> None:
    def code(model: nn.Module) -> None:
        model.w[0].copy_(torch.arange(4.0))
        model.w[1].cumsum_(0)

    copied, summed = recipe_of(code).unknown["w"].split("; then ")
    assert copied.startswith("`copy_` at ") and summed.startswith("`aten.cumsum_") and summed.endswith(" (a part)")


# --- names in the block -----------------------------------------------------------------------------------------------


@cpp
def test_binding_takes_the_prefix_of_the_block() -> None:
    with fastinit.capture(backend="cpp", seed=0, prefix="teacher") as recipe:
        model = Matrix()
        nn.init.normal_(model.w)
        recipe.bind(model)
    assert list(recipe.fills) == ["teacher.w"]


@cpp
def test_binding_in_a_part_of_a_larger_block_does_nothing() -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with fastinit.capture() as inner:
            model = nn.Sequential(Matrix())
            nn.init.normal_(model[0].w)
            inner.bind(model[0])
        recipe.bind(model)
    assert list(recipe.fills) == ["0.w"] and same_bits(model[0].w, named_fill("0.w", (6, 4), DRAW))


def test_a_block_with_a_module_binds_no_other() -> None:
    with fastinit.capture(Matrix()) as recipe, pytest.raises(RuntimeError, match="was given to capture itself"):
        recipe.bind(Matrix())


def test_an_open_block_has_no_report() -> None:
    with fastinit.capture() as recipe, pytest.raises(RuntimeError, match="report is made when the block ends"):
        _ = recipe.report
