"""The Triton kernel's main loops, one distribution at a time, for gpu_instructions.py to count."""

import triton
import triton.language as tl

from fastinit.kernels.fill import _run, _run_of_constants
from fastinit.kernels.layout import CONSTANT, ELEMENT, KIND, RECORD_WORDS, WORK_WORDS


@triton.jit
def loop(table, work, DISTRIBUTION: tl.constexpr):
    """Runs the path RUN for one distribution, as fill() does."""
    piece = work + WORK_WORDS * tl.program_id(0).to(tl.int64)
    first, rest = tl.load(piece), tl.load(piece + 1)
    n, record = rest.to(tl.int32), table + RECORD_WORDS * (rest >> 32)
    dtype, element_bytes = (tl.load(record + KIND) >> 32).to(tl.int32), tl.load(record + ELEMENT).to(tl.int32)
    if DISTRIBUTION == CONSTANT:
        _run_of_constants(record, first, n, element_bytes)
    else:
        _run(record, first, n, dtype, element_bytes, DISTRIBUTION, True)
