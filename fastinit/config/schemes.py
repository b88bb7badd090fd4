"""Named initialization schemes: from a weight's shape to its distribution.

The order of the floating-point operations is part of the result. It is torch.nn.init's, so that a planned fill and a
call of torch.nn.init use the same float64 numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import warn_user
from ..plans import Distribution, Normal, TruncatedNormal, Uniform, real_number

FAN_MODES = ("fan_in", "fan_out")


def xavier(shape: Sequence[int], gain: float = 1, distribution: str = "normal", batch_dims: int = 0) -> Distribution:
    """Returns the distribution of Glorot & Bengio (AISTATS 2010, eq. 16): std = gain * sqrt(2 / (fan_in + fan_out)).

    Args:
        shape: the weight's full shape, in elements.
        gain: the factor of the standard deviation.
        distribution: "normal" or "uniform".
        batch_dims: as for ``fans``.

    Raises:
        AssertionError: an unknown ``distribution``.
        ValueError: fewer than two dimensions.
    """
    of_std = centred(distribution)
    real_number("gain", gain)
    return of_std(float(gain * math.sqrt(2.0 / float(sum(fans(shape, batch_dims))))))


def kaiming(
    shape: Sequence[int],
    a: float = 0,
    mode: str = "fan_out",
    nonlinearity: str = "relu",
    distribution: str = "normal",
    batch_dims: int = 0,
) -> Distribution:
    """Returns the distribution of He et al. (ICCV 2015, eq. 10 and 14): std = gain(nonlinearity, a) / sqrt(fan).

    For a weight without elements it warns as torch does, and computes no fan.

    Args:
        shape: the weight's full shape, in elements.
        a: the negative slope, for "leaky_relu".
        mode: "fan_in" or "fan_out".
        nonlinearity: as for ``torch.nn.init.calculate_gain``.
        distribution: "normal" or "uniform".
        batch_dims: as for ``fans``.

    Raises:
        AssertionError: an unknown ``distribution``.
        ValueError: fewer than two dimensions, or an unknown mode or nonlinearity.
    """
    of_std = centred(distribution)
    if 0 in shape:
        warn_user("Initializing zero-element tensors is a no-op")
        return Normal(0.0, 0.0)
    fan = _fan(shape, mode, batch_dims)
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


def gain_of(nonlinearity: str, a: float) -> float:
    """Returns the gain of a nonlinearity, as ``torch.nn.init.calculate_gain`` has it.

    Args:
        nonlinearity: one of ``NONLINEARITIES``.
        a: the negative slope, for "leaky_relu".

    Raises:
        ValueError: torch does not know it; the message lists those that it does.
    """
    try:
        return float(torch.nn.init.calculate_gain(nonlinearity, a))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{error}. The gains that torch knows: {', '.join(NONLINEARITIES)}") from error


# --- fans and standard deviations ------------------------------------------------------------------------------------


def fans(shape: Sequence[int], batch_dims: int = 0) -> tuple[int, int]:
    """Returns (fan_in, fan_out) of a weight: dimensions 1 and 0, each times the receptive field (all later dimensions).

    Args:
        shape: the full shape, in elements, e.g. (out, in, height, width).
        batch_dims: the number of leading dimensions that only stack independent weights and do not count (64 experts
            in one tensor of (64, 1024, 512) have ``batch_dims=1``).

    Raises:
        ValueError: fewer than two dimensions are left.
    """
    shape = tuple(shape)
    own = shape[batch_dims:]
    if len(own) < 2:
        behind = f" after batch_dims={batch_dims}" if batch_dims else ""
        raise ValueError(
            f"Fan in and fan out can not be computed for tensor with fewer than 2 dimensions{behind}, but the shape is "
            f"{shape}. Use a type without fans for it (Constant, Normal, TruncNormal or Uniform)."
        )
    receptive_field = math.prod(own[2:])
    return own[1] * receptive_field, own[0] * receptive_field


def centred(distribution: str) -> Callable[[float], Distribution]:
    """Returns the function from a standard deviation to the normal or uniform distribution with mean 0.

    Raises:
        AssertionError: the name is neither "normal" nor "uniform".
    """
    if not isinstance(distribution, str) or distribution not in ("uniform", "normal"):
        raise AssertionError(f"distribution must be 'uniform' or 'normal', but got {distribution!r}")
    return _CENTRED[distribution]


def _fan(shape: Sequence[int], mode: str, batch_dims: int) -> int:
    if not isinstance(mode, str):
        raise TypeError(f"mode must be one of {list(FAN_MODES)}, but got {mode!r} of {type(mode)}")
    if mode.lower() not in FAN_MODES:
        raise ValueError(f"Mode {mode.lower()} not supported, please use one of {list(FAN_MODES)}")
    return fans(shape, batch_dims)[FAN_MODES.index(mode.lower())]


def _normal(std: float) -> Distribution:
    return Normal(0.0, std)


def _uniform(std: float) -> Distribution:
    bound = math.sqrt(3.0) * std
    return Uniform(-bound, bound)


_CENTRED: dict[str, Callable[[float], Distribution]] = {"normal": _normal, "uniform": _uniform}
