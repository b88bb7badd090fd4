"""What pickles of checkpoints are made of besides tensors and arrays, and what makes it: containers, dates, paths.

Every function checks what it is given, by its exact type, before it looks into it, compares or counts it: a tensor of
the file would be read for that. What is copied is paid for (``Machine.charge``).
"""

from __future__ import annotations

import argparse
import datetime
import types
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from ...storage.stubs import Foreign, Name, like, name_of, shown
from .errors import PickleError
from .machine import Kind, Machine

# Neither frees what it holds without recursion: a thousand of them in each other take 300 KB of stack.
_MAX_RECURSING = 1000
_FACTORIES = {
    f"builtins.{kind.__name__}": kind for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)
}


def check(is_right: bool, what: str, value: Any) -> None:
    """Raises PickleError unless a value is made of what it should be made of."""
    if not is_right:
        raise PickleError(f"{what} is made of {shown(value)}")


def _items(machine: Machine, what: str, items: Any) -> Any:
    """Returns a list or tuple, which is about to be copied."""
    check(type(items) in (list, tuple), what, items)
    machine.charge(len(items))
    return items


# --- containers ------------------------------------------------------------------------------------------------------


def ordered_dict(machine: Machine, pairs: Any = ()) -> OrderedDict[Any, Any]:
    """An OrderedDict: empty, or as Python 2 wrote it, of pairs."""
    made: OrderedDict[Any, Any] = OrderedDict()
    for pair in _items(machine, "an OrderedDict", pairs):
        check(type(pair) in (list, tuple) and len(pair) == 2, "an OrderedDict", pairs)
        made[machine.key(pair[0])] = pair[1]
    return made


def counter(machine: Machine, counts: Any = None) -> Counter[Any]:
    """A Counter."""
    check(counts is None or type(counts) is dict, "a Counter", counts)
    machine.charge(len(counts or ()))
    made: Counter[Any] = Counter()
    for key, count in (counts or {}).items():
        made[key] = count
    return made


def default_dict(machine: Machine, factory: Any = None) -> Any:
    """A defaultdict, whose factory is one of Python's own types or nothing; else a stub."""
    check(factory is None or isinstance(factory, Foreign), "a defaultdict", factory)
    if factory is not None and (type(factory) is not Name or name_of(factory) not in _FACTORIES):
        return like(factory)
    if not _may_recurse(machine):
        return machine.foreign("collections.defaultdict")
    return defaultdict(None if factory is None else _FACTORIES[name_of(factory)])


def a_deque(machine: Machine, items: Any = (), longest: Any = None) -> Any:
    """A deque."""
    check(longest is None or (type(longest) is int and 0 <= longest < 2**63), "a deque", longest)
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
    check(type(real) in (int, float) and type(imaginary) in (int, float), "a complex number", (real, imaginary))
    return complex(real, imaginary)


def a_range(machine: Machine, *numbers: Any) -> range:
    """A range."""
    check(len(numbers) <= 3 and all(type(each) is int for each in numbers), "a range", numbers)
    return range(*numbers)


def a_slice(machine: Machine, *numbers: Any) -> slice:
    """A slice of numbers."""
    check(len(numbers) == 3 and all(each is None or type(each) is int for each in numbers), "a slice", numbers)
    return slice(*numbers)


def encoded(machine: Machine, text: Any, encoding: Any = "utf-8") -> bytes:
    """What bytes are in the pickles of protocol 2."""
    check(type(text) is str and type(encoding) is str, "bytes", (text, encoding))
    check(encoding in ("latin1", "latin-1"), "bytes", (text, encoding))
    machine.charge(len(text))
    return text.encode("latin1")  # type: ignore[no-any-return]


def some_bytes(machine: Machine, data: Any = b"") -> bytes:
    """Bytes: empty in the pickles of protocol 2."""
    check(type(data) is bytes, "bytes", data)
    return data  # type: ignore[no-any-return]


def a_bytearray(machine: Machine, data: Any = b"", encoding: Any = None) -> bytearray:
    """A bytearray; never one of so many zeros."""
    if type(data) is str:
        data = encoded(machine, data, encoding)
    check(type(data) is bytes, "a bytearray", data)
    machine.charge(len(data))
    return bytearray(data)


