"""Machine instructions that the main loops of the GPU kernels spend on an element, counted without a GPU.

Compiles each loop for each architecture and reads the disassembly: instructions of a trip, width of the stores, and
what does not belong into a loop (shared memory, spills, calls). Where a loop has a branch for rare values, the path
without it counts. By its instructions an H100 writes at the speed of its memory with 39 an element in float32, 19 in
bfloat16. Needs nvcc, the triton package, which has the disassembler, and ../shared/tools/sass.py, which knows it.
Writes ``results/gpu_instructions.csv``. Run with ``python benchmarks/gpu_instructions.py``.
"""

from __future__ import annotations

import heapq
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TOOLS = Path(os.environ.get("FASTINIT_TOOLS") or ROOT.parent / "shared" / "tools")
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
DISTRIBUTIONS = ["constant", "uniform", "normal", "truncated_inside", "truncated_wide", "truncated_tail"]
# By what a trip of 16 elements a thread stores, and by the conversion to two bytes.
DTYPES = {(4, ""): "float32", (2, "BF16"): "bfloat16", (2, "F16"): "float16", (1, ""): "float8"}
TRIP_ELEMENTS = 16
NOT_IN_FASTINIT = ["normal_by_hardware", "normal_by_hardware_from_16_bits"]
"""What normals would cost that are not the same on every GPU, by the approximations that are one instruction."""


@dataclass(frozen=True)
class Loop:
    """What a loop of a kernel costs."""

    backend: str
    architecture: str
    distribution: str
    dtype: str
    instructions: float
    """An element, on the path of values that are not rare."""
    narrowest_store: int
    """In bytes."""
    smells: tuple[str, ...]
    """Of barriers, shared memory, spills and calls those that occur in the loop."""


def sass() -> Any:
    """Returns ../shared/tools/sass.py as a module."""
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    import sass  # type: ignore[import-not-found,import-untyped]

    return sass


def cuda_loops(architecture: str) -> Iterator[Loop]:
    """Compiles gpu_loops.cu and yields its loops."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "loops.cubin"
        flags = ["-cubin", "-std=c++17", "-fmad=false", f"-arch={architecture}", "-I", str(ROOT / "csrc")]
        source = ROOT / "benchmarks" / "gpu_loops.cu"
        subprocess.run(["nvcc", *flags, str(source), "-o", str(cubin)], check=True, capture_output=True)
        kernels = disassembled(cubin)
    for distribution in [*DISTRIBUTIONS, "truncated_bounded", *NOT_IN_FASTINIT]:
        for name, lines in kernels.items():
            if name.rsplit("_", 1)[0] == distribution:
                yield from counted("cuda", architecture, distribution, lines)


def triton_loops(architecture: str) -> Iterator[Loop]:
    """Compiles gpu_loops.py for each distribution and yields its loops."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from fastinit.backends import triton_backend

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu_loops import loop

    gpu, options = GPUTarget("cuda", int(architecture[3:]), 32), triton_backend._options(True)
    signature = {"table": "*i64", "work": "*i64", "DISTRIBUTION": "constexpr"}
    for number, distribution in enumerate(DISTRIBUTIONS):
        source = ASTSource(fn=loop, signature=signature, constexprs={"DISTRIBUTION": number}, attrs={})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compile(source, target=gpu, options=options).asm["cubin"])
            cubin.flush()
            (lines,) = disassembled(Path(cubin.name)).values()
        yield from counted("triton", architecture, distribution, lines)


@dataclass(frozen=True)
class Op:
    """A line of the disassembly."""

    predicate: str
    code: str
    rest: str
    target: int | None
    """Where it may jump to."""


