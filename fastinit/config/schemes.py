"""From a weight's shape to the numbers of its distribution: fans, gains, standard deviations, bias probabilities.

The order of the floating-point operations is part of the result: it is that of torch.nn.init, so that a fill planned
here and a call of torch.nn.init use the same float64 numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

FAN_MODES = ("fan_in", "fan_out")


def fans(shape: Sequence[int], batch_dims: int = 0) -> tuple[int, int]:
    """Returns (fan_in, fan_out) of a weight: dimension 1 and dimension 0, each times the receptive field behind them.

    Args:
        shape: the full shape, in elements, e.g. (out, in, height, width).
        batch_dims: how many leading dimensions only stack independent weights (64 experts in one tensor of
            (64, 1024, 512) have ``batch_dims=1``); they do not count.

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


def xavier_std(shape: Sequence[int], gain: float = 1.0, batch_dims: int = 0) -> float:
    """Returns gain * sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio, AISTATS 2010, eq. 16)."""
    fan_in, fan_out = fans(shape, batch_dims)
    return float(gain * math.sqrt(2.0 / float(fan_in + fan_out)))


def kaiming_std(
    shape: Sequence[int], a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", batch_dims: int = 0
) -> float:
    """Returns gain(nonlinearity, a) / sqrt(fan) (He et al., ICCV 2015, eq. 10 and 14).

    Raises:
        ValueError: fewer than two dimensions, or an unknown mode or nonlinearity.
    """
    if mode.lower() not in FAN_MODES:
        raise ValueError(f"Mode {mode.lower()} not supported, please use one of {list(FAN_MODES)}")
    fan = fans(shape, batch_dims)[FAN_MODES.index(mode.lower())]
    return float(torch.nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan))  # type: ignore[arg-type]


def uniform_bound(std: float) -> float:
    """Returns the b for which Uniform(-b, b) has standard deviation ``std``."""
    return math.sqrt(3.0) * std


def bias_init_with_prob(prior_prob: float) -> float:
    """Returns the bias b for which sigmoid(b) is ``prior_prob`` (Lin et al., "Focal Loss", ICCV 2017, section 4.1).

    Raises:
        ZeroDivisionError: ``prior_prob`` is 0. For 1 the result is inf, with numpy's warning, as in mmengine.

    Example:
        >>> bias_init_with_prob(0.01)
        -4.59511985013459
    """
    return float(-np.log((1 - prior_prob) / prior_prob))
