"""orthogonal_, eye_, dirac_ and sparse_ of torch.nn.init in recorded code: one fill by name each, whoever calls them and how."""

from __future__ import annotations

import contextvars
import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import needs
import numpy as np
import pytest
import torch
from capturing import is_uninstalled
from helpers import named_fill, same_bits
from torch import nn
from torch.nn.init import dirac_, eye_, orthogonal_, sparse_

import fastinit
from fastinit import plans

pytestmark = needs.mark(needs.CPP)
Code = Callable[[Any], object]


def captured(code: Code, *, backend: str = "cpp", **options: Any) -> tuple[Any, Any]:
    """Runs code on a layer of weight (24, 8) under capture; returns the layer and the recipe."""
    layer = nn.Linear(8, 24)
    with fastinit.capture(layer, backend=backend, seed=0, **options) as recipe:
        code(layer)
    return layer, recipe


def built(code: Code, make: Callable[[], nn.Module] = lambda: nn.Linear(8, 24), **options: Any) -> Any:
    def factory() -> nn.Module:
        model = make()
        code(model)
        return model

    return fastinit.build(factory, **{"backend": "cpp", "seed": 0, **options})


def materialized(code: Code, make: Callable[[], nn.Module] = lambda: nn.Linear(8, 24)) -> Any:
    with fastinit.capture() as recipe, torch.device("meta"):
        model = make()
        code(model)
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    return model


def weight(distribution: plans.Distribution, shape: tuple[int, ...] = (24, 8), **options: Any) -> torch.Tensor:
    return named_fill("weight", shape, distribution, **options)


