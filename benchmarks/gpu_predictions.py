"""How long fills should take on an H100 and an H200 by the instruction counts, beside what was measured, if it was.

A loop's speed is the least of four: the memory's, and what the multiprocessors issue a second in all, in integer
arithmetic and logic (ALU) and in integer multiplications, divided by how many of each an element costs. The counts of
all instructions are those of sm_90 in ``results/gpu_instructions.csv``, of the CUDA kernel; those of the two pipes were
counted in the same disassembly by hand. Launches, tails, and what the memory loses to many writers are not in the
model: 85 to 95% of a prediction is what to expect.

Measured are ``results/gpu_rates.csv`` and the time in kernels of ``results/bench_gpu.csv``, where a GPU day was adopted
(adopt_gpu_day.py). Writes ``results/gpu_predictions.csv``. Run it with ``python benchmarks/gpu_predictions.py``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench_gpu import save
from gpu_workloads import INSIDE, NORMAL, label, workloads

RESULTS = Path(__file__).parent / "results"
N_ELEMENTS = 1 << 30
# What an SM of compute capability 9.0 does in a cycle (CUDA C++ Programming Guide, "Arithmetic Instructions"): four
# schedulers issue for 32 lanes each; integer add, compare, logic and conversion to packed formats have 64 lanes, and
# so have integer multiplications.
ISSUED, ALU_LANES, MULTIPLY_LANES = 128, 64, 64
N_SM = 132


@dataclass(frozen=True)
class Gpu:
    """A GPU at a clock. The memory's speed is that of plain writes."""

    name: str
    ghz: float
    terabytes_s: float

    def __str__(self) -> str:
        return f"{self.name} at {self.ghz} GHz"


# 1.755 GHz is the boost clock of an SXM card, 1.98 the highest that it runs at. A copy moves 3.0 TB/s on an H100 and
# 4.3 on an H200; writes alone come to some 2.8 and 4.0.
WRITES_TB_S = {"H100": 2.8, "H200": 4.0}
GPUS = [Gpu("H100", 1.755, 2.8), Gpu("H100", 1.98, 2.8), Gpu("H200", 1.98, 4.0)]
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "float64": 8}
# Integer arithmetic and integer multiplications an element; None: not counted, and the loop is taken to be bound by
# issue or memory. float64 is: what it does is in other pipes.
PIPES: dict[tuple[str, str], tuple[float, float] | None] = {
    ("constant", "float32"): (0.3, 0.1),
    ("constant", "bfloat16"): (0.15, 0.05),  # words, as float32
    ("uniform", "float32"): (7.3, 4.8),
    ("uniform", "bfloat16"): (7.9, 4.9),
    ("uniform", "float8"): (16.6, 7.8),
    ("uniform", "float64"): None,
    ("normal", "float32"): (8.8, 4.6),
    ("normal", "bfloat16"): (9.6, 4.7),
    ("normal", "float8"): (18.4, 7.8),
    ("normal", "float64"): None,
    ("truncated inside", "float32"): (9.6, 4.6),
    ("truncated inside", "bfloat16"): (10.3, 4.6),
    ("truncated inside", "float8"): None,
    ("truncated wide", "float32"): (16.5, 4.6),
    ("truncated wide", "bfloat16"): (17.3, 4.6),
    ("truncated wide", "float8"): (29, 7.8),
    ("truncated wide", "float64"): None,
    ("truncated tail", "float32"): (11.5, 4.6),
    ("truncated tail", "bfloat16"): (12.2, 4.6),
    ("truncated tail", "float8"): None,
    ("truncated tail", "float64"): None,
}
BACKENDS = ("cuda", "triton")
NOT_MEASURED = "not measured"
Row = dict[str, str]


@dataclass(frozen=True)
class Loop:
    """A loop of the CUDA kernel and what an element costs in it."""

    distribution: str
    dtype: str
    instructions: float

    def bounds(self, gpu: Gpu) -> dict[str, float]:
        """Returns the elements a second, in units of 10^12, that each resource allows."""
        cycles = N_SM * gpu.ghz / 1e3
        found = {
            "memory": gpu.terabytes_s / ITEM_BYTES[self.dtype],
            "issue": cycles * ISSUED / self.instructions,
        }
        if pipes := PIPES[self.distribution, self.dtype]:
            found["ALU"], found["multiplications"] = cycles * ALU_LANES / pipes[0], cycles * MULTIPLY_LANES / pipes[1]
        return found

    def ms(self, gpu: Gpu, n_elements: int) -> float:
        """Returns the predicted milliseconds."""
        return n_elements / min(self.bounds(gpu).values()) / 1e9

    def bound_by(self, gpu: Gpu) -> str:
        """Returns the resource that is used up first."""
        bounds = self.bounds(gpu)
        return min(bounds, key=bounds.__getitem__)


def read(path: Path) -> list[Row]:
    """Returns the rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def loops(instructions: Iterable[Row]) -> dict[tuple[str, str], Loop]:
    """Returns the loops of the predictions, with the counts of ``gpu_instructions.csv``."""
    counts = {(row["distribution"], row["dtype"]): row["sm_90"] for row in instructions if row["backend"] == "cuda"}
    found = {}
    for distribution, dtype in PIPES:
        if distribution == "constant":  # counted for elements of four bytes
            count = float(counts[distribution, "any"]) * ITEM_BYTES[dtype] / ITEM_BYTES["float32"]
        else:
            count = float(counts[distribution, dtype])
        found[distribution, dtype] = Loop(distribution, dtype, round(count, 2))
    return found


def rows_of(results: Path) -> list[Row]:
    """Returns the table of predictions and of what lies measured in a folder of results."""
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
    """Returns a row: what is predicted for all GPUs, what was measured, and how much of the prediction that is."""
    row = {
        "what": what,
        "distribution": loop.distribution,
        "dtype": loop.dtype,
        "instructions": f"{loop.instructions:g}",
    }
    row["bound by"] = loop.bound_by(GPUS[0]) + (
        " (pipes not counted)" if not PIPES[loop.distribution, loop.dtype] else ""
    )
    for each in GPUS:
        row[f"{each}, ms"] = f"{loop.ms(each, n_elements):.3g}"
    for backend in BACKENDS:
        text = measured.get(backend, NOT_MEASURED)
        if gpu is not None and backend in measured:
            text += f" ({loop.ms(gpu, n_elements) / float(text):.0%} of predicted)"
        row[f"measured, {backend}, ms"] = text
    return row


def gpu_of(machine: str, ghz: float) -> Gpu | None:
    """Returns the GPU that was measured, at the clock that it had; None if the model does not know it, or no clock."""
    names = [name for name in WRITES_TB_S if name in machine]
    return Gpu(names[0], ghz, WRITES_TB_S[names[0]]) if len(names) == 1 and ghz else None


def write(results: Path = RESULTS) -> None:
    """Makes the table anew."""
    save(results / "gpu_predictions.csv", rows_of(results))


if __name__ == "__main__":
    write()
