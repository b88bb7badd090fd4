"""Executes compiled GPU kernels on the CPU: NVIDIA's PTX, with numpy 2, without a GPU or a driver.

    memory = Memory(track=True)
    memory.add(out)                                     # arrays and tensors, at their own addresses
    memory.add(table)
    kernel = Module(Path("fill.ptx").read_text()).kernel("fill")
    kernel.launch((8, 3), (256,), [table.ctypes.data, seed], memory)
    assert (memory.writes(out) == 1).all()              # each byte is written once

Bit-exact: integers, comparisons, conversions, minima and maxima; add, sub, mul, div, sqrt and rcp in float32 and
float64, rounded to nearest (.rn); fma.rn; .ftz and .sat in float32. Approximations (.approx, .full) are not: the
hardware's tables are not public, so they are computed in float64 and rounded once, and `Stats.approx` names those that
ran. Atomics, calls, half-precision arithmetic, directed rounding and tensor cores are not supported: they are errors
when threads reach them, and `Kernel.unsupported` lists them beforehand.

Errors name the PTX line: a misaligned access, an access outside the registered memory, or a read of a register that was
never written. If only some threads wrote a register, the others read a pattern (0xDEADBEEF).

Triton's kernels have one or two pointers to scratch memory as their last parameters (pass 0), and take
`metadata.shared` bytes of dynamic shared memory and 32 threads per warp. nvcc and Triton must not fuse multiplies and
adds: `-fmad=false`, `enable_fp_fusion=False`; `Kernel.contractable` lists what the assembler might still fuse.
"""

from __future__ import annotations

from .kernel import Kernel, Module, Stats
from .memory import Memory
from .types import PtxError

__all__ = ["Kernel", "Memory", "Module", "PtxError", "Stats"]
