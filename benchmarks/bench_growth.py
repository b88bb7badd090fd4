"""How the time and memory of calls grow with the number of tensors: plan, initialize, build, loading and others.

A model has 1,000, 10,000 and 100,000 tensors of at most 64 elements, so that the kernels cost little. Each measurement
runs in a process of its own: wall time, and peak memory above what was there before the call. The result of each call
and size is checked before it counts: names, and the values of some hundred tensors against ``fastinit.values``, or of
all against the file. An exponent is the slope of a line through the logarithms: 1 is a fixed cost per tensor, 2 is
quadratic. torch's plain constructor is there to compare with. ``--only TEXT`` measures the calls with this in their
names, and keeps the rows of the others. Writes ``results/bench_growth.csv``. Run with ``make bench``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from engine_workloads import RULES, SEED, blocks, on_meta
from safetensors.torch import load_file, save_file
from tables import print_table, replace
from torch import nn

import fastinit
from fastinit import plans

SIZES = (1_000, 10_000, 100_000)
ROUNDS = 3
# To import what first use imports.
SMALLEST = 24
# Of a call's result, the values of so many tensors are compared.
N_COMPARED = 300
# By the constructor of nn.Linear(8, 8), which computes the weight's bound another way, to another last digit.
OF_BIAS = plans.Uniform(-1 / math.sqrt(8), 1 / math.sqrt(8))
_BOUND = math.sqrt(3) * (math.sqrt(2 / (1 + math.sqrt(5) ** 2)) / math.sqrt(8))
OF_WEIGHT = plans.Uniform(-_BOUND, _BOUND)


class Call(NamedTuple):
    """What is measured: ``run`` gets what ``prepare`` returns; both get the size and the path of a checkpoint."""

    prepare: Callable[[int, Path], Any]
    run: Callable[[Any, int, Path], Any]
    problem: Callable[[Any, int, Path], str]
    """Returns what is wrong with a result; an empty text: nothing."""


def model_of(n_tensors: int) -> nn.Module:
    """Returns a model of so many tensors, in groups of 200."""
    return blocks(n_tensors // 4 - 1)  # a convolution and a head have four, too


def initialized(model: nn.Module) -> nn.Module:
    """Returns a model after the rules have filled it."""
    fastinit.initialize(model, RULES, backend="cpp", seed=SEED)
    return model


def materialized(model: nn.Module) -> nn.Module:
    """Returns a model after it got memory, and values by the rules and its modules' own code."""
    fastinit.materialize(model, RULES, backend="cpp", seed=SEED)
    return model


