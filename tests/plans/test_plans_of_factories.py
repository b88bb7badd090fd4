"""Plans of functions and classes that make a model: their own init, and ``init_weights`` of a BaseModule."""

from __future__ import annotations

import warnings
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit

NORMAL = dict(type="Normal", std=0.25, layer="Linear")


class Head(fastinit.BaseModule):
    def __init__(self, width: int = 4, init_cfg: Any = NORMAL) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(width, 2)
        self.norm = nn.LayerNorm(2)


class Plain(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)


class OfUser(Head):
    def init_weights(self) -> None:
        super().init_weights()
        nn.init.ones_(self.fc.bias)


def described(plan: fastinit.Plan) -> dict[str, str]:
    return {row.parameter: row.description for row in plan.rows if not row.replaced}


def test_a_class_is_planned_like_a_function_that_calls_it() -> None:
    assert fastinit.plan(Plain).rows == fastinit.plan(lambda: Plain()).rows != ()


def test_a_class_that_needs_arguments_says_how_to_give_them() -> None:
    with pytest.raises(
        TypeError, match=r"'in_features'. Give Linear its arguments by a function: plan\(lambda: Linear\(\.\.\.\)\)$"
    ):
        fastinit.plan(nn.Linear)


def test_write_takes_a_class_and_says_how_to_give_arguments(tmp_path: Any) -> None:
    with pytest.raises(TypeError, match=r"write\(lambda: Linear\(\.\.\.\)\)$"):
        fastinit.write(nn.Linear, tmp_path, seed=0)  # type: ignore[arg-type]


def with_bias(bias: bool = False) -> nn.Module:
    pytest.fail("it is not to run before the config is looked at")


def test_an_argument_in_the_place_of_the_config_says_how_to_give_it(tmp_path: Any) -> None:
    for call, name in (
        (fastinit.plan, "plan"),
        (lambda make, given: fastinit.write(make, tmp_path, given, seed=0), "write"),
    ):
        told = (
            rf"got <class 'bool'>\. Give with_bias its arguments by a function: {name}\(lambda: with_bias\(\.\.\.\)\)$"
        )
        with pytest.raises(TypeError, match=told):
            call(with_bias, True)
    with pytest.raises(TypeError, match=r"Give make its arguments by a function: plan\(lambda: make\(\.\.\.\)\)$"):
        fastinit.plan(lambda: with_bias(), 3)
    with pytest.raises(TypeError, match=r"reads a plan from its file, json.load rules from theirs$"):
        fastinit.plan(with_bias, "net.plan.json")


@pytest.mark.parametrize(
    "make", [Head, lambda: Head(), lambda: torch.compile(Head())], ids=["class", "function", "wrapped"]
)
def test_the_config_of_a_base_module_comes_after_its_constructor(make: Any) -> None:
    assert described(fastinit.plan(make)) == {
        "fc.weight": "normal(mean=0, std=0.25)",
        "fc.bias": "constant(0)",
        "norm.weight": "constant(1)",
        "norm.bias": "constant(0)",
    }


@needs.mark(needs.CPP)
def test_such_a_plan_is_what_build_and_init_weights_give() -> None:
    plan = fastinit.plan(Head, backend="cpp", seed=5)
    head = fastinit.build(Head, backend="cpp", seed=5)
    assert not fastinit.verify(head, plan)
    with fastinit.use(backend="cpp", seed=5):
        head.init_weights()
    assert fastinit.verify(head, plan)


def test_a_config_comes_after_that_of_the_module() -> None:
    found = described(fastinit.plan(Head, dict(type="Constant", val=3, param="fc.bias")))
    assert found["fc.weight"] == "normal(mean=0, std=0.25)" and found["fc.bias"] == "constant(3)"


def test_code_of_an_own_init_weights_is_a_row() -> None:
    assert [row.description for row in fastinit.plan(OfUser).rows if row.action == "call"] == [
        "call of init_weights() of OfUser"
    ]


def test_a_typo_in_the_config_of_a_class_is_an_error_under_strict() -> None:
    with pytest.raises(RuntimeError, match="^init_cfg: NormalInit: no module of Head matches layer 'Linaer'"):
        fastinit.plan(lambda: Head(init_cfg=dict(NORMAL, layer="Linaer")), strict=True)


@needs.mark(needs.CPP)
def test_write_writes_what_init_weights_gives(tmp_path: Any) -> None:
    fastinit.write(Head, tmp_path, seed=5)
    head = Head()
    with fastinit.use(backend="cpp", seed=5):
        head.init_weights()
    written = fastinit.digest(tmp_path)
    assert written["fc.weight"] == fastinit.digest(head)["fc.weight"]


# --- what has been initialized ---------------------------------------------------------------------------------------


def initialized() -> Head:
    head = Head()
    head.init_weights()
    return head


@pytest.mark.parametrize("strict", [False, True], ids=["warns", "strict"])
def test_the_plan_of_an_initialized_module_says_why_it_is_empty(strict: bool) -> None:
    with pytest.warns(fastinit.InitWarning, match=r"^init_weights of Head: it has run \(is_init is True\) and does"):
        assert fastinit.plan(initialized(), strict=strict).rows == ()


def test_materialize_of_an_initialized_module_says_so_too() -> None:
    with torch.device("meta"):
        head = Head(init_cfg=None)
    head.init_weights()
    with pytest.warns(fastinit.InitWarning, match="^init_weights of Head: it has run"):
        fastinit.materialize(head)


def test_a_config_that_is_given_plans_an_initialized_module_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fastinit.plan(initialized(), NORMAL).rows) == 2


def test_a_function_that_marks_its_module_as_initialized_leaves_its_config_out() -> None:
    def make() -> Head:
        head = Head()
        head.is_init = True
        return head

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert described(fastinit.plan(make))["fc.weight"].startswith("uniform")


# --- modules of mmengine ---------------------------------------------------------------------------------------------


@pytest.fixture
def theirs() -> Any:
    model = needs.module("mmengine.model")

    class Theirs(model.BaseModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(NORMAL)
            self.fc = nn.Linear(4, 2)

    return Theirs


def test_a_module_of_mmengine_names_what_makes_its_config_planned(theirs: Any) -> None:
    with pytest.raises(TypeError, match=r"`fastinit.integrations.mmengine.enable\(\)` makes it fastinit's$"):
        fastinit.plan(theirs())


def test_a_class_of_mmengine_is_planned_without_its_config_and_says_so(theirs: Any) -> None:
    with pytest.warns(fastinit.InitWarning, match=r"the init_cfg of Theirs is not in the plan.*enable\(\)"):
        assert described(fastinit.plan(theirs))["fc.weight"].startswith("uniform")


def test_with_enable_a_class_of_mmengine_is_planned_with_its_config(theirs: Any) -> None:
    fastinit.integrations.mmengine.enable()
    try:
        assert described(fastinit.plan(theirs))["fc.weight"] == "normal(mean=0, std=0.25)"
    finally:
        fastinit.integrations.mmengine.disable()


def test_a_module_of_mmengine_in_a_tree_runs_its_own_code(theirs: Any) -> None:
    tree = fastinit.Sequential(theirs())
    assert [row.description for row in fastinit.plan(tree).rows] == ["call of 0.init_weights() of Theirs"]
    tree.init_weights()
    assert tree[0].is_init and 0.1 < tree[0].fc.weight.std() < 0.5
