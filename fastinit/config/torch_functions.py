"""What stands for the functions of torch.nn.init as the ``type`` of a rule: ``type="torch.nn.init.eye_"``.

They take the functions' own arguments and defaults, and ``layer``, ``param``, ``bias`` as other types do. On the
backend ``torch`` they have the functions' numbers, on the others those of the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plans import Distribution, TorchTruncatedNormal, numbers_of
from ..registry import WEIGHT_INITIALIZERS
from .further_initializers import DiracInit, IdentityInit, OnesInit, OrthogonalInit, SparseInit, ZerosInit
from .initializers import BaseInit, ConstantInit, KaimingInit, NormalInit, TruncNormalInit, UniformInit, XavierInit
from .module_fills import Shape


class TorchTruncNormalInit(TruncNormalInit):
    """As ``TruncNormalInit``, but drawn on the backend ``torch`` as ``torch.nn.init.trunc_normal_`` draws."""

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of values."""
        return TorchTruncatedNormal(*numbers_of(super().weight_distribution(shape)).values())  # type: ignore[arg-type]


def xavier_uniform_(gain: float = 1.0, **kwargs: Any) -> BaseInit:
    """Stands for ``torch.nn.init.xavier_uniform_``."""
    return XavierInit(gain, "uniform", **kwargs)


def xavier_normal_(gain: float = 1.0, **kwargs: Any) -> BaseInit:
    """Stands for ``torch.nn.init.xavier_normal_``."""
    return XavierInit(gain, "normal", **kwargs)


def kaiming_uniform_(a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", **kwargs: Any) -> BaseInit:
    """Stands for ``torch.nn.init.kaiming_uniform_``."""
    return KaimingInit(a, mode, nonlinearity, "uniform", **kwargs)


def kaiming_normal_(a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", **kwargs: Any) -> BaseInit:
    """Stands for ``torch.nn.init.kaiming_normal_``."""
    return KaimingInit(a, mode, nonlinearity, "normal", **kwargs)


_STANDING_FOR: dict[str, Callable[..., BaseInit]] = {
    "uniform_": UniformInit,
    "normal_": NormalInit,
    "trunc_normal_": TorchTruncNormalInit,
    "constant_": ConstantInit,
    "ones_": OnesInit,
    "zeros_": ZerosInit,
    "eye_": IdentityInit,
    "dirac_": DiracInit,
    "xavier_uniform_": xavier_uniform_,
    "xavier_normal_": xavier_normal_,
    "kaiming_uniform_": kaiming_uniform_,
    "kaiming_normal_": kaiming_normal_,
    "orthogonal_": OrthogonalInit,
    "sparse_": SparseInit,
}
WEIGHT_INITIALIZERS.by_path |= {f"torch.nn.init.{name}": kind for name, kind in _STANDING_FOR.items()}
