"""Measures how fast each loop of the kernels writes, on a large tensor per distribution and dtype, without the host.

The launches queue up behind a sleeping kernel, so that two events time the kernel and the copy of its table, but not
Python. Values are compared with cpp's first. A step of the GPU day (gpu_day.py) runs this and leaves ``gpu_rates.csv``
in its results; gpu_predictions.py compares it with the instruction counts. Without a GPU it runs small sizes on cpp.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import machine
import torch
from bench_gpu import CEILING_BYTES, ceilings
from gpu_day_device import DEVICE, GPU, backends, sleep, sync
from gpu_day_step import found, going_on
from gpu_day_tools import answer, out
from gpu_workloads import INSIDE, NORMAL, ONE, SEED, STD, UNIFORM, WIDE, Spec, must_have_the_contracts_bits
from tables import save

from fastinit import plans
from fastinit.backends import BACKENDS

N_ELEMENTS = 1 << 30 if GPU else 1 << 16
REPEATS = 7  # odd, so that the median is a measurement
TAIL = plans.TruncatedNormal(0, STD, 6 * STD, math.inf)
DISTRIBUTIONS: dict[str, plans.Distribution] = {
    "constant": ONE,
    "uniform": UNIFORM,
    "normal": NORMAL,
    "truncated inside": INSIDE,
    "truncated wide": WIDE,
    "truncated tail": TAIL,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
if hasattr(torch, "float8_e4m3fn"):
    DTYPES["float8"] = torch.float8_e4m3fn
# For ncu: few, because it takes seconds for each.
PROFILED = ("uniform", "normal", "truncated inside", "truncated wide")
TARGETS = [(name, dtype) for dtype in ("float32", "bfloat16") for name in PROFILED]
CLOCKED = "normal"  # read the clock for this distribution only, once per dtype: that takes longer than all the rest
CLOCK_S = 0.4  # of GPU work while nvidia-smi reads the clock, which takes it a tenth of a second


def rates() -> None:
    """Measures all loops, and writes the table after each backend."""
    description = machine.describe_device(DEVICE)
    ceiling = max(ceilings(CEILING_BYTES if GPU else 4 * N_ELEMENTS, REPEATS, DEVICE).values())
    found(f"write ceiling: {ceiling / 1e9:.0f} GB/s", gb_s=ceiling / 1e9)
    rows: list[dict[str, str]] = []
    for backend in backends():
        for dtype in DTYPES:
            for distribution in DISTRIBUTIONS:
                with going_on(f"{backend}, {distribution}, {dtype}"):
                    rows.append(rate(backend, distribution, dtype, ceiling))
        save(out() / "gpu_rates.csv", [{**row, "machine": description} for row in rows])


def rate(backend: str, name: str, dtype: str, ceiling: float) -> dict[str, str]:
    """Returns a loop's row of the table, and records it as a finding.

    Raises:
        SystemExit: the values are wrong.
    """
    tensor = torch.empty(N_ELEMENTS, dtype=DTYPES[dtype], device=DEVICE)
    fill = plans.Fill.whole("weight", tensor, DISTRIBUTIONS[name], "", "")
    call = partial(BACKENDS[backend].run, [fill], SEED)
    call()
    spec = Spec("weight", (N_ELEMENTS,), DISTRIBUTIONS[name])
    must_have_the_contracts_bits(f"{backend}, {name}, {dtype}", [spec], [tensor])
    seconds = kernel_seconds(call)
    clock = clock_while(call, seconds) if name == CLOCKED else ""
    speed = tensor.nbytes / seconds
    row = {
        "backend": backend,
        "distribution": name,
        "dtype": dtype,
        "elements": str(N_ELEMENTS),
        "ms": f"{seconds * 1e3:.4g}",
        "GB/s": f"{speed / 1e9:.0f}",
        "of the write ceiling": f"{speed / ceiling:.0%}",
        "SM clock, MHz": clock,
    }
    found(f"{backend}, {name}, {dtype}: " + ", ".join(f"{k} {row[k]}" for k in list(row)[4:] if row[k]), **row)
    return row


def kernel_seconds(call: Callable[[], object]) -> float:
    """Returns the median seconds of a call on the GPU, with its host time hidden behind earlier GPU work."""
    if not GPU:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    sync()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]  # type: ignore[no-untyped-call]
    sleep()
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    sync()
    times_ms: list[float] = [begin.elapsed_time(end) for begin, end in pairwise(marks)]
    return statistics.median(times_ms) / 1e3


def clock_while(call: Callable[[], object], seconds: float) -> str:
    """Returns the multiprocessors' clock in MHz while the GPU repeats a call, "" if unknown."""
    if not GPU:
        return ""
    for _ in range(min(1000, math.ceil(CLOCK_S / seconds))):
        call()
    clock = answer(["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0"], 5)
    sync()
    return clock


def target(backend: str) -> None:
    """Launches each of TARGETS once, in order, for a profiler."""
    for name, dtype in TARGETS:
        tensor = torch.empty(N_ELEMENTS // 4, dtype=DTYPES[dtype], device=DEVICE)
        fill = plans.Fill.whole("weight", tensor, DISTRIBUTIONS[name], "", "")
        BACKENDS[backend if GPU else "cpp"].run([fill], 0)
        sync()
    found(f"{backend}: {len(TARGETS)} launches")
