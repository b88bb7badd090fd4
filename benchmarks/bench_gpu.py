"""Whole lists of tensors on a GPU: our backends `triton` and `cuda` against torch.nn.init and torch's alternatives.

Workloads are one large tensor, the parameters of Llama 3 8B, and 20,000 experts' matrices (gpu_workloads.py).
Contenders: torch.nn.init, tensor by tensor (its normal_ and uniform_ draw with cuRAND's Philox; its trunc_normal_ is a
loop in Python in recent releases); ``torch.func._random``, in place, with a key per tensor (normals and uniforms only);
one ``normal_`` or ``uniform_`` over all bytes, the least that torch can do; and ours. A list's tensors are views into
one flat buffer, so that all contenders share the memory.

The benchmark checks before it times, and stops at the first failure. On small tensors our backends must equal ``cpp``
bit for bit. In every workload each contender must write every element, windows at the start, middle and end of tensors
must hold ``cpp``'s bits for those boxes, and the first tensor must have the distribution's mean and deviation (where
torch.nn.init misses them, its row says so). Without the ``cpp`` backend, our rows say that bits are unchecked.

- seconds: between two CUDA events around the call, on an idle GPU, including the host's work before the first kernel
  starts (records, lowering, upload). Medians; contenders run in turns, after an untimed round.
- host: time until the same calls return, without waiting for the GPU.
- launches, copies (and memsets), time in kernels: from one more call under torch.profiler, after all timing.
- write ceiling: the fastest of ``zero_``, ``fill_`` and the driver's memset over 4 GiB, in the same run.

All sizes are far beyond the caches. The table, ``results/bench_gpu.csv`` or ``--out``, is written after every workload;
it keeps the rows of workloads that were not run (``--only``) if they come from the same machine. ``--elements 2^20`` is
a trial, and without a CUDA device the same code runs small sizes on the backend `cpp`; both write to ``--out`` only.
Needs no package beyond fastinit's own. Run it with ``python benchmarks/bench_gpu.py``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import machine
import torch
from gpu_workloads import (
    CPP_WHY_NOT,
    N_ELEMENTS,
    OURS,
    TORCH,
    Workload,
    contenders,
    must_be_right,
    must_equal_cpp,
    placed,
    workloads,
)
from tables import RESULTS, print_table, read, save

RESULT = RESULTS / "bench_gpu.csv"
TRIAL_ELEMENTS = 1 << 18  # without a GPU: seconds for all workloads on two cores
CEILING_BYTES = 1 << 32
REPEATS = 11  # odd, so that the median is a measurement
SLOW_ROUND_S = 2.0  # if torch takes seconds per list: at most three rounds

Row = dict[str, str]


# --- measurements ----------------------------------------------------------------------------------------------------


class Times(NamedTuple):
    """The times of one call."""

    seconds: float
    host_seconds: float


class Trace(NamedTuple):
    """The GPU's work in one call."""

    launches: int
    copies: int
    kernel_seconds: float


def timed(call: Callable[[], object]) -> Times:
    """Returns a call's seconds on an idle GPU, and until it returned; equal without a GPU."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        call()
        return Times(*[time.perf_counter() - began] * 2)
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    began = time.perf_counter()
    call()
    host_seconds = time.perf_counter() - began
    end.record()
    end.synchronize()
    return Times(start.elapsed_time(end) / 1e3, host_seconds)


def medians(
    calls: Sequence[Callable[[], object]], repeats: int, clock: Callable[[Callable[[], object]], Times] = timed
) -> list[Times]:
    """Returns the median times of each call, made in turns; the first round is not counted."""
    began = time.perf_counter()
    for call in calls:
        clock(call)
    if time.perf_counter() - began > SLOW_ROUND_S:
        repeats = min(repeats, 3)
    rounds = [[clock(call) for call in calls] for _ in range(repeats)]
    return [Times(*(statistics.median(column) for column in zip(*each))) for each in zip(*rounds)]


def traced(call: Callable[[], object]) -> Trace:
    """Returns the GPU's work in a call, as torch.profiler sees it."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return counted(json.loads(path.read_text())["traceEvents"])


def counted(events: Sequence[Mapping[str, Any]]) -> Trace:
    """Counts the GPU's events in a trace of Kineto."""
    kernels = [event["dur"] for event in events if event.get("cat") == "kernel"]
    copies = sum(event.get("cat") in ("gpu_memcpy", "gpu_memset") for event in events)
    return Trace(len(kernels), copies, sum(kernels) / 1e6)


