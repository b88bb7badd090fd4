"""Who fills tensors on the CPU, for bench_peers.py: fastinit, torch, numpy and JAX; and the check that all must pass.

Each contender fills as its own documentation says. JAX is optional (``pip install jax``); its calls are jitted, and
where memory is filled again, they get that of the last result (``donate_argnums``). In bfloat16 it draws in float32 and
rounds, within one call: what it draws in bfloat16 itself does not pass the check.
"""

from __future__ import annotations

import importlib.util
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils.dlpack import from_dlpack

import fastinit
from fastinit import plans

Distribution: TypeAlias = plans.Normal | plans.Uniform | plans.TruncatedNormal | plans.Constant
# Kaiming and Xavier are one of the first three, with another number. The truncated normal is cut at two deviations.
FILLS: dict[str, Distribution] = {
    "normal": plans.Normal(0, 0.02),
    "uniform": plans.Uniform(-0.1, 0.1),
    "truncated normal": plans.TruncatedNormal(0, 0.02, -0.04, 0.04),
    "constant": plans.Constant(1.0),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class NotInstalledError(Exception):
    """A contender's package is missing."""


@dataclass(frozen=True)
class Filler:
    """How one contender makes one tensor."""

    again: Callable[[int], Any]
    """Fills the memory that it filled before, by a seed, and returns the contender's own array."""
    anew: Callable[[int], Any]
    """Fills new memory, by a seed."""
    tensor_of: Callable[[Any], torch.Tensor]
    """Returns an array's memory as a tensor; while that lives, JAX cannot fill it again."""


# --- the contenders --------------------------------------------------------------------------------------------------


def by_fastinit(distribution: Distribution, dtype: torch.dtype, n: int) -> Filler:
    """The backend ``cpp``, by the public functions."""
    memory = torch.ones(n, dtype=dtype)
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(memory))
    rule = _rule(distribution)

    def again(seed: int) -> torch.Tensor:
        fastinit.initialize(model, rule, backend="cpp", seed=seed)
        return memory

    def anew(seed: int) -> torch.Tensor:
        return fastinit.values("weight", (n,), distribution, seed=seed, dtype=dtype, backend="cpp")

    return Filler(again, anew, _same)


