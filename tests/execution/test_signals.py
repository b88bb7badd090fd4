"""fastinit.signals: the scale of activations and gradients by layer, measured without a trace."""

from __future__ import annotations

import builtins
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import numpy
import pytest
import torch
from torch import nn

import fastinit

BATCH = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


def deep(std: float, n: int = 8) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(n)))
    fastinit.initialize(model, dict(type="Normal", layer="Linear", std=std), seed=0)
    return model


def test_rows_have_the_numbers_of_outputs_and_gradients() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    found = fastinit.signals(model, BATCH, loss=lambda y: y.square().sum())
    hidden = model[0](BATCH)
    hidden.retain_grad()
    active = hidden.relu()
    model[2](active).square().sum().backward()
    first, relu, _ = found
    assert first.mean == pytest.approx(hidden.mean().item(), abs=1e-6)
    assert first.std == pytest.approx(hidden.std(correction=0).item(), rel=1e-5)
    assert relu.zeros == pytest.approx((active == 0).double().mean().item())
    assert first.gradient_std == pytest.approx(hidden.grad.std(correction=0).item(), rel=1e-5)
    assert first.weight_gradient_std == pytest.approx(model[0].weight.grad.std(correction=0).item(), rel=1e-5)


def test_rows_come_in_the_order_in_which_data_flows() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    assert [row.name for row in fastinit.signals(Two(), BATCH)] == ["first", "second"]


def test_each_call_of_a_layer_has_a_row() -> None:
    act = nn.Tanh()
    found = fastinit.signals(nn.Sequential(nn.Linear(16, 16), act, nn.Linear(16, 16), act), BATCH)
    assert [(row.name, row.call) for row in found] == [("0", 1), ("1", 1), ("2", 1), ("1", 2)]
    assert "1, call 2" in str(found)


def test_a_module_that_calls_none_of_its_children_is_a_layer() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return x @ self.inner.weight, None

    (row,) = fastinit.signals(nn.Sequential(Own()), BATCH)
    assert row.name == "0" and row.std and row.gradient_std and row.weight_gradient_std


def test_chosen_classes_are_measured_alone() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 8), nn.ReLU()), nn.Linear(8, 4))
    found = fastinit.signals(model, BATCH, layers=[nn.Sequential, nn.ReLU])
    assert [row.name for row in found] == ["0.1", "0", ""]


def test_outputs_that_grow_or_shrink_a_thousandfold_are_marked() -> None:
    assert fastinit.signals(deep(1.0), BATCH)[-1].marks == ("explodes",)
    assert fastinit.signals(deep(0.05), BATCH)[-1].marks == ("vanishes",)


def test_gradients_that_grow_or_shrink_a_thousandfold_are_marked() -> None:
    assert fastinit.signals(deep(1.0), BATCH)[0].marks == ("gradient explodes",)
    assert fastinit.signals(deep(0.05), BATCH)[0].marks == ("gradient vanishes",)


def test_signals_of_even_scale_are_not_marked() -> None:
    assert not any(row.marks for row in fastinit.signals(deep(0.25), BATCH))


def test_constant_and_not_finite_outputs_are_marked() -> None:
    model = deep(0.25, 3)
    nn.init.zeros_(model[1].weight)
    assert fastinit.signals(model, BATCH)[1].marks == ("constant",)
    nn.init.constant_(model[1].weight, float("inf"))
    row = fastinit.signals(model, BATCH)[1]
    assert row.not_finite == 1 and row.std is None and "not finite" in row.marks


def test_the_gradient_starts_with_standard_deviation_1() -> None:
    assert fastinit.signals(deep(0.25), BATCH)[-1].gradient_std == pytest.approx(1, rel=0.05)


