"""Named initialization schemes: from a weight's shape to its distribution.

The order of the floating-point operations is part of the result. It is torch.nn.init's, so that a planned fill and a
call of torch.nn.init use the same float64 numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import InitAssertionError, InitTypeError, InitValueError, warn_user
from ..plans import Distribution, Normal, TruncatedNormal, Uniform, real_number

FAN_MODES = ("fan_in", "fan_out")


def xavier(
    shape: Sequence[int],
    gain: float = 1,
    distribution: str = "normal",
    batch_dims: int = 0,
    fan_axes: tuple[int, int] | None = None,
) -> Distribution:
    """Returns the distribution of Glorot & Bengio (AISTATS 2010, eq. 16): std = gain * sqrt(2 / (fan_in + fan_out)).

    Args:
        shape: the weight's full shape, in elements.
        gain: the factor of the standard deviation.
        distribution: "normal" or "uniform".
        batch_dims, fan_axes: as for ``fans``.

    Raises:
        AssertionError: an unknown ``distribution``.
        ValueError: fewer than two dimensions.
    """
    of_std = centred(distribution)
    real_number("gain", gain)
    return of_std(float(gain * math.sqrt(2.0 / float(sum(fans(shape, batch_dims, fan_axes))))))


def kaiming(
    shape: Sequence[int],
    a: float = 0,
    mode: str = "fan_out",
    nonlinearity: str = "relu",
    distribution: str = "normal",
    batch_dims: int = 0,
    fan_axes: tuple[int, int] | None = None,
) -> Distribution:
    """Returns the distribution of He et al. (ICCV 2015, eq. 10 and 14): std = gain(nonlinearity, a) / sqrt(fan).

    For a weight without elements it warns as torch does, and computes no fan.

    Args:
        shape: the weight's full shape, in elements.
        a: the negative slope, for "leaky_relu".
        mode: "fan_in" or "fan_out".
        nonlinearity: as for ``torch.nn.init.calculate_gain``.
        distribution: "normal" or "uniform".
        batch_dims, fan_axes: as for ``fans``.

    Raises:
        AssertionError: an unknown ``distribution``.
        ValueError: fewer than two dimensions, or an unknown mode or nonlinearity.
    """
    of_std = centred(distribution)
    if _is_empty(shape):
        return Normal(0.0, 0.0)
    fan = _fan(shape, mode, batch_dims, fan_axes)
    return of_std(gain_of(nonlinearity, a) / math.sqrt(fan))


def truncated_normal(mean: float, std: float, a: float, b: float) -> TruncatedNormal:
    """Returns the normal distribution on [a, b]; warns if hardly any of it lies there.

    Raises:
        ZeroDivisionError: ``std`` is 0.
        RuntimeError: ``std`` < 0 or a > b.
    """
    found = TruncatedNormal(mean, std, a, b)
    if found.mean < found.low - 2 * found.std or found.mean > found.high + 2 * found.std:
        warn_user(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. The distribution of values may be incorrect."
        )
    return found


# The standard deviation of a standard normal variable on [-2, 2], by which JAX and Keras divide.
_STD_WITHIN_TWO = 0.87962566103423978
SCALING_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
SCALING_DISTRIBUTIONS = ("normal", "uniform", "truncated_normal")


def variance_scaling(
    shape: Sequence[int],
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    batch_dims: int = 0,
    fan_axes: tuple[int, int] | None = None,
) -> Distribution:
    """Returns a distribution with mean 0 and variance scale / fan, as ``jax.nn.initializers.variance_scaling`` has it.

    Args:
        shape: the weight's full shape, in elements.
        scale: the factor of the variance.
        mode: the fan: "fan_in", "fan_out", their mean "fan_avg", or their geometric mean "fan_geo_avg".
        distribution: "normal", "uniform", or "truncated_normal": cut at two standard deviations, of a normal
            distribution so much wider that the variance is that of the others.
        batch_dims, fan_axes: as for ``fans``.

    Raises:
        ValueError: an unknown mode or distribution, a negative scale, or fewer than two dimensions.
    """
    if mode not in SCALING_MODES:
        raise InitValueError(f"mode must be one of {', '.join(SCALING_MODES)}, but got {mode!r}")
    if distribution not in SCALING_DISTRIBUTIONS:
        raise InitValueError(
            f"distribution must be one of {', '.join(SCALING_DISTRIBUTIONS)}, but got {distribution!r}"
        )
    if not real_number("scale", scale) >= 0:
        raise InitValueError(f"scale must not be negative, but got {scale}")
    if _is_empty(shape):
        return Normal(0.0, 0.0)
    fan_in, fan_out = fans(shape, batch_dims, fan_axes)
    fan = (fan_in, fan_out, (fan_in + fan_out) / 2, math.sqrt(fan_in * fan_out))[SCALING_MODES.index(mode)]
    std = math.sqrt(float(scale) / fan)
    if distribution != "truncated_normal" or std == 0:
        return _uniform(std) if distribution == "uniform" else _normal(std)
    std /= _STD_WITHIN_TWO
    return TruncatedNormal(0.0, std, -2 * std, 2 * std)


def bias_init_with_prob(prior_prob: float) -> float:
    """Returns the bias b for which sigmoid(b) is ``prior_prob`` (Lin et al., "Focal Loss", ICCV 2017, section 4.1).

    Raises:
        ZeroDivisionError: ``prior_prob`` is 0. For 1 the result is inf, with numpy's warning, as in mmengine.

    Example:
        >>> bias_init_with_prob(0.01)
        -4.59511985013459
    """
    return float(-np.log((1 - prior_prob) / prior_prob))


# As torch.nn.init.calculate_gain knows them.
NONLINEARITIES = (
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("sigmoid", "tanh", "relu", "leaky_relu", "selu"),
)
# Of those that torch does not know, by what makes relu's gain sqrt(2): the mean of (gain f(z))^2 for a standard normal
# z is 1. From integrals over 40 standard deviations, which a test computes again.
_GAINS = {
    "elu": 1.245198301,
    "gelu": 1.533530441,
    "gelu_tanh": 1.533580521,
    "mish": 1.486847581,
    "silu": 1.676532470,
    "swish": 1.676532470,
}


def gain_of(nonlinearity: str, a: float) -> float:
    """Returns the gain of a nonlinearity, as ``torch.nn.init.calculate_gain`` has it, or of gelu, silu, mish, elu.

    Args:
        nonlinearity: one of ``NONLINEARITIES``, or "elu", "gelu", "gelu_tanh", "mish", "silu" (or "swish").
        a: the negative slope, for "leaky_relu".

    Raises:
        ValueError: it is none of them; the message lists them.
    """
    if nonlinearity in _GAINS:
        return _GAINS[nonlinearity]
    try:
        return float(torch.nn.init.calculate_gain(nonlinearity, a))  # type: ignore[arg-type]
    except ValueError as error:
        raise InitValueError(
            f"{error}", hint=f". The gains that are known: {', '.join((*NONLINEARITIES, *_GAINS))}"
        ) from error


# --- fans and standard deviations ------------------------------------------------------------------------------------


def fans(shape: Sequence[int], batch_dims: int = 0, fan_axes: tuple[int, int] | None = None) -> tuple[int, int]:
    """Returns (fan_in, fan_out) of a weight: dimensions 1 and 0, each times the receptive field (all later dimensions).

    Args:
        shape: the full shape, in elements, e.g. (out, in, height, width).
        batch_dims: the number of leading dimensions that only stack independent weights and do not count (64 experts
            in one tensor of (64, 1024, 512) have ``batch_dims=1``).
        fan_axes: which dimensions the inputs and the outputs are, (in, out), of weights that are not stored as
            torch.nn stores them; (1, 2) for experts of (experts, in, out), with ``batch_dims=1``. Negative numbers
            count from the end. The other dimensions, but for ``batch_dims``, are the receptive field.

    Raises:
        ValueError: fewer than two dimensions are left, or ``fan_axes`` are none of them.
    """
    shape = tuple(shape)
    own = shape[batch_dims:]
    if len(own) < 2:
        behind = f" after batch_dims={batch_dims}" if batch_dims else ""
        raise InitValueError(
            f"Fan in and fan out can not be computed for tensor with fewer than 2 dimensions{behind}, but the shape is "
            f"{shape}",
            hint=". Use a type without fans for it (Constant, Normal, TruncNormal or Uniform).",
        )
    if fan_axes is not None:
        axes = tuple(axis + len(shape) if axis < 0 else axis for axis in fan_axes)
        if axes[0] == axes[1] or not all(batch_dims <= axis < len(shape) for axis in axes):
            raise InitValueError(
                f"fan_axes={fan_axes} must be two different dimensions from {batch_dims} to {len(shape) - 1} of the "
                f"shape {shape}"
            )
        field = math.prod(size for axis, size in enumerate(own, batch_dims) if axis not in axes)
        return shape[axes[0]] * field, shape[axes[1]] * field
    receptive_field = math.prod(own[2:])
    return own[1] * receptive_field, own[0] * receptive_field


def centred(distribution: str) -> Callable[[float], Distribution]:
    """Returns the function from a standard deviation to the normal or uniform distribution with mean 0.

    Raises:
        AssertionError: the name is neither "normal" nor "uniform".
    """
    if not isinstance(distribution, str) or distribution not in ("uniform", "normal"):
        raise InitAssertionError(f"distribution must be 'uniform' or 'normal', but got {distribution!r}")
    return _CENTRED[distribution]


def _is_empty(shape: Sequence[int]) -> bool:
    """Tells whether a weight has no elements, and then warns as torch does."""
    if 0 not in shape:
        return False
    warn_user("Initializing zero-element tensors is a no-op")
    return True


def _fan(shape: Sequence[int], mode: str, batch_dims: int, fan_axes: tuple[int, int] | None) -> int:
    if not isinstance(mode, str):
        raise InitTypeError(f"mode must be one of {list(FAN_MODES)}, but got {mode!r} of {type(mode)}")
    if mode.lower() not in FAN_MODES:
        raise InitValueError(f"Mode {mode.lower()} not supported", hint=f", please use one of {list(FAN_MODES)}")
    return fans(shape, batch_dims, fan_axes)[FAN_MODES.index(mode.lower())]


def _normal(std: float) -> Distribution:
    return Normal(0.0, std)


def _uniform(std: float) -> Distribution:
    bound = math.sqrt(3.0) * std
    return Uniform(-bound, bound)


_CENTRED: dict[str, Callable[[float], Distribution]] = {"normal": _normal, "uniform": _uniform}
