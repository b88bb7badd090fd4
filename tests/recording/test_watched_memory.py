"""What a watched block notices: names that come late, other memory, threads, and operators that read or write a part."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from capturing import Holder, captured, cpp
from helpers import named_fill, same_bits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit import plans
from fastinit.plans import Normal
from fastinit.recording import operators

DRAW = Normal(0, 1)


def watched(code: Callable[[Holder], object], **options: object) -> Holder:
    """Returns a model on which code has run in a block."""
    return captured(code, **options)[0]  # type: ignore[no-any-return]


# --- which parameter memory belongs to, once that was asked -----------------------------------------------------------


def ask_for_names(model: nn.Module) -> None:
    """Has the names looked up, by a read."""
    model.a.normal_().sum().item()


@cpp
def test_a_parameter_that_is_registered_later_has_its_name() -> None:
    def code(model: Holder) -> None:
        ask_for_names(model)
        drawn = torch.empty(6, 4).normal_()
        model.late = nn.Parameter(drawn)
        model.late.sum().item()

    assert same_bits(watched(code).late, named_fill("late", (6, 4), DRAW))


@cpp
@pytest.mark.parametrize("by", ["data", "set_"])
def test_a_parameter_that_got_other_memory_has_its_name_there(by: str) -> None:
    def code(model: Holder) -> None:
        ask_for_names(model)
        other = torch.empty(4, 6)
        if by == "data":
            model.b.data = other
        else:
            model.b.set_(other)
        model.b.normal_()
        model.b.sum().item()

    assert same_bits(watched(code).b, named_fill("b", (4, 6), DRAW))


# --- operators --------------------------------------------------------------------------------------------------------


@cpp
def test_an_argument_by_keyword_that_is_written_in_part_is_filled_before() -> None:
    model, recipe = captured(lambda m: torch.add(torch.ones(2, 4), 1, out=m.a.normal_().detach()[1:3]))
    expected = named_fill("a", (6, 4), DRAW)
    expected[1:3] = 2
    assert same_bits(model.a, expected) and "; then `aten.add.out` at" in recipe.unknown["a"]


@cpp
def test_a_random_result_of_an_operator_is_an_unnamed_draw() -> None:
    def code(model: Holder) -> None:
        model.register_buffer("mask", torch.bernoulli(torch.ones(4)))

    assert captured(code)[1].report.unkeyed == ("mask",)


def test_on_torch_a_strict_block_takes_any_random_operator() -> None:
    assert watched(lambda m: m.a.bernoulli_(), backend="torch", strict=True).a.isfinite().all()


@cpp
def test_what_a_backend_cannot_draw_is_drawn_by_torch() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        drawn, filled = torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64)
        drawn.normal_()
        filled.fill_(2)
    assert (drawn != 0).all() and (filled == 2).all()


@cpp
def test_what_torch_draws_for_a_backend_is_an_unnamed_draw() -> None:
    def code(model: Holder) -> None:
        model.late = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        model.late.normal_()

    assert captured(code)[1].report.unkeyed == ("late",)


@cpp
def test_reading_constants_needs_no_launch() -> None:
    assert captured(lambda m: m.a.zero_().sum().item())[1].report.launches == {}


@cpp
def test_printing_a_tensor_lets_its_later_fills_stay_pending() -> None:
    def code(model: Holder) -> None:
        repr(model.a.normal_())
        model.a.normal_()
        model.b.normal_()

    assert captured(code)[1].report.launches == {"cpu": 2}


@cpp
def test_a_fill_that_runs_at_once_replaces_a_pending_one_of_its_memory() -> None:
    def code(model: Holder) -> None:
        model.a.normal_()
        model.a.detach().view(torch.complex64).fill_(1)

    assert watched(code).a.view(-1, 2).tolist() == [[1, 0]] * 12


@cpp
def test_a_fill_that_runs_at_once_comes_after_a_pending_one_around_it() -> None:
    def code(model: Holder) -> None:
        model.a.normal_()
        model.a.detach().view(torch.complex64)[:, 0].fill_(1)

    model = watched(code)
    assert model.a[:, :2].tolist() == [[1, 0]] * 6 and same_bits(model.a[:, 2:], named_fill("a", (6, 4), DRAW)[:, 2:])


@cpp
def test_an_explicit_generator_of_a_new_tensor_is_used() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        drawn = torch.randn(5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, torch.randn(5, generator=torch.Generator().manual_seed(3)))


@cpp
def test_an_explicit_generator_of_a_truncated_normal_is_used() -> None:
    model = watched(lambda m: nn.init.trunc_normal_(m.a, generator=torch.Generator().manual_seed(3)))
    expected = nn.init.trunc_normal_(torch.empty(6, 4), generator=torch.Generator().manual_seed(3))
    assert torch.equal(model.a, expected)


@cpp
def test_new_tensors_of_other_layouts_are_made_as_they_are_asked_for() -> None:
    with fastinit.capture(backend="cpp", seed=0):
        made, like = torch.zeros(2, 2, layout=torch.sparse_coo), torch.zeros_like(torch.eye(2).to_sparse())
    assert made.layout == like.layout == torch.sparse_coo


# --- what is counted, and what torch.nn.init leaves undone ------------------------------------------------------------


@cpp
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_a_truncated_normal_counts_versions_as_outside_and_once_where_it_is_one_fill(backend: str) -> None:
    plain, model = Holder(), Holder()
    before = model.a._version
    watched(lambda m: nn.init.trunc_normal_(m.a), model=model, backend=backend)
    nn.init.trunc_normal_(plain.a)
    assert model.a._version - before == (plain.a._version - before if backend == "torch" else 1)


@cpp
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_torch_leaves_undone_on_the_meta_device_is_a_fill_by_name(device: str) -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe, torch.device(device):
        model = nn.Linear(4, 4)
        nn.init.orthogonal_(model.weight)
        recipe.bind(model)
    assert recipe.report.unkeyed == ()
    assert [fill.distribution for fill in recipe.fills["weight"]] == [plans.Orthogonal(1.0, 0)]


def test_a_function_of_others_with_a_name_of_torch_is_not_taken_for_it() -> None:
    def orthogonal_(tensor: torch.Tensor) -> bool:
        return tensor.is_meta

    with fastinit.capture() as recipe, torch.device("meta"):
        model = nn.Linear(4, 4)
        assert orthogonal_(model.weight)
        recipe.bind(model)
    assert recipe.unknown == {}


# --- threads and blocks -----------------------------------------------------------------------------------------------


@cpp
def test_a_thread_of_a_block_that_takes_an_address_finds_values() -> None:
    seen: list[float] = []

    def code(model: Holder) -> None:
        model.a.normal_()
        thread = threading.Thread(target=lambda: seen.append(float(model.a.detach().numpy().std())))
        thread.start()
        thread.join()

    watched(code)
    assert 0.5 < seen[0] < 2


def after_its_block(run: Callable[[], object]) -> None:
    """Runs something in a thread that was started in a block, once that is over."""
    over = threading.Event()
    with fastinit.capture(Holder(), backend="torch"):
        thread = threading.Thread(target=lambda: over.wait(60) and run())
        thread.start()
    over.set()
    thread.join()


@cpp
def test_a_thread_that_outlives_its_block_may_open_its_own() -> None:
    made: list[nn.Module] = []

    def run() -> None:
        with fastinit.capture(backend="cpp", seed=0):
            made.append(nn.Linear(3, 3))

    after_its_block(run)
    assert same_bits(made[0].weight, fastinit.build(nn.Linear, 3, 3, backend="cpp", seed=0).weight)


@cpp
def test_build_names_the_model_that_it_returns_and_no_other() -> None:
    kept: list[nn.Module] = []

    def factory() -> nn.Module:
        kept.append(nn.Linear(3, 3))
        return nn.Linear(3, 3)

    model = fastinit.build(factory, backend="cpp", seed=0)
    assert same_bits(model.weight, fastinit.build(nn.Linear, 3, 3, backend="cpp", seed=0).weight)


def test_capture_takes_modules_only() -> None:
    with pytest.raises(TypeError, match="must be a torch.nn.Module"), fastinit.capture(torch.zeros(3)):  # type: ignore[arg-type]
        pass


# --- roots ------------------------------------------------------------------------------------------------------------


@cpp
def test_a_model_of_a_nested_block_with_its_own_seed_is_no_root_of_the_larger() -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with fastinit.capture(backend="cpp", seed=9, prefix="teacher"):
            teacher = nn.Linear(3, 3)
        model = nn.Linear(3, 3)
    assert list(recipe.fills) == ["weight", "bias"] and not same_bits(model.weight, teacher.weight)


@cpp
def test_a_module_whose_buffer_is_drawn_is_the_root() -> None:
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.randn(4, 4))

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        made = [Projection(), nn.LayerNorm(4)]
    assert recipe.report.unkeyed == () and same_bits(made[0].matrix, named_fill("matrix", (4, 4), DRAW))


@cpp
def test_two_roots_are_the_error_of_a_strict_block_too() -> None:
    made: list[nn.Module] = []
    with pytest.raises(RuntimeError, match="2 modules were made"):
        with fastinit.capture(backend="cpp", seed=0, strict=True):
            made += [nn.Linear(3, 3), nn.Linear(3, 3)]
    assert all(0 < module.weight.std() < 0.58 for module in made)


@cpp
def test_a_block_in_another_thread_takes_no_hook_away() -> None:
    def other() -> None:
        with fastinit.capture(Holder(), backend="torch"):
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # the thread is there before the block, and no part of it
        with fastinit.capture(backend="cpp", seed=0) as recipe:
            pool.submit(other).result()
            model = nn.Linear(3, 3)
    assert list(recipe.fills) == ["weight", "bias"] and recipe.report.unkeyed == () and model.weight.std() > 0


# --- memory that is only made -----------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):  # type: ignore[misc]
    """Notes the operators that pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def empty_beside_a_pending_draw(model: Holder) -> None:
    model.a.normal_()
    made = torch.empty(3, 2, dtype=torch.float64, device="meta")
    assert made.shape == (3, 2) and made.dtype == torch.float64 and made.is_meta
    model.late = nn.Parameter(torch.empty(6, 4))
    model.late.normal_()


