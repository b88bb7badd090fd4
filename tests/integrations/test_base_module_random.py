"""Random BaseModule trees, and trees of both libraries mixed, give the same bits."""

from __future__ import annotations

import torch
from base_modules import NORMAL, ONES, XAVIER, init_both, leaf, tree
from helpers import assert_same_tensors, tensors
from hypothesis import given
from hypothesis import strategies as st
from mmengine_parity import FASTINIT, MMENGINE
from torch import nn


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
