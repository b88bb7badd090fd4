"""Orthogonal matrices on the CPU: ``initialize`` with ``cpp`` against torch.nn.init.orthogonal_.

Checked first: both are orthogonal, and the table says how nearly. Wall time, median of rounds in turns, of memory that
is there; the peak of memory that each call needs, from a process of its own. Writes ``results/bench_orthogonal.csv``.
Run with ``python benchmarks/bench_orthogonal.py``.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import machine
import torch
from tables import write
from torch import nn

import fastinit

# Matrices of a network, larger ones of a large model, and stacks of those of experts.
SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((256, 256), 0),
    ((512, 512), 0),
    ((1024, 1024), 0),
    ((2048, 2048), 0),
    ((4096, 4096), 0),
    ((4096, 1024), 0),
    ((1024, 4096), 0),
    ((512, 64, 64), 1),
    ((64, 1024, 256), 1),
)
# Odd, so that the median is a measurement; large matrices take half a minute.
ROUNDS, ROUNDS_OF_LARGE, LARGE = 9, 3, 4096 * 4096
SEED = 5
# Rounding to float32 moves Q^T Q by 1e-7 at most; torch decomposes in float32.
MOST = {"cpp": 2e-7, "torch.nn.init": 1e-4}


def model_of(shape: Sequence[int]) -> nn.Module:
    """Returns a module with one parameter ``w``."""
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(tuple(shape)))
    return module


def ours(model: nn.Module, batch_dims: int) -> None:
    """Makes the matrices with the backend ``cpp``."""
    cfg = dict(type="Orthogonal", param="w", batch_dims=batch_dims)
    fastinit.initialize(model, cfg, backend="cpp", seed=SEED)


def torchs(model: nn.Module, batch_dims: int) -> None:
    """Makes the matrices with torch, one by one."""
    w = model.w
    assert isinstance(w, torch.Tensor)
    for matrix in w if batch_dims else (w,):
        nn.init.orthogonal_(matrix)


WAYS: dict[str, Callable[[nn.Module, int], None]] = {"cpp": ours, "torch.nn.init": torchs}


def error_of(w: torch.Tensor) -> float:
    """Returns the largest element of Q^T Q - 1."""
    worst = 0.0
    for matrix in w.detach().view(-1, *w.shape[-2:]):
        tall = matrix.double() if matrix.shape[0] >= matrix.shape[1] else matrix.double().T
        gram = tall.T @ tall
        worst = max(worst, (gram - torch.eye(len(gram))).abs().max().item())
    return worst


def must_be_right(model: nn.Module, batch_dims: int) -> dict[str, float]:
    """Returns how far from orthogonal each way's matrices are; raises SystemExit if that is too far."""
    errors = {}
    for name, way in WAYS.items():
        way(model, batch_dims)
        w = model.w
        assert isinstance(w, torch.Tensor)
        errors[name] = error_of(w)
        if errors[name] > MOST[name]:
            raise SystemExit(f"{name}: {tuple(w.shape)} is not orthogonal: {errors[name]}; nothing is timed")
    return errors


def seconds_of(model: nn.Module, batch_dims: int, rounds: int) -> dict[str, float]:
    """Returns the median of each way's seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            began = time.perf_counter()
            way(model, batch_dims)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


def peak_mb(name: str, shape: Sequence[int], batch_dims: int) -> float:
    """Returns the memory in MB that a call needs beyond the parameter."""
    code = f"""
import sys, bench_orthogonal as bench
model = bench.model_of({tuple(shape)})
small = bench.model_of((64, 64))
bench.WAYS[{name!r}](small, 0)
status = lambda name: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
model.w.data.fill_(1)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
bench.WAYS[{name!r}](model, {batch_dims})
print((status("VmHWM") - before) / 1024)
"""
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Checks, times, prints and writes."""
    print(machine.describe() + "\n")
    rows = []
    for shape, batch_dims in SHAPES:
        model = model_of(shape)
        errors = must_be_right(model, batch_dims)
        seconds = seconds_of(model, batch_dims, ROUNDS if math.prod(shape) < LARGE else ROUNDS_OF_LARGE)
        rows.append(
            {
                "matrices": "x".join(map(str, shape)),
                "cpp, ms": f"{seconds['cpp'] * 1e3:.4g}",
                "torch.nn.init, ms": f"{seconds['torch.nn.init'] * 1e3:.4g}",
                "torch's / ours": f"{seconds['torch.nn.init'] / seconds['cpp']:.2f}",
                "ours: Q^T Q - 1": f"{errors['cpp']:.0e}",
                "torch's": f"{errors['torch.nn.init']:.0e}",
                "ours: peak, MB": f"{peak_mb('cpp', shape, batch_dims):.0f}",
                "torch's: peak, MB": f"{peak_mb('torch.nn.init', shape, batch_dims):.0f}",
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    write("bench_orthogonal.csv", rows)


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    main()
