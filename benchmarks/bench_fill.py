"""Single fills: the cpp backend against torch.nn.init, per distribution and dtype, in warm and in fresh memory.

Nothing is timed before each result passes its check: bits against the other instruction sets, moments against the
distribution. Then torch and the native core run in turns, on one core and on all; ratios compare medians on all cores
(torch draws on one core, however many there are). The ceiling is a memset of the same bytes by as many threads. In
fresh memory (see fresh.py) the allocation is timed too. Writes ``results/bench_fill.csv``. Run with ``make bench``.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import fresh
import machine
import numpy as np
import torch
from tables import write
from torch import nn

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.contract import records as lowering
from fastinit.execution.allocation import allocate_like

# Far larger than the caches, and as large as a large embedding.
N_ELEMENTS = 1 << 25
ROUNDS = 7
DISTRIBUTIONS: dict[plans.Distribution, Callable[[torch.Tensor], object]] = {
    plans.Normal(0, 0.02): lambda tensor: nn.init.normal_(tensor, 0, 0.02),
    plans.Uniform(-0.1, 0.1): lambda tensor: nn.init.uniform_(tensor, -0.1, 0.1),
    plans.TruncatedNormal(0, 1, -2, 2): lambda tensor: nn.init.trunc_normal_(tensor, 0, 1, -2, 2),
    plans.TruncatedNormal(0, 0.02, -2, 2): lambda tensor: nn.init.trunc_normal_(tensor, 0, 0.02, -2, 2),
    plans.Constant(1.0): lambda tensor: nn.init.constant_(tensor, 1.0),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LABELS: dict[plans.Distribution, str] = {
    plans.TruncatedNormal(0, 1, -2, 2): "trunc_normal, 2 sigma",
    plans.TruncatedNormal(0, 0.02, -2, 2): "trunc_normal, 100 sigma",
}


def record(tensor: torch.Tensor, distribution: plans.Distribution) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Returns the record of a fill, for the core."""
    fill = plans.Fill.whole("weight", tensor, distribution, "bench", "")
    return lowering.lowered([fill], seed=0).view(np.uint8)


def must_be_right(dtype: torch.dtype, distribution: plans.Distribution) -> None:
    """Raises SystemExit unless every instruction set gives the same bits, with the right mean and deviation."""
    core = cpp_backend._core()
    results = []
    for isa in core.instruction_sets():
        tensor = torch.empty(1_000_003, dtype=dtype)
        core.fill(record(tensor, distribution), 2, isa)
        results.append(tensor)
    if not all(torch.equal(result, results[0]) for result in results):
        raise SystemExit(f"{distribution} in {dtype}: the instruction sets differ")
    mean, std = moments(distribution)
    values = results[0].double()
    if abs(values.mean() - mean) > 5 * std / 1000 or abs(values.std() - std) > 0.005 * std:
        raise SystemExit(f"{distribution} in {dtype}: mean {values.mean()}, std {values.std()}")


def moments(distribution: plans.Distribution) -> tuple[float, float]:
    """Returns the mean and the standard deviation of a distribution."""
    if isinstance(distribution, plans.Normal):
        return distribution.mean, distribution.std
    if isinstance(distribution, plans.Uniform):
        return (distribution.low + distribution.high) / 2, (distribution.high - distribution.low) / 12**0.5
    if isinstance(distribution, plans.TruncatedNormal):
        # A standard normal's within +-2: 1 - 2 c phi(c) / (1 - 2 Q(c)) at c = 2; at 100 nothing is cut off.
        return distribution.mean, distribution.std * (0.8796256610342398 if distribution.std == 1 else 1.0)
    assert isinstance(distribution, plans.Constant)
    return float(distribution.value.real), 0.0


def medians(*functions: Callable[[], object]) -> list[float]:
    """Returns the median seconds of each function, called in turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    began = time.perf_counter()
    for function in functions:
        function()
    # torch takes seconds per truncated normal: fewer rounds then.
    for _ in range(ROUNDS if time.perf_counter() - began < 2 else 3):
        for function, found in zip(functions, seconds):
            began = time.perf_counter()
            function()
            found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in seconds]


def memset(tensor: torch.Tensor, pool: ThreadPoolExecutor, threads: int) -> None:
    """Sets all bytes, one part per thread; ctypes releases the interpreter lock."""
    part = tensor.nbytes // threads
    list(pool.map(lambda i: ctypes.memset(tensor.data_ptr() + i * part, 1, part), range(threads)))


def in_fresh_memory(dtype: torch.dtype, distribution: plans.Distribution) -> tuple[float, float]:
    """Returns the median seconds in which torch and the native core allocate and fill a tensor."""
    meta = torch.empty(N_ELEMENTS, dtype=dtype, device="meta")

    def by_torch() -> object:
        return DISTRIBUTIONS[distribution](torch.empty(N_ELEMENTS, dtype=dtype))

    def by_core() -> object:
        (tensor,) = allocate_like([meta], torch.device("cpu"))
        cpp_backend.run([plans.Fill.whole("weight", tensor, distribution, "bench", "")], 0)
        return tensor

    found: list[list[float]] = [[], []]
    for _ in range(3):
        for work, seconds in zip((by_torch, by_core), found):
            seconds.append(fresh.seconds_and_gigabytes(work, meta.nbytes, fresh.State.JUST_FREED)[0])
    return statistics.median(found[0]), statistics.median(found[1])


def main() -> None:
    """Times everything and writes the table."""
    core = cpp_backend._core()
    kinds = [(dtype, distribution) for dtype in DTYPES for distribution in DISTRIBUTIONS]
    for kind in kinds:
        fresh.check(partial(must_be_right, *kind))
    # First of all, because torch's threads do not survive a fork.
    in_fresh = {kind: in_fresh_memory(*kind) for kind in kinds}

    threads = torch.get_num_threads()
    isas = [isa for isa in core.instruction_sets() if isa != "baseline"] or ["baseline"]
    rows: list[dict[str, object]] = []
    with ThreadPoolExecutor(threads) as pool:
        for dtype, distribution in kinds:
            tensor = torch.ones(N_ELEMENTS, dtype=dtype)
            table = record(tensor, distribution)
            torch_seconds, all_cores, ceiling, *one_core = medians(
                partial(DISTRIBUTIONS[distribution], tensor),
                partial(core.fill, table, threads),
                partial(memset, tensor, pool, threads),
                *(partial(core.fill, table, 1, isa) for isa in isas),
            )
            row: dict[str, object] = {
                "fill": LABELS.get(distribution, distribution.kind),
                "dtype": str(dtype).removeprefix("torch."),
                "torch, G/s": f"{N_ELEMENTS / torch_seconds / 1e9:.2f}",
                f"cpp, {threads} threads, G/s": f"{N_ELEMENTS / all_cores / 1e9:.2f}",
            }
            for isa, seconds in zip(isas, one_core):
                row[f"{isa}, 1 thread, G/s"] = f"{N_ELEMENTS / seconds / 1e9:.2f}"
            row["of memset"] = f"{ceiling / all_cores:.0%}"
            row["times faster"] = f"{torch_seconds / all_cores:.1f}"
            torch_seconds, core_seconds = in_fresh[dtype, distribution]
            row["in fresh memory"] = f"{torch_seconds / core_seconds:.1f}"
            rows.append(row)
    write("bench_fill.csv", rows)


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    print(fastinit.available_backends())
    main()
