"""The safetensors format: a JSON table of tensors, checked whole, and their bytes one after the other.

https://huggingface.co/docs/safetensors: 8 bytes with the length of the table, the table, the bytes without gaps.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch

from ...errors import InitValueError
from ...plans import row_major
from ..storage.files import File
from ..storage.on_disk import FileStorage
from ..storage.stored import StoredTensor
from ..storage.stubs import shown

# The format's own limit.
_MAX_TABLE_BYTES = 100_000_000
_LENGTH_BYTES = 8
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
# One element of torch's dtype holds two of the file's.
_PAIRS = {"F4"}
# torch's limit.
_MAX_DIMENSIONS = 64


def looks_like(head: bytes) -> bool:
    """Returns whether a file that begins like this is meant to be a safetensors file."""
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read(file: File, location: torch.device) -> OrderedDict[str, StoredTensor]:
    """Returns the tensors of a file by name, in the order of their bytes.

    Raises:
        ValueError: the table violates the format.
    """
    n_table = int.from_bytes(file.bytes_at(0, _LENGTH_BYTES), "little")
    begin = _LENGTH_BYTES + n_table
    if n_table > _MAX_TABLE_BYTES or begin > file.size:
        raise InitValueError(f"its table of {n_table:,} bytes does not fit into the file of {file.size:,}")
    table = file.json_at(_LENGTH_BYTES, n_table, "its table has the name {!r} twice")
    if not isinstance(table, dict):
        raise InitValueError("its table is no dict")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InitValueError("its __metadata__ is no dict of texts")
    places = sorted(((*_place(name, entry), name) for name, entry in table.items()), key=lambda place: place[:2])
    tensors: OrderedDict[str, StoredTensor] = OrderedDict()
    at = 0
    for start, end, shape, dtype, name in places:
        if start != at:
            what = "overlaps the tensor before it" if start < at else "leaves a gap before it"
            raise InitValueError(
                f"the tensor {shown(name)} {what}: it begins at byte {start:,} of the data, expected is {at:,}"
            )
        at = end
        storage = FileStorage(file, begin + start, end - start)
        tensors[name] = StoredTensor.at(storage, 0, shape, row_major(shape), dtype, location)
    if begin + at != file.size:
        raise InitValueError(f"its table describes {at:,} bytes of data, but the file holds {file.size - begin:,}")
    return tensors


def _place(name: str, entry: Any) -> tuple[int, int, list[int], torch.dtype]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InitValueError(
            f"the tensor {shown(name)} must have dtype, shape and data_offsets, but has {shown(entry)}"
        )
    shape, offsets, code = entry["shape"], entry["data_offsets"], entry["dtype"]
    dtype = getattr(torch, DTYPES.get(code, ""), None) if isinstance(code, str) else None
    if dtype is None:
        raise InitValueError(f"the tensor {shown(name)} has the dtype {shown(code)}, which this torch does not have")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        is_short = isinstance(numbers, list) and len(numbers) <= _MAX_DIMENSIONS
        if not is_short or not all(type(each) is int and 0 <= each < 2**63 for each in numbers):
            raise InitValueError(f"the tensor {shown(name)} has the {what} {shown(numbers)}")
    if code in _PAIRS:
        if not shape or shape[-1] % 2:
            raise InitValueError(
                f"the tensor {shown(name)} of {code} has the shape {shown(shape)}: its last is not even"
            )
        shape = [*shape[:-1], shape[-1] // 2]
    n_bytes = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != n_bytes:
        raise InitValueError(
            f"the tensor {shown(name)} of {shown(n_bytes)} bytes has the data_offsets {shown(offsets)}"
        )
    return offsets[0], offsets[1], shape, dtype
