"""Conversions between integers and floating-point formats (cvt)."""

from __future__ import annotations

import numpy as np

from ..exact import bfloat16_of, float16_of, float32_of_bfloat16, flushed
from ..parsing import Instruction
from ..threads import Run
from ..types import F64, U32, Array, PtxError, Type
from .building import Function, computing, in_floats, only, opcode

_TO_INTEGERS: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@opcode("cvt")
def _cvt(instruction: Instruction) -> Run:
    only(instruction, "rn", *_TO_INTEGERS, "sat", "ftz")
    to, source = instruction.types
    if "16" in to.name and to.name[0] in "bf" and to.name != "b16":
        n = 2 if to.name.endswith("x2") else 1
        return computing(instruction, _to_half(instruction, to, source), *[source] * n)
    if source.name == "bf16":
        if to.name != "f32":
            raise PtxError("conversion")
        return computing(instruction, float32_of_bfloat16, source)
    if not to.is_float:
        convert = _float_to_integer if source.is_float else _integer_to_integer
        return computing(instruction, convert(instruction, to, source), source)
    if not source.is_float:
        if "rn" not in instruction.modifiers:
            raise PtxError("rounding")
        return computing(instruction, lambda x: x.astype(to.number), source)
    return computing(instruction, _float_to_float(instruction, to, source), source)


def _to_half(instruction: Instruction, to: Type, source: Type) -> Function:
    """Builds rounding to bfloat16 or float16: of one number, or of two into a register, the first on top."""
    sources = ("f32", "f64") if to.name == "f16" else ("f32",)
    if instruction.modifiers != ["rn"] or source.name not in sources:
        raise PtxError("conversion")
    rounded = bfloat16_of if to.name.startswith("bf16") else float16_of
    if not to.name.endswith("x2"):
        return rounded
    return lambda high, low: (rounded(high).astype(U32) << U32(16)) | rounded(low).astype(U32)


def _integer_to_integer(instruction: Instruction, to: Type, source: Type) -> Function:
    if "sat" not in instruction.modifiers:
        return lambda x: x.astype(to.number)
    bounds, own = np.iinfo(to.number), np.iinfo(source.number)
    low, high = max(bounds.min, own.min), min(bounds.max, own.max)
    return lambda x: np.clip(x, low, high).astype(to.number)


def _float_to_float(instruction: Instruction, to: Type, source: Type) -> Function:
    """Builds conversion to another precision, or rounding to an integer in the same precision."""
    whole = next((_TO_INTEGERS[each] for each in instruction.modifiers if each in _TO_INTEGERS), None)
    if whole is None and to.bits < source.bits and "rn" not in instruction.modifiers:
        raise PtxError("rounding")
    round_whole = whole or (lambda x: x)
    return in_floats(instruction, lambda x: round_whole(x).astype(to.number), source)


def _float_to_integer(instruction: Instruction, to: Type, source: Type) -> Function:
    """Builds float to integer conversion, rounded by the modifier; clamps values out of range."""
    whole = next((_TO_INTEGERS[each] for each in instruction.modifiers if each in _TO_INTEGERS), None)
    if whole is None:
        raise PtxError("rounding")
    bounds, dtype = np.iinfo(to.number), to.number.type
    low, high = dtype(bounds.min), dtype(bounds.max)
    # A NaN becomes 0 in up to 32 bits, else the highest bit alone.
    is_wide = source.bits == 64 or to.bits == 64
    of_nan = to.raw.type(1 << (to.bits - 1) if is_wide else 0).view(dtype)
    flushes = "ftz" in instruction.modifiers and source.name == "f32"

    def converted(x: Array) -> Array:
        x = whole((flushed(x) if flushes else x).astype(F64))
        is_low, is_high, is_nan = x <= float(low), x >= float(high), np.isnan(x)
        inside = np.where(is_low | is_high | is_nan, 0.0, x).astype(dtype)
        return np.select([is_nan, is_low, is_high], [of_nan, low, high], inside)

    return converted
