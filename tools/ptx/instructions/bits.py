"""Logic, shifts, bit fields, and byte permutations."""

from __future__ import annotations

import numpy as np

from ..operands import U32_TYPE, Immediate, integer_of
from ..parsing import Instruction
from ..threads import Run
from ..types import I64, U8, U32, U64, Array, PtxError, type_of
from .building import Function, computing, only, opcode

_LOGIC: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
_B32 = type_of("b32")


@opcode(*_LOGIC)
def _logic(instruction: Instruction) -> Run:
    only(instruction)
    n = 1 if instruction.opcode == "not" else 2
    return computing(instruction, _LOGIC[instruction.opcode], *[instruction.type] * n)


@opcode("cnot")
def _cnot(instruction: Instruction) -> Run:
    type_ = instruction.type
    return computing(instruction, lambda x: (x == 0).astype(type_.raw), type_)


@opcode("shl", "shr")
def _shift(instruction: Instruction) -> Run:
    """Shifts; by the width or more, only sign bits remain."""
    only(instruction)
    type_, is_left = instruction.type, instruction.opcode == "shl"
    last = U32(type_.bits - 1)

    def shifted(x: Array, n: Array) -> Array:
        is_all = n > last
        n = np.minimum(n, last).astype(type_.number)
        if is_left:
            return np.where(is_all, type_.number.type(0), x << n)
        return x >> n if type_.is_signed else np.where(is_all, type_.number.type(0), x >> n)

    return computing(instruction, shifted, type_, U32_TYPE)


@opcode("shf")
def _funnel(instruction: Instruction) -> Run:
    """Shifts two registers as 64 bits; returns the upper half of a left shift, the lower of a right one."""
    only(instruction, "l", "r", "wrap", "clamp")
    is_left, wraps = "l" in instruction.modifiers, "wrap" in instruction.modifiers

    def shifted(low: Array, high: Array, n: Array) -> Array:
        n = (n & U32(31) if wraps else np.minimum(n, U32(32))).astype(U64)
        both = (high.astype(U64) << U64(32)) | low
        result: Array = (both << n) >> U64(32) if is_left else both >> n
        return result.astype(U32)

    return computing(instruction, shifted, _B32, _B32, U32_TYPE)


@opcode("lop3")
def _lop3(instruction: Instruction) -> Run:
    """Looks up each bit in a table of 8, indexed by the bits of three registers."""
    only(instruction)
    *registers, table = instruction.arguments
    if not isinstance(table, Immediate):
        raise PtxError("a table that is no number")
    rows = [row for row in range(8) if integer_of(table.text) >> row & 1]

    def looked_up(a: Array, b: Array, c: Array) -> Array:
        found: Array = np.zeros(1, U32)
        for row in rows:
            found = found | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
        return found

    instruction.arguments = registers
    return computing(instruction, looked_up, _B32, _B32, _B32)


@opcode("prmt")
def _permute(instruction: Instruction) -> Run:
    """Picks 4 of the 8 bytes in two registers, or their signs."""
    only(instruction)

    def permuted(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(U64) << U64(32)) | a
        found: Array = np.zeros(1, U64)
        for i in range(4):
            choice = (selector.astype(U64) >> U64(4 * i)) & U64(15)
            byte = (both >> ((choice & U64(7)) * U64(8))) & U64(255)
            sign = np.where(byte & U64(128), U64(255), U64(0))
            found = found | (np.where(choice & U64(8), sign, byte) << U64(8 * i))
        return found.astype(U32)

    return computing(instruction, permuted, _B32, _B32, _B32)


@opcode("bfe")
def _extract(instruction: Instruction) -> Run:
    """Extracts a bit field; beyond the register, or if signed, it is filled with its sign."""
    only(instruction)
    type_ = instruction.type
    last, zero = type_.bits - 1, type_.number.type(0)

    def extracted(x: Array, start: Array, n: Array) -> Array:
        start, n = (start & U32(255)).astype(I64), (n & U32(255)).astype(I64)
        field: Array = x >> np.minimum(start, last).astype(type_.number)
        if not type_.is_signed:
            field = np.where(start > last, zero, field)
        # Up to the top and down again, which sign-extends it in signed types.
        above = type_.bits - np.clip(n, 1, type_.bits)
        field = (field.view(type_.raw) << above.astype(type_.raw)).view(type_.number) >> above.astype(type_.number)
        return np.where(n == 0, np.zeros(1, type_.number), field)

    return computing(instruction, extracted, type_, U32_TYPE, U32_TYPE)


@opcode("bfi")
def _insert(instruction: Instruction) -> Run:
    only(instruction)
    type_ = instruction.type

    def inserted(field: Array, into: Array, start: Array, n: Array) -> Array:
        start, n = (start & U32(255)).astype(U64), (n & U32(255)).astype(U64)
        ones = np.where(n > 63, ~U64(0), (U64(1) << np.minimum(n, U64(63))) - U64(1))
        mask = np.where(start >= type_.bits, U64(0), ones << np.minimum(start, U64(63))).astype(type_.raw)
        moved = field << np.minimum(start, U64(type_.bits - 1)).astype(type_.raw)
        result: Array = (into & ~mask) | (moved & mask)
        return result

    return computing(instruction, inserted, type_, type_, U32_TYPE, U32_TYPE)


@opcode("popc", "clz", "brev")
def _each_bit(instruction: Instruction) -> Run:
    only(instruction)
    type_, what = instruction.type, instruction.opcode
    big_endian = type_.raw.newbyteorder(">")

    def counted(x: Array) -> Array:
        if what == "popc":
            return np.bitwise_count(x).astype(U32)
        bits = np.unpackbits(x.astype(big_endian).view(U8).reshape(x.size, -1), axis=1)
        if what == "clz":
            return np.where(bits.any(1), bits.argmax(1), type_.bits).astype(U32)
        reversed_bits: Array = np.packbits(bits[:, ::-1], axis=1).view(big_endian)
        return reversed_bits.reshape(-1).astype(type_.raw)

    return computing(instruction, counted, type_)
