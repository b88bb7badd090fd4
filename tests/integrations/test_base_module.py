"""BaseModule trees against the real mmengine: order, overriding, wrappers, checkpoints."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from base_modules import NORMAL, ONES, XAVIER, init_both, leaf, tree
from helpers import assert_same_tensors, tensors
from mmengine_parity import FASTINIT, MMENGINE
from torch import nn
from torch.nn.init import constant_

import fastinit


def test_a_child_wins_over_its_parent_and_overwritten_values_are_still_drawn():
    init_both(lambda lib: tree(lib, NORMAL, a=leaf(lib, XAVIER), b=leaf(lib, ONES), c=leaf(lib)))


def test_deep_trees_follow_the_same_order():
    def make(lib):
        model = leaf(lib, XAVIER)
        for depth in range(12):
            model = tree(lib, dict(type="Normal", std=0.1 + depth, layer="Linear") if depth % 3 else None, inner=model)
        return model

    init_both(make)


def test_mmengines_containers_initialize_their_children_and_torchs_do_not():
    def make(lib):
        return tree(
            lib,
            NORMAL,
            seq=lib.Sequential(leaf(lib, ONES), nn.Linear(2, 2), init_cfg=XAVIER),
            lst=lib.ModuleList([leaf(lib, XAVIER), leaf(lib, NORMAL)]),
            dct=lib.ModuleDict({"x": leaf(lib, ONES)}, init_cfg=dict(type="Uniform", layer="Linear")),
            plain=nn.Sequential(leaf(lib, ONES)),
        )

    ours, theirs = init_both(make)
    done = [getattr(module, "is_init", None) for module in ours.modules()]
    assert done == [getattr(module, "is_init", None) for module in theirs.modules()]
    assert ours.plain[0].is_init is False
    assert ours.seq[0].is_init is True


def test_a_users_own_init_weights_runs_at_its_place():
    def make(lib):
        class Custom(lib.BaseModule):
            def __init__(self, cfg=None):
                super().__init__(cfg)
                self.linear = nn.Linear(2, 2)
                self.inner = leaf(lib, XAVIER)

            def init_weights(self):
                super().init_weights()
                lib.normal_init(self.linear, std=0.3, bias=1)
                lib.initialize(self.inner, dict(type="Uniform", layer="Linear"))
                self.linear.weight.data[0].fill_(5)

        class NoBaseModule(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(5, 3))

            def init_weights(self):
                lib.trunc_normal_(self.w, std=0.5)

        class NeverSuper(Custom):
            def init_weights(self):
                constant_(self.linear.weight, 3)

        return tree(lib, NORMAL, custom=Custom(ONES), foreign=NoBaseModule(), never=NeverSuper(ONES))

    ours, theirs = init_both(make)
    assert ours.never.is_init == theirs.never.is_init is False


def test_an_overridden_root_is_a_user_of_init_weights_like_any_other():
    def make(lib):
        class Root(lib.BaseModule):
            def __init__(self):
                super().__init__(NORMAL)
                self.linear = nn.Linear(3, 3)
                self.child = leaf(lib, XAVIER)

            def init_weights(self):
                lib.constant_init(self.linear, 1)
                super().init_weights()
                lib.uniform_init(self.child.layer, 0, 2)

        return Root()

    init_both(make)


def test_a_module_shared_by_two_parents_is_initialized_once():
    def make(lib):
        shared = leaf(lib, XAVIER)
        return tree(lib, NORMAL, a=tree(lib, ONES, shared=shared), b=tree(lib, NORMAL, shared=shared))

    init_both(make)


def test_tied_weights_are_filled_under_both_their_modules():
    def make(lib):
        model = tree(lib, NORMAL, a=leaf(lib, XAVIER), b=leaf(lib))
        model.b.layer.weight = model.a.layer.weight
        return model

    init_both(make)


@pytest.mark.parametrize("spelling", ["string", "class"])
def test_a_parents_checkpoint_wins_over_its_children_and_leaves_missing_keys(tmp_path, spelling):
    def make_plain(lib):
        return tree(lib, None, a=leaf(lib), b=leaf(lib, layer=nn.BatchNorm1d(3)))

    source = make_plain(FASTINIT)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    source.b.layer.running_mean.fill_(7)
    state = source.state_dict()
    del state["a.layer.bias"]
    state["fc.weight"] = torch.zeros(9, 9)
    state["left.over"] = torch.zeros(1)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "c.pth")

    def make(lib):
        kind = "Pretrained" if spelling == "string" else lib.PretrainedInit
        pretrained = dict(type=kind, checkpoint=str(tmp_path / "c.pth"))
        return tree(lib, [pretrained, NORMAL], a=leaf(lib, ONES), b=leaf(lib, XAVIER, layer=nn.BatchNorm1d(3)))

    ours, _ = init_both(make)
    assert ours.b.layer.running_mean.tolist() == [7, 7, 7]
    result = ours.last_init_report.checkpoints[0].result
    assert result.missing == ("a.layer.bias",)
    assert result.unexpected == ("left.over",)
    assert result.mismatched == ("fc.weight",)
    assert "a.layer.weight" in result.copied
    assert "b.layer.running_mean" in result.copied
    assert ours.last_init_report.provenance["a.layer.weight"].startswith("PretrainedInit: load from")
    assert ours.last_init_report.provenance["a.layer.bias"] == "ConstantInit: val=1, bias=2 (a.init_cfg)"


def test_a_prefix_loads_part_of_a_checkpoint(tmp_path):
    source = nn.ModuleDict({"backbone": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    torch.save(source.state_dict(), tmp_path / "c.pth")
    for prefix in ("backbone", "backbone."):

        def make(lib, prefix=prefix):
            cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"), prefix=prefix)
            linear = nn.Linear(3, 3)
            return tree(lib, NORMAL, child=lib.Sequential(linear, init_cfg=dict(**cfg)), own=leaf(lib, XAVIER))

        init_both(make)

    def make_exact(lib):
        model = lib.BaseModule(dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"), prefix="head"))
        model.weight = nn.Parameter(torch.zeros(3, 3))
        return model

    ours, _ = init_both(make_exact)
    assert torch.equal(ours.weight, source["head"].weight)


def test_a_wrapped_child_is_unwrapped():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = tree(FASTINIT, NORMAL, ddp=Wrapper(leaf(FASTINIT, ONES)), dp=nn.DataParallel(leaf(FASTINIT, ONES)))
    with mock.patch("fastinit.execution.hosts.is_model_wrapper", lambda module: isinstance(module, Wrapper)):
        model.init_weights()
    assert (model.ddp.module.layer.weight == 1).all()
    assert not (model.dp.module.layer.weight == 1).all()
    model = tree(FASTINIT, NORMAL, dp=nn.DataParallel(leaf(FASTINIT, ONES)))
    model.init_weights()
    assert (model.dp.module.layer.weight == 1).all()
    assert model.last_init_report.provenance["dp.layer.weight"] == "ConstantInit: val=1, bias=2 (dp.init_cfg)"


def test_a_second_call_warns_and_does_nothing(caplog):
    model = tree(FASTINIT, NORMAL, a=leaf(FASTINIT, XAVIER))
    model.init_weights()
    before, report = tensors(model), model.last_init_report
    with caplog.at_level("INFO", "fastinit"):
        model.init_weights()
    assert [record.getMessage() for record in caplog.records] == [
        "init_weights of Tree has been called more than once."
    ]
    assert_same_tensors(tensors(model), before)
    assert model.last_init_report is report


def test_setting_is_init_keeps_a_subtree_unchanged():
    def make(lib):
        model = tree(lib, NORMAL, a=leaf(lib, XAVIER))
        model.a.is_init = True
        return model

    init_both(make)


def test_an_init_cfg_is_stored_unread():
    from mmengine.config import ConfigDict

    cfg = ConfigDict(checkpoint="x", extra=[1])
    module = fastinit.BaseModule(cfg)
    assert type(module.init_cfg) is ConfigDict
    assert module.init_cfg == cfg
    assert module.init_cfg is not cfg
    assert module.init_cfg.checkpoint == "x"
    assert fastinit.BaseModule("anything").init_cfg == "anything"


def test_an_init_cfg_that_cannot_be_built_fails_when_it_is_used_as_in_mmengine():
    for cfg in (dict(checkpoint="x"), [dict(type="Pretrained_Part", checkpoint="x")], dict(type="Constant")):
        init_both(lambda lib, cfg=cfg: tree(lib, cfg))


def test_a_tuple_of_dicts_is_accepted_in_an_init_cfg():
    init_both(lambda lib: tree(lib, (NORMAL, ONES)))


def test_repr_slices_and_copies_match_mmengine():
    def texts(lib):
        sequential = lib.Sequential(nn.ReLU(), nn.ReLU(), init_cfg=NORMAL)
        modules = lib.ModuleList([nn.ReLU()] * 3, init_cfg=NORMAL)
        deep = copy.deepcopy(sequential)
        sequential.is_init = True
        return [
            repr(sequential),
            repr(sequential[:1]),
            sequential[:1].init_cfg,
            repr(modules[1:]),
            type(modules + [nn.ReLU()]).__name__,
            repr(lib.ModuleDict({"a": nn.ReLU()})),
            deep.is_init,
            copy.deepcopy(sequential).is_init,
            list(sequential.state_dict()),
        ]

    assert texts(FASTINIT) == texts(MMENGINE)
