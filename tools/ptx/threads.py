"""Threads: runs blocks together, and schedules threads that diverged.

Registers are arrays with one element per thread, or a single element while all threads have the same value; they are
changed in place only where nothing else holds them. Diverged threads form groups at different instructions: the group
that is furthest behind runs first, and groups that meet are merged. A barrier holds a group until no other can run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sys import getrefcount
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .memory import Memory, OwnMemory
from .operands import Register
from .types import I64, U8, U32, U64, Array, PtxError

if TYPE_CHECKING:
    from .parsing import Program

# The value of a register in threads that never wrote it, if others did.
_POISON = 0xDEADBEEFDEADBEEF
# The windows of non-global memories in generic addresses: the highest byte.
WINDOWS = {"shared": 0x7E << 56, "local": 0x7D << 56, "param": 0x7C << 56}


class Leap(NamedTuple):
    """The result of an instruction whose threads do not simply continue with the next one."""

    target: int | None = None
    """The instruction to continue with."""
    waits: bool = False
    """Whether they wait for the others before they continue."""


Run = Callable[["Threads"], "Leap | None"]
"""Executes an instruction for the active threads."""


@dataclass(frozen=True, slots=True)
class Group:
    """Threads at the same instruction."""

    ids: Array
    """Their indices, ascending."""
    selection: slice | Array | None
    """Their index into a register; None: all."""

    @classmethod
    def of(cls, ids: Array, n_threads: int) -> Group:
        """Returns the group of some of the threads."""
        if ids.size == n_threads:
            return cls(ids, None)
        first, last = int(ids[0]), int(ids[-1])
        # A slice gives a view, an index array a copy.
        return cls(ids, slice(first, last + 1) if last - first + 1 == ids.size else ids)


@dataclass
class Launch:
    """A launch: its grid and its counters."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: bytes
    memory: Memory
    n_shared_bytes: int
    """Bytes of dynamic shared memory."""
    n_instructions: int = 0
    """Executed instructions, whatever their number of threads."""
    n_partings: int = 0
    """Branches that only some of the threads at them took."""
    approximate: set[str] | None = None
    """Executed instructions whose bits may differ from a GPU's."""

    @property
    def block_size(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]