def disassembled(cubin: Path) -> dict[str, list[Op]]:
    """Returns the instructions of the kernels of a cubin."""
    command = [sass().nvdisasm(), "-c", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines: dict[str, list[tuple[str, str, str]]] = {}
    labels: dict[str, int] = {}
    current: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if found := re.match(r"^\.text\.([^:\s]+):", line):
            current = lines.setdefault(found[1], [])
        elif found := re.match(r"^(\.L_[\w.]+):", line):
            labels[found[1]] = len(current)
        elif found := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
            current.append((found[1] or "", found[2], found[3]))

    def op(predicate: str, code: str, rest: str) -> Op:
        label = re.search(r"(\.L_[\w.]+)", rest) if code.startswith("BRA") else None
        return Op(predicate, code, rest, labels[label[1]] if label else None)

    return {name: [op(*line) for line in each] for name, each in lines.items()}


def counted(backend: str, architecture: str, distribution: str, ops: list[Op]) -> Iterator[Loop]:
    """Yields what the storing loop of a kernel costs, for each dtype that it can store."""
    jumps_back = [(op.target, at) for at, op in enumerate(ops) if op.target is not None and op.target <= at]
    loops = [span for span in jumps_back if any(sass().is_store(op.code) for op in ops[span[0] : span[1] + 1])]
    # Innermost; a jump back from rare code, which the compiler put behind the loop, spans more than the loop itself.
    start, end = min(loops, key=lambda span: span[1] - span[0])
    body = ops[start : end + 1]
    kinds = {op.code.split(".")[0] for op in body}
    smells = tuple(sorted(kinds & {"BAR", "LDS", "STS", "LDL", "STL", "CALL"}))
    narrowest = min(sass().store_bytes(op.code) for op in body if sass().is_store(op.code))
    for (n_stores, conversion), n in sorted(shortest_trips(ops, start, end).items()):
        if distribution == "constant":
            dtype, n_elements = "any", n_stores * 4
        elif n_stores in (1, 8) and any(op.code.startswith("DMUL") for op in body):
            dtype, n_elements = "float64", n_stores * 2
        else:
            dtype, n_elements = DTYPES[n_stores, conversion], TRIP_ELEMENTS
        yield Loop(backend, architecture, distribution, dtype, round(n / n_elements, 2), narrowest, smells)


def shortest_trips(ops: list[Op], start: int, end: int) -> dict[tuple[int, str], int]:
    """Returns the fewest instructions of a trip from ``start`` to the jump at ``end``, by what it stores.

    What is stored: how many times 16 bytes, and the two-byte format to which it was converted.
    """
    found: dict[tuple[int, str], int] = {}
    queue, seen = [(0, start, 0, "")], set()
    while queue:
        cost, at, n_stores, conversion = heapq.heappop(queue)
        if (at, n_stores, conversion) in seen or not start <= at <= end:
            continue
        seen.add((at, n_stores, conversion))
        op = ops[at]
        if sass().is_store(op.code):
            n_stores += 1
        if op.code.startswith("F2FP"):
            conversion = "BF16" if "BF16" in op.code else "F16"
        if at == end:
            found.setdefault((n_stores, conversion), cost + 1)
            continue
        may_fall_through = (
            op.target is None or bool(op.predicate) or re.match(r"\s*!?U?P\d", op.rest) or ".DIV" in op.code
        )
        for following in ({at + 1} if may_fall_through else set()) | ({op.target} if op.target is not None else set()):
            heapq.heappush(queue, (cost + 1, following, n_stores, conversion))
    return found


def main() -> None:
    """Counts all loops and writes the table."""
    if not (TOOLS / "sass.py").exists() or shutil.which("nvcc") is None or importlib.util.find_spec("triton") is None:
        print("Nothing is counted: it needs nvcc, the package triton and ../shared/tools.")
        return
    from tables import write

    rows: dict[tuple[str, ...], dict[str, object]] = {}
    for architecture in ARCHITECTURES:
        for loop in [*cuda_loops(architecture), *triton_loops(architecture)]:
            backend = "not in fastinit" if loop.distribution in NOT_IN_FASTINIT else loop.backend
            key = (backend, loop.distribution.replace("_", " "), loop.dtype)
            names: dict[str, object] = dict(zip(("backend", "distribution", "dtype"), key))
            row = rows.setdefault(key, {**names, **dict.fromkeys(ARCHITECTURES, "")})
            row[architecture] = loop.instructions
            row["narrowest store"] = f"{loop.narrowest_store} bytes"
            row["besides arithmetic"] = " ".join(loop.smells) or "nothing"
    backends, dtypes = (
        ["cuda", "triton", "not in fastinit"],
        ["any", "float32", "bfloat16", "float16", "float8", "float64"],
    )
    order = [*DISTRIBUTIONS, "truncated_bounded", *NOT_IN_FASTINIT]
    ranks = ({name.replace("_", " "): i for i, name in enumerate(each)} for each in (backends, order, dtypes))
    by_backend, by_distribution, by_dtype = ranks
    write(
        "gpu_instructions.csv",
        [rows[key] for key in sorted(rows, key=lambda k: (by_backend[k[0]], by_distribution[k[1]], by_dtype[k[2]]))],
    )


if __name__ == "__main__":
    main()
