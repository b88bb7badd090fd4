"""Reads the machine code of a GPU kernel, and prints the cost of a trip through its storing loops, without a GPU.

    python tools/sass.py fill.cubin --element-bytes 2 [--kernel NAME]

prints for each such loop, and for each path through it that stores something different, the instructions per element by
pipe (gpu_pipes.py), the share of an H100's memory speed that they allow, and anything that does not belong in such a
loop. A cubin comes from `nvcc -cubin`, or from Triton as `compile(...).asm["cubin"]`. The disassembler, nvdisasm, comes
with the package triton.

If a branch skips instructions, the shorter path counts: loops branch for rare values, and for formats.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import itertools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gpu_pipes

# Barriers, shared memory, spills and calls do not belong in the loop of a fill.
_SMELLS = {"BAR", "LDS", "STS", "LDL", "STL", "CALL"}
_STORE_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_GUARD = re.compile(r"(!?)(U?P\d)\b")
# P1 becomes UP0: PT is true, and 0x80 is the truth table of "and".
_COPY = re.compile(r"\s*(U?P\d), U?PT, U?PT, U?PT, (U?P\d), 0x80, 0x")
_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")


@dataclass(frozen=True)
class Op:
    """An instruction of the disassembly."""

    predicate: str
    """The guard, e.g. "@!P1", or ""."""
    code: str
    """E.g. "IMAD.WIDE.U32"."""
    operands: str
    target: int | None
    """Where it may jump to."""

    @property
    def kind(self) -> str:
        """The code up to its first dot."""
        return self.code.partition(".")[0]

    @property
    def is_store(self) -> bool:
        """Whether it stores to global memory."""
        return self.code.startswith(("STG", "ST.E"))

    @property
    def store_bytes(self) -> int:
        """The bytes that it stores per thread."""
        return next((_STORE_BYTES[part] for part in self.code.split(".") if part in _STORE_BYTES), 4)

    @property
    def guard(self) -> tuple[str, bool] | None:
        """The predicate that makes it store or jump, and the value for which it does."""
        found = _GUARD.search(self.predicate) or (
            _GUARD.match(self.operands.strip()) if self.target is not None else None
        )
        return (found[2], not found[1]) if found else None

    @property
    def copied(self) -> tuple[str, str] | None:
        """The destination and the source, if it copies a predicate."""
        found = _COPY.match(self.operands) if self.kind == "PLOP3" and not self.predicate else None
        return (found[1], found[2]) if found else None

    def may_write(self, predicate: str) -> bool:
        """Whether it may write a predicate, which would be among its first three operands."""
        return any(re.search(rf"\b{predicate}\b", operand) for operand in self.operands.split(",")[:3])


@dataclass(frozen=True)
class Stored:
    """The stores of a trip through a loop."""

    n_bytes: int
    """Bytes per thread."""
    conversion: str
    """The two-byte format that it converts to, "BF16" or "F16", or ""."""


@dataclass(frozen=True)
class Loop:
    """A loop that stores, and the shortest trip for each of its kinds of stores."""

    body: list[Op]
    trips: dict[Stored, list[Op]]

    @property
    def smells(self) -> tuple[str, ...]:
        """The barriers, shared memory accesses, spills and calls in it."""
        return tuple(sorted({op.kind for op in self.body} & _SMELLS))

    @property
    def narrowest_store(self) -> int:
        """The bytes of its narrowest store."""
        return min(op.store_bytes for op in self.body if op.is_store)


def why_not_disassembled() -> str | None:
    """Returns why nothing can be disassembled here, None if it can."""
    return None if importlib.util.find_spec("triton") else "the package triton, which has nvdisasm, is not installed"


def disassembled(cubin: Path) -> dict[str, list[Op]]:
    """Returns the instructions of a cubin's kernels, by name."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.origin is not None, why_not_disassembled()
    command = [str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"), "-c", str(cubin)]
    return parsed(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parsed(text: str) -> dict[str, list[Op]]:
    """Returns the instructions of kernels from nvdisasm's output."""
    lines: dict[str, list[tuple[str, str, str]]] = {}
    labels: dict[str, int] = {}
    current: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if found := re.match(r"^\.text\.([^:\s]+):", line):
            current = lines.setdefault(found[1], [])
        elif found := re.match(r"^(\.L_[\w.]+):", line):
            labels[found[1]] = len(current)
        elif found := _LINE.match(line):
            current.append((found[1] or "", found[2], found[3]))

    def op(predicate: str, code: str, operands: str) -> Op:
        label = re.search(r"(\.L_[\w.]+)", operands) if code.startswith("BRA") else None
        return Op(predicate, code, operands, labels[label[1]] if label else None)

    return {name: [op(*line) for line in each] for name, each in lines.items()}


def storing_loop(ops: list[Op]) -> Loop | None:
    """Returns the innermost loop of a kernel that stores; None if there is none."""
    jumps_back = [(op.target, at) for at, op in enumerate(ops) if op.target is not None and op.target <= at]
    spans = [span for span in jumps_back if any(op.is_store for op in ops[span[0] : span[1] + 1])]
    if not spans:
        return None
    # The innermost: a jump back from rare code that the compiler moved behind the loop spans more than the loop.
    start, end = min(spans, key=lambda span: span[1] - span[0])
    return Loop(ops[start : end + 1], _shortest_trips(ops, start, end))


class _Path(NamedTuple):
    """The instructions of a path through a loop, last to first."""

    op: Op
    before: _Path | None

    def ops(self) -> list[Op]:
        """Returns them first to last."""
        found: list[Op] = []
        path: _Path | None = self
        while path is not None:
            found.append(path.op)
            path = path.before
        return found[::-1]


class _Predicates(NamedTuple):
    """What a path through a loop implies about predicates."""

    values: frozenset[tuple[str, bool]] = frozenset()
    copies: frozenset[tuple[str, str]] = frozenset()
    """Predicates, and the ones that they are copies of."""

    def original(self, name: str) -> str:
        """Returns the predicate that one is a copy of, or itself."""
        return dict(self.copies).get(name, name)

    def outcomes(self, guard: tuple[str, bool] | None) -> Iterator[tuple[bool, _Predicates]]:
        """Yields whether a guarded instruction may act, and what is known in that case."""
        if guard is None:
            yield True, self
            return
        name, value = self.original(guard[0]), guard[1]
        for found in (True, False):
            if dict(self.values).get(name, found) == found:
                yield found == value, self._replace(values=self.values | {(name, found)})

    def after(self, op: Op) -> _Predicates:
        """Returns what is known after an instruction, which may write predicates."""
        values = frozenset(pair for pair in self.values if not op.may_write(pair[0]))
        copies = frozenset(pair for pair in self.copies if not any(map(op.may_write, pair)))
        if op.copied is not None:
            name, source = op.copied
            copies |= {(name, self.original(source))}
        return _Predicates(values, copies)


class _State(NamedTuple):
    """The state of a path through a loop."""

    at: int
    stored: Stored
    known: _Predicates


def _shortest_trips(ops: list[Op], start: int, end: int) -> dict[Stored, list[Op]]:
    """Returns the shortest path from ``start`` to the jump at ``end``, for each kind of stores.

    On a path, a predicate keeps its value between the stores and jumps that test it: some compilers guard a store, and
    then branch around others with the same predicate.
    """
    found: dict[Stored, list[Op]] = {}
    seen: set[_State] = set()
    order = itertools.count()  # on a tie, the one found first
    queue: list[tuple[int, int, _State, _Path | None]] = [(0, 0, _State(start, Stored(0, ""), _Predicates()), None)]
    while queue:
        cost, _, state, before = heapq.heappop(queue)
        if not start <= state.at <= end or state in seen:
            continue
        seen.add(state)
        path = _Path(ops[state.at], before)
        if state.at == end:
            found.setdefault(state.stored, path.ops())
            continue
        for following in _following(path.op, state):
            heapq.heappush(queue, (cost + 1, next(order), following, path))
    return found


def _following(op: Op, state: _State) -> Iterator[_State]:
    """Yields where a path may continue after an instruction."""
    at, stored, known = state
    if not op.is_store and op.target is None:
        conversion = ("BF16" if "BF16" in op.code else "F16") if op.kind == "F2FP" else stored.conversion
        yield _State(at + 1, Stored(stored.n_bytes, conversion), known.after(op))
        return
    for acts, knows in known.outcomes(op.guard):
        if op.is_store:
            n_bytes = stored.n_bytes + op.store_bytes * acts
            yield _State(at + 1, Stored(n_bytes, stored.conversion), knows)
        elif acts and op.target is not None:
            yield _State(op.target, stored, knows)
        if op.target is not None and (not acts or ".DIV" in op.code):
            yield _State(at + 1, stored, knows)


def main() -> None:
    """Prints the cost of a cubin's loops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cubin", type=Path)
    parser.add_argument("--element-bytes", type=int, required=True, help="bytes of an element: 2 for bfloat16")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    arguments = parser.parse_args()
    if reason := why_not_disassembled():
        raise SystemExit(reason)
    for name, ops in disassembled(arguments.cubin).items():
        if arguments.kernel not in name or (loop := storing_loop(ops)) is None:
            continue
        smells = ", ".join(loop.smells) or "nothing that does not belong there"
        print(f"{name}: stores of {loop.narrowest_store} bytes or more; {smells}")
        for stored, trip in loop.trips.items():
            if not stored.n_bytes:
                continue
            work = gpu_pipes.work([op.code for op in trip], stored.n_bytes / arguments.element_bytes)
            pipes = ", ".join(f"{pipe} {n:.2f}" for pipe, n in work.items() if n)
            share = gpu_pipes.share_of_memory(work, arguments.element_bytes, gpu_pipes.H100)
            bound = gpu_pipes.binding_pipe(work)
            print(f"  {stored.n_bytes} bytes a thread: {pipes}; bound by {bound}, {share:.0%} of an H100's memory")


if __name__ == "__main__":
    main()
