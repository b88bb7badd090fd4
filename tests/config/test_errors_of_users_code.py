"""Errors that users' code raises within a rule keep their type and get their place."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fastinit
from fastinit import errors


class OwnError(KeyError):
    """A class that only its author knows how to build."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)


def distributing(raises: Callable[[], object]) -> dict[str, object]:
    """Returns a rule with a ``weight_distribution`` that raises."""

    class Distributes(fastinit.BaseInit):
        def weight_distribution(self, shape: tuple[int, ...]) -> fastinit.plans.Distribution:
            raises()
            raise AssertionError("not reached")

    return dict(type=Distributes, layer="Linear")


def calling(raises: Callable[[], object]) -> dict[str, object]:
    """Returns a rule whose initializer is opaque code that raises."""

    class Calls(fastinit.BaseInit):
        def __call__(self, module: nn.Module) -> None:
            raises()

    return dict(type=Calls, layer="Linear")


def constructing(raises: Callable[[], object]) -> dict[str, object]:
    """Returns a rule whose initializer cannot be built."""

    class Constructs(fastinit.BaseInit):
        def __init__(self, **kwargs: object) -> None:
            raises()

    return dict(type=Constructs, layer="Linear")


def throw(error: BaseException) -> Callable[[], object]:
    def raises() -> object:
        raise error

    return raises


PLACES = pytest.mark.parametrize(
    ("rule", "place"),
    [
        (distributing, "init_cfg[1], parameter '0.weight'"),
        (calling, "init_cfg[1]"),
        (constructing, "init_cfg[1]"),
        (lambda raises: lambda module: raises(), "init_cfg[1]"),
    ],
    ids=["weight_distribution", "call", "constructor", "function"],
)
ONES = dict(type="Constant", val=1, layer="Linear")


@PLACES
def test_a_builtin_error_gets_its_place_in_front(rule, place):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(IndexError, match="list index out of range") as caught:
        fastinit.initialize(model, [ONES, rule(lambda: [][1])])
    error = caught.value
    assert isinstance(error, fastinit.Error) and error.place == place
    assert str(error) == f"{place.replace(', ', ': ')}: list index out of range"


@PLACES
@pytest.mark.parametrize(
    "error",
    [OwnError(3, "x"), ArithmeticError("q"), MemoryError(), OSError(28, "full"), ImportError("x", name="y")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_cannot_be_rebuilt_is_the_same_object_with_a_note(rule, place, error):
    arguments = error.args
    for _ in range(2):  # the object may be raised again
        vars(error).pop("__notes__", None)
        error.args = arguments
        with pytest.raises(type(error)) as caught:
            fastinit.initialize(nn.Sequential(nn.Linear(2, 2)), [ONES, rule(throw(error))])
        assert caught.value is error and error.__notes__ == [f"fastinit: at {place}"]


def test_where_tracebacks_have_no_notes_a_place_goes_in_front_of_a_lone_message(monkeypatch):
    monkeypatch.setattr(errors, "_SHOWS_NOTES", False)
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ArithmeticError) as caught:
        fastinit.initialize(model, [distributing(throw(ArithmeticError("q")))])
    assert str(caught.value) == "init_cfg[0]: parameter '0.weight': q"
    with pytest.raises(OwnError) as own:
        fastinit.initialize(model, [distributing(throw(OwnError(3, "x")))])
    assert own.value.args == (3, "x")


def test_an_error_with_a_number_keeps_it():
    with pytest.raises(FileNotFoundError) as caught:
        fastinit.initialize(nn.Sequential(nn.Linear(2, 2)), [distributing(Path("/nowhere/at all").read_bytes)])
    assert caught.value.errno == 2 and caught.value.filename == "/nowhere/at all"
    assert caught.value.__notes__ == ["fastinit: at init_cfg[0], parameter '0.weight'"]


def test_a_users_init_weights_is_named_in_the_error():
    class Fails(nn.Module):
        def init_weights(self) -> None:
            raise KeyError("depth")

    root = fastinit.Sequential(nn.Linear(2, 2), Fails(), init_cfg=ONES)
    with pytest.raises(KeyError) as caught:
        root.init_weights()
    assert caught.value.args == ("1.init_weights: depth",)


def test_own_code_that_materialize_runs_is_named_in_the_error():
    class Fails(nn.Linear):
        def reset_parameters(self) -> None:
            if not self.weight.is_meta:
                raise IndexError("late")

    with torch.device("meta"):
        model = nn.Sequential(Fails(2, 2))
    with pytest.raises(IndexError, match=r"^0\.reset_parameters\(\) of Fails: late$"):
        fastinit.materialize(model, device="cpu")


def test_a_property_that_raises_is_named_in_the_error():
    class Odd(nn.Module):
        @property
        def weight(self) -> torch.Tensor:
            raise IndexError("no experts")

    with pytest.raises(IndexError, match=r"^init_cfg: `weight` of Odd: no experts$"):
        fastinit.plan(nn.Sequential(Odd()), dict(type="Normal", layer="Odd"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (torch.zeros(100, 100), r"a Tensor of shape \(100, 100\) and dtype torch.float32"),
        (nn.Parameter(torch.zeros(3)), r"a Parameter of shape \(3,\) and dtype torch.float32"),
        (0.02, r"0\.02"),
        (list(range(1000)), "a list"),
        (fastinit.plans.Normal, "the class Normal"),
    ],
    ids=["tensor", "parameter", "number", "list", "class"],
)
def test_what_is_no_distribution_is_shown_in_a_line(value, shown):
    class Returns(fastinit.BaseInit):
        def weight_distribution(self, shape: tuple[int, ...]) -> fastinit.plans.Distribution:
            return value

    with pytest.raises(TypeError, match=rf"such as Normal\(0, 0\.02\), but returned {shown}$"):
        fastinit.plan(nn.Linear(2, 2), dict(type=Returns, layer="Linear"))


def test_errors_with_notes_can_be_pickled():
    error = ArithmeticError("q")
    with pytest.raises(ArithmeticError):
        fastinit.plan(nn.Linear(2, 2), distributing(throw(error)))
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__
