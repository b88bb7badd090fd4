"""BaseModule trees of both libraries."""

from __future__ import annotations

from mmengine_parity import run_both
from torch import nn


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
