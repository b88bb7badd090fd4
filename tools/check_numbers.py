"""Runs all 2^32 random words through every transform: equal bits, and the error against float64.

For each transform and all words (a uniform uses 24 bits: 2^24) every instruction set must give the same bits; the
result is the largest distance from the formula in float64. A normal takes two words: first one takes all values, at an
angle of 45 degrees, then the other, at the largest radius. Conversions to narrower dtypes take all float32 but NaN, and
must equal torch's. Writes ``results/numbers.csv`` after each transform, and keeps the rows of transforms that were not
run. Takes some hours on two cores; ``--bits 24`` tries one word in 256, ``--only trunc`` the transforms whose names
contain that text. Run with ``python tools/check_numbers.py``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import special

from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.contract import records as lowering

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from tables import RESULTS, read, write

Words = np.ndarray[Any, np.dtype[np.uint32]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
CORE = cpp_backend._core()
CHUNK = 1 << 20  # words at a time: a chunk fits in the cache


def from_words(words: Words, distribution: plans.Distribution | None, dtype: torch.dtype, isa: str) -> torch.Tensor:
    """Returns a distribution's values (None: the bits as float32) of given words, whole tiles of them."""
    out = torch.empty(len(words), dtype=dtype)
    fill = plans.Fill.whole("", out, distribution or plans.Uniform(0, 1), "", "")
    table = lowering.lowered([fill], 0)
    if distribution is None:
        table["distribution"] = lowering.WORDS
    CORE.fill_from(table.view(np.uint8), words, isa)
    return out


def uniform(words: Words) -> Floats:
    """The contract's formula for U(0, 1)."""
    return (words & 0xFFFFFF).astype(float) * 2.0**-24


def normals(words: Words) -> Floats:
    """The contract's formula for N(0, 1), pairs of words in, pairs of normals out."""
    u = words[0::2].astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
    radius, angle = np.sqrt(-2 * np.log(u.astype(float))), 2 * np.pi * (words[1::2] + 0.5) * 2.0**-32
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)


def truncated(low: float, high: float) -> Callable[[Words], Floats]:
    """The contract's formula between two bounds, both at most the mean or on either side of it."""

    def exact(words: Words) -> Floats:
        u, u_bar = (words + 0.5) * 2.0**-32, (~words + 0.5) * 2.0**-32
        if high <= 0:
            log_high = special.log_ndtr(high)
            rho = np.exp(special.log_ndtr(low) - log_high)
            tail: Floats = special.ndtri_exp(log_high + np.log(rho + u * (1 - rho)))
            return tail
        width = special.ndtr(high) - special.ndtr(low)
        below, above = special.ndtr(low) + u * width, special.ndtr(-high) + u_bar * width
        centre: Floats = np.where(below < above, special.ndtri(below), -special.ndtri(above))
        return centre

    return exact


def first_of_pairs(words: Words) -> Words:
    """Makes the words the first of pairs, at 45 degrees."""
    return np.stack([words, np.full_like(words, 1 << 29)], 1).reshape(-1)


def second_of_pairs(words: Words) -> Words:
    """Makes the words the second of pairs, at the largest radius."""
    return np.stack([np.zeros_like(words), words], 1).reshape(-1)


def same(words: Words) -> Words:
    """Returns the words unchanged."""
    return words


def main() -> None:
    """Runs all comparisons; exits with 1 at the first difference between instruction sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=32, help="try 2^bits words, evenly spaced (32: all)")
    parser.add_argument("--only", default="", help="run the transforms whose names contain this")
    arguments = parser.parse_args()
    bits, only = arguments.bits, arguments.only
    isas = CORE.instruction_sets()
    rows: dict[str, dict[str, object]] = {row["transform"]: {**row} for row in read(RESULTS / "numbers.csv")}
    for row in rows.values():
        del row["machine"]

    def run(label: str, bits: int, check: Callable[[Words], float]) -> None:
        if only not in label:
            return
        began, step = time.perf_counter(), 1 << (32 - bits)
        starts = range(0, 1 << bits, CHUNK)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            worst = max(
                pool.map(lambda at: check(((np.arange(at, at + CHUNK) * step) & 0xFFFFFFFF).astype(np.uint32)), starts)
            )
        print(f"{label}: {time.perf_counter() - began:.0f} s", flush=True)
        rows[label] = {"transform": label, "inputs": f"2^{bits}", "largest error": f"{worst:.2e}" if worst else "0"}
        write("numbers.csv", list(rows.values()))

    def values(
        distribution: plans.Distribution, exact: Callable[[Words], Floats], arranged: Callable[[Words], Words]
    ) -> Callable[[Words], float]:
        def check(words: Words) -> float:
            words = arranged(words)
            first, *others = (from_words(words, distribution, torch.float32, isa).numpy() for isa in isas)
            if any((first.view(np.uint32) != other.view(np.uint32)).any() for other in others):
                raise SystemExit(f"{distribution}: the instruction sets {isas} differ")
            return float(np.abs(first - exact(words)).max())

        return check

    def conversions(dtype: torch.dtype) -> Callable[[Words], float]:
        def check(words: Words) -> float:
            words = np.where(np.isnan(words.view(np.float32)), np.uint32(0), words)
            numbers = torch.from_numpy(words.view(np.float32))
            expected = numbers.clamp(-448, 448) if dtype == torch.float8_e4m3fn else numbers  # it has no infinity
            bits_of = expected.to(dtype).view(torch.int8)
            for isa in isas:
                if not torch.equal(from_words(words, None, dtype, isa).view(torch.int8), bits_of):
                    raise SystemExit(f"{dtype}: {isa} converts differently from torch {torch.__version__}")
            return 0.0

        return check

    run("uniform", min(bits, 24), values(plans.Uniform(0, 1), uniform, same))
    run("normal, all first words", bits, values(plans.Normal(0, 1), normals, first_of_pairs))
    run("normal, all second words", bits, values(plans.Normal(0, 1), normals, second_of_pairs))
    for low, high in ((-2.0, 2.0), (-math.inf, math.inf), (-math.inf, -1.55), (-math.inf, -1.6), (-8.0, -5.0)):
        distribution = plans.TruncatedNormal(0, 1, low, high)
        run(f"trunc_normal within [{low:g}, {high:g}]", bits, values(distribution, truncated(low, high), same))
    for dtype in lowering.DTYPES:
        if dtype.itemsize < 4:
            run(f"float32 to {str(dtype).removeprefix('torch.')}", bits, conversions(dtype))


if __name__ == "__main__":
    main()