class Threads:
    """Some blocks of a launch: registers, private memories, and the active group.

    Args:
        program: their program.
        steps: a function for each of its instructions.
        launch: their launch.
        blocks: the indices of their blocks.
    """

    def __init__(self, program: Program, steps: list[Run], launch: Launch, blocks: Array) -> None:
        self.program, self.steps, self.launch = program, steps, launch
        self.block_size = launch.block_size
        self.n = len(blocks) * self.block_size
        self.everyone = Group(np.arange(self.n), None)
        self.group = self.everyone
        self.registers: list[Array | None] = [None] * program.n_registers
        # The halves of 64-bit registers that are half undefined; the undefined half is None.
        self.halves: dict[int, tuple[Array | None, Array | None]] = {}
        self._special = _special_registers(launch, blocks)
        self._block = np.repeat(np.arange(len(blocks)), self.block_size)
        self._own = {
            "shared": OwnMemory(len(blocks), program.n_shared_bytes + launch.n_shared_bytes, "shared"),
            "local": OwnMemory(self.n, program.n_local_bytes, "local"),
            "param": OwnMemory(1, len(launch.parameters), "param"),
        }
        self._own["param"].bytes[0] = np.frombuffer(launch.parameters, U8)

    # --- registers ----------------------------------------------------------------------------------------------------

    def special(self, name: str) -> Array:
        """Returns a special register of the active threads."""
        value = self._special.get(name)
        if value is None:
            raise PtxError(f"special register {name}")
        return value if self.group.selection is None or value.shape[0] == 1 else value[self.group.selection]

    def put(self, slot: int, value: Array) -> None:
        """Writes a register for the active threads."""
        if self.halves and slot in self.halves:
            self._complete(slot, value)
        elif self.group.selection is None:
            self.registers[slot] = value
        else:
            old = self.registers[slot]
            # A copy of all threads' values for a few new ones is a fifth of the time.
            if old is not None and old.base is None and old.shape[0] == self.n and getrefcount(old) == _HELD_ONCE:
                old[self.group.selection] = value
            else:
                self.registers[slot] = self._merged(old, value)

    def undefined(self, register: Register) -> PtxError:
        """Returns the error for reading a register without a value."""
        if register.slot in self.halves:
            return PtxError(f"register {register.name} is used whole, and half of it was never written")
        return PtxError(f"read of register {register.name} before any write")

    def get_halves(self, register: Register) -> tuple[Array | None, Array | None]:
        """Returns both halves of a 64-bit register for the active threads; None for an undefined half."""
        if (halves := self.halves.get(register.slot)) is not None:
            return self._selected(halves[0]), self._selected(halves[1])
        value = self._selected(self.registers[register.slot])
        return _split(value) if value is not None else (None, None)

    def put_halves(self, register: Register, halves: tuple[Array | None, Array | None]) -> None:
        """Writes both halves of a 64-bit register; None makes a half undefined, for all threads."""
        low, high = halves
        if low is not None and high is not None:
            self.put(register.slot, _joined(low, high))
            return
        if self.group.selection is not None:
            before = self.halves.get(register.slot) or _split_or_nothing(self.registers[register.slot])
            low, high = (None if new is None else self._merged(old, new) for old, new in zip(before, (low, high)))
        self.registers[register.slot] = None
        self.halves[register.slot] = low, high

    def forget(self, register: Register) -> None:
        """Makes a register undefined; only possible while all threads are active."""
        self.halves.pop(register.slot, None)
        if self.group.selection is None:
            self.registers[register.slot] = None
        elif (value := self.registers[register.slot]) is not None:
            self.registers[register.slot] = self._merged(value, _poison(1, value.dtype))

    def _complete(self, slot: int, value: Array) -> None:
        """Writes a register that was half undefined: it stays so for inactive threads, and therefore for all."""
        halves = self.halves.pop(slot)
        if self.group.selection is None:
            self.registers[slot] = value
            return
        low, high = (None if old is None else self._merged(old, new) for old, new in zip(halves, _split(value)))
        self.halves[slot] = low, high

    def _selected(self, value: Array | None) -> Array | None:
        chosen = self.group.selection
        return value if value is None or chosen is None or value.shape[0] == 1 else value[chosen]

    def _merged(self, old: Array | None, new: Array) -> Array:
        """Returns a register with new values for the active threads."""
        if old is None:
            merged = _poison(self.n, new.dtype)
        else:
            merged = np.repeat(old, self.n) if old.shape[0] == 1 else old.copy()
        merged[self.group.selection] = new
        return merged

    # --- memory -------------------------------------------------------------------------------------------------------

    def load(self, space: str, addresses: Array, dtype: np.dtype[Any], n: int) -> Array:
        """Loads n values from each address of a state space, (threads, n); one row if all read the same."""
        space, addresses = _without_window(space, addresses)
        if space in ("global", "const"):
            if addresses.shape[0] != 1 and (addresses == addresses[0]).all():
                addresses = addresses[:1]
            return self.launch.memory.load(addresses, dtype, n)
        memory, rows = self._own_memory(space)
        return memory.load(rows, addresses, dtype, n)

    def store(self, space: str, addresses: Array, values: list[Array]) -> None:
        """Stores each thread's values, side by side."""
        space, addresses = _without_window(space, addresses)
        n = self.group.ids.size
        rows = np.empty((n, len(values)), values[0].dtype)
        for i, value in enumerate(values):
            rows[:, i] = value
        if space == "global":
            self.launch.memory.store(addresses if addresses.shape[0] == n else np.repeat(addresses, n), rows)
        elif space in ("shared", "local"):
            memory, own = self._own_memory(space)
            memory.store(own, addresses, rows)
        else:
            raise PtxError(f"store to state space .{space}")

    def _own_memory(self, space: str) -> tuple[OwnMemory, Array]:
        """Returns a non-global state space, and each active thread's row of it."""
        ids = self.group.ids
        return self._own[space], {"shared": self._block[ids], "local": ids, "param": np.zeros(1, np.intp)}[space]

    # --- execution ----------------------------------------------------------------------------------------------------

    def run(self, n_executed: list[int]) -> None:
        """Runs the program to its end, and adds up how many threads executed each instruction."""
        waiting: dict[int, list[Array]] = {0: [self.everyone.ids]}
        held: list[tuple[int, Array]] = []
        while waiting or held:
            if not waiting:  # all remaining groups are at a barrier
                for at, ids in held:
                    waiting.setdefault(at, []).append(ids)
                held = []
            at = min(waiting)
            parts = waiting.pop(at)
            ids = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
            self.group = Group.of(ids, self.n)
            self._advance(at, waiting, held, n_executed)

    def _advance(
        self, at: int, waiting: dict[int, list[Array]], held: list[tuple[int, Array]], n_executed: list[int]
    ) -> None:
        """Runs the active group until it diverges, ends, or reaches a point where it may meet others."""
        group, steps, meetings = self.group, self.steps, self.program.meetings
        instructions = self.program.instructions
        while at < len(steps):
            instruction, leap, rest = instructions[at], None, None
            try:
                if instruction.guard is not None:
                    rest = self._skipping(instruction.guard, instruction.is_negated)
                if rest is None or rest.size < group.ids.size:
                    n_executed[at] += self.group.ids.size
                    self.launch.n_instructions += 1
                    leap = steps[at](self)
            except PtxError as error:
                raise PtxError(f"PTX line {instruction.line}: {instruction.text}: {error}") from None
            at += 1
            if leap is None:
                self.group = group
                if waiting and at in meetings:
                    waiting.setdefault(at, []).append(group.ids)
                    return
                continue
            if rest is not None:
                self.launch.n_partings += 1
                waiting.setdefault(at, []).append(rest)
            if leap.waits:
                held.append((at, self.group.ids))
            elif leap.target is not None:
                waiting.setdefault(leap.target, []).append(self.group.ids)
            return

    def _skipping(self, guard: Register, is_negated: bool) -> Array | None:
        """Activates the threads whose guard holds; returns the others, None if there are none."""
        runs = self._selected(self.registers[guard.slot])
        if runs is None:
            raise self.undefined(guard)
        if is_negated:
            runs = ~runs
        ids = self.group.ids
        if runs.all():
            return None
        if not runs.any():
            return ids
        self.group = Group.of(ids[runs], self.n)
        return ids[~runs]


