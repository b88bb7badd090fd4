"""Trees of modules with configs of their own: which steps they have, in which order, and which modules have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit.config.trees import has_own_configs, run_tree, steps_of_tree
from fastinit.errors import InitRuntimeError, InitTypeError
from fastinit.execution.calls import Step, open_call
from fastinit.execution.scope import Scope
from fastinit.plans import Call, Fill


def constant(value: float, **more: Any) -> dict[str, Any]:
    return dict(type="Constant", val=value, bias=value, layer="Linear", **more)


class Leaf(fastinit.BaseModule):
    def __init__(self, cfg: Any = None) -> None:
        super().__init__(cfg)
        self.fc = nn.Linear(1, 1)


class Own(Leaf):
    """Has code between its ``init_weights`` and its config."""

    def init_weights(self) -> None:
        super().init_weights()


class Foreign(nn.Module):
    """Is no BaseModule."""

    def __init__(self, do: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.do = do

    def init_weights(self) -> None:
        self.do()


class Tree(fastinit.BaseModule):
    def __init__(self, cfg: Any = None, **children: nn.Module) -> None:
        super().__init__(cfg)
        for name, child in children.items():
            self.add_module(name, child)


def names(steps: list[Step]) -> list[str]:
    """Returns what the items of steps write or call, in order."""
    items = [item for step in steps for item in step.items]
    return [item.name if isinstance(item, Fill) else item.label if isinstance(item, Call) else "copy" for item in items]


def planned(root: nn.Module) -> list[str]:
    return names(steps_of_tree(root, Scope(root, None)))


@pytest.mark.parametrize(
    "module, has",
    [(Leaf(), True), (Own(), True), (Tree(), True), (fastinit.Sequential(), True), (Foreign(), False)],
    ids=lambda each: type(each).__name__,
)
def test_what_is_a_base_module_at_heart_has_own_configs(module: nn.Module, has: bool) -> None:
    assert has_own_configs(module) is has


def test_a_modules_rules_come_before_its_childrens() -> None:
    root = Tree(constant(1), a=Leaf(constant(2)), b=Tree(None, c=Leaf(constant(3))))
    own = ["a.fc.weight", "a.fc.bias", "b.c.fc.weight", "b.c.fc.bias"]
    assert planned(root) == own + own


def test_code_of_users_is_called_where_it_stands() -> None:
    root = Tree(constant(1), a=Own(constant(2)), b=Foreign(), c=Leaf(constant(3)))
    fills = [f"{child}.fc.{name}" for child in "abc" for name in ("weight", "bias")]
    calls = ["a.init_weights() of Own", "b.init_weights() of Foreign"]
    assert planned(root) == [*fills, *calls, "c.fc.weight", "c.fc.bias"]


def test_code_that_a_user_has_put_into_a_module_is_called() -> None:
    leaf = Leaf(constant(1))
    leaf.init_weights = lambda: None  # type: ignore[method-assign]
    assert planned(Tree(None, a=leaf)) == ["a.init_weights() of Leaf"]


def test_modules_without_init_weights_are_passed_over_with_all_below_them() -> None:
    assert planned(Tree(None, a=nn.Sequential(Leaf(constant(1))), b=nn.Linear(1, 1))) == []


def test_a_module_that_stands_twice_or_was_initialized_has_no_second_steps() -> None:
    shared, done = Leaf(constant(1)), Leaf(constant(2))
    done.is_init = True
    assert planned(Tree(None, a=Tree(None, x=shared), b=Tree(None, x=shared), done=done)) == [
        "a.x.fc.weight",
        "a.x.fc.bias",
    ]
    with pytest.warns(fastinit.InitWarning, match="^init_weights of Leaf: it has run"):
        assert planned(done) == []


def test_nothing_is_marked_where_only_steps_are_wanted() -> None:
    root = Tree(None, a=Leaf(constant(1)))
    planned(root)
    assert not root.is_init and not root.a.is_init and not (root.a.fc.weight == 1).all()


def test_a_wrapped_child_has_the_steps_of_what_is_wrapped() -> None:
    assert planned(Tree(None, a=nn.DataParallel(Leaf(constant(1))))) == ["a.fc.weight", "a.fc.bias"]


def test_errors_name_the_module_whose_config_it_is() -> None:
    root = Tree(None, a=Tree(None, b=Leaf([constant(1), dict(type="Nobody", layer="Linear")])))
    with pytest.raises(KeyError, match=r"a\.b\.init_cfg\[1\]"):
        planned(root)


class Greedy(Foreign):
    def init_weights(self, how: str) -> None:  # type: ignore[override]
        raise AssertionError(how)


def test_code_that_cannot_be_called_without_arguments_is_refused_before_it_runs() -> None:
    with pytest.raises(InitTypeError, match=r"^a\.init_weights\(\) of Greedy: .*'how'; parents call it without"):
        planned(Tree(None, a=Greedy()))


def test_a_running_tree_plans_each_module_when_it_comes_to_it() -> None:
    later = Leaf(constant(1))

    def change() -> None:
        later.init_cfg = constant(5)
        later.fc = nn.Linear(1, 1)

    root = Tree(None, a=Foreign(change), b=later)
    with open_call(root) as call:
        run_tree(root, call)
    assert later.fc.weight.item() == 5 and root.is_init and later.is_init


def test_a_tree_that_is_checked_as_a_whole_writes_nothing_where_a_late_rule_is_wrong() -> None:
    ran: list[str] = []
    root = Tree(
        constant(1), a=Leaf(constant(2)), b=Foreign(lambda: ran.append("b")), c=Leaf(dict(type="Zeros", layer="Conv2d"))
    )
    before = root.a.fc.weight.item()
    with pytest.raises(InitRuntimeError, match=r"c\.init_cfg"), open_call(root, strict=True) as call:
        run_tree(root, call, checks_all_first=True)
    assert root.a.fc.weight.item() == before and ran == [] and not root.a.is_init


def test_a_complete_tree_is_checked_before_the_first_write() -> None:
    root = Tree(None, a=Leaf(constant(2)), b=nn.Linear(1, 1))
    with pytest.raises(InitRuntimeError, match=r"b\.weight"), open_call(root, strict="complete") as call:
        run_tree(root, call, checks_all_first=True)
    assert not root.a.is_init


def test_checkpoints_come_after_the_children_and_are_looked_at_before_the_first_write(tmp_path: Any) -> None:
    file = tmp_path / "w.pth"
    torch.save({"a.fc.weight": torch.full((1, 1), 9.0)}, file)
    root = Tree([dict(type="Pretrained", checkpoint=str(file)), constant(1)], a=Leaf(constant(2)))
    assert planned(root) == ["a.fc.weight", "a.fc.bias", "a.fc.weight", "a.fc.bias", "copy"]
    with open_call(root) as call:
        run_tree(root, call)
    assert root.a.fc.weight.item() == 9 and root.a.fc.bias.item() == 2
    missing = Tree([dict(type="Pretrained", checkpoint=str(tmp_path / "no.pth")), constant(1)], a=Leaf())
    before = missing.a.fc.weight.item()
    with pytest.raises(FileNotFoundError), open_call(missing) as call:
        run_tree(missing, call)
    assert missing.a.fc.weight.item() == before