# --- what they are ---------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, tuple[Code, plans.Distribution]] = {
    "orthogonal_": (lambda m: orthogonal_(m.weight, math.sqrt(2)), plans.Orthogonal(math.sqrt(2), 0)),
    "eye_": (lambda m: eye_(m.weight), plans.Identity()),
    "sparse_": (lambda m: sparse_(m.weight, 0.5), plans.Sparse(0.5, 0.01)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_values_are_those_of_the_parameters_name(name: str) -> None:
    code, distribution = FUNCTIONS[name]
    assert same_bits(built(code).weight, weight(distribution))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_recipe_has_them_as_one_fill(name: str) -> None:
    code, distribution = FUNCTIONS[name]
    _, recipe = captured(code)
    (fill,) = recipe.fills["weight"]
    assert fill.distribution == distribution and fill.is_whole and recipe.unknown == {}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_materialize_gives_what_build_gives(name: str) -> None:
    code, distribution = FUNCTIONS[name]
    assert same_bits(materialized(code).weight, weight(distribution))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strict_code_may_call_them(name: str) -> None:
    _, recipe = captured(FUNCTIONS[name][0], strict=True)
    assert recipe.report.unkeyed == ()


def test_dirac_is_one_fill_with_its_groups() -> None:
    layer = built(lambda m: dirac_(m.weight, groups=2), lambda: nn.Conv1d(4, 8, 3))
    assert same_bits(layer.weight, weight(plans.Dirac(2), (8, 4, 3)))


def test_the_report_and_the_plan_say_what_they_are() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        layer = nn.Linear(8, 24)
        orthogonal_(layer.weight, math.sqrt(2))
    (row,) = [row for row in fastinit.plan(layer, recipe).rows if row.parameter == "weight"]
    assert row.description == "orthogonal(gain=1.41421, batch_dims=0)"
    report = fastinit.materialize(layer, recipe=recipe, backend="cpp", seed=0)
    assert "orthogonal(gain=1.41421, batch_dims=0)" in str(report)
    assert report.provenance["weight"].startswith("`orthogonal_` at test_init_functions.py:")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_on_torch_they_are_torchs_own(name: str) -> None:
    code = FUNCTIONS[name][0]
    torch.manual_seed(3)
    code(plain := nn.Linear(8, 24))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with fastinit.capture(backend="torch") as recipe:
        code(layer := nn.Linear(8, 24))
    assert same_bits(layer.weight, plain.weight) and torch.equal(torch.get_rng_state(), state)
    assert recipe.fills["weight"][-1].distribution == FUNCTIONS[name][1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_under_a_seed_torch_draws_what_it_draws_after_manual_seed(name: str) -> None:
    code = FUNCTIONS[name][0]
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        code(plain := nn.Linear(8, 24))
    made = built(code, backend="torch", seed=3)
    assert same_bits(made.weight, plain.weight) and torch.equal(torch.get_rng_state(), before)


# --- however they are called -----------------------------------------------------------------------------------------

TABLE = {"orthogonal_": orthogonal_}
CALLS: dict[str, Code] = {
    "by the module": lambda m: nn.init.orthogonal_(m.weight, 2),
    "by keywords": lambda m: orthogonal_(gain=2, tensor=m.weight),
    "by a partial": lambda m: functools.partial(orthogonal_, gain=2)(m.weight),
    "by a table": lambda m: TABLE["orthogonal_"](m.weight, 2),
    "by its old name": lambda m: nn.init.orthogonal(m.weight, 2),
    "with numpy's number": lambda m: orthogonal_(m.weight, np.float32(2)),  # type: ignore[arg-type]
    "with a tensor": lambda m: orthogonal_(m.weight, torch.tensor(2.0)),  # type: ignore[arg-type]
    "with a tensor that is pending": lambda m: orthogonal_(m.weight, torch.ones(()) * 2),  # type: ignore[arg-type]
    "without gradients": lambda m: torch.no_grad()(orthogonal_)(m.weight, 2),
    "on data": lambda m: orthogonal_(m.weight.data, 2),
    "on a detached tensor": lambda m: orthogonal_(m.weight.detach(), 2),
    "and scaled": lambda m: orthogonal_(m.weight).data.mul_(2),
    "and copied": lambda m: m.weight.data.copy_(orthogonal_(torch.empty(24, 8), 2)),
    "for a new parameter": lambda m: setattr(m, "weight", nn.Parameter(orthogonal_(torch.empty(24, 8), 2))),
    "in a compiled function": lambda m: torch.compile(orthogonal_, backend="eager")(m.weight.data, 2),
    "in a thread": lambda m: in_a_thread(lambda: orthogonal_(m.weight, 2)),
}


def in_a_thread(run: Callable[[], object]) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", CALLS)
def test_a_call_is_seen_in_whatever_way_it_is_made(way: str) -> None:
    if way == "in a compiled function":
        needs.torch_from(2, 5).check()  # the compilers of 2.1 and 2.4 trace into fastinit all the same, and fail
    layer, recipe = captured(CALLS[way])
    assert same_bits(layer.weight, weight(plans.Orthogonal(2.0, 0))) and recipe.report.unkeyed == ()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [way for way in CALLS if way != "in a compiled function"])  # which needs memory
def test_a_call_on_the_meta_device_is_seen_in_whatever_way_it_is_made(way: str) -> None:
    assert same_bits(materialized(CALLS[way]).weight, weight(plans.Orthogonal(2.0, 0)))


def test_a_draw_that_is_read_in_the_block_is_the_parameters_if_its_name_is_known() -> None:
    sums: list[float] = []
    _, recipe = captured(lambda m: (orthogonal_(m.weight), sums.append(m.weight.sum().item())))
    assert sums == [weight(plans.Orthogonal(1.0, 0)).sum().item()] and recipe.report.unkeyed == ()


def test_a_later_fill_replaces_it_and_nothing_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.linalg, "qr")
    monkeypatch.delattr(torch.linalg, "cholesky_ex")
    layer, _ = captured(lambda m: (orthogonal_(m.weight), nn.init.zeros_(m.weight)))
    assert (layer.weight == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_get_the_rounded_values_that_torchs_qr_does_not_make(dtype: torch.dtype) -> None:
    layer = built(lambda m: orthogonal_(m.weight, 2), lambda: nn.Linear(8, 24, dtype=dtype))
    wide = weight(plans.Orthogonal(2.0, 0), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    assert same_bits(layer.weight, wide.to(dtype))


def test_memory_in_another_order_gets_the_values_of_that_in_order() -> None:
    layer = built(lambda m: orthogonal_(m.weight), lambda: nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last))
    assert same_bits(layer.weight, weight(plans.Orthogonal(1.0, 0), (8, 4, 3, 3)))


def test_a_version_is_counted() -> None:
    layer = nn.Linear(8, 24)
    before = layer.weight._version
    with fastinit.capture(layer, backend="cpp", seed=0):
        orthogonal_(layer.weight)
    assert layer.weight._version == before + 1


@pytest.mark.parametrize("code", [lambda: eye_(torch.empty(3, 3)), lambda: dirac_(torch.empty(2, 2, 3))])
def test_what_is_not_drawn_needs_no_name(code: Callable[[], torch.Tensor]) -> None:
    sums: list[float] = []
    _, recipe = captured(lambda m: sums.append(code().sum().item()), strict=True)
    assert sums == [code().sum().item()] and recipe.report.unkeyed == ()


def test_they_return_their_tensor() -> None:
    same: list[bool] = []
    captured(lambda m: same.append(orthogonal_(m.weight) is m.weight))
    assert same == [True]


# --- what stays torch's ----------------------------------------------------------------------------------------------


@needs.mark(needs.torch_from(2, 3))  # before, it takes none
def test_a_generator_of_the_users_draws_as_without_a_block() -> None:
    layer, _ = captured(lambda m: orthogonal_(m.weight, generator=torch.Generator().manual_seed(7)))
    expected = orthogonal_(torch.empty(24, 8), generator=torch.Generator().manual_seed(7))
    assert same_bits(layer.weight, expected)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (lambda m: orthogonal_(m.bias), "2 or more dimensions"),
        (lambda m: eye_(m.bias), "2 dimensions"),
        (lambda m: dirac_(m.weight), "3, 4, or 5 dimensions"),
        (lambda m: sparse_(m.bias, 0.5), "2 dimensions"),
        (lambda m: orthogonal_(), "missing 1 required positional argument"),
        (lambda m: orthogonal_(m.weight, gains=2), "unexpected keyword argument"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_errors_are_torchs(code: Code, message: str, backend: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        captured(code, backend=backend)
    assert is_uninstalled()


def test_a_gain_that_is_drawn_makes_an_unnamed_draw() -> None:
    layer, recipe = captured(lambda m: orthogonal_(m.weight, torch.rand(()) + 1))  # type: ignore[arg-type]
    gram = layer.weight.T @ layer.weight
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(8))
    assert recipe.report.unkeyed[0].startswith("#0 (24x8, ")


def test_narrow_dtypes_are_refused_on_torch_as_without_a_block() -> None:
    with pytest.raises(RuntimeError, match="geqrf"):
        captured(lambda m: orthogonal_(m.weight.to(torch.bfloat16)), backend="torch")


def test_a_thread_that_is_not_recorded_draws_from_torchs_generator() -> None:
    made: list[torch.Tensor] = []
    ready, go = threading.Event(), threading.Event()

    def run() -> None:
        ready.set()
        go.wait(60)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            made.append(orthogonal_(torch.empty(4, 4)))

    thread = threading.Thread(target=contextvars.Context().run, args=(run,))
    thread.start()
    ready.wait(60)
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        go.set()
        thread.join()
    torch.manual_seed(5)
    assert same_bits(made[0], orthogonal_(torch.empty(4, 4))) and recipe.report.unkeyed == ()


@pytest.mark.filterwarnings("error")
def test_tensors_without_memory_that_only_say_what_torch_would_do_are_left_alone() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with FakeTensorMode():
            layer = nn.Linear(4, 4)
            orthogonal_(layer.weight)
        recipe.bind(layer)
    assert recipe.report.launches == {} and recipe.report.unkeyed == ()


def test_the_functions_are_torchs_again_after_a_block() -> None:
    before = orthogonal_.__code__
    with fastinit.capture(backend="cpp", seed=0):
        assert orthogonal_.__code__ is not before
        assert nn.init.orthogonal_ is orthogonal_
        with fastinit.capture(backend="cpp", seed=1):
            pass
        assert orthogonal_.__code__ is not before
    assert orthogonal_.__code__ is before
