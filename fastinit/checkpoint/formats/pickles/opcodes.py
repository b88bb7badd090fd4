"""The rarer opcodes of pickles, of old protocols, new ones and unusual objects.

Each takes the machine and the position after the opcode, and returns the position of the next one.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from ...storage.stubs import shown
from .errors import PickleError, TruncatedError
from .machine import Machine

# Python's limit for numbers in text; parsing takes quadratic time.
_MAX_DIGITS = 4300
# Longer than any import path.
_MAX_NAME = 1000
_HIGHEST_PROTOCOL = 5
_U8 = struct.Struct("<Q").unpack_from

Opcode = Callable[[Machine, int], int]


def _line(machine: Machine, at: int, longest: int) -> tuple[bytes, int]:
    end = machine.data.find(b"\n", at, machine.end)
    if end < 0:
        raise TruncatedError("its pickle ends within a line")
    if end - at > longest:
        raise machine.error(f"it has a line of {end - at:,} bytes where a name or a number is expected")
    return machine.data[at:end], end + 1


def _bytes(machine: Machine, start: int, n_bytes: int) -> bytes:
    if start + n_bytes > machine.end:
        raise TruncatedError(f"its pickle ends within {n_bytes:,} bytes")
    return machine.data[start : start + n_bytes]


def _text(data: bytes) -> str:
    return str(data, "utf-8", "surrogatepass")


def _python_2(data: bytes) -> str | bytes:
    """A str of Python 2, which may be text or bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _same(data: bytes) -> bytes:
    return data


def _counted(read: Callable[[bytes], Any], n_length: int) -> Opcode:
    """Returns the opcode of text or bytes with their length in front, a number of ``n_length`` bytes."""

    def run(machine: Machine, at: int) -> int:
        n_bytes = int.from_bytes(machine.data[at : at + n_length], "little")
        data = _bytes(machine, at + n_length, n_bytes)
        machine.stack.append(read(data))
        return at + n_length + n_bytes

    return run


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _lined(read: Callable[[bytes], Any], longest: int) -> Opcode:
    """Returns the opcode of a value in a line of text."""

    def run(machine: Machine, at: int) -> int:
        line, after = _line(machine, at, longest)
        machine.stack.append(read(line))
        return after

    return run


def _quoted(line: bytes) -> str | bytes:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise PickleError("a text of its pickle has no quotes")
    return _python_2(codecs.escape_decode(line[1:-1])[0])  # type: ignore[attr-defined]


def _integer(line: bytes) -> int | bool:
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)


def _constant(value: Callable[[], Any]) -> Opcode:
    def run(machine: Machine, at: int) -> int:
        machine.stack.append(value())
        return at

    return run


def _protocol(machine: Machine, at: int) -> int:
    if machine.data[at] > _HIGHEST_PROTOCOL:
        raise machine.error(f"its protocol {machine.data[at]} is unknown")
    return at + 1


def _frame(machine: Machine, at: int) -> int:
    if _U8(machine.data, at)[0] > machine.end - at - 8:
        raise TruncatedError("its pickle ends within a frame")
    return at + 8


def _put(machine: Machine, at: int) -> int:
    line, after = _line(machine, at, _MAX_DIGITS)
    index = int(line)
    if index < 0:
        raise machine.error("a place in the memo is negative")
    machine.memo[index] = machine.stack[-1]
    return after


def _get(machine: Machine, at: int) -> int:
    line, after = _line(machine, at, _MAX_DIGITS)
    machine.stack.append(machine.memo[int(line)])
    return after


def _pop(machine: Machine, at: int) -> int:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()
    return at


def _pop_mark(machine: Machine, at: int) -> int:
    machine.pop_mark()
    return at


def _dup(machine: Machine, at: int) -> int:
    machine.stack.append(machine.stack[-1])
    return at


def _list(machine: Machine, at: int) -> int:
    items = machine.pop_mark()
    machine.stack.append(items)
    return at


def _dict(machine: Machine, at: int) -> int:
    items = machine.pop_mark()
    made: dict[Any, Any] = {}
    machine.set_items(made, items[::2], items[1::2])
    machine.stack.append(made)
    return at


def _frozenset(machine: Machine, at: int) -> int:
    items = machine.pop_mark()
    machine.stack.append(frozenset([machine.key(each) for each in items]))
    return at


def _add_items(machine: Machine, at: int) -> int:
    items = machine.pop_mark()
    machine.extend(machine.stack[-1], items)
    return at


def _global(machine: Machine, at: int) -> int:
    module, at = _line(machine, at, _MAX_NAME)
    name, at = _line(machine, at, _MAX_NAME)
    machine.stack.append(machine.named(_text(module), _text(name)))
    return at


def _stack_global(machine: Machine, at: int) -> int:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str or len(name) > _MAX_NAME or len(module) > _MAX_NAME:
        raise machine.error(f"it asks for {shown(name)} of {shown(module)}")
    machine.stack.append(machine.named(module, name))
    return at


def _instance(machine: Machine, at: int) -> int:
    at = _global(machine, at)
    kind = machine.stack.pop()
    machine.after = at
    arguments = tuple(machine.pop_mark())
    machine.stack.append(machine.made_by(kind, arguments))
    return at


def _object(machine: Machine, at: int) -> int:
    kind, *arguments = machine.pop_mark()
    machine.stack.append(machine.made_by(kind, tuple(arguments)))
    return at


def _new_object_with_options(machine: Machine, at: int) -> int:
    options, arguments = machine.stack.pop(), machine.stack.pop()
    if type(options) is not dict or not all(type(each) is str for each in options):
        raise machine.error(f"an object is made with the options {shown(options)}")
    machine.stack[-1] = machine.made_by(machine.stack[-1], arguments, is_new=True, options=options)
    return at


def _persistent(machine: Machine, at: int) -> int:
    line, at = _line(machine, at, _MAX_NAME)
    machine.stack.append(machine.persisted(_text(line)))
    return at


def _unknown(machine: Machine, at: int) -> int:
    raise machine.error(f"it has the opcode {machine.data[at - 1]:#04x}, which data never need")


# Text is only bounded by the remaining bytes.
_ANY = 1 << 62
_BY_OPCODE: dict[bytes, Opcode] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"0": _pop,
    b"1": _pop_mark,
    b"2": _dup,
    b"p": _put,
    b"g": _get,
    b"I": _lined(_integer, _MAX_DIGITS),
    b"L": _lined(lambda line: int(line.removesuffix(b"L")), _MAX_DIGITS),
    b"F": _lined(float, _MAX_DIGITS),
    b"S": _lined(_quoted, _ANY),
    b"V": _lined(lambda line: str(line, "raw-unicode-escape"), _ANY),
    b"\x8a": _counted(_long, 1),
    b"\x8b": _counted(_long, 4),
    b"U": _counted(_python_2, 1),
    b"T": _counted(_python_2, 4),
    b"C": _counted(_same, 1),
    b"B": _counted(_same, 4),
    b"\x8e": _counted(_same, 8),
    b"\x96": _counted(bytearray, 8),
    b"\x8d": _counted(_text, 8),
    b"\x8f": _constant(set),
    b"\x90": _add_items,
    b"\x91": _frozenset,
    b"l": _list,
    b"d": _dict,
    b"c": _global,
    b"\x93": _stack_global,
    b"i": _instance,
    b"o": _object,
    b"\x92": _new_object_with_options,
    b"P": _persistent,
}
RARE: list[Opcode] = [_BY_OPCODE.get(bytes([opcode]), _unknown) for opcode in range(256)]
"""Indexed by opcode."""
