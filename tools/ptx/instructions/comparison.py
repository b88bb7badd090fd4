"""Comparisons, and selection between two values."""

from __future__ import annotations

import numpy as np

from ..exact import flushed
from ..operands import PRED, Pair, Sink, reader, writer
from ..parsing import Instruction
from ..threads import Run, Threads
from ..types import Array, PtxError, Type, type_of
from .building import Function, computing, only, opcode

_COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_COMBINATIONS: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(name: str, type_: Type) -> Function:
    """Returns a comparison by name: e.g. "ltu" of floats is also true if one is NaN."""
    if not type_.is_float:
        if name not in _COMPARISONS:
            raise PtxError(f"comparison .{name}")
        return _COMPARISONS[name]
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        compare = _COMPARISONS[name[:2]]
        return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)
    if name not in ("eq", "lt", "le", "gt", "ge"):
        raise PtxError(f"comparison .{name}")
    return _COMPARISONS[name]


@opcode("setp", "set")
def _setp(instruction: Instruction) -> Run:
    """Compares, and combines the result with a predicate; setp also writes the opposite to the second of a pair."""
    comparison, *others = instruction.modifiers
    type_ = instruction.types[-1]
    if "f16" in type_.name:
        raise PtxError(f"comparison of .{type_.name}")
    only(instruction, comparison, *_COMBINATIONS, "ftz")
    compare = _comparison(comparison, type_)
    combine = next((_COMBINATIONS[each] for each in others if each in _COMBINATIONS), None)
    flushes = "ftz" in others
    destination, first, second, *combined = instruction.arguments
    reads = [reader(first, type_), reader(second, type_)]
    read_combined = reader(combined[0], PRED) if combine is not None else None
    if len(combined) != (combine is not None):
        raise PtxError("operands")
    destination, opposite = (
        (destination.first, destination.second) if isinstance(destination, Pair) else (destination, Sink())
    )
    write, write_opposite = writer(destination), writer(opposite)
    numbers = _set_values(instruction.type) if instruction.opcode == "set" else None

    def run(threads: Threads) -> None:
        a, b = (read(threads) for read in reads)
        if flushes:
            a, b = flushed(a), flushed(b)
        result: Array = compare(a, b)
        counter = ~result
        if combine is not None and read_combined is not None:
            other = read_combined(threads)
            result, counter = combine(result, other), combine(counter, other)
        if numbers is not None:
            write(threads, np.where(result, *numbers))
            return
        write(threads, result)
        if not isinstance(opposite, Sink):
            write_opposite(threads, counter)

    return run


def _set_values(type_: Type) -> tuple[Array, Array]:
    """Returns the values that set writes for true and false: 1 and 0 in floating point, else all bits or none."""
    if type_.is_float:
        return np.ones(1, type_.number), np.zeros(1, type_.number)
    return ~np.zeros(1, type_.raw), np.zeros(1, type_.raw)


@opcode("selp")
def _selp(instruction: Instruction) -> Run:
    only(instruction)
    type_ = instruction.type

    def selected(a: Array, b: Array, condition: Array) -> Array:
        chosen: Array = np.where(condition, a.view(type_.raw), b.view(type_.raw))  # as bits, so that a NaN is kept
        return chosen

    return computing(instruction, selected, type_, type_, PRED)


@opcode("slct")
def _slct(instruction: Instruction) -> Run:
    only(instruction)
    type_, condition = instruction.types
    bits = type_of(f"b{type_.bits}")

    def selected(a: Array, b: Array, condition: Array) -> Array:
        chosen: Array = np.where(condition >= 0, a, b)
        return chosen

    return computing(instruction, selected, bits, bits, condition)
