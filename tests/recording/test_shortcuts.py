"""Fills that are noted where torch.nn.init asks for them: as by the long way, and only where nothing stands between."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import needs
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import init
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit.backends import limits, torch_backend
from fastinit.execution.memory_book import MemoryBook
from fastinit.recording import torch_modes, watch
from fastinit.recording.operators import Operators

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])

FILLS: dict[str, Callable[[Any], object]] = {
    "ones_": init.ones_,
    "zeros_": init.zeros_,
    "constant_": lambda w: init.constant_(w, -0.0),
    "constant_ of an int": lambda w: init.constant_(w, 2),
    "constant_ of a bool": lambda w: init.constant_(w, True),
    "uniform_": init.uniform_,
    "uniform_ of ints": lambda w: init.uniform_(w, 0, 2),
    "normal_": lambda w: init.normal_(w, std=0.3),
    "xavier_uniform_": init.xavier_uniform_,
    "xavier_normal_": init.xavier_normal_,
    "kaiming_uniform_": lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)),
    "kaiming_normal_": lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "data.normal_": lambda w: w.data.normal_(mean=0.0, std=0.2),
    "data.uniform_": lambda w: w.data.uniform_(-1, 1),
    "data.uniform_ alone": lambda w: w.data.uniform_(),
    "data.fill_": lambda w: w.data.fill_(0.25),
    "data.zero_": lambda w: w.data.zero_(),
    "a row": lambda w: (init.zeros_(w), init.normal_(w.data[1])),
    "twice": lambda w: (init.normal_(w), init.uniform_(w)),
    "a row of a fill": lambda w: (init.normal_(w), w.data[0].zero_()),
    "without gradients": torch.no_grad()(lambda w: w.normal_(1.0, 0.5)),
}


def count_operators(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that gets the names of the fills that come to a block's operators by torch's dispatcher."""
    seen: list[str] = []
    run = Operators.run

    def counted(self: Operators, func: Any, *rest: Any) -> Any:
        if str(func).split(".")[1] in ("fill_", "zero_", "normal_", "uniform_"):
            seen.append(str(func))
        return run(self, func, *rest)

    monkeypatch.setattr(Operators, "run", counted)
    return seen


def recorded(fill: Callable[[Any], object], backend: str) -> tuple[Any, ...]:
    """Returns what a fill makes of a parameter in a block, and what the report says of it."""
    with fastinit.capture(backend=backend, seed=3) as recipe:
        model = nn.Module()
        model.weight = nn.Parameter(torch.empty(4, 3))
        fill(model.weight)
        version = model.weight._version
    return model.weight.detach().clone().view(torch.int32).tolist(), version, dict(recipe.report.provenance)


@backends
@pytest.mark.parametrize("name", FILLS)
def test_a_fill_is_noted_as_by_the_long_way(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = recorded(FILLS[name], backend)
    with monkeypatch.context() as patch:
        seen = count_operators(patch)
        recorded(FILLS[name], backend)
        assert seen == []
    for module in (watch, torch_modes):
        monkeypatch.setattr(module, "straight_to", lambda: None)
    assert recorded(FILLS[name], backend) == short
    seen = count_operators(monkeypatch)
    recorded(FILLS[name], backend)
    assert seen != []


@backends
def test_numbers_that_no_block_has_met_are_noted_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = count_notes(monkeypatch)
    limits._why_not_numbers.cache_clear()
    torch_backend.why_not_values.cache_clear()  # it tries them on a tensor of its own, which is no fill of the block's
    with fastinit.capture(backend=backend, seed=0):
        weight = init.constant_(torch.empty(2), 0.1234)
    assert weight.tolist() == [pytest.approx(0.1234)] * 2 and len(notes) == 1


# --- what takes the long way -----------------------------------------------------------------------------------------


class SeesFunctions(TorchFunctionMode):
    """Notes which functions it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class SeesOperators(TorchDispatchMode):
    """Notes which operators it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func).split(".")[1])
        return func(*args, **(kwargs or {}))


def fill_all() -> None:
    weight = torch.empty(2, 2)
    init.uniform_(weight)
    init.ones_(weight)
    init.kaiming_uniform_(weight)
    weight.normal_()


@backends
@pytest.mark.parametrize("is_outside", [True, False])
def test_modes_of_others_see_what_they_see_without_a_block(is_outside: bool, backend: str) -> None:
    for kind in (SeesFunctions, SeesOperators):
        alone, mode = kind(), kind()
        with alone:
            fill_all()
        with mode if is_outside else nullcontext():
            with fastinit.capture(backend=backend, seed=0):
                with nullcontext() if is_outside else mode:
                    fill_all()
        fills = [name for name in alone.seen if name.endswith("_") and not name.startswith("_")]
        assert fills
        if kind is SeesFunctions or backend == "torch":
            assert [name for name in mode.seen if name in fills] == fills


