"""Machine instructions that the main loops of the GPU kernels spend on an element, counted without a GPU.

Compiles each loop for each architecture and reads the disassembly with ../shared/tools/sass.py: instructions of a trip, width
of the stores, and what does not belong into a loop (shared memory, spills, calls). Where a loop has a branch for rare values,
the path without it counts. An H100 writes float32 at the speed of its memory at 39 instructions an element or fewer,
bfloat16 at 19. Needs nvcc, and the triton package, which has the disassembler. Writes ``results/gpu_instructions.csv``. Run
with ``python benchmarks/gpu_instructions.py``.
"""

from __future__ import annotations

import heapq
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TOOLS = ROOT.parent / "shared" / "tools"
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "float64": 8, "any": 4}


@dataclass(frozen=True)
class Loop:
    """What a loop of a kernel costs."""

    backend: str
    architecture: str
    distribution: str
    dtype: str
    instructions: float
    """An element, on the path of values that are not rare."""
    store_bytes: int
    """Of the narrowest store."""
    smells: tuple[str, ...]


def sass() -> Any:
    """Returns ../shared/tools/sass.py as a module."""
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    import sass  # type: ignore[import-not-found]

    return sass


def cuda_loops(architecture: str) -> Iterator[Loop]:
    """Compiles benchmarks/gpu/loops.cu and yields its loops."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "loops.cubin"
        flags = ["-cubin", "-std=c++17", "-fmad=false", f"-arch={architecture}", "-I", str(ROOT / "csrc")]
        source = ROOT / "benchmarks" / "gpu" / "loops.cu"
        subprocess.run(["nvcc", *flags, str(source), "-o", str(cubin)], check=True, capture_output=True)
        for name, lines in disassembled(cubin).items():
            distribution, dtype = name.rsplit("_", 1)
            yield counted("cuda", architecture, distribution, dtype, lines)


Lines = list[tuple[str, str, str]]
"""("label", name, "") or ("op", opcode, what is before and behind it)."""


def disassembled(cubin: Path) -> dict[str, Lines]:
    """Returns the kernels of a cubin."""
    command = [sass().nvdisasm(), "-c", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kernels: dict[str, Lines] = {}
    for line in text.splitlines():
        if found := re.match(r"^\.text\.([^:\s]+):", line):
            kernels[found[1]] = lines = []
        elif found := re.match(r"^(\.L_[\w.]+):", line):
            lines.append(("label", found[1], ""))
        elif found := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
            lines.append(("op", found[2], (found[1] or "") + found[3]))
    return kernels


def counted(backend: str, architecture: str, distribution: str, dtype: str, lines: Lines) -> Loop:
    """Returns what the only storing loop of a kernel costs."""
    _, bodies = sass().loops([line if line[0] == "op" else line[:2] for line in lines])
    (body,) = bodies
    element_bytes = ELEMENT_BYTES[dtype]
    whole = sass().describe(body, element_bytes, 0)
    rare = len(body) - shortest_trip(lines)
    described = sass().describe(body, element_bytes, rare)
    narrowest = min(map(sass().store_bytes, whole["stores"]))
    return Loop(backend, architecture, distribution, dtype, described["per_element"], narrowest, tuple(whole["smells"]))


def shortest_trip(lines: Lines) -> int:
    """Returns the instructions of a trip through the storing loop that takes every branch around something."""
    ops: list[tuple[str, str]] = []
    where: dict[str, int] = {}
    for kind, name, rest in lines:
        if kind == "label":
            where[name] = len(ops)
        else:
            ops.append((name, rest))
    target = {i: where[found[1]] for i, (name, rest) in enumerate(ops)
              if name.startswith("BRA") and (found := re.search(r"(\.L_[\w.]+)", rest)) and found[1] in where}
    stores = [i for i, (name, _) in enumerate(ops) if sass().is_store(name)]
    spans = [(start, end) for end, start in target.items() if start <= end and any(start <= i <= end for i in stores)]
    start, end = min(spans, key=lambda span: span[1] - span[0])
    queue, seen = [(0, start)], set()
    while queue:
        cost, at = heapq.heappop(queue)
        if at == end:
            return cost + 1
        if at in seen or not start <= at <= end:
            continue
        seen.add(at)
        is_conditional = ops[at][1].startswith("@") or "P" in ops[at][1].split("`")[0]
        if at in target:
            heapq.heappush(queue, (cost + 1, target[at]))
        if at not in target or is_conditional:
            heapq.heappush(queue, (cost + 1, at + 1))
    raise ValueError("no way through the loop")


def main() -> None:
    """Counts all loops and writes the table."""
    from bench_initialize import write

    rows = []
    for architecture in ARCHITECTURES:
        for loop in cuda_loops(architecture):
            print(loop)
            rows.append(loop)
    del write


if __name__ == "__main__":
    main()
