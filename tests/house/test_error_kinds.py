"""fastinit.Error: every kind is a built-in error, too, and keeps its place and hint on its way up."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit import errors
from fastinit.checkpoint import load_checkpoint
from fastinit.errors import Error, locating

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Error)]


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.__name__)
def test_a_kind_is_the_built_in_error_of_its_name(kind: type[Error]) -> None:
    base, built_in = kind.__bases__
    assert base is Error and kind.__name__ == f"Init{built_in.__name__}"
    assert str(kind("text", place="here", hint=", try this")) == str(built_in("text, try this"))


@pytest.mark.parametrize("transport", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_place_hint_and_notes_survive_copies(kind: type[Error], transport: Callable[[Error], Error]) -> None:
    error = kind("text", place=Path("a/b.pth"), hint=". Try this")
    error.__notes__ = ["a note"]  # type: ignore[attr-defined]
    found = transport(error)
    assert type(found) is kind and found.args == ("text. Try this",)
    assert vars(found) == {"place": "a/b.pth", "hint": "Try this", "__notes__": ["a note"]}


def test_an_error_without_place_and_hint_has_none() -> None:
    error = errors.InitValueError("text")
    assert (str(error), error.place, error.hint) == ("text", None, None)


def test_the_number_of_a_system_error_is_kept() -> None:
    error = pickle.loads(pickle.dumps(errors.InitOSError(13, "no permission", hint=": ask")))
    assert (error.errno, error.strerror, error.hint) == (13, "no permission: ask", "ask")


def located(error: Exception, *wheres: str, is_place: bool = True) -> Exception:
    """Returns the error as it leaves blocks, given from the outermost in."""
    with pytest.raises(Exception) as raised:
        if wheres:
            with locating(wheres[0], is_place=is_place):
                raise located(error, *wheres[1:], is_place=is_place)
        raise error
    return raised.value


def test_places_are_added_on_the_way_up() -> None:
    error = located(errors.InitKeyError("text", hint="; try this"), "init_cfg[1]", "parameter 'a'")
    assert type(error) is errors.InitKeyError and error.args == ("init_cfg[1]: parameter 'a': text; try this",)
    assert (error.place, error.hint) == ("init_cfg[1], parameter 'a'", "try this")


def test_a_prefix_that_is_no_place_is_not_one() -> None:
    error = located(errors.InitKeyError("text", place="a"), "NormalInit", is_place=False)
    assert error.args == ("NormalInit: text",) and error.place == "a"  # type: ignore[attr-defined]


def test_an_error_of_other_code_becomes_one_of_fastinits_of_its_type() -> None:
    error = located(ZeroDivisionError("text"), "init_cfg")
    assert type(error) is errors.InitZeroDivisionError and error.place == "init_cfg"


class OwnError(ValueError):
    """Of a user, with arguments that nobody else knows."""


def test_an_error_of_another_class_passes_unchanged() -> None:
    error = OwnError(1, 2)
    assert located(error, "init_cfg") is error and error.args == (1, 2)


def test_a_system_error_gets_the_place_and_keeps_its_message() -> None:
    error = errors.InitOSError(13, "no permission", place="a.pth")
    assert located(error, "init_cfg") is error
    assert str(error) == "[Errno 13] no permission" and error.place == "init_cfg, a.pth"


def test_cause_and_traceback_are_kept() -> None:
    cause = OwnError("cause")
    error = errors.InitValueError("text")
    error.__cause__ = cause
    found = located(error, "init_cfg")
    assert found.__cause__ is cause
    assert "raise error" in "".join(traceback.format_tb(found.__traceback__))


def test_notes_are_kept() -> None:
    error = errors.InitValueError("text")
    error.__notes__ = ["of the night"]  # type: ignore[attr-defined]
    assert located(error, "init_cfg").__notes__ == ["of the night"]  # type: ignore[attr-defined]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)


def initialize(cfg: Any, **kwargs: Any) -> None:
    fastinit.initialize(Net(), cfg, **kwargs)


def plan(cfg: Any) -> None:
    fastinit.plan(Net(), cfg)


def without_reset() -> nn.Module:
    """Returns a model on the meta device whose parameter nothing gives values to."""
    model = nn.Module()
    model.bias = nn.Parameter(torch.empty(2, device="meta"))
    return model


def initialize_by_recipe(shape: tuple[int, int]) -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        _model = nn.Linear(2, 2)
    fastinit.initialize(nn.Linear(*shape), recipe)


def made_plan() -> fastinit.Plan:
    return fastinit.plan(Net(), dict(type="Ones", param="*"))


@pytest.mark.parametrize(
    ("call", "built_in", "place", "hint"),
    [
        (lambda _: initialize([dict(type="Constnt", layer="Linear")]), KeyError, "init_cfg[0]", "Did you mean 'Const"),
        (
            lambda _: initialize(dict(type="Normal", layer="Linear", override=[dict(name="haed", type="Ones")])),
            RuntimeError,
            "init_cfg.override[0]",
            "It must be a direct attribute of Net, one of: body, head",
        ),
        (
            lambda _: initialize([dict(type="Normal", layer="Linaer")], strict=True),
            RuntimeError,
            "init_cfg[0]",
            "Did you mean 'Linear'?",
        ),
        (
            lambda _: initialize(dict(type="Kaiming", param="*.bias")),
            ValueError,
            "init_cfg, parameter 'body.0.bias'",
            "Use a type without fans",
        ),
        (
            lambda _: plan(dict(type="Normal", param="*", std="fan_inn")),
            TypeError,
            "init_cfg, parameter 'body.0.weight'",
            "Names here: fan_in",
        ),
        (lambda _: initialize(dict(type="Ones", param="*"), backend="cuda13"), ValueError, None, "choose from auto, "),
        (lambda _: fastinit.plan(nn.Linear(2, 2)), TypeError, None, "For the plan of `materialize`"),
        (
            lambda _: fastinit.plan("net", dict(type="Ones")),
            TypeError,
            None,
            "Make the model, and fastinit.checkpoint.load",
        ),
        (lambda _: fastinit.plan(torch.ones(2), dict(type="Ones")), TypeError, None, "For a tensor use torch.nn.init"),
        (
            lambda _: fastinit.verify(Net().state_dict(), made_plan()),
            TypeError,
            None,
            "A state dict has to be in its model",
        ),
        (
            lambda _: fastinit.verify(Path("a.pth"), made_plan()),
            TypeError,
            None,
            "Make the model, and fastinit.checkpoint.load",
        ),
        (lambda _: fastinit.initialize(dict(type="Ones"), Net()), TypeError, None, "The module comes first"),
        (lambda _: fastinit.verify(Net(), "plan.json"), TypeError, None, "fastinit.Plan.load(path) reads one from"),
        (lambda _: fastinit.verify(made_plan(), Net()), TypeError, None, "verify(model, plan), the model comes first"),
        (lambda _: fastinit.redraw(Net(), Path("a")), TypeError, None, "fastinit.Plan.load(path) reads one from"),
        (lambda _: initialize("plan.json"), TypeError, None, "fastinit.Plan.load(path) reads a plan from its file"),
        (lambda _: initialize(["plan.json"]), TypeError, "init_cfg[0]", "fastinit.Plan.load(path) reads a plan from"),
        (lambda path: fastinit.write("a.json", path / "a"), TypeError, None, "fastinit.Plan.load(path) reads a plan"),
        (lambda _: made_plan().diff("plan.json"), TypeError, None, "fastinit.Plan.load(path) reads one from a file"),
        (lambda _: fastinit.digest(Net()).diff("a.pth"), TypeError, None, "fastinit.digest(...) makes one of a"),
        (lambda _: initialize(dict(type="Ones", param="*"), strict="very"), ValueError, None, None),
        (
            lambda _: fastinit.materialize(nn.Sequential(nn.LazyLinear(2, device="meta"))),
            RuntimeError,
            "parameter '0.weight'",
            None,
        ),
        (
            lambda _: fastinit.materialize(without_reset()),
            RuntimeError,
            None,
            "Add a rule with param=..., or put tensors",
        ),
        (lambda _: initialize_by_recipe((3, 2)), RuntimeError, "init_cfg, parameter 'weight'", None),
        (lambda path: load_checkpoint(Net(), path / "a.pth"), FileNotFoundError, "{}/a.pth", None),
        (lambda path: fastinit.Plan.load(path / "plan.json"), ValueError, "{}/plan.json, items[0]", None),
        (lambda path: load_checkpoint(Net(), path / "cut.pth"), RuntimeError, "{}/cut.pth, byte 23", None),
        (lambda path: load_checkpoint(Net(), path / "old.tar"), RuntimeError, "{}/old.tar", None),
        (lambda _: fastinit.checkpoint.load_checkpoint(Net(), "open-mmlab://resnet5"), KeyError, None, "Did you mean"),
        (lambda _: fastinit.values("a", (2,), fastinit.plans.Normal(0, 1), seed=0, box=9), IndexError, None, None),
    ],
)
def test_errors_have_a_place_and_a_hint(
    call: Callable[[Path], object], built_in: type, place: str | None, hint: str | None, tmp_path: Path
) -> None:
    lock = '{"fastinit_lock": 1, "numbers": "torch", "seed": null, "unreached": [], "items": [{}]}'
    (tmp_path / "plan.json").write_text(lock)
    (tmp_path / "old.tar").write_bytes(bytes(257) + b"ustar")
    torch.save({"a": torch.ones(2)}, tmp_path / "cut.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes().replace(b"}", b"\xff", 1))
    with pytest.raises(built_in) as raised:
        call(tmp_path)
    error = raised.value
    assert isinstance(error, fastinit.Error)
    assert error.place == (place and place.format(tmp_path))
    assert error.hint == hint if hint is None else (error.hint or "").startswith(hint)
    assert (error.hint or "") in error.args[0]


def test_warnings_have_a_class_of_their_own() -> None:
    with pytest.warns(fastinit.InitWarning, match="Did you mean 'Linear'") as told:
        initialize(dict(type="Normal", layer="Linaer"))
    assert issubclass(fastinit.InitWarning, UserWarning) and told[0].filename == __file__
