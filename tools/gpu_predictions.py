"""Predicts the time of fills on an H100 and an H200 from instruction counts, beside the measured times, if any.

A loop is bound by the memory, by the multiprocessors' issue rate, or by their busiest pipe (gpu_pipes.py), divided by
the element's number of instructions. The counts are the CUDA kernel's on sm_90, in ``gpu_instructions.csv``. Launches,
tail effects and contention among writers are not modelled: expect 85 to 95% of the predicted speed.

Measurements exist once a GPU day was adopted (adopt_gpu_day.py); they come from ``gpu_rates.csv`` and from the time in
kernels in ``bench_gpu.csv``. Writes ``gpu_predictions.csv``; all of these are in ``benchmarks/results/``. Run it with
``python tools/gpu_predictions.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gpu_pipes

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from gpu_workloads import INSIDE, NORMAL, label, workloads
from tables import RESULTS, read, save

N_ELEMENTS = 1 << 30
N_SM = 132


@dataclass(frozen=True)
class Gpu:
    """A GPU at a certain clock, with its memory's speed in plain writes."""

    name: str
    ghz: float
    terabytes_s: float

    def __str__(self) -> str:
        return f"{self.name} at {self.ghz} GHz"


# 1.755 GHz is the boost clock of an SXM card, 1.98 its maximum. Copies reach 3.0 TB/s on an H100 and 4.3 on an H200,
# writes alone some 2.8 and 4.0.
WRITES_TB_S = {"H100": 2.8, "H200": 4.0}
GPUS = [Gpu("H100", 1.755, 2.8), Gpu("H100", 1.98, 2.8), Gpu("H200", 1.98, 4.0)]
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "float64": 8}
KINDS = ["constant", "uniform", "normal", "truncated inside", "truncated wide", "truncated tail"]
# float64 draws a truncated normal within two sigma as a wide one; constants are counted in one dtype.
LOOPS = [
    (kind, dtype)
    for kind in KINDS
    for dtype in ITEM_BYTES
    if (kind, dtype) not in {("constant", "float8"), ("constant", "float64"), ("truncated inside", "float64")}
]
BACKENDS = ("cuda", "triton")
NOT_MEASURED = "not measured"
Row = dict[str, str]


@dataclass(frozen=True)
class Loop:
    """A loop of the CUDA kernel, with its cost per element."""

    distribution: str
    dtype: str
    instructions: float
    pipe: str
    in_pipe: float
    """Instructions of the busiest pipe, per element."""

    def bounds(self, gpu: Gpu) -> dict[str, float]:
        """Returns the elements per second, in 10^12, that each resource allows."""
        cycles = N_SM * gpu.ghz / 1e3
        return {
            "memory": gpu.terabytes_s / ITEM_BYTES[self.dtype],
            gpu_pipes.ISSUE: cycles * gpu_pipes.RATES[gpu_pipes.ISSUE] / self.instructions,
            self.pipe: cycles * gpu_pipes.RATES[self.pipe] / self.in_pipe,
        }

    def ms(self, gpu: Gpu, n_elements: int) -> float:
        """Returns the predicted milliseconds."""
        return n_elements / min(self.bounds(gpu).values()) / 1e9

    def bound_by(self, gpu: Gpu) -> str:
        """Returns the resource that binds."""
        bounds = self.bounds(gpu)
        return min(bounds, key=bounds.__getitem__)


def loops(instructions: Iterable[Row]) -> dict[tuple[str, str], Loop]:
    """Returns the loops of the predictions, with the counts of ``gpu_instructions.csv``."""
    counts = {(row["distribution"], row["dtype"]): row for row in instructions if row["backend"] == "cuda"}
    found = {}
    for distribution, dtype in LOOPS:
        row, words = counts.get((distribution, dtype)), 1.0
        if row is None:  # a constant, counted for four-byte elements
            row, words = counts[distribution, "any"], ITEM_BYTES[dtype] / ITEM_BYTES["float32"]
        pipe, _, n = row["busiest pipe, sm_90"].partition(", ")
        found[distribution, dtype] = Loop(
            distribution, dtype, round(float(row["sm_90"]) * words, 2), pipe, float(n) * words
        )
    return found


def rows_of(results: Path) -> list[Row]:
    """Returns the table of predictions, with the measurements in a folder of results."""
    known = loops(read(results / "gpu_instructions.csv"))
    rates, bench = read(results / "gpu_rates.csv"), read(results / "bench_gpu.csv")
    machines = {row["machine"] for row in [*rates, *bench]}
    machine = " and ".join(sorted(machines)) or "predicted; measured on no GPU yet"
    clocks = [float(row["SM clock, MHz"]) / 1e3 for row in rates if row["SM clock, MHz"]]
    gpu = gpu_of(machine, max(clocks, default=0.0))

    rows = []
    for (distribution, dtype), loop in known.items():
        measured = {
            row["backend"]: row["ms"] for row in rates if (row["distribution"], row["dtype"]) == (distribution, dtype)
        }
        rows.append(row_of("2^30 elements", loop, N_ELEMENTS, measured, gpu))
    for workload in workloads():
        name, dtype, distribution = workload.key
        if len(workload.specs) > 1:
            kind = {label(NORMAL): "normal", label(INSIDE): "truncated inside"}[distribution.partition(";")[0]]
            of_it = [row for row in bench if (row["workload"], row["dtype"], row["distribution"]) == workload.key]
            measured = {row["contender"]: row["in kernels, ms"] for row in of_it if row["in kernels, ms"]}
            rows.append(row_of(name, known[kind, dtype], workload.n_elements, measured, gpu))
    return [{**row, "machine": machine} for row in rows]


def row_of(what: str, loop: Loop, n_elements: int, measured: Mapping[str, str], gpu: Gpu | None) -> Row:
    """Returns a row: predictions for all GPUs, the measurement, and its share of the prediction."""
    row = {
        "what": what,
        "distribution": loop.distribution,
        "dtype": loop.dtype,
        "instructions": f"{loop.instructions:g}",
    }
    row["bound by"] = loop.bound_by(GPUS[0])
    for each in GPUS:
        row[f"{each}, ms"] = f"{loop.ms(each, n_elements):.3g}"
    for backend in BACKENDS:
        text = measured.get(backend, NOT_MEASURED)
        if gpu is not None and backend in measured:
            text += f" ({loop.ms(gpu, n_elements) / float(text):.0%} of predicted)"
        row[f"measured, {backend}, ms"] = text
    return row


def gpu_of(machine: str, ghz: float) -> Gpu | None:
    """Returns the measured GPU at its clock; None if the GPU or the clock is unknown."""
    names = [name for name in WRITES_TB_S if name in machine]
    return Gpu(names[0], ghz, WRITES_TB_S[names[0]]) if len(names) == 1 and ghz else None


def write(results: Path = RESULTS) -> None:
    """Writes the table."""
    save(results / "gpu_predictions.csv", rows_of(results))


if __name__ == "__main__":
    write()
