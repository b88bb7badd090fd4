"""Whole ``init_weights`` against mmengine's, on the torch backend, and the time of planning.

Run it with ``make bench``. First both libraries initialize each tree from one seed: every parameter, every buffer and
the generator's state must be equal bit for bit, or nothing is timed. Then both are timed in turns in this process; the
result is the ratio of the medians. Writes ``results/bench_initialize.csv`` and ``results/bench_plan.csv``.
"""

from __future__ import annotations

import gc
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import machine
import mmengine.logging
import mmengine.model
import mmengine.model.weight_init
import torch
from tables import write
from torch import nn
from trees import TREES

import fastinit
import fastinit.weight_init
from fastinit.backends import torch_backend

# Odd, so that the median is a measurement; more would outlast a coffee.
ROUNDS = 9

THEIRS = SimpleNamespace(**{**vars(mmengine.model.weight_init), **vars(mmengine.model)})
OURS = SimpleNamespace(**{**vars(fastinit.weight_init), **vars(fastinit)})


def initialized(lib: Any, make: Callable[[Any], nn.Module]) -> tuple[nn.Module, float, torch.Tensor]:
    """Returns a freshly made and initialized tree, the seconds of init_weights, and the generator's last state."""
    torch.manual_seed(0)
    model = make(lib)
    gc.collect()
    began = time.perf_counter()
    model.init_weights()  # type: ignore[operator]
    return model, time.perf_counter() - began, torch.get_rng_state()


def seconds_in_torch(make: Callable[[Any], nn.Module]) -> float:
    """Returns the seconds that one init_weights spends in torch's own fills: a lower bound for any library."""
    spent = 0.0
    run = torch_backend.run

    def timed(fills: Sequence[fastinit.plans.Fill], seed: int | None) -> None:
        nonlocal spent
        began = time.perf_counter()
        run(fills, seed)
        spent += time.perf_counter() - began

    torch_backend.run = timed  # type: ignore[assignment]
    try:
        initialized(OURS, make)
    finally:
        torch_backend.run = run
    return spent


def must_be_equal(ours: nn.Module, theirs: nn.Module, states: Sequence[torch.Tensor]) -> None:
    """Raises SystemExit unless both trees and both generators are the same, bit for bit."""
    a, b = ours.state_dict(), theirs.state_dict()
    different = [name for name in b if name not in a or not torch.equal(a[name], b[name])]
    if different or a.keys() != b.keys() or not torch.equal(*states):
        raise SystemExit(f"the results differ, nothing is timed: {different or 'the generators'}")


def bench_init_weights() -> None:
    """Times init_weights of every tree with both libraries."""
    rows: list[dict[str, object]] = []
    for name, make in TREES.items():
        ours, _, our_state = initialized(OURS, make)
        theirs, _, their_state = initialized(THEIRS, make)
        must_be_equal(ours, theirs, (our_state, their_state))
        report: fastinit.Report = ours.last_init_report  # type: ignore[assignment]
        seconds: dict[str, list[float]] = {"fastinit": [], "mmengine": []}
        for _ in range(ROUNDS):
            seconds["fastinit"].append(initialized(OURS, make)[1])
            seconds["mmengine"].append(initialized(THEIRS, make)[1])
        floor = statistics.median(seconds_in_torch(make) for _ in range(ROUNDS))
        a, b = (statistics.median(seconds[library]) for library in ("fastinit", "mmengine"))
        rows.append(
            {
                "tree": name,
                "modules with init_weights": sum(hasattr(module, "init_weights") for module in ours.modules()),
                "parameters": sum(1 for _ in ours.parameters()),
                "fills": sum(row.action == "fill" for row in report.rows),
                "mmengine, ms": f"{b * 1e3:.1f}",
                "fastinit, ms": f"{a * 1e3:.1f}",
                "of that in torch's fills, ms": f"{floor * 1e3:.1f}",
                "times faster": f"{b / a:.1f}",
            }
        )
        print(f"{name}: equal bit for bit; {b / a:.1f} times faster", file=sys.stderr, flush=True)
    write("bench_initialize.csv", rows)


def bench_plan() -> None:
    """Times a plan, by layer and by name, of a mixture of experts with 20,000 parameters on the meta device."""
    with torch.device("meta"):
        model = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(nn.Linear(64, 64) for _ in range(4)) for _ in range(50)) for _ in range(50)
        )
    rows: list[dict[str, object]] = []
    for what, cfg in {
        "one rule by layer": dict(type="Normal", std=0.02, layer="Linear"),
        "three rules by name": [dict(type="Kaiming", param=f"*.{index}.weight", mode="fan_in") for index in range(3)],
    }.items():
        seconds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            plan = fastinit.plan(model, cfg)
            seconds.append(time.perf_counter() - began)
        n_parameters = sum(1 for _ in model.parameters())
        rows.append(
            {
                "plan": what,
                "parameters": n_parameters,
                "rows": len(plan.rows),
                "ms": f"{statistics.median(seconds) * 1e3:.0f}",
            }
        )
    write("bench_plan.csv", rows)


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    warnings.simplefilter("ignore")
    # Silence mmengine's provenance; ours is silent by default.
    mmengine.logging.MMLogger.get_current_instance().setLevel(logging.CRITICAL)
    print(machine.describe() + "\n")
    bench_init_weights()
    bench_plan()
