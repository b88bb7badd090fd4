"""Builds the functions that execute instructions: a registry by opcode, and the common forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..exact import canonical, flushed
from ..operands import reader, writer
from ..parsing import Instruction
from ..threads import Leap, Run, Threads
from ..types import Array, PtxError, Type

Builder = Callable[[Instruction], Run]
Function = Callable[..., Array]

_BUILDERS: dict[str, Builder] = {}


class Unsupported:
    """An unsupported instruction: an error when threads reach it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self, threads: Threads) -> Leap | None:
        """Raises PtxError."""
        raise PtxError(f"unsupported: {self.reason}")


def opcode(*names: str) -> Callable[[Builder], Builder]:
    """Decorator: registers the builder of opcodes."""

    def registered(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return registered


def built(instruction: Instruction) -> Run:
    """Builds an instruction; an unsupported one raises when it is executed."""
    if instruction.error:
        return Unsupported(instruction.error)
    builder = _BUILDERS.get(instruction.opcode)
    if builder is None:
        return Unsupported("opcode")
    try:
        return builder(instruction)
    except PtxError as error:
        return Unsupported(str(error))
    except ValueError:  # another number of operands than the builder unpacks
        return Unsupported("operands")


def only(instruction: Instruction, *allowed: str) -> None:
    """Raises PtxError for a modifier that is not implemented."""
    for modifier in instruction.modifiers:
        if modifier not in allowed:
            raise PtxError(f"modifier .{modifier}")


def computing(instruction: Instruction, function: Function, *types: Type) -> Run:
    """Builds an instruction that writes a function of its sources, each read in its type."""
    destination, *sources = instruction.arguments
    if len(types) != len(sources):
        raise PtxError("operands")
    write, reads = writer(destination), [reader(source, type_) for source, type_ in zip(sources, types)]
    if len(reads) == 1:
        (only_read,) = reads
        return lambda threads: write(threads, function(only_read(threads)))
    if len(reads) == 2:
        first, second = reads
        return lambda threads: write(threads, function(first(threads), second(threads)))
    return lambda threads: write(threads, function(*[read(threads) for read in reads]))


def in_floats(instruction: Instruction, function: Function, source: Type | None = None) -> Function:
    """Returns a function of floats with .ftz, .sat and the hardware's NaN applied.

    Args:
        instruction: its first type is the result's.
        function: of sources of one type.
        source: that type; None: the result's.
    """
    flushes = "ftz" in instruction.modifiers
    flushes_result = flushes and instruction.type.name == "f32"
    flushes_sources = flushes and (source or instruction.type).name == "f32"
    saturates = "sat" in instruction.modifiers
    if not flushes and not saturates:
        return lambda *values: canonical(function(*values))

    def computed(*values: Array) -> Array:
        result = canonical(function(*map(flushed, values) if flushes_sources else values))
        if flushes_result:
            result = flushed(result)
        if saturates:
            # A NaN and -0 become +0.
            result = np.where(result > 0, np.minimum(result, 1), np.zeros(1, result.dtype))
        return result

    return computed
