"""Counts the machine instructions per element in the GPU kernels' main loops, without a GPU.

Compiles each loop for each architecture and reads the disassembly (sass.py): instructions per trip, width of the
stores, anything that does not belong in a loop (shared memory, spills, calls), and the busiest pipe of a multiprocessor
(gpu_pipes.py). If a loop branches for rare values, the other path counts. Needs nvcc and the package triton, which
includes the disassembler. Writes ``benchmarks/results/gpu_instructions.csv``; run with ``python
tools/gpu_instructions.py``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gpu_pipes
from sass import Op, Stored, disassembled, storing_loop, why_not_disassembled

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from tables import RESULTS, save

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
DISTRIBUTIONS = ["constant", "uniform", "normal", "truncated_inside", "truncated_wide", "truncated_tail"]
# By the bytes that a trip of 16 elements per thread stores, and the conversion to two bytes.
DTYPES = {
    Stored(64, ""): "float32",
    Stored(32, "BF16"): "bfloat16",
    Stored(32, "F16"): "float16",
    Stored(16, ""): "float8",
}
TRIP_ELEMENTS = 16
# "any": constants are stored four bytes at a time.
ELEMENT_BYTES = {"any": 4, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "float64": 8}
NOT_IN_FASTINIT = ["normal_by_hardware", "normal_by_hardware_from_16_bits"]
"""Normals with the hardware's approximations, one instruction each, whose bits differ between GPUs."""


@dataclass(frozen=True)
class Loop:
    """The cost of a loop."""

    backend: str
    architecture: str
    distribution: str
    dtype: str
    work: dict[str, float]
    """Instructions per element, by pipe, on the path without rare values."""
    unknown: set[str]
    """Instructions whose pipe is unknown."""
    narrowest_store: int
    """In bytes."""
    smells: tuple[str, ...]
    """Barriers, shared memory, spills and calls in the loop."""

    @property
    def instructions(self) -> float:
        """All instructions per element."""
        return round(self.work[gpu_pipes.ISSUE], 2)


def cuda_loops(architecture: str) -> Iterator[Loop]:
    """Compiles gpu_loops.cu and yields its loops."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "loops.cubin"
        flags = ["-cubin", "-std=c++17", "-fmad=false", f"-arch={architecture}", "-I", str(ROOT / "csrc")]
        source = Path(__file__).with_name("gpu_loops.cu")
        subprocess.run(["nvcc", *flags, str(source), "-o", str(cubin)], check=True, capture_output=True)
        kernels = disassembled(cubin)
    for distribution in [*DISTRIBUTIONS, "truncated_bounded", *NOT_IN_FASTINIT]:
        for name, ops in kernels.items():
            if name.rsplit("_", 1)[0] == distribution:
                yield from counted("cuda", architecture, distribution, ops)


def triton_loops(architecture: str) -> Iterator[Loop]:
    """Compiles gpu_loops.py for each distribution and yields its loops."""
    from gpu_loops import loop
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from fastinit.backends import triton_backend

    gpu, options = GPUTarget("cuda", int(architecture[3:]), 32), triton_backend._options(True)
    signature = {"table": "*i64", "work": "*i64", "DISTRIBUTION": "constexpr"}
    for number, distribution in enumerate(DISTRIBUTIONS):
        source = ASTSource(fn=loop, signature=signature, constexprs={"DISTRIBUTION": number}, attrs={})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compile(source, target=gpu, options=options).asm["cubin"])
            cubin.flush()
            (ops,) = disassembled(Path(cubin.name)).values()
        yield from counted("triton", architecture, distribution, ops)


def counted(backend: str, architecture: str, distribution: str, ops: list[Op]) -> Iterator[Loop]:
    """Yields the cost of a kernel's storing loop, for each dtype that it can store."""
    loop = storing_loop(ops)
    assert loop is not None, f"{backend}: {distribution} has no loop that stores"
    for stored, trip in loop.trips.items():
        if distribution == "constant":
            dtype, n_elements = "any", stored.n_bytes // ELEMENT_BYTES["any"]
        elif stored.n_bytes in (16, 128) and any(op.kind == "DMUL" for op in loop.body):
            dtype, n_elements = "float64", stored.n_bytes // ELEMENT_BYTES["float64"]
        else:
            dtype, n_elements = DTYPES[stored], TRIP_ELEMENTS
        codes = [op.code for op in trip]
        work, unknown = gpu_pipes.work(codes, n_elements), gpu_pipes.unknown(codes)
        yield Loop(backend, architecture, distribution, dtype, work, unknown, loop.narrowest_store, loop.smells)


def rows() -> list[dict[str, str]]:
    """Returns the table: a row per backend, distribution and dtype."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for architecture in ARCHITECTURES:
        for loop in [*cuda_loops(architecture), *triton_loops(architecture)]:
            backend = "not in fastinit" if loop.distribution in NOT_IN_FASTINIT else loop.backend
            key = (backend, loop.distribution, loop.dtype)
            names = zip(
                ("backend", "distribution", "dtype"), (backend, loop.distribution.replace("_", " "), loop.dtype)
            )
            row = found.setdefault(key, {**dict(names), **dict.fromkeys(ARCHITECTURES, "")})
            row[architecture] = str(loop.instructions)
            if architecture == "sm_90":
                pipe = gpu_pipes.binding_pipe(loop.work)
                row["busiest pipe, sm_90"] = f"{pipe}, {loop.work[pipe]:.1f}"
                for gpu in (gpu_pipes.H100, gpu_pipes.H200):
                    share = gpu_pipes.share_of_memory(loop.work, ELEMENT_BYTES[loop.dtype], gpu)
                    row[f"of an {gpu.name}'s memory"] = f"{min(1, share):.0%}"
            row["narrowest store"] = f"{loop.narrowest_store} bytes"
            row["besides arithmetic"] = " ".join(loop.smells) or "nothing"
    backends, dtypes = ["cuda", "triton", "not in fastinit"], list(ELEMENT_BYTES)
    order = [*DISTRIBUTIONS, "truncated_bounded", *NOT_IN_FASTINIT]

    def rank(key: tuple[str, ...]) -> tuple[int, ...]:
        return backends.index(key[0]), order.index(key[1]), dtypes.index(key[2])

    return [found[key] for key in sorted(found, key=rank)]


def compilers() -> str:
    """Returns the compilers' versions, on which alone the counts depend."""
    import triton

    text = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"V([\d.]+)", text)
    return f"counted, nothing ran; nvcc {release[1] if release else '?'}, triton {triton.__version__}"


def main() -> None:
    """Counts all loops and writes the table."""
    if shutil.which("nvcc") is None or why_not_disassembled():
        print("Nothing counted: this needs nvcc and the package triton.")
        return
    table, machine = rows(), compilers()
    save(RESULTS / "gpu_instructions.csv", [{**row, "machine": machine} for row in table])


if __name__ == "__main__":
    main()
