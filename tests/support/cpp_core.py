"""The native core for tests: its instruction sets, fills of boxes, and what it makes of given words."""

from __future__ import annotations

import math

import needs
import numpy as np
import torch

from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.contract import records as lowering

needs.CPP.check()

NATIVE = cpp_backend._native

ISAS = NATIVE.instruction_sets()

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

FLOAT8 = [getattr(torch, name) for name in lowering.FLOAT8 if hasattr(torch, name)]

NORMAL, UNIFORM = plans.Normal(0.25, 1.5), plans.Uniform(-0.37, 1.93)

TRUNCATED = plans.TruncatedNormal(0.25, 1.5, -2.5, 3.0)

INF = math.inf

# In standard deviations: around the mean, from it, beside it, far out, one-sided, narrow.
BOUNDS = [(-2, 2), (-1, 0.5), (-100, 100), (-INF, INF), (0, INF), (1, INF), (-INF, -3), (3, 3.01), (5, 8), (-8, -5)]

BOUNDS += [(4.6, INF), (-INF, -4.7), (-30, -29), (6, INF), (-7, -6.5), (-3.4, 3.3), (-INF, -1.6)]

BOUNDS += [(-INF, -1.55), (1.6, INF), (1.5, 3), (-2.001, 2.001), (-2.0, -1.9)]


def fill(tensor, distribution=NORMAL, *, name="weight", seed=0, shape=None, offset=None, isa="", threads=2):
    """Fills a tensor that is the box at ``offset`` of a parameter of ``shape``, and returns it."""
    shape = tuple(shape or tensor.shape)
    box = plans.Box.at(tensor, offset or (0,) * tensor.dim(), shape)
    made = plans.Fill(name, tensor, distribution, "rule", "", shape, (box,))
    assert cpp_backend.why_not_fill(made) is None
    NATIVE.fill(lowering.lowered([made], seed).view(np.uint8), threads, isa)
    return tensor


def record(tensor, distribution=NORMAL, key=(0, 0), first=0):
    """The record of a contiguous tensor; ``distribution`` may be "words", their bits themselves."""
    words = distribution == "words"
    table = lowering.lowered([plans.Fill.whole("", tensor, UNIFORM if words else distribution, "", "")], 0)
    table["key"], table["first_index"] = key, first
    if words:
        table["distribution"] = lowering.WORDS
    return table.view(np.uint8)


def words_of(key, first, n, isa=""):
    """Returns the words [first, first + n) of a stream."""
    out = torch.empty(n)
    NATIVE.fill(record(out, "words", key, first), 1, isa)
    return out.numpy().view(np.uint32)


def from_words(words, distribution, isa="", dtype=torch.float32):
    """Returns what a distribution makes of given words."""
    whole = np.concatenate([words, np.zeros(-len(words) % 64, np.uint32)])
    out = torch.empty(len(whole), dtype=dtype)
    NATIVE.fill_from(record(out, distribution), whole, isa)
    return out[: len(words)]


def normal_pairs(w0, w1, isa=""):
    """Returns the two standard normals of each pair of words."""
    pairs = from_words(np.stack([w0, w1], 1).reshape(-1), plans.Normal(0, 1), isa).numpy()
    return pairs[::2], pairs[1::2]