def by_torch(distribution: Distribution, dtype: torch.dtype, n: int) -> Filler:
    """torch.nn.init."""
    memory = torch.ones(n, dtype=dtype)
    fill = _torch_call(distribution)

    def filled(tensor: torch.Tensor, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return fill(tensor)

    return Filler(partial(filled, memory), lambda seed: filled(torch.empty(n, dtype=dtype), seed), _same)


def by_numpy(
    bits: Callable[[int], np.random.BitGenerator], distribution: Distribution, dtype: torch.dtype, n: int
) -> Filler | None:
    """numpy.random.Generator over a generator of bits; None for what numpy has not."""
    if dtype == torch.bfloat16 or isinstance(distribution, plans.TruncatedNormal):
        return None
    kind: Any = np.float32 if dtype == torch.float32 else np.float64
    memory = np.ones(n, kind)

    def filled(out: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
        if isinstance(distribution, plans.Constant):
            out.fill(distribution.value.real)
            return out
        generator = np.random.Generator(bits(seed))
        if isinstance(distribution, plans.Uniform):
            generator.random(out=out, dtype=kind)
            out *= distribution.high - distribution.low
            out += distribution.low
        elif isinstance(distribution, plans.Normal):
            generator.standard_normal(out=out, dtype=kind)
            out *= distribution.std  # the mean is 0
        return out

    return Filler(partial(filled, memory), lambda seed: filled(np.empty(n, kind), seed), torch.from_numpy)


def by_jax(bits: str, distribution: Distribution, dtype: torch.dtype, n: int, *, rounds: bool = True) -> Filler:
    """jax.random on the CPU, jitted.

    Args:
        bits: JAX's name of the generator.
        distribution, dtype, n: of the tensor.
        rounds: bfloat16 is drawn in float32 and rounded; False: drawn in bfloat16.

    Raises:
        NotInstalledError: there is no JAX.
    """
    if importlib.util.find_spec("jax") is None:
        raise NotInstalledError("jax")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)  # the dtype of every draw is named
    wanted = getattr(jax.numpy, str(dtype).removeprefix("torch."))
    drawn = jax.numpy.float32 if dtype == torch.bfloat16 and rounds else wanted

    def fill(seed: Any) -> Any:
        key = jax.random.key(seed, impl=bits)
        if isinstance(distribution, plans.Constant):
            return jax.numpy.full((n,), distribution.value.real, wanted)
        if isinstance(distribution, plans.Uniform):
            values = jax.random.uniform(key, (n,), drawn, distribution.low, distribution.high)
        elif isinstance(distribution, plans.TruncatedNormal):
            low, high = distribution.low / distribution.std, distribution.high / distribution.std
            values = jax.random.truncated_normal(key, low, high, (n,), drawn) * distribution.std
        else:
            values = jax.random.normal(key, (n,), drawn) * distribution.std
        return values.astype(wanted)

    into = jax.jit(lambda memory, seed: fill(seed), donate_argnums=0, keep_unused=True)
    new = jax.jit(fill)
    memory = [jax.numpy.ones((n,), wanted)]

    def again(seed: int) -> Any:
        memory[0] = into(memory[0], seed).block_until_ready()
        return memory[0]

    return Filler(again, lambda seed: new(seed).block_until_ready(), _of_jax)


CONTENDERS: Mapping[str, Callable[[Distribution, torch.dtype, int], Filler | None]] = {
    "fastinit, cpp": by_fastinit,
    "torch.nn.init": by_torch,
    "numpy, SFC64": partial(by_numpy, np.random.SFC64),
    "numpy, Philox": partial(by_numpy, np.random.Philox),
    "JAX, threefry": partial(by_jax, "threefry2x32"),
    "JAX, rbg": partial(by_jax, "rbg"),
}


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _of_jax(array: Any) -> torch.Tensor:
    return from_dlpack(array)


def _rule(distribution: Distribution) -> dict[str, Any]:
    if isinstance(distribution, plans.Normal):
        return dict(type="Normal", mean=distribution.mean, std=distribution.std, param="weight")
    if isinstance(distribution, plans.Uniform):
        return dict(type="Uniform", a=distribution.low, b=distribution.high, param="weight")
    if isinstance(distribution, plans.TruncatedNormal):
        mean, std, low, high = distribution.mean, distribution.std, distribution.low, distribution.high
        return dict(type="TruncNormal", mean=mean, std=std, a=low, b=high, param="weight")
    return dict(type="Constant", val=distribution.value.real, param="weight")


def _torch_call(distribution: Distribution) -> Callable[[torch.Tensor], torch.Tensor]:
    if isinstance(distribution, plans.Normal):
        return partial(nn.init.normal_, mean=distribution.mean, std=distribution.std)
    if isinstance(distribution, plans.Uniform):
        return partial(nn.init.uniform_, a=distribution.low, b=distribution.high)
    if isinstance(distribution, plans.TruncatedNormal):
        mean, std, low, high = distribution.mean, distribution.std, distribution.low, distribution.high
        return partial(nn.init.trunc_normal_, mean=mean, std=std, a=low, b=high)
    return partial(nn.init.constant_, val=distribution.value.real)


# --- the check -------------------------------------------------------------------------------------------------------

# Of each result, as many elements from the front and as many from the back are looked at.
_SAMPLE = 1 << 20
# In deviations, or parts of a uniform's half width.
_THRESHOLDS = (-3.0, -2.0, -1.5, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0)


def examined(filler: Filler, distribution: Distribution, dtype: torch.dtype) -> tuple[str, int]:
    """Returns what is wrong with what a contender makes, in a few words or an empty text; and a checksum of its values.

    A seed gives the same values twice, in memory that is filled again and in new memory; another seed gives others; no
    value is out of range; the mean, and the share of values below a dozen thresholds, are within five standard errors,
    and what four roundings to the dtype can make of them.
    """
    first = filler.tensor_of(filler.again(1)).clone()
    second = filler.tensor_of(filler.again(2))
    address, other = second.data_ptr(), second.clone()
    del second
    new, again = filler.tensor_of(filler.anew(1)), filler.tensor_of(filler.again(1))
    checksum = checksum_of(again)
    if again.data_ptr() != address or new.data_ptr() == address:
        return "memory is not what it should be: filled again, or new", checksum
    if again.dtype != dtype or not torch.equal(first, again) or not torch.equal(first, new):
        return "one seed gives several results", checksum
    if isinstance(distribution, plans.Constant):
        is_right = bool((first == distribution.value.real).all())
        return "" if is_right else "other values than the constant", checksum
    if torch.equal(first, other):
        return "two seeds give the same values", checksum
    return _departure(first, distribution), checksum


def checksum_of(tensor: torch.Tensor) -> int:
    """Returns a checksum of a tensor's bytes."""
    return zlib.crc32(tensor.view(torch.uint8).numpy().data)


def _departure(values: torch.Tensor, distribution: Distribution) -> str:
    """Returns how values depart from their distribution; an empty text: not."""
    once = torch.finfo(values.dtype).eps / 2
    unit = 4 * once  # torch's truncated normals are rounded as often on their way
    mean, deviation, low, high = _described(distribution)
    if not bool(torch.isfinite(values).all()):
        return "values that are not finite"
    slack = once * max(abs(low), abs(high)) if math.isfinite(low) else 0.0
    if values.min() < low - slack or values.max() > high + slack:
        return f"values from {values.min().item():.6g} to {values.max().item():.6g}"
    sample = torch.cat([values[:_SAMPLE], values[-_SAMPLE:]] if len(values) > 2 * _SAMPLE else [values]).double()
    n = len(sample)
    found = sample.mean().item()
    if abs(found - mean) > 5 * deviation / n**0.5 + unit * deviation:
        return f"a mean of {(found - mean) / deviation:.4f} deviations"
    for threshold in _THRESHOLDS:
        x = mean + threshold * deviation
        expected, share = _below(distribution, x), (sample < x).double().mean().item()
        rounding = _below(distribution, x + unit * abs(x)) - _below(distribution, x - unit * abs(x))
        if abs(share - expected) > 5 * (expected * (1 - expected) / n) ** 0.5 + 5 / n + rounding:
            return f"{share:.5f} instead of {expected:.5f} of the values are below {threshold} deviations"
    return ""


def _described(distribution: Distribution) -> tuple[float, float, float, float]:
    """Returns a mean, a scale of about a standard deviation, and bounds."""
    if isinstance(distribution, plans.Uniform):
        low, high = distribution.low, distribution.high
        return (low + high) / 2, (high - low) / 12**0.5, low, high
    if isinstance(distribution, plans.TruncatedNormal):
        return distribution.mean, distribution.std, distribution.low, distribution.high
    assert isinstance(distribution, plans.Normal)
    return distribution.mean, distribution.std, -math.inf, math.inf


def _below(distribution: Distribution, x: float) -> float:
    """Returns the probability of a value below x."""
    if isinstance(distribution, plans.Uniform):
        share = (x - distribution.low) / (distribution.high - distribution.low)
    else:
        assert isinstance(distribution, (plans.Normal, plans.TruncatedNormal))
        mean, std = distribution.mean, distribution.std
        share = _normal_below((x - mean) / std)
        if isinstance(distribution, plans.TruncatedNormal):
            low, high = (_normal_below((bound - mean) / std) for bound in (distribution.low, distribution.high))
            share = (share - low) / (high - low)
    return min(max(share, 0.0), 1.0)


def _normal_below(x: float) -> float:
    return 0.5 * math.erfc(-x / 2**0.5)
