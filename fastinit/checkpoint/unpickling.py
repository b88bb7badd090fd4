"""Pickles of checkpoints, unpickled without running anything that comes with them.

Every name that a pickle asks for is looked up in one table here, of tokens and functions that build plain data; what is
not in it is refused, and all that was asked for is told. Tensors become ``StoredTensor``: their bytes stay in the file.
"""

from __future__ import annotations

import argparse
import importlib
import pickle
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple

import numpy
import torch

from .stored import PlainObject, Storage, StoredTensor, replace

Location = Callable[[str], torch.device]


class Unsupported(Exception):  # noqa: N818 (not an error: the slower way is taken)
    """The pickle holds tensors of a kind that is left to torch's own loader (sparse, quantized, subclasses)."""


class StorageType(NamedTuple):
    """What stands for torch's classes of typed storages."""

    dtype: torch.dtype


class _Function:
    """A function that a pickle may call, and do nothing else with."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")


# A pickle may set the state of what it names. Classes below have a __setstate__ for their instances, which the class
# itself does not pass; functions refuse.


class _Refused:
    """Stands for whatever a refused name would have made, so that the rest of the pickle can be looked through."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Refused:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any) -> None:
        pass

    __setstate__ = append = extend = add = update = __setitem__ = _ignore

    def __call__(self, *args: Any) -> _Refused:
        return self


class _NumpyDtype:
    """A numpy dtype of plain numbers or texts."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(\?|[bBhHiIlLqQefdgFDG]|[biufcSU]\d+)", code):
            raise pickle.UnpicklingError(f"a numpy dtype {code!r} is not plain data")
        self.dtype = numpy.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if state[2:5] != (None, None, None) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a structured numpy dtype is not plain data")
        self.dtype = self.dtype.newbyteorder(order)


class _NumpyArray:
    """A numpy array, until the pickle has said what is in it."""

    array: numpy.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _NumpyDtype) or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError("a numpy array of objects is not plain data")
        array = numpy.frombuffer(bytearray(data), dtype.dtype)
        self.array = array.reshape(shape, order="F" if is_fortran else "C")


class HistoryBuffer(PlainObject):
    """What mmengine's HistoryBuffer is here where mmengine has not been imported: its attributes."""

    def __setstate__(self, state: Any) -> None:
        attributes = _checked_attributes(state)
        attributes.pop("statistics_methods", None)  # its class's own functions
        vars(self).update(attributes)


class Namespace(argparse.Namespace, PlainObject):
    """Command-line arguments, which training scripts save beside the weights."""

    def __setstate__(self, state: Any) -> None:
        vars(self).update(_checked_attributes(state))


def _checked_attributes(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise pickle.UnpicklingError("the state of an object is no dict of attributes")
    return state


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, _NumpyDtype) or not isinstance(data, (bytes, str)):
        raise pickle.UnpicklingError("a numpy scalar of objects is not plain data")
    return numpy.frombuffer(data if isinstance(data, bytes) else data.encode("latin1"), dtype.dtype, count=1)[0]


def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    made = _NumpyArray()
    made.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return made


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    """What bytes are in the pickles of protocol 2."""
    return text.encode(encoding) if encoding in ("latin1", "latin-1") else b""


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any = False, *_: Any) -> StoredTensor:
    if not isinstance(storage, _TypedStorage):
        raise pickle.UnpicklingError("a tensor is not made of a storage")
    shape, strides = tuple(shape), tuple(strides)
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or len(shape) != len(strides):
        raise pickle.UnpicklingError(f"a tensor has the shape {shape}, strides {strides} and offset {offset}")
    end = offset + 1 + sum((size - 1) * step for size, step in zip(shape, strides)) if 0 not in shape else 0
    if end > storage.n_elements:
        raise pickle.UnpicklingError(
            f"a tensor of shape {tuple(shape)} reaches to element {end:,} of a storage of {storage.n_elements:,}"
        )
    return StoredTensor.at(
        storage.storage, offset, shape, strides, storage.dtype, storage.location, bool(requires_grad)
    )


def _tensor_of_bytes(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    """Tensors of dtypes that have no storage class, such as float8."""
    if not isinstance(storage, _TypedStorage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor is not made of a storage and a dtype")
    n_elements = storage.n_elements * storage.dtype.itemsize // dtype.itemsize
    return _tensor(storage._replace(dtype=dtype, n_elements=n_elements), offset, shape, strides, requires_grad)


def _parameter(data: Any, requires_grad: Any = True, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise pickle.UnpicklingError("a parameter is not made of a tensor")
    source = data.storage_in_file
    made = StoredTensor.at(
        source, data.offset_in_storage, data.shape, data.stride(), data.dtype, data.location, bool(requires_grad)
    )
    made.is_parameter = True
    return made


def _from_type(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    if kind not in (_TENSOR, _PARAMETER) or not isinstance(function, _Function):
        raise Unsupported
    return function(*args)


def _left_to_torch(*args: Any) -> Any:
    raise Unsupported


class _TypedStorage(NamedTuple):
    storage: Storage
    dtype: torch.dtype
    n_elements: int
    location: torch.device


_TENSOR, _PARAMETER, _ARRAY, _METHOD = object(), object(), object(), object()
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_HISTORY_BUFFER = ("mmengine.logging.history_buffer", "HistoryBuffer")


def _table() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "Counter"): _Function(Counter),
        ("_codecs", "encode"): _Function(_encoded),
        ("argparse", "Namespace"): Namespace,
        ("copyreg", "_reconstructor"): _Function(_reconstructed),
        ("copy_reg", "_reconstructor"): _Function(_reconstructed),
        ("builtins", "object"): object,
        ("__builtin__", "object"): object,
        _HISTORY_BUFFER: HistoryBuffer,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch", "Tensor"): _TENSOR,
        ("torch.nn.parameter", "Parameter"): _PARAMETER,
        ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_of_bytes),
        ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
        ("torch._tensor", "_rebuild_from_type_v2"): _Function(_from_type),
    }
    for kind in (set, frozenset, complex):
        table["builtins", kind.__name__] = table["__builtin__", kind.__name__] = _Function(kind)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            table["torch", name] = value
    table["torch.serialization", "_get_layout"] = _Function(_left_to_torch)
    for name, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            table[module, name] = StorageType(getattr(torch, dtype))
    for name in dir(torch._utils):  # sparse, quantized, nested, meta, tensors of other devices
        if name.startswith("_rebuild") and ("torch._utils", name) not in table:
            table["torch._utils", name] = _Function(_left_to_torch)
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "scalar"] = _Function(_numpy_scalar)
        table[f"{core}.multiarray", "_reconstruct"] = _Function(lambda *_: _NumpyArray())
        table[f"{core}.numeric", "_frombuffer"] = _Function(_numpy_from_buffer)
    table["numpy", "dtype"] = _NumpyDtype
    table["numpy", "ndarray"] = _ARRAY
    return table


