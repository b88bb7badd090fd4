"""``values()``: what a parameter starts with under a seed, or a part of it, as a tensor of any dtype."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import EllipsisType
from typing import Any, NamedTuple, Union, get_args

import torch

from .backends import AUTO, BACKENDS, checked
from .config.initializers import BaseInit
from .config.matching import selected_by_name
from .config.module_fills import Shape
from .config.number_texts import NumberTexts
from .config.parts import blocks_of
from .config.running import is_planned
from .contract.streams import check_seed
from .errors import InitIndexError, InitRuntimeError, InitTypeError, InitValueError, locating
from .execution.calls import current_call
from .execution.defaults import default_backend
from .execution.runner import check, execute, prepare
from .execution.scope import Scope
from .plans import Box, Distribution, Fill, Region, is_structured, row_major
from .registry import WEIGHT_INITIALIZERS
from .shards.dtensor import part_fill

Index = Union[int, slice, EllipsisType]
_DISTRIBUTIONS: tuple[type, ...] = get_args(Distribution)
# What "auto" takes: the backend that a device's tensors are filled by, and never "torch", which has no such values.
_OF_DEVICE = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}
# Arguments of rules that say which parameters they are for, or what biases get. The caller says the first, and a bias
# is a parameter like another here.
_SELECTORS = ("layer", "override", "bias", "bias_prob")


def values(
    name: str,
    shape: Sequence[int],
    distribution: Distribution | Mapping[str, Any] | BaseInit,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    box: Index | tuple[Index, ...] | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Returns the values that a parameter of a name, shape and distribution has under a seed, as a new tensor.

    They are bit for bit those that ``initialize`` gives it on the backends ``cpp``, ``triton`` and ``cuda``, whatever
    else the model holds and wherever its shards are: float32 masters for bfloat16 or float8 parameters without a stored
    copy, one row of an embedding, one expert.

    Args:
        name: the parameter's name from the root of the model (with the call's ``prefix``), which names its stream.
        shape: the full one, whatever part is wanted.
        distribution: one of ``fastinit.plans``, such as ``Normal(0, 0.02)``; or a rule for the parameter, such as
            ``dict(type="Xavier")``. A rule's ``param`` must match the name; expressions may use what it captures.
        seed: 0 to 2^64 - 1.
        dtype: of the tensor that is returned. One narrower than float32 gets the rounded float32 values; the numbers of
            float64 are others.
        device: where the values are drawn and stay; None: torch's default device.
        box: the part that is wanted, as an index of the full tensor: ``values(..., box=at)`` equals
            ``values(...)[at]``. Integers (which drop their dimension), slices with steps of either sign, ``...``, or a
            tuple of them. Only this part needs memory; of orthogonal and sparse matrices, what they are made from, too.
        backend: None or "auto": ``cpp`` on the CPU, ``triton`` or ``cuda`` on a GPU.

    Raises:
        IndexError: ``box`` is out of the shape's bounds, or has too many dimensions. Nothing has been allocated.
        TypeError, ValueError, RuntimeError: another argument is wrong, or the backend cannot draw such values.

    Example:
        >>> import torch, fastinit
        >>> from fastinit.plans import Normal
        >>> wte = torch.nn.Embedding(1000, 8, dtype=torch.bfloat16)
        >>> report = fastinit.initialize(wte, dict(type="Normal", std=0.02, layer="Embedding"), backend="cpp", seed=1)
        >>> row = fastinit.values("weight", (1000, 8), Normal(0, 0.02), seed=1, box=100)
        >>> row.dtype, torch.equal(row.bfloat16(), wte.weight[100])
        (torch.float32, True)
    """
    if not isinstance(name, str) or not name:
        raise InitTypeError(f"name must be a parameter's name, but got {name!r} of {type(name)}")
    if not isinstance(dtype, torch.dtype):
        raise InitTypeError(f"dtype must be a torch.dtype, but got {dtype!r} of {type(dtype)}")
    full = _checked_shape(shape)
    given, blocks = _distribution(distribution, name, full)
    part = _part(box, full)
    target = torch.empty(0).device if device is None else torch.device(device)
    scope = Scope(None, None, backend=_backend(backend, target), seed=check_seed(seed))
    call = current_call()
    with nullcontext() if call is None else call.pending.own_work():
        if len(blocks) > 1 and is_structured(given):
            whole = _drawn_in_blocks(name, full, given, blocks, dtype, target, scope)
            found = whole.as_strided(part.sizes, part.steps, part.first_index).clone()
        else:
            found = _drawn(name, full, given, part, dtype, target, scope)
        return found.flip(part.reversed_dims) if part.reversed_dims else found


