"""The ``torch`` backend: torch.nn.init, tensor by tensor in planned order, with torch's own generators.

It is the fallback, and the choice of users who want the numbers that they have today: on the CPU, bit-identical to
mmengine under the same ``torch.manual_seed``, including draws that a later fill overwrites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from inspect import signature
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InitRuntimeError
from ..plans import (
    Constant,
    DeltaOrthogonal,
    Dirac,
    Distribution,
    Fill,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    Strided,
    Structured,
    TorchTruncatedNormal,
    TruncatedNormal,
    Uniform,
    describe,
    is_structured,
    matrices_of,
    n_bytes_of,
)
from ..plans.arithmetic import element_of, is_filled_by_torch
from ..progress import Listener
from ..shards.dtensor import PLAIN, is_sharded
from .fresh_memory import back_tensor
from .generators import Generators

NUMBERS = "torch"
"""The values come from torch's generators: they depend on device, dtype, order and torch release."""
IS_CONTRACT = False

_TAKES_GENERATOR = "generator" in signature(nn.init.orthogonal_).parameters  # since torch 2.3
# Elements of the float32 buffer for half-precision truncated normals: 64 MiB, so that a huge tensor needs no second
# copy. The size is part of the numbers: another one would draw in another order.
_CHUNK = 1 << 24


def why_not(device: torch.device) -> str | None:
    """Returns why the backend cannot run on a device: every device that has memory will do."""
    if device.type == "meta":
        return "tensors on the meta device have no memory to fill"
    return None


def why_not_now(device: torch.device) -> str | None:
    """Returns None: this backend can always run."""
    return None


def why_not_fill(fill: Fill) -> str | None:
    """Returns why torch cannot do a fill (a dtype without random numbers, a value that the dtype cannot hold)."""
    tensor, distribution = fill.tensor, fill.distribution
    is_distributed = is_sharded(tensor)
    if is_structured(distribution):
        if is_distributed:
            return "torch.nn.init makes such values of whole tensors only, not of shards: a contract backend does"
        if (reason := why_not_matrices(distribution, fill.shape)) is not None:
            return reason
    if is_distributed and fill.is_part:
        return "torch's generators cannot draw part of a distributed tensor with the values that the whole would have"
    if is_distributed:  # torch draws DTensors its own way
        return why_not_values(tensor.dtype, distribution)
    if fill.parts is not None and (len(fill.parts) != 1 or fill.parts[0].tensor.shape != torch.Size(fill.shape)):
        return "torch's generators cannot draw part of a tensor with the values that the whole would have"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"torch cannot fill {tensor.layout} or quantized tensors"
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "it was made in inference mode, so it can only be written in inference mode"
    return why_not_values(tensor.dtype, distribution) or _why_not_memory(tensor, distribution)


def why_not_matrices(distribution: Structured, shape: Sequence[int]) -> str | None:
    """Returns why a structured distribution makes no tensor of a shape, None if it does."""
    try:
        matrices_of(distribution, shape)
    except ValueError as error:
        return str(error)
    return None


def _why_not_memory(tensor: torch.Tensor, distribution: Distribution) -> str | None:
    """Returns why torch cannot write a tensor, however well it can fill others of its dtype."""
    if type(tensor) not in PLAIN and tensor.dim() and not tensor.is_meta and not is_lazy(tensor):
        try:  # on no elements, so that nothing is written
            with torch._C._EnableTorchFunction():  # fastinit's own work is done without subclasses' functions
                _fill(tensor.detach().narrow(0, 0, 0), distribution, None)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return f"{type(tensor).__name__} refuses it: {error}"
    if not tensor.is_contiguous() and not isinstance(distribution, Constant) and _is_expanded(tensor):
        return "elements of the tensor share memory (it was expanded)"
    return why_short(tensor)


def _is_expanded(tensor: torch.Tensor) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape))


def why_short(tensor: torch.Tensor) -> str | None:
    """Returns that a tensor's storage is too short for it, None if it is not."""
    if tensor.is_meta:
        return None
    span = tensor.nbytes if tensor.is_contiguous() else Strided.of(tensor).span * tensor.element_size()
    n_bytes = tensor.untyped_storage().nbytes()
    if span and tensor.storage_offset() * tensor.element_size() + span > n_bytes:
        return f"its storage of {n_bytes:,} bytes does not hold all of it (it was released or resized)"
    return None