@cpp
def test_fills_of_what_empty_made_are_seen() -> None:
    model = watched(empty_beside_a_pending_draw)
    assert same_bits(model.a, named_fill("a", (6, 4), DRAW)) and same_bits(model.late, named_fill("late", (6, 4), DRAW))


@cpp
def test_empty_runs_no_operator_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = operators.Operators.run

    def noted(self: Any, func: Any, *args: Any) -> Any:
        ran.append(str(func))
        return run(self, func, *args)

    monkeypatch.setattr(operators.Operators, "run", noted)

    def code(model: Holder) -> None:
        empty_beside_a_pending_draw(model)
        torch.neg(torch.empty(2))

    watched(code)
    assert ran == ["aten.neg.default"]  # fills of whole parameters are noted without an operator, too


@cpp
def test_a_mode_of_others_within_the_block_sees_empty() -> None:
    mode = Operators()

    def code(model: Holder) -> None:
        with mode:
            empty_beside_a_pending_draw(model)

    model = watched(code)
    assert mode.seen.count("aten.empty.memory_format") == 2
    assert same_bits(model.late, named_fill("late", (6, 4), DRAW))


@cpp
def test_a_mode_of_others_around_the_block_sees_empty() -> None:
    with Operators() as mode:
        model = watched(empty_beside_a_pending_draw)
    assert "aten.empty.memory_format" in mode.seen and same_bits(model.a, named_fill("a", (6, 4), DRAW))