class _Part(NamedTuple):
    """The elements that an index selects, in the order in which they are drawn."""

    first_index: int
    """Row-major index of the first in the full tensor."""
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    """What a step along each dimension adds to that index; none is negative."""
    reversed_dims: tuple[int, ...]
    """The dimensions along which the index goes backward."""


def _drawn(
    name: str,
    shape: Shape,
    distribution: Distribution,
    part: _Part,
    dtype: torch.dtype,
    device: torch.device,
    scope: Scope,
) -> torch.Tensor:
    """Returns the values of a part; the tensor is made when it is known that they can be drawn."""
    for where in (torch.device("meta"), device):
        tensor = torch.empty(part.sizes, dtype=dtype, device=where)
        boxes = (Box(tensor, part.first_index, part.steps),)
        fill = Fill(name, tensor, distribution, "values", "", shape, boxes)
        check([fill], scope, needs_memory=where is device)
    prepare([fill], scope)
    execute([fill], scope)
    return tensor


def _drawn_in_blocks(
    name: str,
    shape: Shape,
    distribution: Distribution,
    blocks: Sequence[Region],
    dtype: torch.dtype,
    device: torch.device,
    scope: Scope,
) -> torch.Tensor:
    """Returns all values of a parameter that consists of several matrices."""
    for where in (torch.device("meta"), device):
        tensor = torch.empty(shape, dtype=dtype, device=where)
        fills = [part_fill(name, tensor, each, distribution, "values", "") for each in blocks]
        check(fills, scope, needs_memory=where is device)
    prepare(fills, scope)
    execute(fills, scope)
    return tensor


def _backend(asked: str | None, device: torch.device) -> str:
    """Returns the contract backend for a device.

    Raises:
        ValueError: it is "torch", whose values depend on what was drawn before, or the device is none that has one.
        RuntimeError: none can run on the device.
    """
    name = checked(default_backend() if asked is None else asked)
    if name != AUTO:
        if not BACKENDS[name].IS_CONTRACT:
            able = ", ".join(each for each, backend in BACKENDS.items() if backend.IS_CONTRACT)
            raise InitValueError(
                f"values: on the backend {name!r} a parameter's values depend on all that was drawn before them, so "
                f"name and seed do not tell them",
                hint=f": choose from {able}",
            )
        return name
    names = _OF_DEVICE.get(device.type)
    if names is None:
        raise InitValueError(f"values: device must be a CPU or a CUDA device, but got {str(device)!r}")
    reasons = {each: BACKENDS[each].why_not(device) for each in names}
    if None not in reasons.values():
        raise InitRuntimeError(f"values: {'; '.join(f'{each}: {reason}' for each, reason in reasons.items())}")
    return next(each for each, reason in reasons.items() if reason is None)


# --- which distribution -------------------------------------------------------------------------------------------