@lru_cache(maxsize=4096)  # far more than a model has; each trial takes some microseconds
def why_not_values(dtype: torch.dtype, distribution: Distribution) -> str | None:
    """Returns why torch cannot fill a dtype with a distribution's values, or only with NaN and inf; None if it can."""
    if isinstance(distribution, Normal) and not (math.isfinite(distribution.mean) and math.isfinite(distribution.std)):
        return f"{describe(distribution)} is not finite"
    # Try it in torch, with our own generator: a table of what torch supports would go stale. Two elements, because
    # torch checks less for one.
    if isinstance(distribution, Sparse):
        distribution = Normal(0.0, distribution.std)  # as far as dtypes go the same, and from a generator of our own
    try:
        trial = torch.empty(_trial_shape(distribution), dtype=dtype, device="cpu")
        _fill(trial, distribution, torch.Generator().manual_seed(0))
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return None


def _trial_shape(distribution: Distribution) -> tuple[int, ...]:
    """Returns the shape of a small tensor that a distribution can fill."""
    if isinstance(distribution, Orthogonal):
        return (1,) * distribution.batch_dims + (2, 2)
    if isinstance(distribution, Dirac):
        return distribution.groups, 1, 1
    if isinstance(distribution, DeltaOrthogonal):
        return 1, 1, 1
    return (2, 2) if is_structured(distribution) else (2,)


def engine() -> str:
    """Returns the engine's name for reports."""
    return f"torch.nn.init of torch {torch.__version__}"


def run(
    fills: Sequence[Fill],
    seed: int | None,
    generators: Generators | None = None,
    *,
    advance: Listener | None = None,
) -> int:
    """Runs the fills in order; they draw from ``generators``, None: the default ones of their devices."""
    for fill in fills:
        tensor = fill.tensor if fill.parts is None or is_sharded(fill.tensor) else fill.boxes[0].tensor
        if type(tensor) in PLAIN:
            back_tensor(tensor)
        if generators is None or isinstance(fill.distribution, (Constant, Identity, Dirac)):
            _fill(tensor, fill.distribution, None)
        elif type(tensor) in PLAIN and _may_be_given_one(fill.distribution):
            _fill(tensor, fill.distribution, generators.own(tensor.device))
        else:  # a subclass may not know what to do with a generator
            with generators.next_draw(tensor.device):
                _fill(tensor, fill.distribution, None)
        if advance is not None:
            advance(n_bytes_of(fill))
    return len(fills)


def _may_be_given_one(distribution: Distribution) -> bool:
    """Tells whether torch can draw a distribution from a given generator alone."""
    if isinstance(distribution, Sparse):  # permutes with the default one
        return False
    return _TAKES_GENERATOR or not (is_structured(distribution) or isinstance(distribution, TorchTruncatedNormal))


def _fill(tensor: torch.Tensor, distribution: Distribution, generator: torch.Generator | None) -> None:
    if isinstance(distribution, Constant):
        if is_filled_by_torch(tensor.dtype):
            nn.init.constant_(tensor, distribution.value)  # type: ignore[arg-type]
        else:
            with torch.no_grad():
                tensor.copy_(element_of(distribution.value, tensor.dtype))
    elif isinstance(distribution, Normal):
        if generator is None:
            nn.init.normal_(tensor, distribution.mean, distribution.std)
        else:  # nn.init takes a generator since torch 2.3
            with torch.no_grad():
                tensor.normal_(distribution.mean, distribution.std, generator=generator)
    elif isinstance(distribution, Uniform):
        if generator is None:
            nn.init.uniform_(tensor, distribution.low, distribution.high)
        else:
            with torch.no_grad():
                tensor.uniform_(distribution.low, distribution.high, generator=generator)
    elif isinstance(distribution, TorchTruncatedNormal):
        low, high = distribution.low, distribution.high
        _call(nn.init.trunc_normal_, tensor, generator, mean=distribution.mean, std=distribution.std, a=low, b=high)
    elif not isinstance(distribution, TruncatedNormal):
        _fill_structured(tensor, distribution, generator)
    elif tensor.dtype in (torch.float32, torch.float64) and tensor.device.type == "cpu":
        _truncated_normal(tensor, distribution, generator)
    else:
        _truncated_normal_through_float32(tensor, distribution, generator)


