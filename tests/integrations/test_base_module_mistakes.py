"""What goes wrong while BaseModule trees are initialized, and what is cleaned up."""

from __future__ import annotations

import copy

import pytest
import torch
from base_modules import NORMAL, ONES, XAVIER, leaf, tree
from helpers import assert_same_tensors, tensors
from mmengine_parity import FASTINIT, MMENGINE
from torch import nn

import fastinit


def test_an_exception_leaves_no_state_behind_and_says_how_far_it_got(caplog):
    class Failing(fastinit.BaseModule):
        def init_weights(self):
            raise OSError("no")

    model = tree(FASTINIT, NORMAL, failing=Failing())
    with pytest.raises(OSError, match="no") as caught:
        model.init_weights()
    assert caught.value.__notes__ == ["fastinit: at failing.init_weights"]
    assert not any("_params_init_info" in vars(module) for module in model.modules())
    assert "only partly initialized" in caplog.text
    assert model.is_init is False
    model.failing = nn.Identity()
    model.init_weights()
    assert model.is_init
    assert model.last_init_report is not None


def test_a_missing_checkpoint_is_refused_before_any_write_of_the_module():
    model = tree(FASTINIT, [ONES, dict(type="Pretrained", checkpoint="nope.pth")], a=leaf(FASTINIT, ONES))
    before = tensors(model)
    with pytest.raises(FileNotFoundError, match=r"^init_cfg\[1\]: nope.pth can not be found"):
        model.init_weights()
    assert_same_tensors(tensors(model), before)


def test_a_back_reference_to_a_parent_is_not_followed():
    root = fastinit.Sequential(nn.Linear(2, 2))
    child = nn.Module()
    root.append(child)
    child.root = root
    root.init_weights()
    assert root.last_init_report.unreached == ("0.weight", "0.bias")


def test_compiled_and_wrapped_modules_plan_and_initialize_like_what_they_wrap():
    def make():
        return tree(FASTINIT, NORMAL, a=leaf(FASTINIT, XAVIER))

    expected = fastinit.plan(make()).to_json()
    for wrap in (torch.compile, nn.DataParallel):
        assert fastinit.plan(wrap(make())).to_json() == expected
    outer = tree(FASTINIT, None, inner=torch.compile(make()))
    plan = fastinit.plan(outer)
    assert {row.action for row in plan.rows} == {"fill"}
    outer.init_weights()
    assert outer.last_init_report.rows == plan.rows
    assert "inner.a.layer.weight" in outer.last_init_report.provenance


def test_nested_tensors_do_not_disturb_a_users_init_weights():
    class Nested(fastinit.BaseModule):
        def init_weights(self):
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]).mul_(2)
            torch.zeros(2, 2).to_sparse().mul_(3)

    tree(FASTINIT, NORMAL, nested=Nested()).init_weights()


def test_modules_outside_the_tree_do_not_show_in_its_report():
    class Custom(fastinit.BaseModule):
        def init_weights(self):
            fastinit.initialize(nn.Linear(2, 2), XAVIER)

    model = tree(FASTINIT, NORMAL, custom=Custom())
    model.init_weights()
    names = [row.parameter for row in model.last_init_report.rows if row.action == "fill"]
    assert names == ["fc.weight", "fc.bias"]


def test_an_error_names_the_module_that_owns_the_config():
    model = tree(FASTINIT, NORMAL, a=tree(FASTINIT, None, b=leaf(FASTINIT, [ONES, dict(type="Foo")])))
    with pytest.raises(KeyError, match=r"a\.b\.init_cfg\[1\]: Foo is not in the"):
        model.init_weights()


def test_modules_added_or_removed_while_initializing_are_cleaned_up():
    class Changing(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            self.goes = nn.ReLU()

        def init_weights(self):
            self.gone = [self.goes]
            del self.goes
            self.comes = nn.ReLU()

    model = tree(FASTINIT, NORMAL, changing=Changing())
    model.init_weights()
    assert not any("_params_init_info" in vars(each) for each in (*model.modules(), *model.changing.gone))


def test_a_copy_made_while_initializing_can_be_initialized():
    class Copies(fastinit.BaseModule):
        def __init__(self):
            super().__init__(NORMAL)
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            super().init_weights()
            self.made = [copy.deepcopy(self)]

    model = tree(FASTINIT, NORMAL, copies=Copies())
    model.init_weights()
    (made,) = model.copies.made
    made.is_init = False
    made.init_weights()
    assert made.last_init_report.unreached == ()
    assert not hasattr(made, "_params_init_info")


def test_a_parameter_added_while_initializing_is_refused_as_in_mmengine():
    def make(lib):
        class Adding(lib.BaseModule):
            def init_weights(self):
                self.new = nn.Parameter(torch.zeros(2))

        return lib.Sequential(Adding())

    for lib in (FASTINIT, MMENGINE):
        with pytest.raises(AssertionError, match="Find a new :obj:`Parameter` named `new` during executing"):
            make(lib).init_weights()


def test_an_init_weights_that_needs_arguments_is_refused_with_its_path():
    class Old(nn.Module):
        def init_weights(self, pretrained):
            raise AssertionError("not called")

    for lib in (FASTINIT, MMENGINE):
        with pytest.raises(TypeError, match="missing (1|a) required .*'pretrained'"):
            lib.Sequential(nn.Linear(2, 2), Old()).init_weights()
    with pytest.raises(TypeError, match=r"^1\.init_weights\(\) of Old: missing a required"):
        fastinit.Sequential(nn.Linear(2, 2), Old()).init_weights()
