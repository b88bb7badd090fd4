"""Executes compiled GPU kernels on the CPU: NVIDIA's PTX, with numpy 2, without a GPU or a driver.

    memory = Memory(track=True)
    memory.add(out)                                     # arrays and tensors, at their own addresses
    memory.add(table)
    kernel = Module(Path("fill.ptx").read_text()).kernel("fill")
    kernel.launch((8, 3), (256,), [table.ctypes.data, seed], memory)
    assert (memory.writes(out) == 1).all()              # each byte is written once

Bit-exact: integers, comparisons, conversions, minima and maxima; add, sub, mul, div, sqrt and rcp in float32 and
float64, rounded to nearest (.rn); fma.rn; .ftz and .sat in float32. Not so are the approximations (.approx, .full), as
the tables of the hardware are not public: they are computed in float64 and rounded once, and `Stats.approx` names those
that were executed. Not supported are atomics, calls, arithmetic in half precision, directed rounding and tensor cores;
what is not supported is an error when threads reach it, and `Kernel.unsupported` lists it before.

Errors name the PTX line: an access that is misaligned or outside of the memory that was added, a register that is used
and was never written. Of a register that only some threads wrote, the others read a pattern (0xDEADBEEF).

Triton's kernels have one or two pointers to scratch memory as their last parameters (0 does), take `metadata.shared`
bytes of dynamic shared memory, and 32 threads a warp. nvcc and Triton must not fuse what the source does not:
`-fmad=false`, `enable_fp_fusion=False`; `Kernel.contractable` lists what the assembler might still fuse.
"""

from __future__ import annotations

from .kernel import Kernel, Module, Stats
from .memory import Memory
from .types import PtxError

__all__ = ["Kernel", "Memory", "Module", "PtxError", "Stats"]
