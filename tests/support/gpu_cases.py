"""What the kernels of GPUs are tried on: distributions, dtypes, boxes and random cases."""

from __future__ import annotations

import math

import torch
from gpu_machines import Case
from hypothesis import strategies as st

from fastinit import plans
from fastinit.contract import records as lowering

INF = math.inf
DTYPES = [*lowering.DTYPES]
ALL_DTYPES = [*DTYPES, torch.int8, torch.bool, torch.int16, torch.int64, torch.complex64, torch.complex128]
NORMAL = plans.Normal(0.25, 1.5)
DISTRIBUTIONS = [
    plans.Uniform(-0.37, 1.93),
    NORMAL,
    plans.TruncatedNormal(0.25, 1.5, -2.5, 3.0),  # inside two standard deviations
    plans.TruncatedNormal(0, 1, -100, 100),  # wide, no bound in reach
    plans.TruncatedNormal(0, 1, -1, 3),  # wide, cut off
    plans.TruncatedNormal(0, 1, 6, INF),  # one tail, mirrored
    plans.TruncatedNormal(0.5, 0.02, -INF, 0.4),
]
# (size, stride, start, shape, offset): parts of larger parameters, and memory in other orders. Several trips of a main loop are
# enough, as emulated threads take them one after the other.
BOXES = {
    "columns of a matrix": ((9, 1024), None, 0, (9, 4096), (0, 1024)),
    "rows of a matrix": ((70, 96), None, 0, (700, 96), (50, 0)),
    "columns in memory apart": ((40, 256), (4096, 1), 512, (40, 512), (0, 256)),
    "a box of four dimensions": ((3, 4, 5, 64), None, 0, (6, 8, 10, 128), (3, 4, 5, 64)),
    "columns that begin within a block": ((30, 65), None, 0, (30, 200), (0, 67)),
    "long columns that begin within a block": ((64, 1024), None, 0, (64, 4096), (0, 1025)),
    "long columns of rows that are no whole blocks": ((9, 1024), None, 0, (9, 4097), (0, 1024)),
    "odd rows": ((31, 33), None, 0, (31, 99), (0, 66)),
    "one column": ((300, 1), None, 0, (300, 20), (0, 7)),
    "a column of several matrices": ((6, 40, 1), None, 0, (6, 100, 9), (0, 30, 2)),
    "every third element": ((1000,), (3,), 1, (1000,), None),
    "transposed": ((57, 33), (1, 57), 0, None, None),
    "channels last": ((8, 3, 7, 7), (147, 1, 21, 3), 0, None, None),
    "seven dimensions": ((2, 3, 2, 3, 2, 3, 4), (1, 2, 6, 12, 36, 72, 216), 0, None, None),
    "rows far apart in the parameter": ((9, 16), None, 0, (9, 2**40), (0, 2**33 + 4)),
    "one element": ((), (), 3, (), None),
}


def in_turn(turn: int) -> list[tuple[plans.Distribution, torch.dtype]]:
    """Returns a distribution for every dtype, and a constant of every width: other pairs in each of seven turns.

    Over the turns every distribution meets every dtype, and within one each occurs. For what changes the place of a fill;
    that all pairs are right on each path through a kernel is for other tests.
    """
    by_width = [[dtype for dtype in ALL_DTYPES if dtype.itemsize == width] for width in (1, 2, 4, 8, 16)]
    return [
        *((DISTRIBUTIONS[(turn + i) % len(DISTRIBUTIONS)], dtype) for i, dtype in enumerate(DTYPES)),
        *((plans.Constant(2), dtypes[turn % len(dtypes)]) for dtypes in by_width),
    ]


@st.composite
def cases(draw):
    """A case of one to four dimensions, with strides in any order and gaps between, somewhere in a larger parameter."""
    size = tuple(draw(st.lists(st.integers(1, 24), min_size=1, max_size=4)))
    order = draw(st.permutations(range(len(size))))
    stride, step = [0] * len(size), draw(st.sampled_from([1, 1, 1, 2]))
    for d in order:
        stride[d] = step
        step = step * size[d] + draw(st.sampled_from([0, 0, 0, 1, 4, 16]))
    offset = tuple(draw(st.sampled_from([0, 0, 4, 8, 3])) for _ in size)
    room = tuple(draw(st.sampled_from([0, 0, 4, 16, 5])) for _ in size)
    shape = tuple(n + before + behind for n, before, behind in zip(size, offset, room))
    distribution = draw(st.sampled_from([*DISTRIBUTIONS, plans.Constant(1.5)]))
    dtype, start = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([0, 0, 4, 1]))
    return Case(distribution, dtype, size, tuple(stride), start, shape, offset)
