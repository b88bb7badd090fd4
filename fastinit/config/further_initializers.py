"""The initializer classes that mmengine has not: constants by name, scaling by variance, and structured matrices.

Each is used as those of mmengine are, in configs (``type="Orthogonal"``) and as objects. What torch.nn.init has has its
numbers on the backend ``torch``, bit for bit.
"""

from __future__ import annotations

from typing import Any

from ..plans import Constant, DeltaOrthogonal, Dirac, Distribution, Identity, Orthogonal, Sparse, matrices_of
from ..plans.distributions import Structured
from ..registry import WEIGHT_INITIALIZERS
from .initializers import BaseInit, FanInit
from .module_fills import Shape
from .schemes import variance_scaling


@WEIGHT_INITIALIZERS.register_module(name="Zeros")
class ZerosInit(BaseInit):
    """Fills weights with 0."""

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the constant 0."""
        return Constant(0.0)


@WEIGHT_INITIALIZERS.register_module(name="Ones")
class OnesInit(BaseInit):
    """Fills weights with 1."""

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the constant 1."""
        return Constant(1.0)


@WEIGHT_INITIALIZERS.register_module(name="VarianceScaling")
class VarianceScalingInit(FanInit):
    """Fills weights with mean 0 and variance scale / fan, as ``jax.nn.initializers.variance_scaling`` does.

    Args:
        scale: the factor of the variance.
        mode: "fan_in", "fan_out", "fan_avg" or "fan_geo_avg".
        distribution: "truncated_normal" (cut at two standard deviations), "normal" or "uniform".
    """

    _numbers = "scale={0.scale}, mode={0.mode}, distribution={0.distribution}"

    def __init__(
        self, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.scale = scale
        self.mode = mode
        self.distribution = distribution

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution for a weight of this shape."""
        return variance_scaling(shape, self.scale, self.mode, self.distribution, self.batch_dims, self.fan_axes)


@WEIGHT_INITIALIZERS.register_module(name="Lecun")
class LecunInit(VarianceScalingInit):
    """Fills weights with variance 1 / fan_in (LeCun et al. 1998, "Efficient BackProp")."""

    _fixed = ("scale", "mode")

    def __init__(self, distribution: str = "truncated_normal", **kwargs: Any) -> None:
        super().__init__(1.0, "fan_in", distribution, **kwargs)


@WEIGHT_INITIALIZERS.register_module(name="Glorot")
class GlorotInit(VarianceScalingInit):
    """Fills weights with variance 2 / (fan_in + fan_out) (Glorot & Bengio, AISTATS 2010), as Keras and JAX do."""

    _fixed = ("scale", "mode")

    def __init__(self, distribution: str = "uniform", **kwargs: Any) -> None:
        super().__init__(1.0, "fan_avg", distribution, **kwargs)


@WEIGHT_INITIALIZERS.register_module(name="He")
class HeInit(VarianceScalingInit):
    """Fills weights with variance 2 / fan_in (He et al., ICCV 2015), as Keras and JAX do."""

    _fixed = ("scale", "mode")

    def __init__(self, distribution: str = "truncated_normal", **kwargs: Any) -> None:
        super().__init__(2.0, "fan_in", distribution, **kwargs)


class _StructuredInit(BaseInit):
    """Base of initializers of which a shape may be refused."""

    def _distribution(self) -> Structured:
        raise NotImplementedError

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of values, if a weight of this shape can have it."""
        distribution = self._distribution()
        matrices_of(distribution, shape)  # raises if there are none of this shape
        return distribution


@WEIGHT_INITIALIZERS.register_module(name="Identity")
class IdentityInit(_StructuredInit):
    """Fills matrices with 1 on the diagonal and 0 elsewhere, as ``torch.nn.init.eye_`` does."""

    def _distribution(self) -> Structured:
        return Identity()


@WEIGHT_INITIALIZERS.register_module(name="Dirac")
class DiracInit(_StructuredInit):
    """Fills weights of convolutions so that they give their input back, as ``torch.nn.init.dirac_`` does.

    Args:
        groups: the groups of channels, in each of which the first ones are given back.
    """

    _numbers = "groups={0.groups}"

    def __init__(self, groups: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = groups

    def _distribution(self) -> Structured:
        return Dirac(self.groups)


@WEIGHT_INITIALIZERS.register_module(name="Sparse")
class SparseInit(_StructuredInit):
    """Fills matrices with normal draws, of which a share in each column is 0 (Martens, ICML 2010).

    Args:
        sparsity: the share of zeros, from 0 to 1; their number in a column is rounded up.
        std: the standard deviation of the others.
    """

    _numbers = "sparsity={0.sparsity}, std={0.std}"

    def __init__(self, sparsity: float, std: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sparsity = sparsity
        self.std = std

    def _distribution(self) -> Structured:
        return Sparse(self.sparsity, self.std)


@WEIGHT_INITIALIZERS.register_module(name="Orthogonal")
class OrthogonalInit(_StructuredInit):
    """Fills weights with random orthogonal matrices (Saxe et al., ICLR 2014), as ``torch.nn.init.orthogonal_`` does.

    All dimensions but the first are the columns. Of the rows and the columns those that are fewer are orthonormal.

    Args:
        gain: the factor.
        batch_dims: the number of leading dimensions that only stack independent matrices (1 for the experts of a layer
            in one tensor).
    """

    _numbers = "gain={0.gain}"

    def __init__(self, gain: float = 1, *, batch_dims: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain = gain
        self.batch_dims = batch_dims

    def _distribution(self) -> Structured:
        return Orthogonal(self.gain, self.batch_dims)

    def _get_init_info(self) -> str:
        return super()._get_init_info() + (f", batch_dims={self.batch_dims}" if self.batch_dims else "")


@WEIGHT_INITIALIZERS.register_module(name="DeltaOrthogonal")
class DeltaOrthogonalInit(_StructuredInit):
    """Fills weights of convolutions with 0, and their centre with an orthogonal matrix (Xiao et al., ICML 2018).

    Args:
        gain: the factor.
    """

    _numbers = "gain={0.gain}"

    def __init__(self, gain: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain = gain

    def _distribution(self) -> Structured:
        return DeltaOrthogonal(self.gain)


# Users of mmengine may have registered types of these names.
WEIGHT_INITIALIZERS.replaceable |= {
    *("Zeros", "Ones", "VarianceScaling", "Lecun", "Glorot", "He"),
    *("Identity", "Dirac", "Sparse", "Orthogonal", "DeltaOrthogonal"),
}