@backends
def test_a_mode_that_does_something_else_is_heeded(backend: str) -> None:
    class Zeroes(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0].zero_() if func is torch.Tensor.fill_ else func(*args, **(kwargs or {}))

    with fastinit.capture(backend=backend, seed=0):
        weight = torch.empty(3)
        with Zeroes():
            init.ones_(weight)
    assert weight.tolist() == [0, 0, 0]


@backends
@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        lambda: torch.device("cpu"),
        lambda: torch.autocast("cpu"),
        torch.inference_mode,
        torch._C.DisableTorchFunction,
    ],
    ids=["no_grad", "device", "autocast", "inference", "no functions"],
)
def test_fills_in_contexts_of_torch(around: Callable[[], AbstractContextManager[Any]], backend: str) -> None:
    def make() -> nn.Module:
        with around():
            return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))

    model = fastinit.build(make, backend=backend, seed=1)
    plain = fastinit.build(lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), backend=backend, seed=1)
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))


def test_a_device_context_leaves_the_way_short(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_operators(monkeypatch)
    fastinit.build(nn.Linear, 3, 3, device="cpu", backend="torch", seed=1)
    assert seen == []


@backends
def test_versions_in_inference_mode_are_as_elsewhere(backend: str) -> None:
    def version() -> int:
        weight = torch.empty(2)
        with torch.inference_mode():
            init.ones_(weight)
        return weight._version

    with fastinit.capture(backend=backend, seed=0):
        recorded_version = version()
    assert recorded_version == version()


@backends
def test_transforms_of_torch_func_run_as_elsewhere(backend: str) -> None:
    def filled(x: torch.Tensor) -> torch.Tensor:
        return init.ones_(torch.empty_like(x)) * x

    x = torch.arange(6.0).view(3, 2)
    with fastinit.capture(backend=backend, seed=0):
        found = torch.vmap(filled)(x), torch.func.functionalize(filled)(x)
        slope = torch.func.grad(lambda x: filled(x).sum())(x)
        _, tangent = torch.func.jvp(lambda x: x.clone().fill_(1.0), (x,), (x,))
    assert all(torch.equal(each, x) for each in found)
    assert slope.unique().tolist() == [1] and tangent.unique().tolist() == [0]


@backends
def test_a_fill_is_traced_by_torch_jit(backend: str) -> None:
    x = torch.arange(3.0)
    with fastinit.capture(backend=backend, seed=0):
        traced = torch.jit.trace(lambda x: init.ones_(torch.empty_like(x)) + x, x)
    assert "fill_" in str(traced.graph) and traced(x).tolist() == [1, 2, 3]


@backends
def test_a_fill_has_no_tangent(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0), forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.zeros(2), torch.ones(2))
        init.ones_(dual)
        primal, tangent = forward_ad.unpack_dual(dual)
        assert primal.tolist() == [1, 1] and (tangent is None or tangent.tolist() == [0, 0])


@backends
def test_tensors_that_are_changed_lazily_get_what_they_ask_for(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0):
        whole = torch.empty(2, dtype=torch.complex64)
        whole.conj().fill_(1 + 2j)
        other = torch.empty(2, dtype=torch.complex64)
        other.zero_()
        other.conj().imag.fill_(3.0)
    assert whole.tolist() == [1 - 2j] * 2 and other.tolist() == [-3j] * 2


@needs.mark(needs.torch_from(2, 5))  # 2.1 and 2.4 make no subclass of a tensor below a dispatch mode
@backends
def test_subclasses_are_asked(backend: str) -> None:
    class Own(torch.Tensor):
        seen: list[str] = []

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.seen.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    with fastinit.capture(backend=backend, seed=0):
        weight = torch.empty(2, 2).as_subclass(Own)
        init.normal_(weight)
        init.ones_(weight)
    assert {"normal_", "fill_"} <= set(Own.seen) and (torch.Tensor(weight) == 1).all()


@needs.mark(needs.torch_from(2, 3))  # before, torch.nn.init takes none
@backends
def test_a_generator_of_the_callers_is_drawn_from(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0):
        weights = [torch.empty(3), torch.empty(3)]
        init.normal_(weights[0], generator=torch.Generator().manual_seed(5))
        weights[1].normal_(generator=torch.Generator().manual_seed(5))
    expected = torch.empty(3).normal_(generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(weight, expected) for weight in weights)


