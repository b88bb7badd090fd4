"""The types of PTX, and their representation in arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""A value per thread: one element each, or a single one if all threads have the same."""

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
I64, F32, F64 = np.int64, np.float32, np.float64

# Types represented as bits: half precision, and two numbers in a register.
_BITS = {"bf16": 16, "bf16x2": 32, "f16x2": 32, "f32x2": 64}
_KINDS = {"b": "u", "u": "u", "s": "i", "f": "f"}


class PtxError(Exception):
    """A kernel cannot be parsed or executed, or does something forbidden."""


@dataclass(frozen=True)
class Type:
    """A type of PTX, such as .s32."""

    name: str
    bits: int
    raw: np.dtype[Any]
    """The representation in registers: unsigned integers, or booleans."""
    number: np.dtype[Any]
    """The type for arithmetic; ``raw`` if numpy has none."""

    @property
    def is_float(self) -> bool:
        """Whether numpy computes it in floating point."""
        return self.number.kind == "f"

    @property
    def is_signed(self) -> bool:
        """Whether it is a signed integer."""
        return self.number.kind == "i"


@cache
def type_of(name: str) -> Type:
    """Returns the type of a name without its dot, e.g. "s32".

    Raises:
        PtxError: for a type of 128 bits.
    """
    if name == "pred":
        return Type(name, 1, np.dtype(bool), np.dtype(bool))
    bits = _BITS.get(name) or int(name[1:])
    if bits > 64:
        raise PtxError(f"type .{name} is not supported")
    raw = np.dtype(f"u{bits // 8}")
    return Type(name, bits, raw, raw if name in _BITS else np.dtype(f"{_KINDS[name[0]]}{bits // 8}"))
