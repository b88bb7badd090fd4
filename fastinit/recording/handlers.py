"""The operators that ask for a fill, change one, copy one or join some: what is done instead of running them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from math import copysign
from typing import Any

import torch

from ..plans import Constant, Distribution, Normal, Uniform
from ..plans.arithmetic import Change
from .operators import NOT_HANDLED, Arguments, Handler, Operator, Operators

aten = torch.ops.aten

HANDLERS: dict[Operator, Handler] = {}


def _handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler for operators by name, as far as this torch has them."""

    def register(handler: Handler) -> Handler:
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(aten, packet, None), overload or "default", None)
            if operator is not None:
                HANDLERS[operator] = handler
        return handler

    return register


@cache
def _name_of(func: Operator) -> str:
    """Returns the name of an operator without its namespace and overload, e.g. ``normal_``."""
    return str(func).split(".")[1]


_NUMBERS = (float, int)


@lru_cache(maxsize=4096, typed=True)  # the layers of a model are alike
def _same_values(values: Callable[..., Distribution], *numbers: float) -> Distribution:
    return values(*numbers)


def distribution_of(values: Callable[..., Distribution], numbers: tuple[Any, ...]) -> Distribution:
    """Returns the distribution with these numbers, made once where they are plain numbers."""
    for number in numbers:
        # A cache takes -0.0 for 0.0; distributions do not.
        if type(number) not in _NUMBERS or (number == 0 and copysign(1.0, number) < 0):
            return values(*numbers)
    return _same_values(values, *numbers)


def _filled(
    ops: Operators, values: Callable[..., Distribution], func: Any, args: Any, kwargs: Any, *numbers: Any
) -> Any:
    tensor = args[0]
    if kwargs.get("generator") is not None:  # its owner wants this generator's numbers
        return NOT_HANDLED
    # A constant needs no generator, and lending one to an operator takes longer than the operator.
    run = partial(func, *args, **kwargs) if values is Constant else partial(ops.draw, func, args, kwargs)
    done = ops.fill(tensor, partial(distribution_of, values, numbers), _name_of(func), run)
    return tensor if done else NOT_HANDLED


@_handles("normal_")
def _normal_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return _filled(ops, Normal, func, args, kwargs, *(*args[1:], *(0.0, 1.0)[len(args) - 1 :]))


@_handles("uniform_")
def _uniform_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return _filled(ops, Uniform, func, args, kwargs, *(*args[1:], *(0.0, 1.0)[len(args) - 1 :]))


@_handles("zero_")
def _zero_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return _filled(ops, Constant, func, args, kwargs, 0)


@_handles("fill_.Scalar", "fill_.Tensor")
def _fill_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    value = args[1]
    if isinstance(value, torch.Tensor):
        value = ops.scalars.number(value)
        if value is None:
            return ops.copy_into(aten.copy_.default, args, {}) if isinstance(args[0], torch.Tensor) else NOT_HANDLED
    return _filled(ops, Constant, func, args, kwargs, value)


_ZERO_LIKE = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1}


@_handles("zeros", "ones", "rand", "randn", "full", "normal.float_float")
def _factory(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    name = _name_of(func)
    if name == "normal":
        return ops.created(None, func, args, kwargs, lambda: Normal(*args[:2]))
    if name == "full":
        return ops.created(None, func, args, kwargs, lambda: Constant(args[1]))
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return ops.created(None, func, args, kwargs, lambda: _values_of_factory(name, dtype))


@_handles("zeros_like", "ones_like", "rand_like", "randn_like", "full_like", "new_zeros", "new_ones", "new_full")
def _factory_like(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    name = _name_of(func)
    if name in ("full_like", "new_full"):
        value = args[1 if name == "full_like" else 2]
        return ops.created(args[0], func, args, kwargs, lambda: Constant(value))
    dtype = kwargs.get("dtype") or args[0].dtype
    return ops.created(args[0], func, args, kwargs, lambda: _values_of_factory(name.removesuffix("_like"), dtype))


def _values_of_factory(name: str, dtype: torch.dtype) -> Distribution:
    if name == "rand":
        # torch promises numbers below 1, and rounding to fewer digits could make them 1. Below 1 the numbers of a dtype
        # are eps / 2 apart, so those less than eps / 4 away would be.
        is_narrow = dtype.is_floating_point and dtype.itemsize < 4
        return Uniform(0.0, 1.0 - torch.finfo(dtype).eps / 3 if is_narrow else 1.0)
    if name == "randn":
        return Normal(0.0, 1.0)
    return Constant(_ZERO_LIKE[name])


def _change(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Change | None:
    """Returns the change that an operator stands for; None if its arguments are no numbers."""
    name = _name_of(func).rstrip("_")
    given = args[1:]
    numbers = [None if value is None else ops.scalars.number(value) for value in given]
    if any(number is None and value is not None for number, value in zip(numbers, given)):
        return None
    alpha = kwargs.get("alpha", 1)
    if alpha != 1:
        if not isinstance(alpha, (int, float)):
            return None
        numbers[0] = None if numbers[0] is None else numbers[0] * alpha
    if kwargs.keys() - {"alpha"}:
        return None
    if name == "clamp":
        numbers = [*numbers, None, None][:2]
    return Change(name, tuple(numbers))


_IN_PLACE = ("mul_.Tensor", "mul_.Scalar", "div_.Tensor", "div_.Scalar", "add_.Tensor", "add_.Scalar", "sub_.Tensor")


@_handles(*_IN_PLACE, "sub_.Scalar", "erfinv_", "clamp_")
def _changed(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    change = _change(ops, func, args, kwargs)
    return NOT_HANDLED if change is None else ops.changed(args[0], change, func, args, kwargs)


@_handles("mul.Tensor", "div.Tensor", "add.Tensor", "sub.Tensor")
def _changed_copy(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    if not isinstance(args[0], torch.Tensor) or isinstance(args[1], torch.Tensor):
        return NOT_HANDLED
    change = _change(ops, func, args, kwargs)
    return NOT_HANDLED if change is None else ops.changed_copy(args[0], change, func, args, kwargs)


@_handles("clone", "_to_copy")
def _copy(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return ops.cast(func, args, kwargs)


@_handles("copy_")
def _copy_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return ops.copy_into(func, args, kwargs)


@_handles("cat", "stack")
def _joined(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    """Joins tensors whose fills wait, as copies into an empty one: then each goes by the name that the whole gets."""
    tensors, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not tensors:
        return NOT_HANDLED
    first: torch.Tensor = tensors[0]
    alike = all(
        each.dtype == first.dtype and each.device == first.device and each.is_contiguous() and each.numel()
        for each in tensors
    )
    if not alike or not (first.is_meta or any(map(ops.waits, tensors))):
        return NOT_HANDLED
    shape = func([torch.empty(each.shape, device="meta") for each in tensors], dim).shape
    joined, start = torch.empty(shape, dtype=first.dtype, device=first.device), 0
    for index, each in enumerate(tensors):
        if _name_of(func) == "stack":
            part = joined.select(dim, index)
        else:
            part = joined.narrow(dim, start, each.shape[dim])
            start += each.shape[dim]
        ops.copy_into(aten.copy_.default, (part, each), {})
    return joined


# What gives a tensor values whatever it had.
FILLS = frozenset(
    operator for operator, handler in HANDLERS.items() if handler in (_normal_, _uniform_, _zero_, _fill_)
)
