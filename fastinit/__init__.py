"""fastinit: plans how every parameter of a PyTorch model starts, checks the plan, and runs it in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors, integrations, plans
from .backends import available_backends
from .base_module import BaseModule, ModuleDict, ModuleList, Sequential
from .doors import door
from .errors import Error, InitWarning
from .execution.defaults import use
from .execution.done import CheckpointReport
from .execution.reports import Report
from .plans import Digest, DigestDiff, Plan, PlanDiff, Row
from .recording.capturing import build, capture  # now: it keeps torch.nn.init as it is before others change it
from .recording.recipes import Recipe
from .version import __version__
from .weight_init import (
    WEIGHT_INITIALIZERS,
    BaseInit,
    Caffe2XavierInit,
    ConstantInit,
    DeltaOrthogonalInit,
    DiracInit,
    GlorotInit,
    HeInit,
    IdentityInit,
    KaimingInit,
    LecunInit,
    NormalInit,
    OnesInit,
    OrthogonalInit,
    PretrainedInit,
    SparseInit,
    TruncNormalInit,
    UniformInit,
    VarianceScalingInit,
    XavierInit,
    ZerosInit,
    bias_init_with_prob,
    caffe2_xavier_init,
    constant_init,
    delta_orthogonal_init,
    dirac_init,
    identity_init,
    initialize,
    kaiming_init,
    normal_init,
    orthogonal_init,
    sparse_init,
    trunc_normal_,
    trunc_normal_init,
    uniform_init,
    update_init_info,
    variance_scaling_init,
    xavier_init,
)

if TYPE_CHECKING:
    from . import mup as mup
    from . import presets as presets
    from . import rules as rules
    from .data_dependent import lsuv
    from .digesting import digest
    from .materializing import materialize
    from .parameter_values import values
    from .planning import plan
    from .redrawing import redraw
    from .signal_flow import Signals, signals
    from .verifying import Verification, verify
    from .writing import write
else:
    __getattr__, __dir__ = door(
        __name__,
        {
            "mup": (),
            "presets": (),
            "rules": (),
            "data_dependent": ("lsuv",),
            "digesting": ("digest",),
            "materializing": ("materialize",),
            "parameter_values": ("values",),
            "planning": ("plan",),
            "redrawing": ("redraw",),
            "signal_flow": ("Signals", "signals"),
            "verifying": ("Verification", "verify"),
            "writing": ("write",),
        },
    )

__all__ = [
    "WEIGHT_INITIALIZERS",
    "BaseInit",
    "BaseModule",
    "Caffe2XavierInit",
    "CheckpointReport",
    "ConstantInit",
    "DeltaOrthogonalInit",
    "Digest",
    "DigestDiff",
    "DiracInit",
    "Error",
    "GlorotInit",
    "HeInit",
    "IdentityInit",
    "InitWarning",
    "KaimingInit",
    "LecunInit",
    "ModuleDict",
    "ModuleList",
    "NormalInit",
    "OnesInit",
    "OrthogonalInit",
    "Plan",
    "PlanDiff",
    "PretrainedInit",
    "Recipe",
    "Report",
    "Row",
    "Sequential",
    "Signals",
    "SparseInit",
    "TruncNormalInit",
    "UniformInit",
    "VarianceScalingInit",
    "Verification",
    "XavierInit",
    "ZerosInit",
    "__version__",
    "available_backends",
    "bias_init_with_prob",
    "build",
    "caffe2_xavier_init",
    "capture",
    "constant_init",
    "delta_orthogonal_init",
    "digest",
    "dirac_init",
    "errors",
    "identity_init",
    "initialize",
    "integrations",
    "kaiming_init",
    "lsuv",
    "materialize",
    "mup",
    "normal_init",
    "orthogonal_init",
    "plan",
    "plans",
    "presets",
    "redraw",
    "rules",
    "signals",
    "sparse_init",
    "trunc_normal_",
    "trunc_normal_init",
    "uniform_init",
    "update_init_info",
    "use",
    "values",
    "variance_scaling_init",
    "verify",
    "write",
    "xavier_init",
]
