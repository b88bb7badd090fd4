"""Reads pickles of checkpoints without running code that comes with them.

Every name in a pickle is looked up in tables of functions that build plain data; a name that is not in them becomes a
stub (``stubs.Foreign``). Tensors become ``StoredTensor``, whose bytes stay in the file.
"""

from __future__ import annotations

import copyreg
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ....errors import InitTypeError, InitValueError
from ...storage.stored import Storage
from ...storage.stubs import Foreign, Name, Refusal, like, name_of, shown
from ...storage.trees import PlainObject
from . import arrays, containers, special_tensors, tensors
from .containers import checked_attributes
from .errors import PickleError
from .loop import run
from .machine import Kind, Machine
from .tensors import STORAGES, TypedStorage

Location = Callable[[str], torch.device]

_HISTORY_BUFFER = ("mmengine.logging.history_buffer", "HistoryBuffer")
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_DTYPES = {name: getattr(torch, dtype) for name, dtype in STORAGES.items() if hasattr(torch, dtype)}
_MAX_ELEMENTS = 2**62


class HistoryBuffer(PlainObject):
    """Replaces mmengine's HistoryBuffer if mmengine has not been imported; holds its attributes."""


def _history_buffer(machine: Machine) -> Any:
    theirs = getattr(sys.modules.get(_HISTORY_BUFFER[0]), _HISTORY_BUFFER[1], None)
    return HistoryBuffer() if theirs is None else object.__new__(theirs)


def _set_history(machine: Machine, instance: Any, state: Any) -> None:
    attributes = checked_attributes(machine, type(instance), state)
    attributes = {
        name: value for name, value in attributes.items() if name != "statistics_methods"
    }  # the class has them
    if type(instance) is HistoryBuffer:
        vars(instance).update(attributes)
    else:
        instance.__setstate__(attributes)


def _reconstructed(machine: Machine, kind: Any, base: Any, state: Any) -> Any:
    """``copyreg._reconstructor``, which makes objects of plain classes in protocols 0 and 1."""
    if not isinstance(kind, Foreign) or not isinstance(base, Foreign):
        raise PickleError(f"an object is made of {shown(kind)} and {shown(base)}")
    if type(kind) is Name and name_of(base) == "builtins.object" and state is None:
        return machine.made_by(kind, (), is_new=True)
    if type(kind) is Name and name_of(base) == "builtins.str" and type(state) is str:
        return machine.made_by(kind, (state,), is_new=True)
    return like(kind)


_TENSOR_FUNCTIONS: dict[tuple[str, str], Any] = {
    **tensors.FUNCTIONS,
    **special_tensors.FUNCTIONS,
    ("copyreg", "_reconstructor"): _reconstructed,
}
FUNCTIONS: dict[tuple[str, str], Any] = {
    **containers.FUNCTIONS,
    **arrays.FUNCTIONS,
    **_TENSOR_FUNCTIONS,
    _HISTORY_BUFFER: _history_buffer,
}
CONSTANTS = {**containers.CONSTANTS, **tensors.CONSTANTS}


def _told_to_torch() -> dict[str, Any]:
    """Returns torch's safe globals, by their names in files."""
    found: dict[str, Any] = {}
    for each in getattr(torch.serialization, "get_safe_globals", list)():
        one, name = each if isinstance(each, tuple) else (each, None)
        if name is None and hasattr(one, "__qualname__"):
            name = f"{one.__module__}.{one.__qualname__}"
        if name is not None:
            found[name] = one
    return found


def _set_state(machine: Machine, instance: Any, state: Any) -> None:
    """Sets the state of an instance of a class that the user allows, as pickle would."""
    kind = type(instance)
    if hasattr(kind, "__setstate__"):
        instance.__setstate__(state)
        return
    slots = None
    if type(state) is tuple and len(state) == 2:
        state, slots = state
    if state is not None:
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise PickleError(f"the state of a {kind.__name__} is {shown(state)} and no dict of attributes")
        machine.charge(len(state))
        if state:  # without state, the instance may have no __dict__
            vars(instance).update(state)
    if slots is not None:
        declared = copyreg._slotnames(kind)  # type: ignore[attr-defined]
        if type(slots) is not dict or not all(type(name) is str and name in declared for name in slots):
            raise PickleError(f"a {kind.__name__} has no slots {shown(slots)}")
        for name, value in slots.items():
            setattr(instance, name, value)


def _kind_of_allowed(kind: type) -> Kind:
    append = kind.append if issubclass(kind, list) else kind.add if issubclass(kind, set) else None
    set_item = kind.__setitem__ if issubclass(kind, dict) else None
    # Tuples are hashed recursively in C, so nested ones could overflow the stack.
    return Kind(build=_set_state, append=append, set_item=set_item, is_key=not issubclass(kind, (tuple, frozenset)))


