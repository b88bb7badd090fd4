"""``fastinit.verify`` against what it replaces: a second copy of the model that is compared, and filling it twice.

Checked first, for every row: ``verify`` and the second copy both say that the model holds the plan, and both find one
flipped bit in the last element. Timed in turns, in one process: ``verify``; a model on the meta device that
``materialize`` fills with the plan, and ``torch.equal`` of each parameter; ``initialize(model, plan)``, twice. Writes
``results/bench_verify.csv``; ``--only TEXT`` keeps the rows of the other rules. Run with ``make bench``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tables import replace
from torch import nn

import fastinit

ROUNDS = 5
N_ELEMENTS = 1 << 27
LARGE = "8 weights of 4096x4096"
RULES: dict[str, dict[str, Any]] = {
    "normal": dict(type="Normal", std=0.02),
    "uniform": dict(type="Uniform", a=-0.1, b=0.1),
    "trunc_normal, 2 sigma": dict(type="TruncNormal", std=0.02, a=-0.04, b=0.04),
    "constant": dict(type="Constant", val=0.5),
}
DTYPES = [torch.float32, torch.bfloat16]


def large(dtype: torch.dtype, device: str) -> nn.Module:
    """Returns a model of a few large weights."""
    width = 4096
    n_layers = N_ELEMENTS // width**2
    return nn.Sequential(*(nn.Linear(width, width, bias=False, device=device, dtype=dtype) for _ in range(n_layers)))


def small(dtype: torch.dtype, device: str) -> nn.Module:
    """Returns a model of 4,000 small weights."""
    return nn.Sequential(*(nn.Linear(64, 64, bias=False, device=device, dtype=dtype) for _ in range(4_000)))


Make = Callable[[torch.dtype, str], nn.Module]


def holds_by_copy(make: Callable[[str], nn.Module], model: nn.Module, plan: fastinit.Plan) -> bool:
    """The way without ``verify``: a second model is filled and compared."""
    other = make("meta")
    fastinit.materialize(other, plan)
    return all(map(torch.equal, model.parameters(), other.parameters()))


def must_be_right(make: Callable[[str], nn.Module], model: nn.Module, plan: fastinit.Plan) -> None:
    """Exits unless a whole model passes both ways, and one with a flipped bit neither."""
    if not fastinit.verify(model, plan) or not holds_by_copy(make, model, plan):
        sys.exit("a model that holds the plan is said not to")
    name, last = list(model.named_parameters())[-1]
    bits = last.detach().view(torch.int32 if last.dtype == torch.float32 else torch.int16)
    bits[-1, -1] ^= 1
    index = tuple(size - 1 for size in last.shape)
    found = [(each.name, each.index) for each in fastinit.verify(model, plan).differs]
    if found != [(name, index)] or holds_by_copy(make, model, plan):
        sys.exit(f"the flipped bit in {name}{list(index)} was not found, but {found}")
    bits[-1, -1] ^= 1


def fill_twice(model: nn.Module, plan: fastinit.Plan) -> None:
    """Writes all values twice, into memory that is there."""
    for _ in range(2):
        fastinit.initialize(model, plan)


def medians(*functions: Callable[[], object]) -> list[float]:
    """Returns the median seconds of each function, called in turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, found in zip(functions, seconds):
            began = time.perf_counter()
            function()
            found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in seconds]


def row(label: str, make: Make, dtype: torch.dtype, rule: str) -> dict[str, object]:
    """Returns the times of one model with one rule."""
    of_device = partial(make, dtype)
    model = of_device("meta")
    plan = fastinit.plan(model, dict(**RULES[rule], param="*"), backend="cpp", seed=0)
    fastinit.materialize(model, plan)
    must_be_right(of_device, model, plan)
    ours, copied, filled = medians(
        partial(fastinit.verify, model, plan),
        partial(holds_by_copy, of_device, model, plan),
        partial(fill_twice, model, plan),
    )
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return {
        "model": label,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": rule,
        "verify, ms": f"{1e3 * ours:.0f}",
        "GB/s": f"{n_bytes / 1e9 / ours:.1f}",
        "second copy and torch.equal, ms": f"{1e3 * copied:.0f}",
        "filling twice, ms": f"{1e3 * filled:.0f}",
        "times faster than the copy": f"{copied / ours:.1f}",
        "than filling twice": f"{filled / ours:.1f}",
    }


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="of the rules, those with this in their names")
    options = parser.parse_args()
    rules = [rule for rule in RULES if options.only in rule]
    if not rules:
        parser.error(f"--only {options.only!r} matches no rule; there are: {'; '.join(RULES)}")
    for rule in rules:
        rows = [row(LARGE, large, dtype, rule) for dtype in DTYPES]
        if rule == "normal":
            rows.append(row("4,000 weights of 64x64", small, torch.float32, rule))
        replace("bench_verify.csv", rows, "model", "dtype", "weights")


if __name__ == "__main__":
    main()
