"""Fills that are noted where code asks torch for them, without the way through torch's modes and dispatcher.

A constructor of small layers spends more time on that way than on its fills: a mode that is written in Python costs two
microseconds a function and seven an operator, ``torch.no_grad`` two. So while blocks are open, the functions in which
those of torch.nn.init end have other code, and it and the function mode (``NOTED``) note at once what the operator
would be noted as, by the same code. Where anything stands between the function and the operator (another mode, a
transform of torch.func, a subclass, a tensor that is conjugated lazily), the call goes the long way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn import init

from ..execution.version_counters import count_write
from ..plans import Constant, Distribution, Normal, Uniform
from ..shards.dtensor import PLAIN
from .compilers import not_traced, set_eval_frame
from .handlers import distribution_of
from .operators import Operators

_NUMBERS = (float, int)
_CONSTANTS = (float, int, bool, complex)
_WITHOUT_FUNCTIONS = torch._C.DisableTorchFunction
_WITHOUT_DISPATCH = torch._C._DisableTorchDispatch
_keys_of: Callable[[torch.Tensor], Any] = torch._C._dispatch_keys
_keys_here: Callable[[], Any] = torch._C._dispatch_tls_local_include_set
_with_gradients: Callable[[], bool] = torch._C.is_grad_enabled
_set_gradients: Callable[[bool], object] = torch._C._set_grad_enabled

# What torch dispatches ordinary tensors by. Whatever else it may name comes before the operator or makes another one of
# it; inference tensors lack ADInplaceOrView.
_OF_TENSORS = re.compile(r"CPU|CUDA|Meta|ADInplaceOrView|(Autograd|Autocast)(CPU|CUDA|Meta)")
# And what it may add in a thread that has modes.
_OF_THREADS = re.compile(r"BackendSelect|Python|ADInplaceOrView|PythonTLSSnapshot")
_ordinary_tensors: dict[object, bool] = {}
_ordinary_threads: dict[object, bool] = {}
# A number; torch before 2.8 has the text only.
_identity_of: Callable[[Any], object] = getattr(torch._C.DispatchKeySet, "raw_repr", str)


def _are_ordinary(keys: Any, allowed: re.Pattern[str]) -> bool:
    names = re.findall(r"\w+", str(keys).partition("(")[2])
    return "ADInplaceOrView" in names and all(map(allowed.fullmatch, names))


def _is_ordinary(tensor: torch.Tensor) -> bool:
    """Tells whether torch runs an operator on a tensor as it is."""
    keys = _keys_of(tensor)
    found = _ordinary_tensors.get(known := _identity_of(keys))
    if found is None:
        found = _ordinary_tensors[known] = _are_ordinary(keys, _OF_TENSORS)
    return found


def is_ordinary_here() -> bool:
    """Tells whether torch does so in this thread at this moment, but for modes: no transform or inference mode."""
    keys = _keys_here()
    found = _ordinary_threads.get(known := _identity_of(keys))
    if found is None:
        found = _ordinary_threads[known] = _are_ordinary(keys, _OF_THREADS)
    return found and forward_ad._current_level < 0


# --- noting ----------------------------------------------------------------------------------------------------------


def _note(
    operators: Operators,
    tensor: Any,
    values: Callable[..., Distribution],
    numbers: tuple[Any, ...],
    what: str,
    write: Callable[..., object],
) -> bool:
    """Notes a fill, which waits or is done at once; returns whether it could.

    Args:
        operators: what the operator comes to.
        tensor: what is to be filled, and autograd is not to remember it.
        values, numbers: the kind of distribution, and its numbers.
        what: the operator's name.
        write: the method that does it.
    """
    if type(tensor) not in PLAIN or not _is_ordinary(tensor):
        return False
    book = operators.book
    with _WITHOUT_FUNCTIONS(), book.lock:
        before = book.paused_by
        try:
            book.paused_by = get_ident()  # what is run meanwhile is our own work
            distribution = partial(distribution_of, values, numbers)
            if operators.fill_new(tensor, distribution, what):
                count_write(tensor)
                return True
            now = partial(_write, operators, tensor, numbers, write)
            return _note_known(operators, tensor, distribution, what, now)
        finally:
            book.paused_by = before


def _note_known(
    operators: Operators,
    tensor: torch.Tensor,
    distribution: Callable[[], Distribution],
    what: str,
    now: Callable[[], object],
) -> bool:
    """As ``_note``, of any memory; ``now`` does it."""
    with_gradients = _with_gradients()
    try:
        _set_gradients(False)
        version = tensor._version
        is_noted = operators.fill(tensor, distribution, what, now)
        if is_noted and tensor._version == version:
            count_write(tensor)
    finally:
        _set_gradients(with_gradients)
    return is_noted


def _write(operators: Operators, tensor: torch.Tensor, numbers: tuple[Any, ...], write: Callable[..., object]) -> None:
    """Does a fill at once, with the generators of the innermost call."""
    if tensor.is_meta and tensor.dtype.is_floating_point:
        return  # there is nothing to do, for which torch may import what takes a second
    generators = None if write is _FILL or tensor.is_meta else operators.generators
    own = None if generators is None else generators.own(tensor.device)
    with _WITHOUT_DISPATCH():
        if own is None:
            write(tensor, *numbers)
        else:
            write(tensor, *numbers, generator=own)


_FILL, _NORMAL, _UNIFORM = torch.Tensor.fill_, torch.Tensor.normal_, torch.Tensor.uniform_


def _fill(operators: Operators, tensor: Any, value: Any) -> bool:
    # Of another type it may be a tensor, or a number that torch would change.
    return type(value) in _CONSTANTS and _note(operators, tensor, Constant, (value,), "fill_", _FILL)


def _zero(operators: Operators, tensor: Any) -> bool:
    return _note(operators, tensor, Constant, (0,), "zero_", _FILL)


def _normal(operators: Operators, tensor: Any, mean: Any = 0.0, std: Any = 1.0, generator: Any = None) -> bool:
    if generator is not None or type(mean) not in _NUMBERS or type(std) not in _NUMBERS:
        return False
    return _note(operators, tensor, Normal, (float(mean), float(std)), "normal_", _NORMAL)


def _uniform(operators: Operators, tensor: Any, low: Any = 0.0, high: Any = 1.0, generator: Any = None) -> bool:
    if generator is not None or type(low) not in _NUMBERS or type(high) not in _NUMBERS:
        return False
    return _note(operators, tensor, Uniform, (float(low), float(high)), "uniform_", _UNIFORM)


def _kaiming_std(tensor: Any, a: float, mode: Any, nonlinearity: Any) -> float | None:
    """Returns the standard deviation that torch computes; None: the tensor is empty, or not to be noted here."""
    if type(tensor) not in PLAIN:
        return None
    with _WITHOUT_FUNCTIONS():
        if 0 in tensor.shape:
            return None
        fan = init._calculate_correct_fan(tensor, mode)
    return init.calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _kaiming_normal(
    operators: Operators, tensor: Any, a: float, mode: Any, nonlinearity: Any, generator: Any = None
) -> bool:
    std = _kaiming_std(tensor, a, mode, nonlinearity)
    return std is not None and _normal(operators, tensor, 0.0, std, generator)


def _kaiming_uniform(
    operators: Operators, tensor: Any, a: float, mode: Any, nonlinearity: Any, generator: Any = None
) -> bool:
    std = _kaiming_std(tensor, a, mode, nonlinearity)
    if std is None:
        return False
    bound = math.sqrt(3.0) * std
    return _uniform(operators, tensor, -bound, bound, generator)


# --- functions of torch.nn.init --------------------------------------------------------------------------------------

Note = Callable[..., bool]
INIT_FUNCTIONS: dict[str, Note] = {
    "_no_grad_fill_": _fill,
    "_no_grad_zero_": _zero,
    "_no_grad_normal_": _normal,
    "_no_grad_uniform_": _uniform,
    "constant_": _fill,
    "normal_": _normal,
    "uniform_": _uniform,
    "kaiming_normal_": _kaiming_normal,
    "kaiming_uniform_": _kaiming_uniform,
}
"""By name -> what notes a call with the operators that it comes to and all arguments; it returns whether it could."""


@not_traced
def call(note: Note, straight_to: Callable[[], Operators | None], original: Callable[..., Any], *args: Any) -> Any:
    """Does what a function of ``INIT_FUNCTIONS`` is to do.

    Args:
        note: its entry.
        straight_to: returns what operators come to, None where others are before that.
        original: the function, as torch has it.
        args: its arguments.
    """
    compiling = set_eval_frame(None)
    try:
        operators = straight_to()
        is_noted = operators is not None and note(operators, *args)
    finally:
        set_eval_frame(compiling)
    return args[0] if is_noted else original(*args)


@not_traced
def fans(sees_functions: Callable[[], bool], original: Callable[..., Any], tensor: Any) -> Any:
    """Returns what torch says of the fans of a tensor: four functions that no mode of ours has to be told of."""
    if type(tensor) in PLAIN and not sees_functions():
        with _WITHOUT_FUNCTIONS():
            return original(tensor)
    return original(tensor)


# --- methods of tensors ----------------------------------------------------------------------------------------------


def _may_write(tensor: Any) -> bool:
    """Tells whether torch lets code change a tensor in place, and does not remember it for gradients."""
    return type(tensor) in PLAIN and not (_with_gradients() and tensor.requires_grad)


def _fill_method(operators: Operators, tensor: Any, *numbers: Any, **named: Any) -> bool:
    return len(numbers) == 1 and not named and _may_write(tensor) and _fill(operators, tensor, *numbers)


def _zero_method(operators: Operators, tensor: Any, *numbers: Any, **named: Any) -> bool:
    return not numbers and not named and _may_write(tensor) and _zero(operators, tensor)


def _normal_method(operators: Operators, tensor: Any, *numbers: Any, **named: Any) -> bool:
    is_usual = len(numbers) <= 2 and not named.keys() - {"mean", "std", "generator"} and _may_write(tensor)
    return is_usual and _normal(operators, tensor, *numbers, **named)


def _uniform_method(operators: Operators, tensor: Any, *numbers: Any, **named: Any) -> bool:
    is_usual = len(numbers) <= 2 and not named and _may_write(tensor)
    return is_usual and _uniform(operators, tensor, *numbers)


METHODS: dict[Any, Note] = {
    torch.Tensor.fill_: _fill_method,
    torch.Tensor.zero_: _zero_method,
    torch.Tensor.normal_: _normal_method,
    torch.Tensor.uniform_: _uniform_method,
}
"""As ``INIT_FUNCTIONS``, of methods that a function mode is told of."""
