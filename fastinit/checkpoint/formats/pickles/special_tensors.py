"""Quantized and sparse tensors, built and checked here: torch's own functions believe what the file says of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ...storage.derived import DerivedTensor
from ...storage.stored import StoredTensor
from ...storage.stubs import shown
from .errors import PickleError
from .machine import TENSOR_PRICE, Machine
from .tensors import MAX_DIMENSIONS, check_storage, checked_geometry


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
    check_storage(storage, requires_grad, hooks)
    machine.charge(TENSOR_PRICE)
    layout = QUANTIZED.get(storage.dtype)
    if layout is None or storage.first or type(quantizer) is not tuple or not quantizer or requires_grad:
        raise PickleError(f"a quantized tensor is made of {storage.dtype} and {shown(quantizer)}")
    shape, strides = checked_geometry(storage, offset, shape, strides, storage.n_elements * layout.n_in_byte)
    if layout.n_in_byte == 1:
        integers = StoredTensor.at(storage.storage, offset, shape, strides, layout.integers, storage.location)
    else:
        integers = StoredTensor.at(storage.storage, 0, (storage.n_elements,), (1,), torch.uint8, storage.location)
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
    schemes = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
    if type(quantizer[0]) is not torch.qscheme or quantizer[0] not in schemes or len(quantizer) != 4:
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
    is_layout = type(layout) is torch.layout and layout in (torch.sparse_coo, *_COMPRESSED)
    if type(data) is not tuple or not is_layout:
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
        coo: Callable[..., torch.Tensor] = torch.sparse_coo_tensor
        if layout is torch.sparse_coo:
            return coo(*tensors, size, check_invariants=True, is_coalesced=is_coalesced)
        return torch.sparse_compressed_tensor(*tensors, size, layout=layout, check_invariants=True)  # type: ignore[misc, arg-type]

    made = DerivedTensor.of(parts, make, size, parts[-1].dtype)
    machine.late.append(made)
    return made


FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_qtensor"): quantized_tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): sparse_tensor,
}