def a_path(kind: type[PurePath]) -> Any:
    """Returns what makes paths: pure ones, which know no file system."""

    def make(machine: Machine, *parts: Any) -> PurePath:
        check(all(type(each) is str for each in parts), "a path", parts)
        machine.charge(len(parts) + sum(map(len, parts)))
        return kind(*parts)

    return make


def attribute(machine: Machine, owner: Any, name: Any) -> Any:
    """What ``getattr`` is in a pickle, where methods and members of enums are written so: a stub."""
    check(isinstance(owner, Foreign) and type(name) is str, "an attribute", (owner, name))
    return machine.foreign(f"{name_of(owner)}.{name[:100]}")


# --- dates -----------------------------------------------------------------------------------------------------------


def _date_bytes(data: Any, n_bytes: int) -> bytes:
    if type(data) is str and len(data) == n_bytes:  # of Python 2
        data = data.encode("latin1")
    check(type(data) is bytes and len(data) == n_bytes, "a date or time", data)
    return data  # type: ignore[no-any-return]


def _zone(zone: Any) -> Any:
    check(zone is None or type(zone) is datetime.timezone, "a time zone", zone)
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
    check(len(numbers) <= 3 and all(type(each) is int for each in numbers), "a timedelta", numbers)
    return datetime.timedelta(*numbers)


def a_timezone(machine: Machine, offset: Any, *name: Any) -> datetime.timezone:
    """A time zone that is an offset."""
    check(type(offset) is datetime.timedelta and all(type(each) is str for each in name), "a time zone", offset)
    return datetime.timezone(offset, *name)


# --- attributes ------------------------------------------------------------------------------------------------------


def checked_attributes(machine: Machine, kind: type, state: Any) -> dict[str, Any]:
    """Returns the attributes of an object that are its state, none of which hides what its class has."""
    if type(state) is tuple and len(state) == 2 and (state[1] is None or (type(state[1]) is dict and not state[1])):
        state = state[0]
    if type(state) is not dict:
        raise PickleError(f"the state of a {kind.__name__} is {shown(state)} and no dict of attributes")
    machine.charge(len(state))
    for name in state:
        if type(name) is not str or hasattr(kind, name):
            raise PickleError(f"a {kind.__name__} cannot be given the attribute {shown(name)}")
    return state  # type: ignore[no-any-return]


def _set_attributes(machine: Machine, instance: Any, state: Any) -> None:
    if state is not None:
        vars(instance).update(checked_attributes(machine, type(instance), state))


def _set_metadata(machine: Machine, instance: Any, state: Any) -> None:
    attributes = checked_attributes(machine, OrderedDict, state)
    vars(instance).update(attributes)
    if "_metadata" in attributes:
        metadata = attributes["_metadata"]
        machine.at_end[id(metadata)] = metadata, _check_metadata


def _check_metadata(metadata: Any) -> None:
    """Raises where modules would fall over what they are to read of themselves, half-written."""
    if not isinstance(metadata, dict):
        raise PickleError(f"the _metadata of a state dict is {shown(metadata)}")
    for path, entry in metadata.items():
        version = entry.get("version") if type(entry) in (dict, OrderedDict) else entry
        if type(path) is not str or type(entry) not in (dict, OrderedDict) or type(version) not in (int, type(None)):
            raise PickleError(f"the _metadata of a state dict has the entry {shown(path)}: {shown(version)}")


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
}
for _module in ("pathlib", "pathlib._local"):
    for _kind in (PurePosixPath, PureWindowsPath):
        FUNCTIONS[_module, _kind.__name__] = FUNCTIONS[_module, _kind.__name__.removeprefix("Pure")] = a_path(_kind)
for _name in _FACTORIES:
    FUNCTIONS.setdefault(("builtins", _name.partition(".")[2]), None)
CONSTANTS: dict[tuple[str, str], Any] = {("builtins", "Ellipsis"): ..., ("builtins", "NotImplemented"): NotImplemented}
KINDS: dict[type, Kind] = {
    OrderedDict: Kind(build=_set_metadata),
    deque: Kind(append=deque.append),
    argparse.Namespace: Kind(build=_set_attributes),
    types.SimpleNamespace: Kind(build=_set_attributes),
}
"""What pickles may do to instances of these types."""
