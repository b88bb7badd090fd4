"""Moves between registers and memory."""

from __future__ import annotations

import numpy as np

from ..operands import Operand, Read, Register, Sink, Vector, address_reader, reader, writer
from ..parsing import Instruction
from ..threads import WINDOWS, Run, Threads
from ..types import U64, Array, PtxError, type_of
from .building import computing, only, opcode

_SPACES = ("global", "shared", "local", "param", "const")
# Modifiers that change no value here: caching, memory order, and vector lengths.
_HINTS = frozenset(
    (
        *("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"),
        *("relaxed", "weak", "volatile", "gpu", "cta", "sys", "unified"),
        *("v2", "v4", "v8"),
    )
)


@opcode("mov")
def _mov(instruction: Instruction) -> Run:
    """Moves a value, splits one, or joins several: {%r1, %r2}, the lowest first."""
    only(instruction)
    destination, source = instruction.arguments
    type_ = instruction.type
    vector = destination if isinstance(destination, Vector) else source
    if not isinstance(vector, Vector):
        return computing(instruction, lambda value: value, type_)
    if type_.bits == 64 and len(vector.elements) == 2:
        halves = _taken_apart if vector is destination else _put_together
        return halves(destination, source)
    part = type_of(f"b{type_.bits // len(vector.elements)}")
    shifts = [type_.raw.type(part.bits * i) for i in range(len(vector.elements))]
    if vector is destination:
        read, writes = reader(source, type_), [writer(each) for each in vector.elements]

        def take_apart(threads: Threads) -> None:
            value = read(threads)
            for write, shift in zip(writes, shifts):
                write(threads, (value >> shift).astype(part.raw))

        return take_apart
    write, reads = writer(destination), [reader(each, part) for each in vector.elements]

    def put_together(threads: Threads) -> None:
        joined: Array = np.zeros(1, type_.raw)
        for read, shift in zip(reads, shifts):
            joined = joined | (read(threads).astype(type_.raw) << shift)
        write(threads, joined)

    return put_together


def _taken_apart(destination: Operand, source: Operand) -> Run:
    """Builds a move of 64 bits into two registers; an undefined half makes its register undefined."""
    assert isinstance(destination, Vector)
    if not isinstance(source, Register):
        raise PtxError("operands")
    targets = [(each, writer(each)) for each in destination.elements]

    def run(threads: Threads) -> None:
        for (target, write), half in zip(targets, threads.get_halves(source)):
            if half is not None:
                write(threads, half)
            elif isinstance(target, Register):
                threads.forget(target)

    return run


def _put_together(destination: Operand, source: Operand) -> Run:
    """Builds a move of two registers into 64 bits; compilers leave unused halves undefined."""
    assert isinstance(source, Vector)
    if not isinstance(destination, Register):
        raise PtxError(f"destination {destination}")
    low, high = (_half_reader(each) for each in source.elements)
    return lambda threads: threads.put_halves(destination, (low(threads), high(threads)))


def _half_reader(operand: Operand) -> Read | _ReadOrNothing:
    read = reader(operand, type_of("b32"))
    return _ReadOrNothing(operand, read) if isinstance(operand, Register) else read


class _ReadOrNothing:
    """Reads a register; None if it was never written."""

    def __init__(self, register: Register, read: Read) -> None:
        self.slot, self.read = register.slot, read

    def __call__(self, threads: Threads) -> Array | None:
        return None if threads.registers[self.slot] is None else self.read(threads)


@opcode("cvta")
def _cvta(instruction: Instruction) -> Run:
    """Converts between a state space's addresses and generic ones."""
    only(instruction, "to", *_SPACES)
    start = U64(next((WINDOWS[each] for each in instruction.modifiers if each in WINDOWS), 0))
    if "to" in instruction.modifiers:
        return computing(instruction, lambda address: address - start, instruction.type)
    return computing(instruction, lambda address: address + start, instruction.type)


def _space(instruction: Instruction) -> str:
    """Returns the state space of an access; raises PtxError for modifiers that may change values."""
    space = "generic"
    for modifier in instruction.modifiers:
        name = modifier.split("::")[0]
        if name in _SPACES:
            space = name
        elif modifier not in _HINTS and name not in ("L1", "L2"):
            raise PtxError(f"modifier .{modifier}")
    return space


def _elements(operand: Operand) -> tuple[Operand, ...]:
    return operand.elements if isinstance(operand, Vector) else (operand,)


@opcode("ld", "ldu")
def _ld(instruction: Instruction) -> Run:
    space, type_ = _space(instruction), instruction.type
    destination, source, *policy = instruction.arguments
    _must_be_a_policy(policy)
    read, writes = address_reader(source), [writer(each) for each in _elements(destination)]

    def run(threads: Threads) -> None:
        values = threads.load(space, read(threads), type_.raw, len(writes))
        for i, write in enumerate(writes):
            write(threads, np.ascontiguousarray(values[:, i]).view(type_.number))

    return run


@opcode("st")
def _st(instruction: Instruction) -> Run:
    space, type_ = _space(instruction), instruction.type
    destination, source, *policy = instruction.arguments
    _must_be_a_policy(policy)
    read_address = address_reader(destination)
    reads = [reader(each, type_) for each in _elements(source)]
    raw = type_.raw
    return lambda threads: threads.store(space, read_address(threads), [read(threads).view(raw) for read in reads])


def _must_be_a_policy(operands: list[Operand]) -> None:
    """Raises PtxError unless an access's remaining operand is a cache policy in a register, or absent."""
    if len(operands) > 1 or not all(isinstance(each, (Register, Sink)) for each in operands):
        raise PtxError("operands")


@opcode("createpolicy")
def _createpolicy(instruction: Instruction) -> Run:
    write = writer(instruction.arguments[0])
    return lambda threads: write(threads, np.zeros(1, U64))
