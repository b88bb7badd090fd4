"""numpy's data in pickles: dtypes without objects, scalars and arrays, whose bytes are in the pickle itself."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy

from ...storage.stubs import Foreign, Name, like, name_of, shown
from .containers import check
from .errors import PickleError
from .machine import Machine

_PLAIN_DTYPE = re.compile(r"[<>=|]?(\?|[bBhHiIlLqQefdgFDG]|[biufcSU]\d{1,9})")
_TIME_DTYPE = re.compile(r"[<>=|]?[mM]8?")
_RECORD_DTYPE = re.compile(r"\|?V\d{1,9}")
_TIME_UNITS = frozenset({"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"})
_ORDERS = ("<", ">", "=", "|")
_LONGEST_STEP = 2**31
# numpy's own limit, since version 2; it was 32 before.
_MAX_DIMENSIONS = 64


def numpy_dtype(machine: Machine, code: Any, *_: Any) -> Any:
    """A dtype of numpy that is plain data, once its byte order and fields are known; of objects, a stub."""
    check(type(code) is str and len(_) <= 2, "a numpy dtype", code)
    if _PLAIN_DTYPE.fullmatch(code):
        return machine.unfinished("numpy.dtype", lambda machine, state: _ordered(numpy.dtype(code), state))
    if _TIME_DTYPE.fullmatch(code):
        return machine.unfinished("numpy.dtype", lambda machine, state: _time_dtype(code.strip("<>=|8"), state))
    if _RECORD_DTYPE.fullmatch(code):
        return machine.unfinished("numpy.dtype", _record_dtype)
    return machine.foreign("numpy.dtype")


def _state_of_dtype(state: Any) -> Any:
    is_state = type(state) is tuple and 8 <= len(state) <= 9 and type(state[1]) is str
    check(is_state and state[1] in _ORDERS, "a numpy dtype", state)
    return state


def _ordered(dtype: Any, state: Any) -> Any:
    _, order, *more = _state_of_dtype(state)
    check(all(each is None for each in more[:3]), "a numpy dtype", state)
    return dtype.newbyteorder(order)


def _time_dtype(code: str, state: Any) -> Any:
    _, order, *more = _state_of_dtype(state)
    metadata: Any = more[-1] if len(state) == 9 else None
    unit: Any = metadata[1] if type(metadata) is tuple and len(metadata) == 2 else None
    check(all(each is None for each in more[:3]), "a numpy dtype", state)
    check(type(unit) is tuple and len(unit) >= 2 and type(unit[0]) in (bytes, str), "a numpy dtype", state)
    name = unit[0].decode("ascii") if type(unit[0]) is bytes else unit[0]
    if name == "generic":
        return numpy.dtype(f"{code}8").newbyteorder(order)
    check(name in _TIME_UNITS and type(unit[1]) is int and 0 < unit[1] < _LONGEST_STEP, "a numpy dtype", state)
    return numpy.dtype(f"{code}8[{unit[1]}{name}]").newbyteorder(order)


def _record_dtype(machine: Machine, state: Any) -> Any:
    base, names, fields, n_bytes = _state_of_dtype(state)[2:6]
    if base is not None or names is None:  # raw bytes, and arrays in arrays
        return machine.foreign("numpy.dtype")
    check(type(names) is tuple and type(fields) is dict and type(n_bytes) is int, "a numpy dtype", state)
    machine.charge(len(names))
    found: list[Any] = [fields.get(name) for name in names if type(name) is str]
    check(
        len(found) == len(names) == len(fields) and all(type(each) is tuple and len(each) == 2 for each in found),
        "a numpy dtype",
        names,
    )
    if any(isinstance(each, Foreign) for each, _ in found):
        return machine.foreign("numpy.dtype")
    check(all(isinstance(each, numpy.dtype) and type(at) is int for each, at in found), "a numpy dtype", names)
    formats, offsets = [each for each, _ in found], [at for _, at in found]
    made = numpy.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": n_bytes})
    if made.hasobject:
        raise PickleError("a numpy array of objects is not plain data")
    return made


def _bytes_of_data(what: str, data: Any) -> Any:
    if type(data) is str:  # Python 2's, which was taken for text
        data = data.encode("utf-8")
    if type(data) not in (bytes, bytearray):
        raise PickleError(f"a numpy {what} of objects is not plain data")
    return data


def numpy_scalar(machine: Machine, dtype: Any, data: Any) -> Any:
    """A scalar of numpy."""
    data = _bytes_of_data("scalar", data)
    if isinstance(dtype, Foreign):
        return like(dtype)
    check(isinstance(dtype, numpy.dtype) and len(data) == dtype.itemsize, "a numpy scalar", dtype)
    if not data:
        return dtype.type()
    return numpy.frombuffer(bytes(data), dtype, count=1)[0]


def numpy_array(machine: Machine, kind: Any, *_: Any) -> Any:
    """An array of numpy, once its state is known; a stub if it is of a subclass."""
    if type(kind) is not Name or name_of(kind) != "numpy.ndarray":
        return like(kind)

    def finish(machine: Machine, state: Any) -> Any:
        check(type(state) is tuple and len(state) == 5, "a numpy array", state)
        return _array(machine, state[4], state[2], state[1], "F" if state[3] is True else "C")

    return machine.unfinished("numpy.ndarray", finish)


def numpy_from_buffer(machine: Machine, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """An array of numpy in the pickles of protocol 5."""
    check(type(order) is str and order in ("C", "F"), "a numpy array", order)
    return _array(machine, data, dtype, shape, order)


def _array(machine: Machine, data: Any, dtype: Any, shape: Any, order: str) -> Any:
    if type(dtype) is Foreign:  # whose data are objects, a list of them
        return like(dtype)
    data = _bytes_of_data("array", data)
    if isinstance(dtype, Foreign):
        return like(dtype)
    check(type(shape) is tuple and len(shape) <= _MAX_DIMENSIONS, "a numpy array", shape)
    check(all(type(size) is int and 0 <= size < 2**63 for size in shape), "a numpy array", shape)
    check(isinstance(dtype, numpy.dtype), "a numpy array", dtype)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise PickleError(f"a numpy array of shape {shown(shape)} has {len(data):,} bytes")
    machine.charge(len(data))
    if not data:
        check(0 in shape, "a numpy array", shape)
        return numpy.zeros(shape, dtype, order)  # type: ignore[call-overload]
    return numpy.frombuffer(bytearray(data), dtype).reshape(shape, order=order)  # type: ignore[call-overload]


FUNCTIONS: dict[tuple[str, str], Any] = {("numpy", "dtype"): numpy_dtype, ("numpy", "ndarray"): None}
for _core in ("numpy.core", "numpy._core"):
    FUNCTIONS[f"{_core}.multiarray", "scalar"] = numpy_scalar
    FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = numpy_array
    FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = numpy_from_buffer
