"""fastinit: plans how every parameter of a PyTorch model starts, checks the plan, and runs it in one go."""

from __future__ import annotations

from . import integrations, plans
from .backends import available_backends
from .base_module import BaseModule, ModuleDict, ModuleList, Sequential
from .execution.defaults import use
from .execution.reports import Report
from .materializing import materialize
from .planning import plan
from .plans import Plan
from .recording.capturing import build, capture
from .recording.recipes import Recipe
from .version import __version__
from .weight_init import (
    WEIGHT_INITIALIZERS,
    BaseInit,
    Caffe2XavierInit,
    ConstantInit,
    KaimingInit,
    NormalInit,
    PretrainedInit,
    TruncNormalInit,
    UniformInit,
    XavierInit,
    bias_init_with_prob,
    caffe2_xavier_init,
    constant_init,
    initialize,
    kaiming_init,
    normal_init,
    trunc_normal_,
    trunc_normal_init,
    uniform_init,
    update_init_info,
    xavier_init,
)

__all__ = [
    "WEIGHT_INITIALIZERS",
    "BaseInit",
    "BaseModule",
    "Caffe2XavierInit",
    "ConstantInit",
    "KaimingInit",
    "ModuleDict",
    "ModuleList",
    "NormalInit",
    "Plan",
    "PretrainedInit",
    "Recipe",
    "Report",
    "Sequential",
    "TruncNormalInit",
    "UniformInit",
    "XavierInit",
    "__version__",
    "available_backends",
    "bias_init_with_prob",
    "build",
    "caffe2_xavier_init",
    "capture",
    "constant_init",
    "initialize",
    "integrations",
    "kaiming_init",
    "materialize",
    "normal_init",
    "plan",
    "plans",
    "trunc_normal_",
    "trunc_normal_init",
    "uniform_init",
    "update_init_info",
    "use",
    "xavier_init",
]
