"""What pickles of checkpoints are made of besides tensors, and what makes it: containers, dates, paths, numpy's data.

Every function checks what it is given before it looks into it, and what it copies is paid for (``Machine.charge``).
"""

from __future__ import annotations

import argparse
import datetime
import math
import re
import types
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy

from .opcodes import PickleError
from .pickles import Kind, Machine
from .stubs import Foreign, Name, like, name_of, shown

# Neither frees what it holds without recursion: a thousand of them in each other take 300 KB of stack.
_MAX_RECURSING = 1000
_FACTORIES = {
    f"builtins.{kind.__name__}": kind for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)
}
_PLAIN_DTYPE = re.compile(r"[<>=|]?(\?|[bBhHiIlLqQefdgFDG]|[biufcSU]\d{1,9})")
_TIME_DTYPE = re.compile(r"[<>=|]?[mM]8?")
_RECORD_DTYPE = re.compile(r"\|?V\d{1,9}")
_TIME_UNITS = frozenset({"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"})
_ORDERS = ("<", ">", "=", "|")
_LONGEST_STEP = 2**31
# numpy's own limit, since version 2; it was 32 before.
_MAX_DIMENSIONS = 64


def _check(is_right: bool, what: str, value: Any) -> None:
    if not is_right:
        raise PickleError(f"{what} is made of {shown(value)}")


def _items(machine: Machine, what: str, items: Any) -> Any:
    """Returns a list or tuple, which is about to be copied."""
    _check(type(items) in (list, tuple), what, items)
    machine.charge(len(items))
    return items


# --- containers ------------------------------------------------------------------------------------------------------


def ordered_dict(machine: Machine, pairs: Any = ()) -> OrderedDict[Any, Any]:
    """An OrderedDict: empty, or as Python 2 wrote it, of pairs."""
    made: OrderedDict[Any, Any] = OrderedDict()
    if pairs:
        for pair in _items(machine, "an OrderedDict", pairs):
            _check(type(pair) in (list, tuple) and len(pair) == 2, "an OrderedDict", pairs)
            made[machine.key(pair[0])] = pair[1]
    return made


def counter(machine: Machine, counts: Any = None) -> Counter[Any]:
    """A Counter."""
    _check(counts is None or type(counts) is dict, "a Counter", counts)
    machine.charge(len(counts or ()))
    made: Counter[Any] = Counter()
    for key, count in (counts or {}).items():
        made[key] = count
    return made


def default_dict(machine: Machine, factory: Any = None) -> Any:
    """A defaultdict, whose factory is one of Python's own types or nothing; else a stub."""
    _check(factory is None or isinstance(factory, Foreign), "a defaultdict", factory)
    if factory is not None and (type(factory) is not Name or name_of(factory) not in _FACTORIES):
        return like(factory)
    if not _may_recurse(machine):
        return machine.foreign("collections.defaultdict")
    return defaultdict(None if factory is None else _FACTORIES[name_of(factory)])


def a_deque(machine: Machine, items: Any = (), longest: Any = None) -> Any:
    """A deque."""
    _check(longest is None or (type(longest) is int and 0 <= longest < 2**63), "a deque", longest)
    items = _items(machine, "a deque", items)
    return deque(items, longest) if _may_recurse(machine) else machine.foreign("collections.deque")


def _may_recurse(machine: Machine) -> bool:
    machine.n_recursing += 1
    return machine.n_recursing <= _MAX_RECURSING


def a_set(machine: Machine, items: Any = ()) -> set[Any]:
    """A set."""
    return {machine.key(each) for each in _items(machine, "a set", items)}


def a_frozenset(machine: Machine, items: Any = ()) -> frozenset[Any]:
    """A frozenset."""
    return frozenset(a_set(machine, items))


def a_complex(machine: Machine, real: Any, imaginary: Any) -> complex:
    """A complex number."""
    _check(type(real) in (int, float) and type(imaginary) in (int, float), "a complex number", (real, imaginary))
    return complex(real, imaginary)


def a_range(machine: Machine, *numbers: Any) -> range:
    """A range."""
    _check(len(numbers) <= 3 and all(type(each) is int for each in numbers), "a range", numbers)
    return range(*numbers)