class Context:
    """The context shared by the pickles of one file.

    Args:
        refusal: of the file.
        storage_of: (key, n_bytes) -> the storage in the file.
        location_of: the device a tensor was saved from -> the device it is read to.
        allow: further classes and functions that pickles may use.
    """

    def __init__(
        self,
        refusal: Refusal,
        storage_of: Callable[[str, int], Storage],
        location_of: Location,
        allow: Iterable[Any] = (),
    ) -> None:
        self.refusal = refusal
        self._storage_of = storage_of
        self._location_of = location_of
        self._locations: dict[str, torch.device] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self.late: list[Any] = []
        """Tensors to be computed, and so checked, when all places in the file are known."""
        self._asked = {f"{each.__module__}.{each.__qualname__}": each for each in allow}
        self._allow = {**_told_to_torch(), **self._asked}
        self._classes = {name: each for name, each in self._allow.items() if isinstance(each, type)}
        self._kinds = {**containers.KINDS, HistoryBuffer: Kind(build=_set_history)}
        theirs = getattr(sys.modules.get(_HISTORY_BUFFER[0]), _HISTORY_BUFFER[1], None)
        if theirs is not None:
            self._kinds[theirs] = Kind(build=_set_history)
        for kind in self._classes.values():
            self._kinds.setdefault(kind, _kind_of_allowed(kind))

    def load(self, data: bytes, end: int, position: int = 0) -> tuple[Any, int]:
        """Returns the contents and the end of the pickle at a position; ``data`` are padded, as for ``Machine``.

        Raises:
            PickleError: it is damaged.
        """
        machine = Machine(data, end, self.find, self.refusal, self.storage, self._kinds, position)
        machine.classes, machine.late = self._classes, self.late
        return run(machine), machine.position

    def find(self, module: str, name: str) -> Any:
        """Returns the value for a name in the pickle."""
        full = f"{module}.{name}"
        # Our checked functions precede torch's safe globals; the user's own list precedes ours, except for tensors.
        is_ours = (module, name) in (_TENSOR_FUNCTIONS if full in self._asked else FUNCTIONS)
        if full in self._allow and not is_ours:
            return self._allowed(full, self._allow[full])
        if (module, name) in CONSTANTS:
            return CONSTANTS[module, name]
        if (module, name) in FUNCTIONS:
            return Name(full, self.refusal, FUNCTIONS[module, name])
        if module in _STORAGE_MODULES and name in _DTYPES:
            return Name(full, self.refusal)
        if (module, name.partition(".")[0]) != _HISTORY_BUFFER:
            self.refusal.names[full] = None
        return Foreign(full, self.refusal)

    def _allowed(self, full: str, each: Any) -> Any:
        if not callable(each):
            return each

        def call(machine: Machine, *args: Any, **kwargs: Any) -> Any:
            return each(*args, **kwargs)

        def new(machine: Machine, *args: Any, **kwargs: Any) -> Any:
            return each.__new__(each, *args, **kwargs)

        return Name(full, self.refusal, call, new if isinstance(each, type) else call)

    def storage(self, pid: Any) -> Foreign:
        """Returns the storage that a persistent id names: ("storage", type, key, location, n_elements[, view]).

        Old files also hold the source of modules: ("module", class, file, source).
        """
        if type(pid) is not tuple or not 4 <= len(pid) <= 6 or type(pid[0]) is not str:
            raise PickleError(f"unknown kind of persistent object {shown(pid)}")
        if pid[0] == "module" and len(pid) == 4 and type(pid[1]) is Foreign:
            return pid[1]
        if pid[0] != "storage" or len(pid) == 4:
            raise PickleError(f"unknown kind of persistent object {shown(pid)}")
        _, kind, key, location, n_elements, *rest = pid
        module, _, name = name_of(kind).rpartition(".") if type(kind) is Name else ("", "", "")
        dtype = _DTYPES.get(name) if module in _STORAGE_MODULES else None
        if dtype is None or type(key) is not str:
            raise PickleError(f"unknown kind of persistent object {shown(pid)}")
        if type(n_elements) is not int or not 0 <= n_elements < _MAX_ELEMENTS or type(location) is not str:
            raise PickleError(f"a storage of {shown(n_elements)} elements on {shown(location)}")
        if self._dtypes.setdefault(key, dtype) is not dtype:
            raise PickleError(f"the storage {shown(key)} is of {self._dtypes[key]} and of {dtype}")
        storage = self._storage_of(key, n_elements * dtype.itemsize)
        if location not in self._locations:
            self._locations[location] = self._location_of(location)
        first = 0
        if rest and rest[0] is not None:  # part of a larger one, in files from before torch 0.4
            view = rest[0]
            if type(view) is not tuple or len(view) != 3 or not all(type(each) is int for each in view[1:]):
                raise PickleError(f"a view of a storage is {shown(view)}")
            _, first, n_viewed = view
            if not (first >= 0 and 0 <= n_viewed <= n_elements - first):
                raise PickleError(f"a view of {n_viewed:,} elements at {first:,} in {n_elements:,}")
            n_elements = n_viewed
        return TypedStorage(self.refusal, storage, dtype, n_elements, self._locations[location], first)


def imported(allow: Iterable[Any]) -> tuple[Any, ...]:
    """Returns the classes and functions of an allow-list, importing those given by path.

    Raises:
        TypeError, ValueError: an entry is neither, or cannot be imported.
    """
    found = []
    for each in allow:
        if isinstance(each, str):
            module, _, name = each.rpartition(".")
            try:
                each = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError, ValueError) as error:
                raise InitValueError(f"allow={each!r} cannot be imported: {error}") from error
        if not hasattr(each, "__qualname__"):
            raise InitTypeError(f"allow must hold classes, functions or import paths, but it holds {each!r}")
        found.append(each)
    return tuple(found)
