"""Finds what bounds a loop on a GPU: the pipe that needs the most cycles for its instructions, or the memory.

A multiprocessor issues 128 lanes per cycle (4 warps) of any instruction; each pipe executes fewer. The rates are from
NVIDIA's CUDA C++ Programming Guide, "Arithmetic Instructions", table "Throughput of Native Arithmetic Instructions"
(results per cycle and multiprocessor, compute capability 9.0): 128 for float32 arithmetic; 64 for float64 arithmetic,
integer products, and 32-bit sums, comparisons, shifts, logic and conversions; 16 for reciprocals, roots, logarithms,
sines, and conversions from and to 64 bits. The documentation of Nsight Compute, "Pipelines", says which pipe executes
what: integer products go to FMA, packed halves to the ALU.

The table has no line for the 64-bit product (IMAD.WIDE); we assume the rate of the 32-bit one. At half that rate it
would bound uniforms before the ALU does. Instructions of the uniform datapath and the memory pipes count as issued
only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ISSUE, ALU, IMAD, FMA, XU, FP64 = "issue", "ALU", "IMAD", "FMA", "XU", "FP64"

# Lanes per cycle and multiprocessor, for compute capability 9.0.
RATES = {ISSUE: 128, ALU: 64, IMAD: 64, FMA: 128, XU: 16, FP64: 64}
# Each pipe's instructions, up to the first dot. Compilers use HFMA2.MMA to move constants.
_KINDS = {
    IMAD: "IMAD",
    FMA: "FFMA FMUL FADD FFMA2 FMUL2 FADD2 FFMA32I FMUL32I FADD32I HFMA2 HADD2 HMUL2",
    XU: "MUFU I2F F2I F2F FRND POPC FLO",
    FP64: "DFMA DMUL DADD DSETP DMNMX",
    ALU: "LOP LOP3 PLOP3 SHF SHL SHR LEA IADD IADD3 VIADD IABS ISETP VIMNMX IMNMX SEL FSEL FSETP FMNMX PRMT MOV "
    "BMSK SGXT I2FP F2FP FCHK BREV LOP32I IADD32I MOV32I SEL32I VABSDIFF VIADDMNMX I2IP P2R R2P",
}
# Issued only: jumps, memory, and the uniform datapath, whose names start with U.
_ISSUED = {
    *("BRA", "BSSY", "BSYNC", "CALL", "EXIT", "NOP", "RET", "WARPSYNC", "YIELD", "BAR"),
    *("LDG", "STG", "LDC", "LDS", "STS", "LDL", "STL", "S2R", "R2UR", "CS2R", "SHFL"),
}
_PIPES = {kind: pipe for pipe, kinds in _KINDS.items() for kind in kinds.split()}


@dataclass(frozen=True)
class Gpu:
    """The rates of a GPU that bound a fill."""

    name: str
    n_multiprocessors: int
    hertz: float
    """Under load."""
    bytes_per_second: float
    """Its memory's speed in copies or writes."""


# NVIDIA's data sheets say 132 multiprocessors, 3.35 and 4.8 TB/s. These are a clock that they sustain under load (the
# maximum is 1.98 GHz), and the memory speed that copies reach.
H100 = Gpu("H100", 132, 1.755e9, 3.0e12)
H200 = Gpu("H200", 132, 1.755e9, 4.0e12)


def work(codes: Iterable[str], n_elements: float) -> dict[str, float]:
    """Returns each pipe's instructions per element; all are issued."""
    found = dict.fromkeys(RATES, 0.0)
    for code in codes:
        found[ISSUE] += 1 / n_elements
        if pipe := _PIPES.get(code.partition(".")[0]):
            found[pipe] += 1 / n_elements
    # Integer products use part of float32's pipe.
    found[FMA] += found[IMAD]
    return found


def unknown(codes: Iterable[str]) -> set[str]:
    """Returns the kinds of instructions whose pipe is unknown."""
    kinds = {code.partition(".")[0] for code in codes}
    return {kind for kind in kinds if kind not in _PIPES and kind not in _ISSUED and not kind.startswith("U")}


def binding_pipe(work: dict[str, float]) -> str:
    """Returns the pipe that needs the most cycles; on a tie, the issue."""
    return max(work, key=lambda pipe: work[pipe] / RATES[pipe])


def share_of_memory(work: dict[str, float], element_bytes: int, gpu: Gpu) -> float:
    """Returns the pipes' speed in bytes as a share of the memory's: at 1 or more the memory binds."""
    cycles = max(n / RATES[pipe] for pipe, n in work.items())
    return gpu.n_multiprocessors * gpu.hertz / cycles * element_bytes / gpu.bytes_per_second


def most(pipe: str, element_bytes: int, gpu: Gpu) -> float:
    """Returns how many instructions per element a pipe may have before it binds instead of the memory."""
    return gpu.n_multiprocessors * gpu.hertz * RATES[pipe] * element_bytes / gpu.bytes_per_second