def a_slice(machine: Machine, *numbers: Any) -> slice:
    """A slice of numbers."""
    _check(len(numbers) == 3 and all(each is None or type(each) is int for each in numbers), "a slice", numbers)
    return slice(*numbers)


def encoded(machine: Machine, text: Any, encoding: Any = "utf-8") -> bytes:
    """What bytes are in the pickles of protocol 2."""
    _check(type(text) is str and encoding in ("latin1", "latin-1"), "bytes", (text, encoding))
    machine.charge(len(text))
    return text.encode("latin1")  # type: ignore[no-any-return]


def some_bytes(machine: Machine, data: Any = b"") -> bytes:
    """Bytes: empty in the pickles of protocol 2."""
    _check(type(data) is bytes, "bytes", data)
    return data  # type: ignore[no-any-return]


def a_bytearray(machine: Machine, data: Any = b"", encoding: Any = None) -> bytearray:
    """A bytearray; never one of so many zeros."""
    if type(data) is str:
        data = encoded(machine, data, encoding)
    _check(type(data) is bytes, "a bytearray", data)
    machine.charge(len(data))
    return bytearray(data)


def a_path(kind: type[PurePath]) -> Any:
    """Returns what makes paths: pure ones, which know no file system."""

    def make(machine: Machine, *parts: Any) -> PurePath:
        _check(all(type(each) is str for each in parts), "a path", parts)
        machine.charge(sum(map(len, parts)))
        return kind(*parts)

    return make


def attribute(machine: Machine, owner: Any, name: Any) -> Any:
    """What ``getattr`` is in a pickle, where methods and members of enums are written so: a stub."""
    _check(isinstance(owner, Foreign) and type(name) is str, "an attribute", (owner, name))
    return machine.foreign(f"{name_of(owner)}.{name[:100]}")


# --- dates -----------------------------------------------------------------------------------------------------------


def _date_bytes(data: Any, n_bytes: int) -> bytes:
    if type(data) is str and len(data) == n_bytes:  # of Python 2
        data = data.encode("latin1")
    _check(type(data) is bytes and len(data) == n_bytes, "a date or time", data)
    return data  # type: ignore[no-any-return]


def _zone(zone: Any) -> Any:
    _check(zone is None or type(zone) is datetime.timezone, "a time zone", zone)
    return zone


def a_date(machine: Machine, data: Any) -> datetime.date:
    """A date, from its bytes."""
    high, low, month, day = _date_bytes(data, 4)
    return datetime.date(high << 8 | low, month, day)


def a_time(machine: Machine, data: Any, zone: Any = None) -> datetime.time:
    """A time of day, from its bytes."""
    hour, minute, second, *parts = _date_bytes(data, 6)
    microsecond = int.from_bytes(bytes(parts), "big")
    return datetime.time(hour & 0x7F, minute, second, microsecond, _zone(zone), fold=hour >> 7)


def a_datetime(machine: Machine, data: Any, zone: Any = None) -> datetime.datetime:
    """A date and time, from its bytes."""
    high, low, month, day, hour, minute, second, *parts = _date_bytes(data, 10)
    microsecond, fold = int.from_bytes(bytes(parts), "big"), month >> 7
    return datetime.datetime(
        high << 8 | low, month & 0x7F, day, hour, minute, second, microsecond, _zone(zone), fold=fold
    )


def a_timedelta(machine: Machine, *numbers: Any) -> datetime.timedelta:
    """A span of time: days, seconds, microseconds."""
    _check(len(numbers) <= 3 and all(type(each) is int for each in numbers), "a timedelta", numbers)
    return datetime.timedelta(*numbers)


def a_timezone(machine: Machine, offset: Any, *name: Any) -> datetime.timezone:
    """A time zone that is an offset."""
    _check(type(offset) is datetime.timedelta and all(type(each) is str for each in name), "a time zone", offset)
    return datetime.timezone(offset, *name)


# --- attributes ------------------------------------------------------------------------------------------------------


def checked_attributes(kind: type, state: Any) -> dict[str, Any]:
    """Returns the attributes of an object that are its state, none of which hides what its class has."""
    if type(state) is tuple and len(state) == 2 and state[1] in (None, {}):
        state = state[0]
    if type(state) is not dict:
        raise PickleError(f"the state of a {kind.__name__} is {shown(state)} and no dict of attributes")
    for name in state:
        if type(name) is not str or hasattr(kind, name):
            raise PickleError(f"a {kind.__name__} cannot be given the attribute {shown(name)}")
    return state  # type: ignore[no-any-return]