def _distribution(given: Any, name: str, shape: Shape) -> tuple[Distribution, list[Region]]:
    """Returns the distribution that is meant at a parameter of a name and shape, and the blocks that it is of."""
    whole = Region.whole(shape)
    if isinstance(given, _DISTRIBUTIONS):
        return given, [whole]  # type: ignore[return-value]
    if isinstance(given, Mapping):
        beside = [key for key in _SELECTORS if given.get(key) is not None]
        if beside:
            raise InitValueError(
                f"values: the rule is for the one parameter {name!r}, and no module is known here",
                hint=f": leave out "
                f"{', '.join(map(repr, beside))}. The values of a bias are dict(type='Constant', val=...)",
            )
        with locating("values", is_place=False):
            given = WEIGHT_INITIALIZERS.build(dict(given))
    if not isinstance(given, BaseInit) or not is_planned(given):
        raise InitTypeError(
            f"values: distribution must be one of fastinit.plans, e.g. fastinit.plans.Normal(0, 0.02), or a rule, e.g. "
            f"dict(type='Xavier'), but got {given!r} of {type(given)}"
        )
    if given.layer:
        raise InitValueError(
            f"values: the rule selects the layers {given.layer}, and no module is known here", hint=": use `param`"
        )
    if getattr(given, "fan", "torch") == "layer":
        raise InitValueError(
            "values: fan='layer' asks the parameter's module, and none is known here",
            hint=". Give the distribution of its row in fastinit.plan(model, ...)",
        )
    selected = selected_by_name(name, given.param) if given.param else (None, ())
    if selected is None:
        raise InitValueError(f"values: the rule's param {given.param} does not match the name {name!r}")
    part, captured = selected
    if part is not None:
        raise InitValueError(
            f"values: the rule's param {given.param} is for a part of {name!r}, and the rest has another rule's values",
            hint=". Give the distribution of the part's row in fastinit.plan(model, ...), and the part as box",
        )
    texts = NumberTexts(given, given._fans)
    with locating("values", is_place=False), texts.locating():
        blocks = blocks_of(whole, given.blocks) if given.blocks else [whole]
        found = texts.at(captured)(blocks[0].shape)
        if not isinstance(found, _DISTRIBUTIONS):
            raise InitTypeError(
                f"weight_distribution must return a distribution of fastinit.plans, but returned {found!r}"
            )
    return found, blocks


# --- which part -----------------------------------------------------------------------------------------------------


def _checked_shape(shape: Any) -> Shape:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise InitTypeError(f"shape must be a tuple of integers, but got {shape!r} of {type(shape)}") from None
    if any(size < 0 for size in sizes) or math.prod(sizes) >= 2**63:
        raise InitValueError(f"shape must be sizes of 0 or more, of less than 2^63 elements in all, but got {sizes}")
    return sizes


def _part(box: Any, shape: Shape) -> _Part:
    """Returns the elements that an index of a full tensor selects."""
    index = _spelled_out(() if box is None else box if isinstance(box, tuple) else (box,), shape)
    first, sizes, steps, backward = 0, [], [], []  # type: int, list[int], list[int], list[int]
    for dim, (each, size, step) in enumerate(zip(index, shape, row_major(shape))):
        if not isinstance(each, slice):
            if not -size <= each < size:
                raise InitIndexError(f"box: index {each} is out of bounds for dimension {dim} of size {size}")
            first += each % size * step
            continue
        along = range(size)[each]
        if along.step < 0:
            backward.append(len(sizes))
            along = along[::-1]
        first += along.start * step if along else 0
        sizes.append(len(along))
        steps.append(along.step * step)
    return _Part(first, tuple(sizes), tuple(steps), tuple(backward))


def _spelled_out(index: tuple[Any, ...], shape: Shape) -> list[int | slice]:
    """Returns an integer or a slice for each dimension."""
    where = [at for at, each in enumerate(index) if each is Ellipsis]
    if len(where) > 1:
        raise InitIndexError("box: an index can only have a single ellipsis ('...')")
    left = len(shape) - (len(index) - len(where))
    if left < 0:
        raise InitIndexError(
            f"box: too many indices: the shape {shape} has {len(shape)} dimensions, and {index} are given"
        )
    at = where[0] if where else len(index)
    spread = (*index[:at], *[slice(None)] * left, *index[at + 1 :])
    found: list[int | slice] = []
    for each in spread:
        if isinstance(each, slice):
            found.append(each)
            continue
        if isinstance(each, (bool, torch.Tensor)) or not hasattr(each, "__index__"):
            raise InitTypeError(f"box must hold integers, slices and '...', but it has {each!r} of {type(each)}")
        found.append(operator.index(each))
    return found
