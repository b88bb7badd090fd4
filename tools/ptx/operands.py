"""Operands of instructions: reading and writing their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .types import F32, F64, U32, U64, Array, PtxError, Type, type_of

if TYPE_CHECKING:
    from .threads import Threads

Read = Callable[["Threads"], Array]
Write = Callable[["Threads", Array], None]

PRED, U32_TYPE, B64 = type_of("pred"), type_of("u32"), type_of("b64")


@dataclass(frozen=True)
class Register:
    """A virtual register: ``slot`` is its index in a thread's registers."""

    name: str
    slot: int
    type: Type


@dataclass(frozen=True)
class Not:
    """A predicate, negated: !%p1."""

    register: Register


@dataclass(frozen=True)
class Immediate:
    """A literal number."""

    text: str


@dataclass(frozen=True)
class Constant:
    """A named number: the address or offset of a variable."""

    value: int


@dataclass(frozen=True)
class Special:
    """A read-only special register, such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A name that is not a register's."""

    name: str


@dataclass(frozen=True)
class Label:
    """A jump target: the index of an instruction."""

    target: int


@dataclass(frozen=True)
class Vector:
    """Several operands in braces."""

    elements: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """Two destinations: %p1|%p2."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Address:
    """Memory: [base + offset]."""

    base: Operand
    offset: int


@dataclass(frozen=True)
class Sink:
    """The destination _, which drops the value."""


@dataclass(frozen=True)
class Unknown:
    """An operand that was not understood; using it is an error."""

    text: str


Operand = Register | Not | Immediate | Constant | Special | Symbol | Label | Vector | Pair | Address | Sink | Unknown

NUMBER = re.compile(
    r"-?(0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|\d+\.\d+([eE][-+]?\d+)?)|[-~]?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?"
)


def integer_of(text: str) -> int:
    """Parses an integer constant; octal ones start with a bare 0."""
    sign, digits = (text[0], text[1:]) if text[0] in "-~" else ("", text)
    digits = digits.rstrip("U")
    is_octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
    value = int(digits, 8) if is_octal else int(digits, 0)
    return -value if sign == "-" else ~value if sign == "~" else value


def bits_of(text: str, type_: Type) -> int:
    """Returns the bits of a literal number in a type."""
    kind, number = text.lstrip("-")[:2].lower(), text.lstrip("-")
    if kind in ("0f", "0d"):
        bits, dtype = np.dtype(U32 if kind == "0f" else U64), np.dtype(F32 if kind == "0f" else F64)
        value = np.array([int(number[2:], 16)], bits)
        if type_.is_float:
            value = value.view(dtype).astype(type_.number).view(type_.raw)
        return int(value[0]) ^ (1 << (type_.bits - 1) if text[0] == "-" else 0)
    if "." in text or type_.is_float:
        value = np.array([float(text) if "." in text else integer_of(text)], type_.number)
        return int(value.view(type_.raw)[0])
    whole = integer_of(text)
    return int(bool(whole)) if type_.bits == 1 else whole & ((1 << type_.bits) - 1)


def reader(operand: Operand, type_: Type) -> Read:
    """Returns a function that reads an operand for the active threads: one element each, or one for all.

    Raises:
        PtxError: it has no value.
    """
    if isinstance(operand, Register):
        return _register_reader(operand, type_)
    if isinstance(operand, Not):
        read = _register_reader(operand.register, PRED)
        return lambda threads: ~read(threads)
    if isinstance(operand, Special):
        name = operand.name
        return lambda threads: _converted(threads.special(name), type_)
    if isinstance(operand, (Immediate, Constant)):
        bits = bits_of(operand.text, type_) if isinstance(operand, Immediate) else operand.value
        value = np.array([bits & ((1 << type_.bits) - 1)]).astype(type_.raw).view(type_.number)
        return lambda threads: value
    if isinstance(operand, Symbol):
        raise PtxError(f"unknown symbol {operand.name}")
    raise PtxError(f"operand {operand}")


def _register_reader(register: Register, type_: Type) -> Read:
    slot, raw, number = register.slot, register.type.raw, type_.number

    def read_bits(threads: Threads) -> Array:
        value = threads.registers[slot]
        if value is None:
            raise threads.undefined(register)
        chosen = threads.group.selection
        return value if chosen is None or value.shape[0] == 1 else value[chosen]

    if raw == number:
        return read_bits
    if raw.itemsize == number.itemsize and "b" not in (raw.kind, number.kind):
        return lambda threads: read_bits(threads).view(number)
    return lambda threads: _converted(read_bits(threads), type_)


def _converted(value: Array, type_: Type) -> Array:
    """Returns bits in a type: truncated, or extended according to the type."""
    if "b" in (value.dtype.kind, type_.number.kind):
        return value
    if type_.is_signed and value.itemsize < type_.raw.itemsize:
        return value.view(f"i{value.itemsize}").astype(type_.number)
    return value.astype(type_.raw).view(type_.number)


def writer(operand: Operand) -> Write:
    """Returns a function that writes a register for the active threads; narrow values are sign-extended by their type.

    Raises:
        PtxError: it cannot be written.
    """
    if isinstance(operand, Sink):
        return lambda threads, value: None
    if not isinstance(operand, Register):
        raise PtxError(f"destination {operand}")
    slot, raw = operand.slot, operand.type.raw
    if operand.type is PRED:
        return lambda threads, value: threads.put(slot, value)

    def write(threads: Threads, value: Array) -> None:
        if value.dtype != raw:
            if value.itemsize != raw.itemsize:
                kind = "u" if value.dtype.kind == "f" else value.dtype.kind
                value = value.view(f"{kind}{value.itemsize}").astype(f"{kind}{raw.itemsize}")
            value = value.view(raw)
        threads.put(slot, value)

    return write


def address_reader(operand: Operand) -> Read:
    """Returns a function that reads the address of a memory operand.

    Raises:
        PtxError: it is no address.
    """
    if not isinstance(operand, Address):
        raise PtxError("address form")
    read, offset = reader(operand.base, B64), U64(operand.offset % (1 << 64))
    return (lambda threads: read(threads) + offset) if offset else read