def _set_attributes(machine: Machine, instance: Any, state: Any) -> None:
    if state is not None:
        vars(instance).update(checked_attributes(type(instance), state))


def _set_metadata(machine: Machine, instance: Any, state: Any) -> None:
    attributes = checked_attributes(OrderedDict, state)
    vars(instance).update(attributes)
    if "_metadata" in attributes:
        machine.at_end.append(lambda: _check_metadata(attributes["_metadata"]))


def _check_metadata(metadata: Any) -> None:
    """Raises where modules would fall over what they are to read of themselves, half-written."""
    if not isinstance(metadata, dict):
        raise PickleError(f"the _metadata of a state dict is {shown(metadata)}")
    for path, entry in metadata.items():
        version = entry.get("version") if type(entry) in (dict, OrderedDict) else entry
        if type(path) is not str or type(entry) not in (dict, OrderedDict) or type(version) not in (int, type(None)):
            raise PickleError(f"the _metadata of a state dict has the entry {shown(path)}: {shown(version)}")


# --- numpy -----------------------------------------------------------------------------------------------------------


def numpy_dtype(machine: Machine, code: Any, *_: Any) -> Any:
    """A dtype of numpy that is plain data, once its byte order and fields are known; of objects, a stub."""
    _check(type(code) is str and len(_) <= 2, "a numpy dtype", code)
    if _PLAIN_DTYPE.fullmatch(code):
        return machine.unfinished("numpy.dtype", lambda machine, state: _ordered(numpy.dtype(code), state))
    if _TIME_DTYPE.fullmatch(code):
        return machine.unfinished("numpy.dtype", lambda machine, state: _time_dtype(code.strip("<>=|8"), state))
    if _RECORD_DTYPE.fullmatch(code):
        return machine.unfinished("numpy.dtype", _record_dtype)
    return machine.foreign("numpy.dtype")


def _state_of_dtype(state: Any) -> Any:
    _check(type(state) is tuple and 8 <= len(state) <= 9 and state[1] in _ORDERS, "a numpy dtype", state)
    return state


def _ordered(dtype: Any, state: Any) -> Any:
    _, order, *more = _state_of_dtype(state)
    _check(more[:3] == [None, None, None], "a numpy dtype", state)
    return dtype.newbyteorder(order)


def _time_dtype(code: str, state: Any) -> Any:
    _, order, *more = _state_of_dtype(state)
    metadata = more[-1] if len(state) == 9 else None
    unit = metadata[1] if type(metadata) is tuple and len(metadata) == 2 else None
    _check(more[:3] == [None, None, None] and type(unit) is tuple and len(unit) >= 2, "a numpy dtype", state)
    name = unit[0].decode("ascii") if type(unit[0]) is bytes else unit[0]
    if name == "generic":
        return numpy.dtype(f"{code}8").newbyteorder(order)
    _check(name in _TIME_UNITS and type(unit[1]) is int and 0 < unit[1] < _LONGEST_STEP, "a numpy dtype", state)
    return numpy.dtype(f"{code}8[{unit[1]}{name}]").newbyteorder(order)


def _record_dtype(machine: Machine, state: Any) -> Any:
    _, order, base, names, fields, n_bytes, *_ = _state_of_dtype(state)
    if base is not None or names is None:  # raw bytes, and arrays in arrays
        return machine.foreign("numpy.dtype")
    _check(type(names) is tuple and type(fields) is dict and type(n_bytes) is int, "a numpy dtype", state)
    machine.charge(len(names))
    found = [fields.get(name) for name in names if type(name) is str]
    _check(
        len(found) == len(names) == len(fields) and all(type(each) is tuple and len(each) == 2 for each in found),
        "a numpy dtype",
        names,
    )
    if any(isinstance(each, Foreign) for each, _ in found):
        return machine.foreign("numpy.dtype")
    _check(all(isinstance(each, numpy.dtype) and type(at) is int for each, at in found), "a numpy dtype", names)
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
    _check(isinstance(dtype, numpy.dtype) and len(data) == dtype.itemsize, "a numpy scalar", dtype)
    if not data:
        return dtype.type()
    return numpy.frombuffer(bytes(data), dtype, count=1)[0]


