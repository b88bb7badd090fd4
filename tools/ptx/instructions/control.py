"""Jumps, barriers, and exchanges within a warp."""

from __future__ import annotations

import numpy as np

from ..operands import Label, Pair, Sink, reader, writer
from ..parsing import Instruction
from ..threads import Leap, Run, Threads
from ..types import I64, U32, Array, PtxError, type_of
from .building import only, opcode

_END, _BARRIER = Leap(), Leap(waits=True)
_WARP = 32


@opcode("bra")
def _bra(instruction: Instruction) -> Run:
    only(instruction, "uni")
    (label,) = instruction.arguments
    if not isinstance(label, Label):
        raise PtxError(f"no label {label}")
    leap = Leap(label.target)
    return lambda threads: leap


@opcode("ret", "exit")
def _ret(instruction: Instruction) -> Run:
    only(instruction, "uni")
    return lambda threads: _END


@opcode("bar", "barrier")
def _bar(instruction: Instruction) -> Run:
    if "sync" not in instruction.modifiers:
        raise PtxError("barrier form")
    if "warp" in instruction.modifiers:  # the threads of a warp run together here anyway
        return lambda threads: None
    only(instruction, "sync", "aligned", "cta")
    if len(instruction.arguments) != 1:
        raise PtxError("barrier form")
    return lambda threads: _BARRIER


@opcode("membar", "fence", "griddepcontrol", "nanosleep", "prefetch", "prefetchu")
def _nothing(instruction: Instruction) -> Run:
    """Fences and hints, which have no effect in sequential execution."""
    return lambda threads: None


@opcode("trap", "brkpt")
def _trap(instruction: Instruction) -> Run:
    def run(threads: Threads) -> None:
        raise PtxError(f"reached by {threads.group.ids.size} threads")

    return run


@opcode("activemask")
def _activemask(instruction: Instruction) -> Run:
    write = writer(instruction.arguments[0])

    def run(threads: Threads) -> None:
        ids = threads.group.ids
        masks: Array = np.zeros(-(-threads.n // _WARP), U32)
        np.bitwise_or.at(masks, ids // _WARP, U32(1) << (ids % threads.block_size % _WARP).astype(U32))
        write(threads, masks[ids // _WARP])

    return run


@opcode("shfl")
def _shfl(instruction: Instruction) -> Run:
    """Reads another thread's register; all threads of the warp must be active."""
    only(instruction, "sync", "up", "down", "bfly", "idx")
    destination, *sources = instruction.arguments
    if "sync" not in instruction.modifiers or len(sources) != 4:
        raise PtxError("shfl form")
    (mode,) = set(instruction.modifiers) - {"sync"}
    b32 = type_of("b32")
    read_value, read_lane, read_clamp, _ = (reader(source, b32) for source in sources)
    first, second = (destination.first, destination.second) if isinstance(destination, Pair) else (destination, Sink())
    write, write_is_valid = writer(first), writer(second)

    def run(threads: Threads) -> None:
        ids = threads.group.ids
        _must_be_whole_warps(ids, threads.block_size)
        lane = ids % threads.block_size % _WARP
        other, is_valid = _other_lane(mode, lane, read_lane(threads).astype(I64), read_clamp(threads).astype(I64))
        value = np.broadcast_to(read_value(threads), ids.shape)
        write(threads, value[np.arange(ids.size) - lane + other])
        write_is_valid(threads, is_valid)

    return run


def _other_lane(mode: str, lane: Array, operand: Array, clamp: Array) -> tuple[Array, Array]:
    """Returns the lane that each thread reads, its own if out of range, and whether it is in range."""
    operand, segment, clamp = operand & 31, (clamp >> 8) & 31, clamp & 31
    first = lane & segment
    last = first | (clamp & ~segment)
    other = {"up": lane - operand, "down": lane + operand, "bfly": lane ^ operand}.get(
        mode, first | (operand & ~segment)
    )
    is_valid = other >= last if mode == "up" else other <= last
    return np.where(is_valid, other, lane), is_valid


def _must_be_whole_warps(ids: Array, block_size: int) -> None:
    if block_size % _WARP == 0 and ids.size % _WARP == 0:
        warps = ids.reshape(-1, _WARP)
        if not (warps[:, 0] % _WARP).any() and (warps[:, -1] - warps[:, 0] == _WARP - 1).all():
            return
    raise PtxError("by a warp of which not all threads are active")