@backends
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (lambda w: nn.Parameter(w).fill_(1.0), "a leaf Variable that requires grad"),
        (lambda w: w.normal_(0.0, -1.0), "normal expects std >= 0"),
        (lambda w: init.uniform_(w, 1.0, 0.0), "uniform_ expects to return a \\[from, to\\) range"),
        (lambda w: init.uniform_(w, low=1.0), "unexpected keyword argument 'low'"),
        (lambda w: w.uniform_(1.0, 2.0, 3.0), "uniform_"),
        (lambda w: init.kaiming_uniform_(w[0]), "fewer than 2 dimensions"),
        (lambda w: init.kaiming_normal_(w, mode="fan"), "not supported"),
        (lambda w: init.normal_(w.int()), "not implemented|normal_"),
    ],
)
def test_errors_are_torchs(code: Callable[[Any], object], error: str, backend: str) -> None:
    with pytest.raises((RuntimeError, TypeError, ValueError), match=error) as plain:
        code(torch.empty(2, 2))
    with pytest.raises(plain.type, match=error):
        with fastinit.capture(backend=backend, seed=0):
            code(torch.empty(2, 2))


@backends
def test_gradients_do_not_know_of_a_fill_and_know_of_one_with_history(backend: str) -> None:
    with fastinit.capture(backend=backend, seed=0):
        weight = nn.Parameter(torch.empty(2))
        init.ones_(weight)
        doubled = weight * 2
        doubled.fill_(7.0)
        assert torch.is_grad_enabled() and doubled.grad_fn is not None
    assert doubled.tolist() == [7, 7] and weight.is_leaf


def test_an_empty_tensor_is_warned_of() -> None:
    with fastinit.capture(seed=0), pytest.warns(UserWarning, match="zero-element"):
        init.kaiming_uniform_(torch.empty(0, 3))


def test_functions_look_the_same_in_a_block_and_are_torchs_behind_it() -> None:
    functions = [init.uniform_, init.normal_, init.constant_, init.kaiming_uniform_, init.kaiming_normal_, init.ones_]
    before = [(inspect.signature(each), each.__code__) for each in functions]
    with fastinit.capture():
        assert [inspect.signature(each) for each in functions] == [signature for signature, _ in before]
        assert all(inspect.getsource(each).startswith(f"def {each.__name__}(") for each in functions)
    assert [each.__code__ for each in functions] == [code for _, code in before]


# --- what nobody asks for --------------------------------------------------------------------------------------------


def count_notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that gets what the memory book is told of fills."""
    notes: list[str] = []
    add = MemoryBook.add

    def counted(self: MemoryBook, place: Any, values: Any, scope: Any, rule: str, info: str, **how: Any) -> Any:
        notes.append(info)
        return add(self, place, values, scope, rule, info, **how)

    monkeypatch.setattr(MemoryBook, "add", counted)
    return notes


def test_build_notes_nothing_of_what_torch_fills_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = count_notes(monkeypatch)
    torch.manual_seed(4)
    plain = nn.Linear(3, 3)
    built = fastinit.build(nn.Linear, 3, 3, backend="torch", seed=4)
    assert notes == [] and torch.equal(plain.weight, built.weight)
    with fastinit.capture(backend="torch", seed=4) as recipe:
        model = nn.Linear(3, 3)
    assert len(notes) == 2 and set(recipe.report.provenance) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("seed", [None, 1])
def test_build_in_a_block_is_in_its_report(seed: int | None) -> None:
    with fastinit.capture(backend="torch", seed=4) as recipe:
        model = fastinit.build(nn.Linear, 3, 3, seed=seed)
        recipe.bind(model)
    assert set(recipe.report.provenance) == {"weight", "bias"}
    assert all("uniform_" in info for info in recipe.report.provenance.values())


@needs.mark(needs.CPP)
def test_what_is_known_of_memory_in_a_build_is_kept_true(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = count_notes(monkeypatch)

    def make() -> nn.Module:
        layer = nn.Linear(3, 3)
        with fastinit.capture(layer, backend="cpp", seed=1):
            init.constant_(layer.weight, 5.0)
        init.zeros_(layer.weight)
        kept = copy.deepcopy(layer)
        fastinit.initialize(kept, dict(type="Constant", val=2, layer="Linear"), backend="cpp", seed=1)
        return nn.ModuleList([layer, kept])

    layer, kept = fastinit.build(make, backend="torch", seed=0)
    assert layer.weight.unique().tolist() == [0] and kept.weight.unique().tolist() == [2]
    assert [note.partition(" ")[0] for note in notes][:2] == ["`fill_`", "`zero_`"]


def test_one_element_is_noted_in_a_build_as_it_may_stand_for_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = count_notes(monkeypatch)

    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        scale = torch.empty(()).fill_(3.0)
        init.ones_(model.weight).data.mul_(scale)
        return model

    assert fastinit.build(make, backend="torch", seed=0).weight.unique().tolist() == [3]
    assert [note.partition(" ")[0] for note in notes] == ["`fill_`"]
