"""Tensors as pickles describe them, from which the places in the file follow: what torch._utils rebuilds, checked.

An argument that is not understood is refused and never dropped: it may change what the values mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from ...storage.derived import DerivedTensor
from ...storage.stored import Storage, StoredTensor
from ...storage.stubs import Foreign, Name, Refusal, like, name_of, shown
from .containers import checked_attributes
from .errors import PickleError
from .machine import TENSOR_PRICE, Machine

# torch's operators take no more.
MAX_DIMENSIONS = 64
STORAGES = {
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
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}


QUANTIZED_DTYPES = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})
_PLAIN_ATTRIBUTES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
# More attributes, or longer lists in them, than anybody gives a parameter.
_MAX_ATTRIBUTES = 1000


class TypedStorage(Foreign):
    """What tensors are made of: a stretch of the file and the dtype of its elements. By itself it is no data."""

    __slots__ = ("dtype", "first", "location", "n_elements", "storage")

    def __init__(
        self,
        refusal: Refusal,
        storage: Storage,
        dtype: torch.dtype,
        n_elements: int,
        location: torch.device,
        first: int = 0,
    ) -> None:
        super().__init__("torch.storage.TypedStorage", refusal)
        for name, value in zip(self.__slots__, (dtype, first, location, n_elements, storage)):
            object.__setattr__(self, name, value)


def checked_geometry(storage: Any, offset: Any, shape: Any, strides: Any, n_elements: int) -> tuple[Any, Any]:
    """Returns shape and strides that lie within ``n_elements``.

    Raises:
        PickleError: they do not.
    """
    kinds = (tuple, torch.Size, list)
    if type(shape) not in kinds or type(strides) not in kinds or len(shape) > MAX_DIMENSIONS:
        raise PickleError(f"a tensor has the shape {shown(shape)} and strides {shown(strides)}")
    end, is_empty = offset, False
    is_right = type(offset) is int and 0 <= offset < 2**63 and len(shape) == len(strides)
    for size, step in zip(shape, strides):
        if type(size) is not int or type(step) is not int or not 0 <= size < 2**63 or not 0 <= step < 2**63:
            is_right = False
            break
        is_empty |= size == 0
        end += (size - 1) * step
    if not is_right:
        raise PickleError(f"a tensor has the shape {shown(shape)}, strides {shown(strides)} and offset {shown(offset)}")
    if not is_empty and end >= n_elements:
        raise PickleError(
            f"a tensor of shape {shown(shape)} reaches to element {end + 1:,} of a storage of {n_elements:,}"
        )
    return shape, strides


def check_storage(storage: Any, requires_grad: Any, hooks: Any) -> None:
    """Raises PickleError for what is no storage, or for hooks, which torch does not save."""
    if type(storage) is not TypedStorage:
        raise PickleError("a tensor is not made of a storage")
    if type(requires_grad) is not bool or (hooks is not None and (type(hooks) is not OrderedDict or hooks)):
        raise PickleError(f"a tensor has requires_grad {shown(requires_grad)} and the hooks {shown(hooks)}")


def _bits(metadata: Any) -> tuple[bool, bool]:
    """Returns whether a tensor's values are the conjugates, and the negatives, of what the file holds."""
    if metadata is None:
        return False, False
    if type(metadata) is not dict or not set(metadata) <= {"conj", "neg"}:
        raise PickleError(f"a tensor is saved with what is unknown here: {shown(metadata)}")
    if not all(type(value) is bool for value in metadata.values()):
        raise PickleError("a tensor is saved with bits that are none")
    return metadata.get("conj", False), metadata.get("neg", False)


def _at(
    machine: Machine, storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, metadata: Any
) -> StoredTensor:
    machine.charge(TENSOR_PRICE)
    checked_geometry(storage, offset, shape, strides, storage.n_elements)
    made = StoredTensor.at(
        storage.storage, storage.first + offset, shape, strides, storage.dtype, storage.location, requires_grad
    )
    if metadata is None:
        return made
    is_conj, is_neg = _bits(metadata)
    if is_conj and not storage.dtype.is_complex:
        raise PickleError(f"a tensor of {storage.dtype} is conjugated")
    if not is_conj and not is_neg:
        return made

    def change(values: torch.Tensor) -> torch.Tensor:
        values = values.conj() if is_conj else values
        return torch._neg_view(values) if is_neg else values

    return DerivedTensor.of((made,), change, shape, storage.dtype, requires_grad)


