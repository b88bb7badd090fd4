"""Tensors as pickles describe them, from which the places in the file follow: what torch._utils rebuilds, checked.

An argument that is not understood is refused and never dropped: it may change what the values mean.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .derived import DerivedTensor
from .opcodes import PickleError
from .pickles import TENSOR_PRICE, Machine
from .plain_data import checked_attributes
from .stored import Storage, StoredTensor
from .stubs import Foreign, Name, Refusal, like, name_of, shown

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


class Quantized(NamedTuple):
    """How a quantized dtype lies in memory."""

    integers: torch.dtype
    n_in_byte: int
    lowest: int
    highest: int


QUANTIZED = {
    torch.qint8: Quantized(torch.int8, 1, -128, 127),
    torch.quint8: Quantized(torch.uint8, 1, 0, 255),
    torch.qint32: Quantized(torch.int32, 1, -(2**31), 2**31 - 1),
    torch.quint4x2: Quantized(torch.uint8, 2, 0, 15),
    torch.quint2x4: Quantized(torch.uint8, 4, 0, 3),
}
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
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


def _geometry(storage: Any, offset: Any, shape: Any, strides: Any, n_elements: int) -> tuple[Any, Any]:
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


def _checked(storage: Any, requires_grad: Any, hooks: Any) -> None:
    if type(storage) is not TypedStorage:
        raise PickleError("a tensor is not made of a storage")
    if type(requires_grad) is not bool or (hooks is not None and (type(hooks) is not OrderedDict or hooks)):
        raise PickleError(f"a tensor has requires_grad {shown(requires_grad)} and the hooks {shown(hooks)}")


def _bits(metadata: Any) -> tuple[bool, bool]:
    """Returns whether a tensor's values are the conjugates, and the negatives, of what the file holds."""
    if metadata is None or metadata == {}:
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
    _geometry(storage, offset, shape, strides, storage.n_elements)
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
) -> Any:
    """``torch._utils._rebuild_tensor_v2``."""
    _checked(storage, requires_grad, hooks)
    if storage.dtype in QUANTIZED:
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
    _checked(storage, requires_grad, hooks)
    if type(dtype) is not torch.dtype or dtype in QUANTIZED or storage.first:
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
    if state is None or state == ():
        return None
    attributes = checked_attributes(torch.nn.Parameter, state)
    machine.charge(len(attributes))
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


# --- quantized and sparse tensors ------------------------------------------------------------------------------------


def _part(what: str, value: Any, dtypes: tuple[torch.dtype, ...] = ()) -> StoredTensor:
    """Returns a plain tensor that another one is made of: no larger than its storage, so that all may be looked at."""
    if type(value) is not StoredTensor or (dtypes and value.dtype not in dtypes):
        raise PickleError(f"{what} is made of {shown(value)}")
    if value.numel() * value.dtype_in_file.itemsize > value.storage_in_file.n_bytes:
        raise PickleError(f"{what} has {value.numel():,} elements in {value.storage_in_file.n_bytes:,} bytes")
    return value