class Returning(nn.Module):
    """Returns its layer's output in something."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = nn.Linear(16, 16), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.inner(x))


@pytest.mark.parametrize("wrap", [lambda y: (y, None), lambda y: {"logits": [y]}], ids=["tuple", "dict"])
def test_outputs_in_tuples_and_dicts_have_gradients(wrap: Callable[[torch.Tensor], Any]) -> None:
    row = fastinit.signals(Returning(wrap), BATCH)[0]
    assert row.gradient_std == pytest.approx(1, rel=0.1)


def test_the_loss_of_an_output_is_used() -> None:
    row = fastinit.signals(Returning(lambda y: {"loss": y.sum() * 3, "logits": y}), BATCH, layers=[nn.Linear])[0]
    assert row.gradient_std == 0  # 3 everywhere


def test_frozen_models_have_no_gradients() -> None:
    (row,) = fastinit.signals(nn.Linear(16, 4).requires_grad_(False), BATCH)
    assert row.std and row.gradient_std is None and row.weight_gradient_std is None


def test_a_layer_in_place_keeps_the_gradient_of_the_one_before() -> None:
    twins = [nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace), nn.Linear(8, 4)) for inplace in (False, True)]
    twins[1].load_state_dict(twins[0].state_dict())
    plain, in_place = (fastinit.signals(twin, BATCH) for twin in twins)
    assert plain == in_place


# --- a trace of nothing -----------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[Any]:
    tensors = [t.clone().tolist() for t in model.state_dict().values()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return [tensors, hooks, [p.grad for p in model.parameters()], torch.get_rng_state().tolist()]


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))


def test_the_model_and_the_generator_are_left_as_they_were() -> None:
    model = normed()
    before = state_of(model)
    fastinit.signals(model, BATCH)
    assert state_of(model) == before


def test_the_model_is_left_as_it_was_after_an_error_too() -> None:
    model = normed()
    before = state_of(model)

    def fails(_: Any) -> torch.Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fastinit.signals(model, BATCH, loss=fails)
    with pytest.raises(RuntimeError, match="shapes"):
        fastinit.signals(model, torch.randn(4, 17, generator=torch.Generator()))
    assert state_of(model) == before


def test_gradients_that_are_there_stay() -> None:
    model = normed()
    model(BATCH).sum().backward()
    before = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    fastinit.signals(model, BATCH)
    for (grad, copy), p in zip(before, model.parameters()):
        assert p.grad is grad and torch.equal(grad, copy)


def test_buffers_that_are_replaced_come_back() -> None:
    class Counting(nn.Module):
        n: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n = self.n + 1
            return x

    model = nn.Sequential(nn.Linear(16, 4), Counting())
    before = model[1].n
    fastinit.signals(model, BATCH)
    assert model[1].n is before and before == 0


def test_generators_of_python_and_numpy_are_left_as_they_were() -> None:
    def drawn(y: torch.Tensor) -> torch.Tensor:
        return y.sum() * random.random() * numpy.random.rand()

    random.seed(1)
    numpy.random.seed(1)
    expected = random.random(), numpy.random.rand()
    random.seed(1)
    numpy.random.seed(1)
    fastinit.signals(nn.Linear(16, 4), BATCH, loss=drawn)
    assert (random.random(), numpy.random.rand()) == expected


def test_signals_are_measured_where_gradients_are_off() -> None:
    with torch.no_grad():
        (row,) = fastinit.signals(nn.Linear(16, 4), BATCH)
    assert row.gradient_std


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, loss, error, text",
    [
        (nn.Linear(16, 4, device="meta"), None, RuntimeError, "'weight' is on the meta device"),
        (nn.LazyLinear(4), None, RuntimeError, "has no shape yet"),
        (Returning(lambda y: y.argmax()), None, TypeError, "pass loss="),
        (nn.Linear(16, 4), lambda y: y, TypeError, r"one of shape \(64, 4\)"),
        (nn.Linear(16, 4), lambda y: 1.0, TypeError, "returned <class 'float'>"),
        (nn.Linear(16, 4), lambda y: y.detach().sum(), RuntimeError, "depends on no trainable parameter"),
        ("model", None, TypeError, "must be a torch.nn.Module"),
    ],
)
def test_errors_say_what_is_wrong(model: Any, loss: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fastinit.signals(model, BATCH, loss=loss)


def test_no_layer_of_the_chosen_classes_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="reaches none"):
        fastinit.signals(nn.Linear(16, 4), BATCH, layers=[nn.Conv2d])


# --- texts and pictures -----------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_row_with_its_marks() -> None:
    lines = str(fastinit.signals(deep(1.0, 8), BATCH)).splitlines()
    assert len(lines) == 9 and lines[0].split()[:4] == ["layer", "class", "mean", "std"]
    assert lines[1].endswith("! gradient explodes")


def test_json_has_null_for_unknown_numbers() -> None:
    found = fastinit.signals(nn.Linear(16, 4).requires_grad_(False), BATCH)
    document = json.loads(found.to_json())
    assert document["fastinit_signals"] == 1
    assert document["rows"][0]["gradient_std"] is None and document["rows"][0]["std"] == found[0].std


def test_a_picture_is_written_as_svg(tmp_path: Path) -> None:
    needs.module("matplotlib")
    fastinit.signals(deep(1.0), BATCH).plot(tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    found = fastinit.signals(nn.Linear(16, 4), BATCH)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'torch-fastinit\[plot\]'"):
        found.plot()