def _reconstructed(kind: Any, base: Any, state: Any) -> Any:
    """What objects of plain classes are made by in the pickles of protocols 0 and 1."""
    if kind not in (HistoryBuffer, Namespace) or base is not object:
        raise pickle.UnpicklingError(f"{kind!r} cannot be made")
    return kind()


_ALLOWED = _table()


class Unpickler(pickle.Unpickler):
    """Reads one pickle of a checkpoint.

    Args:
        file: positioned at the pickle; afterwards, behind it.
        storage_of: (key, n_bytes) of a storage -> where it lies in the file.
        location_of: the device that a tensor was saved from -> where it goes.
        allow: classes and functions that pickles may use besides.
    """

    def __init__(
        self,
        file: BinaryIO,
        storage_of: Callable[[str, int], Storage],
        location_of: Location,
        allow: Iterable[Any] = (),
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of
        self._location_of = location_of
        safe: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()  # what torch was told is safe
        known = [*(each for each in safe if hasattr(each, "__qualname__")), *allow]
        self._allow = {(each.__module__, each.__qualname__): each for each in known}
        self.wanted: list[str] = []
        """Names that were refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the pickle."""
        found = self._allow.get((module, name), _ALLOWED.get((module, name)))
        if (module, name) in (("builtins", "getattr"), ("__builtin__", "getattr")):
            return _Function(self._attribute)
        if found is None and (module, name.partition(".")[0]) == _HISTORY_BUFFER:
            return _METHOD
        if found is None:
            self.wanted.append(f"{module}.{name}")
            return _Refused
        return found

    def _attribute(self, owner: Any, name: Any) -> Any:
        """What functions of classes are pickled as: mmengine's HistoryBuffer lists its own."""
        if owner is HistoryBuffer:
            return _METHOD
        self.wanted.append("builtins.getattr")
        return _Refused

    def persistent_load(self, pid: Any) -> Any:
        """Returns the storage that a tensor is made of."""
        kind, storage_type, key, location, n_elements, *rest = pid
        if kind != "storage" or not isinstance(storage_type, StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"unknown kind of persistent object {pid!r}")
        dtype = storage_type.dtype
        if type(n_elements) is not int or not 0 <= n_elements < 2**62 or not isinstance(location, str):
            raise pickle.UnpicklingError(f"a storage of {n_elements!r} elements on {location!r}")
        storage = self._storage_of(key, n_elements * dtype.itemsize)
        view = rest[0] if rest else None
        if view is not None:  # part of a larger one, in files from before torch 0.4
            _, offset, n_viewed = view
            if not (type(offset) is type(n_viewed) is int and offset >= 0 and 0 <= n_viewed <= n_elements - offset):
                raise pickle.UnpicklingError(f"a view of {n_viewed!r} elements at {offset!r} in {n_elements:,}")
            raise Unsupported
        return _TypedStorage(storage, dtype, n_elements, self._location_of(location))


def settled(tree: Any) -> Any:
    """Returns what was unpickled with the last stand-ins replaced: numpy arrays, and mmengine's own HistoryBuffer."""
    tree = replace(tree, _NumpyArray, lambda each: each.array)
    tree = replace(tree, _NumpyDtype, lambda each: each.dtype)
    theirs = getattr(sys.modules.get(_HISTORY_BUFFER[0]), _HISTORY_BUFFER[1], None)
    return tree if theirs is None else replace(tree, HistoryBuffer, lambda each: _as(theirs, each))


def _as(kind: type, each: HistoryBuffer) -> Any:
    made: Any = object.__new__(kind)
    made.__setstate__(dict(vars(each)))
    return made


def imported(allow: Iterable[Any]) -> tuple[Any, ...]:
    """Returns the classes and functions of an allow-list; texts are import paths.

    Raises:
        TypeError, ValueError: something is neither, or cannot be imported.
    """
    found = []
    for each in allow:
        if isinstance(each, str):
            module, _, name = each.rpartition(".")
            try:
                each = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError, ValueError) as error:
                raise ValueError(f"allow={each!r} cannot be imported: {error}") from error
        if not hasattr(each, "__qualname__"):
            raise TypeError(f"allow must hold classes, functions or import paths, but it holds {each!r}")
        found.append(each)
    return tuple(found)