def quantized_tensor(
    machine: Machine,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    quantizer: Any,
    requires_grad: Any,
    hooks: Any,
) -> Any:
    """``torch._utils._rebuild_qtensor``."""
    _checked(storage, requires_grad, hooks)
    machine.charge(TENSOR_PRICE)
    layout = QUANTIZED.get(storage.dtype)
    if layout is None or storage.first or type(quantizer) is not tuple or not quantizer or requires_grad:
        raise PickleError(f"a quantized tensor is made of {storage.dtype} and {shown(quantizer)}")
    shape, strides = _geometry(storage, offset, shape, strides, storage.n_elements * layout.n_in_byte)
    if layout.n_in_byte == 1:
        integers = StoredTensor.at(storage.storage, offset, shape, strides, layout.integers, storage.location)
    else:
        integers = StoredTensor.at(storage.storage, 0, (storage.n_elements,), (1,), torch.uint8, storage.location)
    _part("a quantized tensor", integers)
    if math.prod(shape) > storage.n_elements * layout.n_in_byte:
        raise PickleError(f"a quantized tensor of shape {shown(shape)} has {storage.n_elements:,} elements")
    dtype = storage.dtype
    if quantizer[0] is torch.per_tensor_affine:
        _, scale, zero = (*quantizer, None, None)[:3]
        if len(quantizer) != 3 or type(scale) is not float or not 0 < scale < math.inf or type(zero) is not int:
            raise PickleError(f"a quantized tensor has {shown(quantizer[1:])} for scale and zero")
        if not layout.lowest <= zero <= layout.highest:
            raise PickleError(f"a tensor of {dtype} has the zero {zero:,}")

        def make(values: torch.Tensor) -> torch.Tensor:
            device = values.device
            empty = torch._empty_affine_quantized([0], scale=scale, zero_point=zero, dtype=dtype, device=device)
            return _filled(empty, values, layout, offset, shape, strides)

        return DerivedTensor.of((integers,), make, shape, dtype)
    if quantizer[0] not in (torch.per_channel_affine, torch.per_channel_affine_float_qparams) or len(quantizer) != 4:
        raise PickleError(f"a quantized tensor has the quantizer {shown(quantizer)}")
    _, scales, zeros, axis = quantizer
    scales = _part("a quantizer", scales, (torch.float64, torch.float32))
    zeros = _part("a quantizer", zeros, (torch.int64, torch.int32, torch.float32, torch.float64))
    if type(axis) is not int or not 0 <= axis < len(shape):
        raise PickleError(f"a quantized tensor of shape {shown(shape)} has the axis {shown(axis)}")
    if tuple(scales.shape) != (shape[axis],) or tuple(zeros.shape) != (shape[axis],):
        raise PickleError(f"a quantizer of {shape[axis]:,} channels has {scales.numel():,} and {zeros.numel():,}")

    def make_channels(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        size = [n if dim == axis else 0 for dim, n in enumerate(shape)] if len(shape) > 1 else list(shape)
        empty = torch._empty_per_channel_affine_quantized(
            size, scales=scales, zero_points=zeros, axis=axis, dtype=dtype, device=values.device
        )
        return _filled(empty, values, layout, offset, shape, strides)

    return DerivedTensor.of((integers, scales, zeros), make_channels, shape, dtype)


def _filled(
    empty: torch.Tensor, values: torch.Tensor, layout: Quantized, offset: int, shape: Any, strides: Any
) -> torch.Tensor:
    if layout.n_in_byte == 1:
        return empty.set_(values.untyped_storage(), values.storage_offset(), shape, strides)  # type: ignore[call-overload, no-any-return]
    # Storages are as long as if every element took a byte: torch makes them so when it loads.
    memory = torch.zeros(len(values) * layout.n_in_byte, dtype=torch.uint8, device=values.device)
    memory[: len(values)] = values
    return empty.set_(memory.untyped_storage(), offset, shape, strides)  # type: ignore[call-overload, no-any-return]


def sparse_tensor(machine: Machine, layout: Any, data: Any) -> Any:
    """``torch._utils._rebuild_sparse_tensor``: its indices are checked, whatever torch does by itself."""
    machine.charge(TENSOR_PRICE)
    if type(data) is not tuple or (layout is not torch.sparse_coo and layout not in _COMPRESSED):
        raise PickleError(f"a sparse tensor is made of {shown(layout)} and {shown(data)}")
    n_tensors = 2 if layout is torch.sparse_coo else 3
    if len(data) != n_tensors + 1 and not (layout is torch.sparse_coo and len(data) == 4):
        raise PickleError(f"a sparse tensor is made of {shown(data)}")
    parts = tuple(_part("a sparse tensor", each) for each in data[:n_tensors])
    size = data[n_tensors]
    if type(size) not in (torch.Size, tuple, list) or len(size) > MAX_DIMENSIONS:
        raise PickleError(f"a sparse tensor has the shape {shown(size)}")
    if not all(type(each) is int and 0 <= each < 2**63 for each in size):
        raise PickleError(f"a sparse tensor has the shape {shown(size)}")
    is_coalesced = data[3] if layout is torch.sparse_coo and len(data) == 4 else None
    if is_coalesced is not None and type(is_coalesced) is not bool:
        raise PickleError(f"a sparse tensor is coalesced: {shown(is_coalesced)}")

    def make(*tensors: torch.Tensor) -> torch.Tensor:
        if layout is torch.sparse_coo:
            return torch.sparse_coo_tensor(*tensors, size, check_invariants=True, is_coalesced=is_coalesced)  # type: ignore[call-overload, no-any-return]
        return torch.sparse_compressed_tensor(*tensors, size, layout=layout, check_invariants=True)  # type: ignore[misc, arg-type]

    made = DerivedTensor.of(parts, make, size, parts[-1].dtype)
    machine.late.append(made)
    return made


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


_LAYOUTS = {str(each): each for each in (torch.strided, torch.sparse_coo, *_COMPRESSED)}
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
    ("torch._utils", "_rebuild_qtensor"): quantized_tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): sparse_tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): from_type,
}
CONSTANTS: dict[tuple[str, str], Any] = {
    ("torch", name): value
    for name, value in vars(torch).items()
    if isinstance(value, (torch.dtype, torch.qscheme, torch.memory_format))
}
