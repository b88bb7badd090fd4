"""BaseModule trees against the real mmengine, and what we do differently: provenance, logging, cleaning up."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from unittest import mock

import pytest
import torch
from helpers import assert_same_tensors, tensors
from hypothesis import given
from hypothesis import strategies as st
from mmengine_parity import FASTINIT, MMENGINE, run_both
from torch import nn
from torch.nn.init import constant_

import fastinit


def init_both(make, **options):
    """Runs init_weights of the same tree in both libraries, and asserts that all bits and draws are the same."""
    return run_both(make, lambda _, model: model.init_weights(), **options)


def leaf(lib, init_cfg=None, layer=None):
    """A BaseModule around one layer."""

    class Leaf(lib.BaseModule):
        def __init__(self):
            super().__init__(init_cfg)
            self.layer = nn.Linear(3, 3) if layer is None else layer

    return Leaf()


def tree(lib, init_cfg=None, **children):
    """A BaseModule with children."""

    class Tree(lib.BaseModule):
        def __init__(self):
            super().__init__(init_cfg)
            self.fc = nn.Linear(4, 4)
            for name, child in children.items():
                setattr(self, name, child)

    return Tree()


NORMAL = dict(type="Normal", std=0.1, layer="Linear")
XAVIER = dict(type="Xavier", layer="Linear")
ONES = dict(type="Constant", val=1, bias=2, layer="Linear")


def test_a_child_wins_over_its_parent_and_what_it_overwrites_is_still_drawn():
    init_both(lambda lib: tree(lib, NORMAL, a=leaf(lib, XAVIER), b=leaf(lib, ONES), c=leaf(lib)))


def test_deep_trees_follow_the_same_order():
    def make(lib):
        model = leaf(lib, XAVIER)
        for depth in range(12):
            model = tree(lib, dict(type="Normal", std=0.1 + depth, layer="Linear") if depth % 3 else None, inner=model)
        return model

    init_both(make)


def test_containers_initialize_their_children_and_torchs_own_do_not():
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
    assert ours.plain[0].is_init is False and ours.seq[0].is_init is True


def test_an_init_weights_of_the_users_own_runs_in_its_place():
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
def test_a_parents_checkpoint_wins_over_its_children_and_leaves_what_it_lacks(tmp_path, spelling):
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
    assert "a.layer.weight" in result.copied and "b.layer.running_mean" in result.copied
    assert ours.last_init_report.provenance["a.layer.weight"].startswith("PretrainedInit: load from")
    assert ours.last_init_report.provenance["a.layer.bias"] == "ConstantInit: val=1, bias=2"


def test_a_prefix_loads_a_part_of_a_checkpoint(tmp_path):
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
    with mock.patch("fastinit.base_module.is_model_wrapper", lambda module: isinstance(module, Wrapper)):
        model.init_weights()
    assert (model.ddp.module.layer.weight == 1).all()
    assert not (model.dp.module.layer.weight == 1).all()
    model = tree(FASTINIT, NORMAL, dp=nn.DataParallel(leaf(FASTINIT, ONES)))
    model.init_weights()
    assert (model.dp.module.layer.weight == 1).all()
    assert model.last_init_report.provenance["dp.layer.weight"] == "ConstantInit: val=1, bias=2"


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


def test_is_init_can_be_set_to_keep_a_subtree_as_it_is():
    def make(lib):
        model = tree(lib, NORMAL, a=leaf(lib, XAVIER))
        model.a.is_init = True
        return model

    init_both(make)


def test_an_init_cfg_is_stored_as_it_is_and_not_looked_at():
    from mmengine.config import ConfigDict

    cfg = ConfigDict(checkpoint="x", extra=[1])
    module = fastinit.BaseModule(cfg)
    assert type(module.init_cfg) is ConfigDict and module.init_cfg == cfg and module.init_cfg is not cfg
    assert module.init_cfg.checkpoint == "x"
    assert fastinit.BaseModule("anything").init_cfg == "anything"


def test_an_init_cfg_that_cannot_be_built_fails_when_it_is_used_as_in_mmengine():
    for cfg in (dict(checkpoint="x"), [dict(type="Pretrained_Part", checkpoint="x")], dict(type="Constant")):
        init_both(lambda lib, cfg=cfg: tree(lib, cfg))


def test_a_tuple_of_dicts_is_accepted_in_an_init_cfg():
    init_both(lambda lib: tree(lib, (NORMAL, ONES)))


def test_repr_slices_and_copies_are_those_of_mmengine():
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


# --- provenance ------------------------------------------------------------------------------------------------------


def test_provenance_says_what_wrote_every_parameter_last():
    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__(XAVIER)
            for name in ("data", "view", "exchanged", "function", "untouched", "told"):
                setattr(self, name, nn.Linear(2, 2, bias=False))

        def init_weights(self):
            super().init_weights()
            self.data.weight.data.fill_(1)
            with torch.no_grad():
                self.view.weight[0] = 1
            self.exchanged.weight.data = torch.ones(2, 2)
            fastinit.normal_init(self.function)
            nn.init.zeros_(self.told.weight)
            fastinit.update_init_info(self.told, "zeroed, says the user")

    model = tree(
        FASTINIT, [NORMAL, dict(type="Constant", val=1, layer="LayerNorm")], custom=Custom(), ln=nn.LayerNorm(3)
    )
    model.init_weights()
    by_user = "Initialized by user-defined `init_weights` in Custom "
    assert model.last_init_report.provenance == {
        "fc.weight": "NormalInit: mean=0, std=0.1, bias=0",
        "fc.bias": "NormalInit: mean=0, std=0.1, bias=0",
        "custom.data.weight": by_user,
        "custom.view.weight": by_user,
        "custom.exchanged.weight": by_user,
        "custom.function.weight": by_user,
        "custom.untouched.weight": "XavierInit: gain=1, distribution=normal, bias=0",
        "custom.told.weight": "zeroed, says the user",
        "ln.weight": "ConstantInit: val=1, bias=0",
        "ln.bias": "ConstantInit: val=1, bias=0",
    }
    assert model.last_init_report.unreached == ()
    assert "call of custom.init_weights() of Custom" in str(model.last_init_report)


def test_what_nested_calls_do_stands_in_the_report_of_the_whole():
    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            self.own = fastinit.initialize(self.fc, XAVIER)
            fastinit.constant_init(self.fc, 3)

    model = tree(FASTINIT, NORMAL, custom=Custom())
    model.init_weights()
    assert [(row.parameter, row.description, row.rule) for row in model.last_init_report.rows][-5:] == [
        ("custom.fc.weight", "normal(mean=0, std=0.707107)", "init_cfg"),
        ("custom.fc.bias", "constant(0)", "init_cfg"),
        ("custom.fc.weight", "constant(3)", "constant_init"),
        ("custom.fc.bias", "constant(0)", "constant_init"),
        ("", "call of custom.init_weights() of Custom", "custom.init_weights"),
    ]
    assert [row.parameter for row in model.custom.own.rows] == ["custom.fc.weight", "custom.fc.bias"]
    assert model.custom.own.unreached == ()


def test_parameters_that_nothing_wrote_are_listed():
    model = tree(FASTINIT, dict(type="Normal", layer="Conv2d", override=dict(name="fc")), other=nn.Linear(2, 2))
    model.init_weights()
    assert model.last_init_report.unreached == ("other.weight", "other.bias")


def test_parameters_that_share_memory_are_told_apart():
    class Fused(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            memory = torch.zeros(10)
            self.a, self.b, self.c = (nn.Parameter(part) for part in (memory[:4], memory[4:8], memory[8:]))

        def init_weights(self):
            self.b.data.fill_(1)

    model = tree(FASTINIT, NORMAL, fused=Fused())
    model.init_weights()
    assert model.last_init_report.unreached == ("fused.a", "fused.c")


def test_no_parameter_is_read_back_to_know_where_it_came_from():
    model = tree(FASTINIT, NORMAL, a=leaf(FASTINIT, XAVIER), b=leaf(FASTINIT, ONES))
    with mock.patch.object(torch.Tensor, "mean", side_effect=AssertionError("a parameter was read")):
        model.init_weights()


def test_one_line_is_logged_for_each_parameter_and_can_be_silenced(caplog):
    make = lambda: tree(FASTINIT, NORMAL, a=leaf(FASTINIT, ONES, layer=nn.Conv2d(1, 2, 3)))  # noqa: E731
    with caplog.at_level(logging.INFO, "fastinit"):
        make().init_weights()
    assert [record.getMessage() for record in caplog.records] == [
        "fc.weight - (4, 4): NormalInit: mean=0, std=0.1, bias=0",
        "fc.bias - (4,): NormalInit: mean=0, std=0.1, bias=0",
        "a.layer.weight - (2, 1, 3, 3): The value is the same before and after calling `init_weights` of Tree ",
        "a.layer.bias - (2,): The value is the same before and after calling `init_weights` of Tree ",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fastinit"), pytest.warns(UserWarning, match="matches layer 'Linear'"):
        make().init_weights()
    assert caplog.records == []


def test_mmengines_keys_are_there_while_initializing_and_gone_afterwards():
    seen = []

    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__(ONES)
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            super().init_weights()
            entry = self._params_init_info[self.fc.weight]
            seen.append((entry["init_info"], float(entry["tmp_mean_value"])))

    model = tree(FASTINIT, NORMAL, custom=Custom())
    model.init_weights()
    assert seen == [("ConstantInit: val=1, bias=2", 1.0)]
    assert not any(hasattr(module, "_params_init_info") for module in model.modules())


def test_update_init_info_needs_an_initialization_in_progress():
    with pytest.raises(AssertionError, match="Can not find `_params_init_info`"):
        fastinit.update_init_info(nn.Linear(2, 2), "x")


def test_update_init_info_compares_means_in_books_that_are_not_ours():
    layer = nn.Linear(2, 2)
    layer._params_init_info = {
        parameter: {"init_info": "old", "tmp_mean_value": parameter.detach().mean()} for parameter in layer.parameters()
    }
    layer.weight.data.fill_(9)
    fastinit.update_init_info(layer, "new")
    assert layer._params_init_info[layer.weight]["init_info"] == "new"
    assert layer._params_init_info[layer.weight]["tmp_mean_value"] == 9
    assert layer._params_init_info[layer.bias]["init_info"] == "old"


def test_a_report_holds_no_tensors_and_survives_pickling():
    model = tree(FASTINIT, NORMAL, a=leaf(FASTINIT, XAVIER))
    model.init_weights()
    report = pickle.loads(pickle.dumps(model.last_init_report))
    assert report.rows == model.last_init_report.rows and report.to_json() == model.last_init_report.to_json()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert "last_init_report" not in model.state_dict()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_exception_leaves_no_state_behind_and_says_how_far_it_got(caplog):
    class Failing(fastinit.BaseModule):
        def init_weights(self):
            raise OSError("no")

    model = tree(FASTINIT, NORMAL, failing=Failing())
    with pytest.raises(OSError, match="^no$"):
        model.init_weights()
    assert not any("_params_init_info" in vars(module) for module in model.modules())
    assert "only partly initialized" in caplog.text
    assert model.is_init is False
    model.failing = nn.Identity()
    model.init_weights()
    assert model.is_init and model.last_init_report is not None


def test_a_missing_checkpoint_is_known_before_the_module_writes_anything():
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


def test_modules_that_come_and_go_while_initializing_are_cleaned_up():
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


def test_a_copy_that_is_made_while_initializing_can_be_initialized_itself():
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
    assert made.last_init_report.unreached == () and not hasattr(made, "_params_init_info")


def test_a_parameter_that_comes_while_initializing_is_refused_as_in_mmengine():
    def make(lib):
        class Adding(lib.BaseModule):
            def init_weights(self):
                self.new = nn.Parameter(torch.zeros(2))

        return lib.Sequential(Adding())

    for lib in (FASTINIT, MMENGINE):
        with pytest.raises(AssertionError, match="Find a new :obj:`Parameter` named `new` during executing"):
            make(lib).init_weights()


def test_trees_of_both_libraries_mixed_give_the_same_weights():
    def mixed(outer, inner):
        def make(_):
            return tree(outer, NORMAL, a=leaf(inner, XAVIER), b=tree(inner, ONES, c=leaf(outer, XAVIER)))

        torch.manual_seed(0)
        model = make(None)
        model.init_weights()
        return tensors(model), torch.get_rng_state()

    expected, state = mixed(MMENGINE, MMENGINE)
    for outer, inner in ((FASTINIT, MMENGINE), (MMENGINE, FASTINIT)):
        found, found_state = mixed(outer, inner)
        assert_same_tensors(found, expected)
        assert torch.equal(state, found_state)


# --- random trees ----------------------------------------------------------------------------------------------------

CFGS = st.sampled_from(
    [
        None,
        NORMAL,
        [XAVIER, ONES],
        dict(type="Uniform", layer=["Linear", "Conv1d"]),
        dict(type="Kaiming", layer="Conv1d", override=dict(name="fc", type="Constant", val=3)),
        [dict(type="TruncNormal", std=0.2, layer="Linear", bias_prob=0.1)],
    ]
)
KINDS = st.sampled_from(["module", "sequential", "list", "custom", "plain", "linear", "conv", "again"])
NODES = st.recursive(
    st.tuples(KINDS, CFGS, st.just(())), lambda inner: st.tuples(KINDS, CFGS, st.lists(inner, max_size=3)), max_leaves=9
)


def grow(lib, node, made):
    kind, cfg, inner = node
    children = [grow(lib, each, made) for each in inner]
    if kind == "linear":
        return nn.Linear(4, 5)
    if kind == "conv":
        return nn.Conv1d(2, 3, 3)
    if kind == "again" and made:
        return made[len(made) // 2]
    if kind == "sequential":
        module = lib.Sequential(*children, init_cfg=cfg)
    elif kind == "list":
        module = lib.ModuleList(children, init_cfg=cfg)
    elif kind == "plain":
        module = nn.Sequential(*children)
    elif kind == "custom":

        class Custom(lib.BaseModule):
            def init_weights(self):
                lib.normal_init(self.own, std=0.5)
                super().init_weights()
                nn.init.uniform_(self.own.bias)

        module = Custom(cfg)
        module.own = nn.Linear(2, 2)
        for index, child in enumerate(children):
            setattr(module, f"child{index}", child)
    else:
        module = tree(lib, cfg, **{f"child{index}": child for index, child in enumerate(children)})
    made.append(module)
    return module


@given(NODES)
def test_random_trees_give_the_same_bits(node):
    init_both(lambda lib: tree(lib, NORMAL, top=grow(lib, node, [])), one_call=False)