def captured(n_tensors: int) -> fastinit.Recipe:
    """Returns what the constructors on the meta device ask for."""
    with fastinit.capture(backend="cpp", seed=SEED) as recipe:
        recipe.bind(on_meta(n_tensors // 4 - 1))
    return recipe


def loaded(model: nn.Module, path: Path) -> nn.Module:
    """Returns a model after a checkpoint was loaded into it."""
    fastinit.checkpoint.load_checkpoint(model, path, strict=True, logger="silent")
    return model


# --- the checks ------------------------------------------------------------------------------------------------------


def expected_of(name: str, is_linear: bool, by_rules: bool) -> plans.Distribution | None:
    """Returns what a weight of a layer within the groups holds; None for one that no rule of this file describes."""
    if not name[0].isdigit():
        return None
    if not is_linear:
        return plans.Constant(0.0 if name.endswith("bias") else 1.0)
    if not by_rules:
        return OF_BIAS if name.endswith("bias") else OF_WEIGHT
    if name.endswith("bias"):
        return plans.Constant(0.0)
    return plans.Normal(0, 0.01) if name.endswith(".3.0.weight") else plans.TruncatedNormal(0, 0.02, -2, 2)


def expected_names(n_tensors: int) -> dict[str, bool]:
    """Returns the names of a model's parameters, and whether a Linear has them."""
    model = on_meta(n_tensors // 4 - 1)
    modules = dict(model.named_modules())
    return {name: isinstance(modules[name.rpartition(".")[0]], nn.Linear) for name, _ in model.named_parameters()}


def problem_of_values(model: nn.Module, n_tensors: int, by_rules: bool) -> str:
    """Compares a model's names, and some of its values, with what they must be."""
    parameters = dict(model.named_parameters())
    names = expected_names(n_tensors)
    if list(parameters) != list(names) or len(names) != n_tensors:
        return f"{len(parameters)} parameters"
    for name in list(names)[:: max(1, n_tensors // N_COMPARED - 1)]:
        distribution, tensor = expected_of(name, names[name], by_rules), parameters[name].detach()
        if distribution is not None and not torch.equal(
            tensor, fastinit.values(name, tensor.shape, distribution, seed=SEED)
        ):
            return f"{name} holds other values than {distribution}"
    return ""


def problem_of_plan(plan: fastinit.Plan, n_tensors: int) -> str:
    """Looks for rows of each parameter; where several rules write one, it has several."""
    found, names = {row.parameter for row in plan.rows}, expected_names(n_tensors)
    return "" if found == names.keys() and len(names) == n_tensors else f"rows of {len(found)} parameters"


def problem_of_recipe(recipe: fastinit.Recipe, n_tensors: int) -> str:
    """Compares what was recorded of each parameter with what its constructor does."""
    recorded = {name: fills[-1].distribution for name, fills in recipe.fills.items()}
    names = expected_names(n_tensors)
    if recorded.keys() != names.keys():
        return f"{len(recorded)} recorded fills"
    for name, is_linear in names.items():
        expected = expected_of(name, is_linear, by_rules=False)
        if expected is not None and not is_alike(recorded[name], expected):
            return f"{name} was recorded as {recorded[name]}"
    return ""


def is_alike(one: plans.Distribution, other: plans.Distribution) -> bool:
    """Compares distributions, not whether 0 is an integer, nor the last digit of a bound."""
    if isinstance(one, plans.Constant) and isinstance(other, plans.Constant):
        return one.value == other.value
    if isinstance(one, plans.Uniform) and isinstance(other, plans.Uniform):
        return math.isclose(one.low, other.low, rel_tol=1e-12) and math.isclose(one.high, other.high, rel_tol=1e-12)
    return False


def problem_of_load(model: nn.Module, path: Path) -> str:
    """Compares all tensors with those in the file."""
    stored = load_file(path)
    tensors = model.state_dict()
    if stored.keys() != tensors.keys():
        return f"{len(tensors)} tensors instead of {len(stored)}"
    return next((f"{name} differs" for name, tensor in tensors.items() if not torch.equal(tensor, stored[name])), "")


def problem_of_plain(model: nn.Module, n_tensors: int) -> str:
    """Counts the parameters of torch's own model."""
    names = list(dict(model.named_parameters()))
    return "" if names == list(expected_names(n_tensors)) else f"{len(names)} parameters"


CALLS: Mapping[str, Call] = {
    "constructor of torch": Call(
        lambda n, path: None, lambda _, n, path: model_of(n), lambda model, n, path: problem_of_plain(model, n)
    ),
    "plan": Call(
        lambda n, path: model_of(n),
        lambda model, n, path: fastinit.plan(model, RULES, backend="cpp", seed=SEED),
        lambda plan, n, path: problem_of_plan(plan, n),
    ),
    "initialize": Call(
        lambda n, path: model_of(n),
        lambda model, n, path: initialized(model),
        lambda model, n, path: problem_of_values(model, n, by_rules=True),
    ),
    "materialize": Call(
        lambda n, path: on_meta(n // 4 - 1),
        lambda model, n, path: materialized(model),
        lambda model, n, path: problem_of_values(model, n, by_rules=True),
    ),
    "build": Call(
        lambda n, path: None,
        lambda _, n, path: fastinit.build(model_of, n, backend="cpp", seed=SEED),
        lambda model, n, path: problem_of_values(model, n, by_rules=False),
    ),
    "capture, on the meta device": Call(
        lambda n, path: None,
        lambda _, n, path: captured(n),
        lambda recipe, n, path: problem_of_recipe(recipe, n),
    ),
    "load_checkpoint, safetensors": Call(
        lambda n, path: model_of(n),
        lambda model, n, path: loaded(model, path),
        lambda model, n, path: problem_of_load(model, path),
    ),
}


# --- measuring -------------------------------------------------------------------------------------------------------


def measured(name: str, n_tensors: int, path: Path, is_checked: bool) -> tuple[float, float]:
    """Runs a call once in this process; returns seconds, and the growth of peak memory in megabytes.

    Raises:
        SystemExit: the result is wrong.
    """
    call = CALLS[name]
    call.run(call.prepare(SMALLEST, path.with_suffix(".smallest")), SMALLEST, path.with_suffix(".smallest"))
    prepared = call.prepare(n_tensors, path)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = _kilobytes("VmRSS")
    began = time.perf_counter()
    result = call.run(prepared, n_tensors, path)
    seconds = time.perf_counter() - began
    megabytes = (_kilobytes("VmHWM") - before) / 1e3
    if is_checked and (problem := call.problem(result, n_tensors, path)):
        raise SystemExit(f"{name}, {n_tensors:,} tensors: {problem}")
    return seconds, megabytes


def _kilobytes(field: str) -> int:
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(field + ":"))
    return int(line.split()[1])


def in_process(name: str, n_tensors: int, path: Path, is_checked: bool) -> tuple[float, float]:
    """As ``measured``, in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps([name, n_tensors, str(path), is_checked])]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"{name}, {n_tensors:,} tensors: failed")
    seconds, megabytes = json.loads(process.stdout.splitlines()[-1])
    return seconds, megabytes


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Returns the slope of the line through the logarithms of values at sizes, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def row_of(name: str, sizes: Sequence[int], rounds: int, folder: Path) -> dict[str, object]:
    """Checks and measures a call at all sizes, in turns, and returns its row."""
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for at in range(rounds):
        for size in sizes:
            found[size].append(in_process(name, size, folder / f"{size}.safetensors", is_checked=at == 0))
    seconds, megabytes = ([statistics.median(each[i] for each in found[size]) for size in sizes] for i in (0, 1))
    row: dict[str, object] = {"call": name}
    row |= {f"{size:,} tensors, ms": f"{1e3 * each:.3g}" for size, each in zip(sizes, seconds)}
    row["us a tensor, at most"] = f"{max(1e6 * each / size for size, each in zip(sizes, seconds)):.3g}"
    row["exponent"] = f"{exponent(sizes, seconds):.2f}"
    row["of the last step"] = f"{exponent(sizes[-2:], seconds[-2:]):.2f}"
    row |= {f"{size:,}, peak MB": f"{each:.3g}" for size, each in zip(sizes, megabytes)}
    row["exponent of memory, last step"] = f"{exponent(sizes[-2:], megabytes[-2:]):.2f}"
    return row


def write_checkpoints(sizes: Sequence[int], folder: Path) -> None:
    """Writes what is to be loaded: a file of each size, and the smallest beside each."""
    torch.manual_seed(0)
    for size in sizes:
        for n_tensors, suffix in ((size, ".safetensors"), (SMALLEST, ".smallest")):
            save_file(model_of(n_tensors).state_dict(), folder / f"{size}{suffix}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="the calls with this in their names")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"processes of each (default: {ROUNDS})")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="numbers of tensors; others are not recorded"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        name, n_tensors, path, is_checked = json.loads(options.one)
        print(json.dumps(measured(name, n_tensors, Path(path), is_checked)))
        return
    names = [name for name in CALLS if options.only in name]
    if not names:
        parser.error(f"--only {options.only!r} matches no call; there are: {'; '.join(CALLS)}")
    with tempfile.TemporaryDirectory(prefix="bench_growth.") as folder:
        if any("load" in name for name in names):
            write_checkpoints(options.sizes, Path(folder))
        for name in names:
            row = row_of(name, options.sizes, options.rounds, Path(folder))
            if tuple(options.sizes) == SIZES:
                replace("bench_growth.csv", [row], "call")
            else:
                print_table([row])


if __name__ == "__main__":
    main()
