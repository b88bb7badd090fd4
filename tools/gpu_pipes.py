"""What bounds a loop on a GPU: of its pipes the one that needs the most cycles for the instructions, or the memory.

A multiprocessor issues 128 lanes a cycle (4 warps), whatever the instruction. Behind that each pipe takes fewer. The
rates are those of NVIDIA's CUDA C++ Programming Guide, "Arithmetic Instructions", table "Throughput of Native
Arithmetic Instructions" (results a cycle and multiprocessor, compute capability 9.0): 128 for arithmetic in float32; 64
for that in float64, for products of integers, and for sums, comparisons, shifts, logic and conversions of 32 bits; 16
for reciprocals, roots, logarithms, sines, and conversions from and to 64 bits. Which pipe executes what is in the
documentation of Nsight Compute, "Pipelines": products of integers are made by FMA, packed halves by the ALU.

The table has no line for the product of 64 bits (IMAD.WIDE); it is taken for that of 32. If it were half as fast, it
would bound uniforms before the ALU does. What the uniform datapath and the memory pipes execute counts as issued only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ISSUE, ALU, IMAD, FMA, XU, FP64 = "issue", "ALU", "IMAD", "FMA", "XU", "FP64"

# Lanes a cycle and multiprocessor, by compute capability 9.0.
RATES = {ISSUE: 128, ALU: 64, IMAD: 64, FMA: 128, XU: 16, FP64: 64}
# What each pipe executes, by the name before the first dot. HFMA2.MMA is there to move constants.
_KINDS = {
    IMAD: "IMAD",
    FMA: "FFMA FMUL FADD FFMA2 FMUL2 FADD2 FFMA32I FMUL32I FADD32I HFMA2 HADD2 HMUL2",
    XU: "MUFU I2F F2I F2F FRND POPC FLO",
    FP64: "DFMA DMUL DADD DSETP DMNMX",
    ALU: "LOP LOP3 PLOP3 SHF SHL SHR LEA IADD IADD3 VIADD IABS ISETP VIMNMX IMNMX SEL FSEL FSETP FMNMX PRMT MOV "
    "BMSK SGXT I2FP F2FP FCHK BREV LOP32I IADD32I MOV32I SEL32I VABSDIFF VIADDMNMX I2IP P2R R2P",
}
# What is issued only: jumps, memory, and the uniform datapath, whose names begin with a U.
_ISSUED = {
    *("BRA", "BSSY", "BSYNC", "CALL", "EXIT", "NOP", "RET", "WARPSYNC", "YIELD", "BAR"),
    *("LDG", "STG", "LDC", "LDS", "STS", "LDL", "STL", "S2R", "R2UR", "CS2R", "SHFL"),
}
_PIPES = {kind: pipe for pipe, kinds in _KINDS.items() for kind in kinds.split()}


@dataclass(frozen=True)
class Gpu:
    """What of a GPU bounds a fill."""

    name: str
    n_multiprocessors: int
    hertz: float
    """Under load."""
    bytes_per_second: float
    """What its memory takes when it is copied or written."""


# NVIDIA's data sheets say 132 multiprocessors, 3.35 and 4.8 TB/s. Here are a clock that they hold under load (they
# reach 1.98 GHz), and what copies reach of the memory.
H100 = Gpu("H100", 132, 1.755e9, 3.0e12)
H200 = Gpu("H200", 132, 1.755e9, 4.0e12)


def work(codes: Iterable[str], n_elements: float) -> dict[str, float]:
    """Returns how many instructions each pipe executes for an element; all are issued."""
    found = dict.fromkeys(RATES, 0.0)
    for code in codes:
        found[ISSUE] += 1 / n_elements
        if pipe := _PIPES.get(code.partition(".")[0]):
            found[pipe] += 1 / n_elements
    # Products of integers take a part of the pipe of float32.
    found[FMA] += found[IMAD]
    return found


def unknown(codes: Iterable[str]) -> set[str]:
    """Returns the kinds of instructions of which it is not known who executes them."""
    kinds = {code.partition(".")[0] for code in codes}
    return {kind for kind in kinds if kind not in _PIPES and kind not in _ISSUED and not kind.startswith("U")}


def binding_pipe(work: dict[str, float]) -> str:
    """Returns the pipe that needs the most cycles; of equal ones the issue."""
    return max(work, key=lambda pipe: work[pipe] / RATES[pipe])


def share_of_memory(work: dict[str, float], element_bytes: int, gpu: Gpu) -> float:
    """Returns the bytes that the pipes allow, of those that the memory takes: 1 or more is bound by the memory."""
    cycles = max(n / RATES[pipe] for pipe, n in work.items())
    return gpu.n_multiprocessors * gpu.hertz / cycles * element_bytes / gpu.bytes_per_second


def most(pipe: str, element_bytes: int, gpu: Gpu) -> float:
    """Returns the instructions of a pipe for an element with which the memory still binds."""
    return gpu.n_multiprocessors * gpu.hertz * RATES[pipe] * element_bytes / gpu.bytes_per_second