def _held_once() -> int:
    """Returns what ``put`` counts for an array that only the registers hold: Python's releases differ."""
    registers = [np.zeros(1)]
    old = registers[0]
    return getrefcount(old)


_HELD_ONCE = _held_once()


def _special_registers(launch: Launch, blocks: Array) -> dict[str, Array]:
    size = launch.block_size
    thread = np.tile(np.arange(size, dtype=U32), len(blocks))
    block = np.repeat(blocks, size).astype(I64)
    found = {"%laneid": thread % 32, "%warpid": thread // 32, "WARP_SZ": np.array([32], U32)}
    inside = outside = 1
    for axis, n_threads, n_blocks in zip("xyz", launch.block, launch.grid):
        number = (block // outside % n_blocks).astype(U32)
        found[f"%tid.{axis}"] = thread // U32(inside) % U32(n_threads)
        found[f"%ctaid.{axis}"] = number[:1] if (number == number[0]).all() else number
        found[f"%ntid.{axis}"] = np.array([n_threads], U32)
        found[f"%nctaid.{axis}"] = np.array([n_blocks], U32)
        inside, outside = inside * n_threads, outside * n_blocks
    return found


def _without_window(space: str, addresses: Array) -> tuple[str, Array]:
    """Returns the state space of generic addresses, and the addresses in it."""
    if space != "generic":
        return space, addresses
    tags = addresses >> U64(56)
    if (tags != tags[0]).any():
        raise PtxError("generic addresses of several state spaces in one instruction")
    for name, start in WINDOWS.items():
        if int(tags[0]) == start >> 56:
            return name, addresses - U64(start)
    return "global", addresses


def _poison(n: int, dtype: np.dtype[Any]) -> Array:
    return np.full(n, False if dtype.kind == "b" else _POISON % (1 << 8 * dtype.itemsize), dtype)


def _split(value: Array) -> tuple[Array, Array]:
    halves = np.ascontiguousarray(value).view(U32).reshape(-1, 2)
    return halves[:, 0], halves[:, 1]


def _split_or_nothing(value: Array | None) -> tuple[Array | None, Array | None]:
    return (None, None) if value is None else _split(value)


def _joined(low: Array, high: Array) -> Array:
    joined = np.empty((max(low.size, high.size), 2), U32)
    joined[:, 0], joined[:, 1] = low.view(U32), high.view(U32)
    return joined.view(U64)[:, 0]