def numpy_array(machine: Machine, kind: Any, *_: Any) -> Any:
    """An array of numpy, once its state is known; a stub if it is of a subclass."""
    if type(kind) is not Name or name_of(kind) != "numpy.ndarray":
        return like(kind)

    def finish(machine: Machine, state: Any) -> Any:
        _check(type(state) is tuple and len(state) == 5, "a numpy array", state)
        return _array(machine, state[4], state[2], state[1], "F" if state[3] is True else "C")

    return machine.unfinished("numpy.ndarray", finish)


def numpy_from_buffer(machine: Machine, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """An array of numpy in the pickles of protocol 5."""
    _check(order in ("C", "F"), "a numpy array", order)
    return _array(machine, data, dtype, shape, order)


def _array(machine: Machine, data: Any, dtype: Any, shape: Any, order: str) -> Any:
    if type(dtype) is Foreign:  # whose data are objects, a list of them
        return like(dtype)
    data = _bytes_of_data("array", data)
    if isinstance(dtype, Foreign):
        return like(dtype)
    _check(type(shape) is tuple and len(shape) <= _MAX_DIMENSIONS, "a numpy array", shape)
    _check(all(type(size) is int and 0 <= size < 2**63 for size in shape), "a numpy array", shape)
    _check(isinstance(dtype, numpy.dtype), "a numpy array", dtype)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise PickleError(f"a numpy array of shape {shown(shape)} has {len(data):,} bytes")
    machine.charge(len(data))
    if not data:
        _check(0 in shape, "a numpy array", shape)
        return numpy.zeros(shape, dtype, order)  # type: ignore[call-overload]
    return numpy.frombuffer(bytearray(data), dtype).reshape(shape, order=order)  # type: ignore[call-overload]


# --- the tables ------------------------------------------------------------------------------------------------------

# Names as Python 3 has them -> what is made when they are called; None: they are good as arguments only.
FUNCTIONS: dict[tuple[str, str], Any] = {
    ("builtins", "set"): a_set,
    ("builtins", "frozenset"): a_frozenset,
    ("builtins", "complex"): a_complex,
    ("builtins", "range"): a_range,
    ("builtins", "slice"): a_slice,
    ("builtins", "bytes"): some_bytes,
    ("builtins", "bytearray"): a_bytearray,
    ("builtins", "getattr"): attribute,
    ("builtins", "object"): None,
    ("_codecs", "encode"): encoded,
    ("collections", "OrderedDict"): ordered_dict,
    ("collections", "Counter"): counter,
    ("collections", "defaultdict"): default_dict,
    ("collections", "deque"): a_deque,
    ("argparse", "Namespace"): lambda machine: argparse.Namespace(),
    ("types", "SimpleNamespace"): lambda machine: types.SimpleNamespace(),
    ("datetime", "date"): a_date,
    ("datetime", "time"): a_time,
    ("datetime", "datetime"): a_datetime,
    ("datetime", "timedelta"): a_timedelta,
    ("datetime", "timezone"): a_timezone,
    ("numpy", "dtype"): numpy_dtype,
    ("numpy", "ndarray"): None,
}
for _module in ("pathlib", "pathlib._local"):
    for _kind in (PurePosixPath, PureWindowsPath):
        FUNCTIONS[_module, _kind.__name__] = FUNCTIONS[_module, _kind.__name__.removeprefix("Pure")] = a_path(_kind)
for _name in _FACTORIES:
    FUNCTIONS.setdefault(("builtins", _name.partition(".")[2]), None)
for _core in ("numpy.core", "numpy._core"):
    FUNCTIONS[f"{_core}.multiarray", "scalar"] = numpy_scalar
    FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = numpy_array
    FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = numpy_from_buffer
CONSTANTS: dict[tuple[str, str], Any] = {("builtins", "Ellipsis"): ..., ("builtins", "NotImplemented"): NotImplemented}
KINDS: dict[type, Kind] = {
    OrderedDict: Kind(build=_set_metadata),
    deque: Kind(append=deque.append),
    argparse.Namespace: Kind(build=_set_attributes),
    types.SimpleNamespace: Kind(build=_set_attributes),
}
"""What pickles may do to instances of these types."""