def ceilings(n_bytes: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Returns the bytes per second of each way to set memory; the fastest is the write ceiling."""
    flat = torch.empty(n_bytes // 4, dtype=torch.float32, device=device)
    ways: dict[str, Callable[[], object]] = {
        "zero_, float32": flat.zero_,
        "fill_, float32": partial(flat.fill_, 1.5),
        "fill_, bfloat16": partial(flat.view(torch.bfloat16).fill_, 1.5),
    }
    if device.type == "cuda" and torch.version.hip is None:
        ways["the driver's memset"] = partial(memset, ctypes.CDLL("libcuda.so.1"), flat)
    return {way: n_bytes / times.seconds for way, times in zip(ways, medians(list(ways.values()), repeats))}


def memset(driver: Any, flat: torch.Tensor) -> None:
    """Sets memory with the driver's own function, to words of different bytes."""
    stream = ctypes.c_void_p(torch.cuda.current_stream(flat.device).cuda_stream)
    words = ctypes.c_size_t(flat.nbytes // 4)
    if status := driver.cuMemsetD32Async(ctypes.c_uint64(flat.data_ptr()), ctypes.c_uint(0x3C8F5C29), words, stream):
        raise SystemExit(f"cuMemsetD32Async: error {status}")


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """The results of one contender in one workload."""

    workload: Workload
    contender: str
    note: str
    times: Times | None = None
    """None: it did not run; the note says why."""
    trace: Trace | None = None


COLUMNS = [
    *("workload", "dtype", "distribution", "contender", "seconds", "GB/s", "of the write ceiling", "times faster"),
    *("launches", "copies", "in kernels, ms", "kernels, of the ceiling", "host, ms", "note"),
]
CEILING = ("write ceiling", "", "")


def rows_of(results: Sequence[Result], ways: Mapping[str, float]) -> list[Row]:
    """Returns the table's rows: first the ways to set memory, in bytes per second, then the contenders."""
    ceiling = max(ways.values())
    rows = [
        named(
            CEILING, {"contender": way, "GB/s": f"{speed / 1e9:.0f}", "of the write ceiling": f"{speed / ceiling:.0%}"}
        )
        for way, speed in ways.items()
    ]
    by_torch_init = {each.workload.key: each.times for each in results if each.contender == TORCH}
    for each in results:
        cells = {"contender": each.contender, "note": each.note}
        n_bytes, reference = each.workload.n_bytes, by_torch_init.get(each.workload.key)
        if each.times:
            seconds = each.times.seconds
            cells["seconds"] = f"{seconds:.4g}"
            cells["GB/s"] = f"{n_bytes / seconds / 1e9:.0f}"
            cells["of the write ceiling"] = f"{n_bytes / seconds / ceiling:.0%}"
            cells["host, ms"] = f"{each.times.host_seconds * 1e3:.4g}"
            cells["times faster"] = f"{reference.seconds / seconds:.3g}" if reference else ""
        if each.trace and each.trace.launches:  # a profiler without permission sees none
            seconds = each.trace.kernel_seconds
            cells["launches"], cells["copies"] = str(each.trace.launches), str(each.trace.copies)
            cells["in kernels, ms"] = f"{seconds * 1e3:.4g}"
            cells["kernels, of the ceiling"] = f"{n_bytes / seconds / ceiling:.0%}"
        rows.append(named(each.workload.key, cells))
    return rows


def named(key: tuple[str, str, str], cells: Mapping[str, str]) -> Row:
    """Returns a row with all columns, empty where no cell is given."""
    return {**dict.fromkeys(COLUMNS, ""), **dict(zip(COLUMNS, key)), **cells}


def kept(path: Path, machine: str, run_now: Iterable[tuple[str, str, str]]) -> list[Row]:
    """Returns the rows of an earlier run on the same machine, without the workloads of this run."""
    now = set(run_now)
    return [
        row
        for row in read(path)
        if row["machine"] == machine and (row["workload"], row["dtype"], row["distribution"]) not in now
    ]


# --- the whole -------------------------------------------------------------------------------------------------------


def timed_workload(workload: Workload, repeats: int, device: torch.device) -> list[Result]:
    """Checks and times all contenders; frees its memory on return."""
    flat, tensors = placed(workload, device)
    everyone = contenders(workload, flat, tensors)
    able = [each for each in everyone if each.why_not is None]
    findings = must_be_right(workload, able, flat, tensors)
    times = dict(zip((each.name for each in able), medians([each.call for each in able], repeats)))
    for name, (seconds, host) in times.items():
        print(f"{workload}: {name}: {seconds:.4g} s, host {host:.4g} s", file=sys.stderr, flush=True)
    results = []
    for each in everyone:
        note = f"not run: {each.why_not}" if each.why_not else findings.get(each.name, each.note)
        results.append(Result(workload, each.name, note, times.get(each.name)))
    return results


def trace_workload(workload: Workload, results: Sequence[Result], device: torch.device) -> None:
    """Traces one call of each timed contender, and adds the trace to its result."""
    flat, tensors = placed(workload, device)
    calls = {each.name: each.call for each in contenders(workload, flat, tensors) if each.why_not is None}
    for result in results:
        if result.workload is workload and result.contender in calls:
            result.trace = traced(calls[result.contender])


def release(device: torch.device) -> None:
    """Returns unused memory to the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fits(workload: Workload, device: torch.device) -> bool:
    """Tells whether a workload fits into the free memory of the GPU, and says so if not."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    if workload.needed_bytes <= free:
        return True
    gigabytes = f"it needs {workload.needed_bytes / 1e9:.1f} GB, {free / 1e9:.1f} are free"
    print(f"{workload}: left out, {gigabytes}", file=sys.stderr, flush=True)
    return False


@dataclass
class Table:
    """The rows measured so far, and their file, if any."""

    ways: Mapping[str, float]
    path: Path | None
    machine: str

    def __post_init__(self) -> None:
        self.results: list[Result] = []
        self.ran: list[Workload] = []

    def add(self, workload: Workload, results: Sequence[Result]) -> list[Row]:
        """Adds a workload, writes the table, and returns the new rows, the ceilings with the first workload."""
        n_before = len(self.rows()) if self.ran else 0
        self.results += results
        self.ran.append(workload)
        self.write()
        return self.rows()[n_before:]

    def rows(self) -> list[Row]:
        """Returns the rows of this run."""
        return rows_of(self.results, self.ways)

    def write(self) -> None:
        """Writes the rows, and those of an earlier run for workloads that this run has not measured."""
        if self.path is None:
            return
        rows = [{**row, "machine": self.machine} for row in self.rows()]
        rows += kept(self.path, self.machine, [CEILING, *(each.key for each in self.ran)])
        order = {key: i for i, key in enumerate([CEILING, *(each.key for each in workloads())])}
        rows.sort(key=lambda row: order.get((row["workload"], row["dtype"], row["distribution"]), 99))
        save(self.path, rows)


def measured(
    only: Sequence[str],
    repeats: int,
    elements: int,
    path: Path | None,
    told: Callable[[list[Row]], object] | None = None,
) -> Table:
    """Checks, times and traces the workloads whose names, dtypes or distributions hold one of ``only``.

    Args:
        only: parts of names; empty for all workloads.
        repeats: timed rounds.
        elements: of the large tensor; lists shrink with it.
        path: the table's file, written after each workload.
        told: called with the rows of each workload once it is timed.

    Raises:
        SystemExit: a check failed, or no workload can run; the text is the reason.
    """
    warnings.simplefilter("ignore")  # of the profiler, and of trunc_normal_ about its bounds
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    description = machine.describe_device(device)
    print(description, file=sys.stderr, flush=True)
    chosen = [each for each in workloads(elements) if not only or any(part in str(each) for part in only)]
    if not chosen:
        raise SystemExit(f"no workload has one of {list(only)} in {[str(each) for each in workloads(elements)]}")

    for name, module in OURS[device.type].items():
        if CPP_WHY_NOT is None and module.why_not(device) is None:
            must_equal_cpp(name, module.run, device)
            print(f"{name}: small tensors equal the cpp backend's", file=sys.stderr, flush=True)
    table = Table(ceilings(min(CEILING_BYTES, 4 * elements), repeats, device), path, description)
    release(device)
    for workload in chosen:
        if fits(workload, device):
            rows = table.add(workload, timed_workload(workload, repeats, device))
            if told is not None:
                told(rows)
            release(device)
    if not table.ran:
        raise SystemExit("no workload fits into the memory of the GPU")
    # After all timing: the profiler's hooks stay in the process, and may slow every launch.
    for workload in table.ran if device.type == "cuda" else []:
        trace_workload(workload, table.results, device)
        table.write()
        release(device)
    return table


def number(text: str) -> int:
    """Parses ``2^20`` or ``1048576``, at least 8."""
    base, _, exponent = text.partition("^")
    found: int = int(base) ** int(exponent or 1)
    return max(8, found)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], help="run workloads whose names, dtypes or distributions hold one"
    )
    parser.add_argument("--repeat", type=int, default=REPEATS, help="rounds of which the median is taken")
    parser.add_argument("--elements", type=number, help="e.g. 2^20: a small trial, written to --out alone")
    parser.add_argument("--out", type=Path, help=f"the table's file, else {RESULT} if a GPU runs the real sizes")
    arguments = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    elements = arguments.elements or (N_ELEMENTS if is_gpu else TRIAL_ELEMENTS)
    path = arguments.out or (RESULT if is_gpu and elements == N_ELEMENTS else None)
    print_table(measured(arguments.only, arguments.repeat, elements, path).rows())
    if not is_gpu:
        print(f"NO GPU: torch {torch.__version__} finds no CUDA device; these rows say nothing of one")


if __name__ == "__main__":
    main()