@torch.no_grad()
def _fill_structured(tensor: torch.Tensor, distribution: Structured, generator: torch.Generator | None) -> None:
    """Calls torch.nn.init, which decomposes matrices of float32 and float64 in order only: others through such."""
    if isinstance(distribution, Identity):
        nn.init.eye_(tensor)
    elif isinstance(distribution, Dirac):
        nn.init.dirac_(tensor, distribution.groups)  # type: ignore[arg-type]
    elif isinstance(distribution, Sparse):
        nn.init.sparse_(tensor, distribution.sparsity, distribution.std)
    elif (tensor.dtype.itemsize < 4 and tensor.dtype.is_floating_point) or not tensor.is_contiguous():
        dtype = tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32
        wide = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
        _fill_structured(wide, distribution, generator)
        tensor.copy_(wide)
    elif isinstance(distribution, DeltaOrthogonal):
        centre: Any = (slice(None), slice(None), *(size // 2 for size in tensor.shape[2:]))
        tensor.zero_()
        _call(nn.init.orthogonal_, tensor[centre], generator, gain=distribution.gain)
    else:
        for index in product(*map(range, tensor.shape[: distribution.batch_dims])):
            _call(nn.init.orthogonal_, tensor[index], generator, gain=distribution.gain)


def _call(
    function: Callable[..., object], tensor: torch.Tensor, generator: torch.Generator | None, **numbers: float
) -> None:
    """Calls a function of torch.nn.init that takes a generator since torch 2.3; before, the CPU's default one draws."""
    if generator is None:
        function(tensor, **numbers)
    elif _TAKES_GENERATOR:
        function(tensor, **numbers, generator=generator)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(generator.get_state())
            function(tensor, **numbers)
            generator.set_state(torch.default_generator.get_state())


@torch.no_grad()
def _truncated_normal(
    tensor: torch.Tensor, distribution: TruncatedNormal, generator: torch.Generator | None, open_low: bool = False
) -> None:
    """Draws through the inverse of the distribution function, in place, in the tensor's own dtype.

    A uniform number between the two bounds' images under 2 Phi - 1 goes through sqrt(2) erfinv. The order of these
    operations is mmengine's (torch.nn.init.trunc_normal_ draws other numbers). The uniform draw includes its lower end.
    For bounds far out that end is -1, where erfinv gives -inf, and the value lands on ``low`` however many standard
    deviations away that is (4 of 2^26 float32 values at 100 sigma); ``open_low`` excludes that end.
    """
    mean, std = distribution.mean, distribution.std
    low = 2 * _phi((distribution.low - mean) / std) - 1
    high = 2 * _phi((distribution.high - mean) / std) - 1
    tensor.uniform_(low, high, generator=generator)
    if open_low:
        limit = 1 - torch.finfo(tensor.dtype).eps / 2  # the largest number of the dtype below 1
        tensor.clamp_(-limit, limit)
    tensor.erfinv_()
    tensor.mul_(std * math.sqrt(2.0))
    tensor.add_(mean)
    tensor.clamp_(min=distribution.low, max=distribution.high)


@torch.no_grad()
def _truncated_normal_through_float32(
    tensor: torch.Tensor, distribution: TruncatedNormal, generator: torch.Generator | None
) -> None:
    # bfloat16 has 256 numbers in [0.5, 1): drawn in bfloat16, one value in 500 would land on a bound 100 sigma out.
    if not tensor.is_floating_point():
        raise InitRuntimeError(f"trunc_normal needs a floating-point dtype, but the tensor is {tensor.dtype}")
    for part in _parts(tensor):
        if part.dtype in (torch.float32, torch.float64):
            _truncated_normal(part, distribution, generator, open_low=True)
        else:
            draw = torch.empty(part.shape, dtype=torch.float32, device=part.device)
            _truncated_normal(draw, distribution, generator, open_low=True)
            part.copy_(draw)


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields a contiguous tensor in pieces of at most _CHUNK elements, any other tensor whole."""
    if tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), _CHUNK)
    else:
        yield tensor


def _phi(x: float) -> float:
    """The standard normal distribution function."""
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0