def tensor(machine: Machine, storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    """``torch._utils._rebuild_tensor``."""
    return tensor_v2(machine, storage, offset, shape, strides, False, None)


def tensor_v2(
    machine: Machine,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> StoredTensor:
    """``torch._utils._rebuild_tensor_v2``."""
    check_storage(storage, requires_grad, hooks)
    if storage.dtype in QUANTIZED_DTYPES:
        raise PickleError(f"a tensor of {storage.dtype} has no scale")
    return _at(machine, storage, offset, shape, strides, requires_grad, metadata)


def tensor_v3(
    machine: Machine,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Any:
    """``torch._utils._rebuild_tensor_v3``: of dtypes that have no storage class, such as float8."""
    check_storage(storage, requires_grad, hooks)
    if type(dtype) is not torch.dtype or dtype in QUANTIZED_DTYPES or storage.first:
        raise PickleError(f"a tensor is made of bytes and {shown(dtype)}")
    n_elements = storage.n_elements * storage.dtype.itemsize // dtype.itemsize
    typed = TypedStorage(machine.refusal, storage.storage, dtype, n_elements, storage.location)
    return _at(machine, typed, offset, shape, strides, requires_grad, metadata)


def parameter(machine: Machine, data: Any, requires_grad: Any, hooks: Any) -> Any:
    """``torch._utils._rebuild_parameter``."""
    return parameter_with_state(machine, data, requires_grad, hooks, None)


def parameter_with_state(machine: Machine, data: Any, requires_grad: Any, hooks: Any, state: Any) -> Any:
    """``torch._utils._rebuild_parameter_with_state``."""
    if type(data) is Foreign:
        return data
    if not isinstance(data, StoredTensor) or type(requires_grad) is not bool:
        raise PickleError("a parameter is not made of a tensor")
    if hooks is not None and (type(hooks) is not OrderedDict or hooks):
        raise PickleError(f"a parameter has the hooks {shown(hooks)}")
    machine.charge(TENSOR_PRICE)
    made = data.again(requires_grad)
    made.is_parameter = True
    made.attributes = _attributes(machine, state) or data.attributes
    return made


def from_type(machine: Machine, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """``torch._tensor._rebuild_from_type_v2``: a tensor with attributes; of subclasses that are not allowed, a stub."""
    if not isinstance(function, Foreign) or not isinstance(kind, Foreign):
        raise PickleError(f"a tensor is made by {shown(function)} of the type {shown(kind)}")
    subclass = machine.classes.get(name_of(kind))
    is_plain = type(kind) is Name and name_of(kind) in ("torch.Tensor", "torch.nn.parameter.Parameter")
    if type(function) is not Name or not (is_plain or _is_plain_subclass(subclass)):
        return like(function if is_plain else kind)
    made = machine.made_by(function, arguments)
    if not isinstance(made, StoredTensor):
        return made if isinstance(made, Foreign) else like(kind)
    if made.attributes is not None:
        raise PickleError("a tensor has attributes twice")
    if not is_plain:
        if isinstance(made, DerivedTensor):
            return like(kind)
        made = DerivedTensor.of(
            (made,), lambda values: values.as_subclass(subclass), made.size(), made.dtype, made.requires_grad
        )
    made.is_parameter |= name_of(kind) == "torch.nn.parameter.Parameter"
    made.attributes = _attributes(machine, state)
    return made


def _is_plain_subclass(kind: type | None) -> bool:
    """Tells whether a class of tensors takes its state as torch.Tensor does, attribute by attribute."""
    return (
        kind is not None
        and issubclass(kind, torch.Tensor)
        and getattr(kind, "__setstate__", None) is torch.Tensor.__setstate__
    )


def _attributes(machine: Machine, state: Any) -> dict[str, Any] | None:
    """Returns the attributes of a tensor; those that are more than flat data, as stubs.

    Flat, because tensors in attributes of tensors would be freed by recursion, as deep as the file likes.
    """
    if state is None:
        return None
    attributes = checked_attributes(machine, torch.nn.Parameter, state)
    if len(attributes) > _MAX_ATTRIBUTES:
        raise PickleError(f"a tensor has {len(attributes):,} attributes")

    def plain(name: str, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN_ATTRIBUTES or isinstance(value, Foreign):
            return value
        if kind in (list, tuple) and len(value) <= _MAX_ATTRIBUTES:
            machine.charge(len(value))
            if all(type(each) in _PLAIN_ATTRIBUTES for each in value):
                return kind(value)
        if kind is dict and len(value) <= _MAX_ATTRIBUTES:
            machine.charge(len(value))
            if all(type(each) in _PLAIN_ATTRIBUTES for each in value.values()):
                return dict(value)
        if isinstance(value, StoredTensor) and not value.attributes:
            return value
        return machine.foreign(f"the attribute {name[:100]} of a tensor")

    return {name: plain(name, value) for name, value in attributes.items()}


def _size(machine: Machine, numbers: Any = ()) -> torch.Size:
    if type(numbers) not in (tuple, list) or not all(type(each) is int and abs(each) < 2**63 for each in numbers):
        raise PickleError(f"a torch.Size is made of {shown(numbers)}")
    machine.charge(len(numbers))
    return torch.Size(numbers)


def _device(machine: Machine, kind: Any, *index: Any) -> torch.device:
    if type(kind) is not str or len(kind) > 100 or not all(type(each) is int for each in index):
        raise PickleError(f"a torch.device is made of {shown(kind)}")
    return torch.device(kind, *index)


def _layout(machine: Machine, name: Any) -> torch.layout:
    found = _LAYOUTS.get(name) if type(name) is str else None
    if found is None:
        raise PickleError(f"{shown(name)} is no layout")
    return found


def _version(machine: Machine, text: Any) -> str:
    if type(text) is not str:
        raise PickleError(f"a version is {shown(text)}")
    return torch.torch_version.TorchVersion(text)  # type: ignore[no-untyped-call, no-any-return]


_LAYOUTS = {str(each): each for each in vars(torch).values() if isinstance(each, torch.layout)}
FUNCTIONS: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch", "Tensor"): None,
    ("torch.nn.parameter", "Parameter"): None,
    ("torch.serialization", "_get_layout"): _layout,
    ("torch.torch_version", "TorchVersion"): _version,
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): parameter_with_state,
    ("torch._tensor", "_rebuild_from_type_v2"): from_type,
}
CONSTANTS: dict[tuple[str, str], Any] = {
    ("torch", name): value for name, value in vars(torch).items() if isinstance(value, (torch.dtype, torch.qscheme))
}
