"""Host time per tensor before the first kernel starts, against torch.nn.init's time per tensor.

On a GPU a call waits for nothing else: kernels run asynchronously. Tensors have 64 elements, so that torch's draws cost
little; our rows up to the launch draw nothing. Checked first: the records to be launched, run by the native core, give
the bits of ``initialize``. CPU time of this process, median of rounds in turns. Writes ``results/bench_host.csv``. Run
with ``python benchmarks/bench_host.py``.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import machine
import numpy as np
import torch
from tables import write
from torch import nn

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.contract import gpu_work as device_work
from fastinit.contract import records as lowering
from fastinit.execution.version_counters import count_writes

# A Llama of 8 billion parameters has 291 tensors; a mixture of experts with one tensor per expert has some 20,000.
SIZES = (291, 20_000)
# Odd, so that the median is a measurement.
ROUNDS = 9
SEED, STD = 5, 0.02
TRIPS = device_work.Trips(4096, 16384)  # of the CUDA kernel
TORCH = "torch.nn.init.normal_, its draws included"
CONFIG = dict(type="Normal", std=STD, layer="Linear")


def model_of(n_tensors: int) -> nn.Module:
    """Returns a model of ``n_tensors`` weights of 8 x 8."""
    return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(n_tensors)))


def fills_of(parameters: Mapping[str, torch.Tensor]) -> list[plans.Fill]:
    """Returns a fill of each parameter."""
    distribution = plans.Normal(0, STD)
    return [plans.Fill.whole(name, tensor, distribution, "", "") for name, tensor in parameters.items()]


def to_the_launch(fills: list[plans.Fill]) -> lowering.Records:
    """Does a GPU backend's work before the launch, except copying the tables, and returns the records."""
    ((group, records),) = lowering.launches(fills, SEED)
    device_work.device_work(records, TRIPS)
    count_writes(group)
    return records


def made_to_the_launch(parameters: Mapping[str, torch.Tensor]) -> None:
    """Includes making the fills from the parameters."""
    to_the_launch(fills_of(parameters))


def torch_init(tensors: Sequence[torch.Tensor]) -> None:
    """Fills tensors with torch.nn.init, one by one."""
    for tensor in tensors:
        nn.init.normal_(tensor, 0, STD)


def must_be_right(model: nn.Module, parameters: Mapping[str, torch.Tensor]) -> None:
    """Raises SystemExit unless the records of the fills give the bits of ``initialize``."""
    fastinit.initialize(model, CONFIG, backend="cpp", seed=SEED)
    expected = [tensor.detach().clone() for tensor in parameters.values()]
    with torch.no_grad():
        for tensor in parameters.values():
            tensor.zero_()
    cpp_backend._core().fill(to_the_launch(fills_of(parameters)).view(np.uint8), 1)
    if not all(map(torch.equal, expected, parameters.values())):
        raise SystemExit("the records give other values than initialize: nothing is timed")


def seconds_of(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the median of each way's CPU seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in ways.items():
            gc.collect()  # or the call pays for the collection that earlier ones made due
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    """Checks, times, prints and writes."""
    print(machine.describe() + "\n")
    torch.set_num_threads(1)  # CPU time counts all threads, and fills this small need one
    rows: list[dict[str, object]] = []
    for n_tensors in SIZES:
        model = model_of(n_tensors)
        parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
        must_be_right(model, parameters)
        fills = fills_of(parameters)

        plan = partial(fastinit.plan, model, CONFIG, backend="cpp", seed=SEED)
        initialize = partial(fastinit.initialize, model, CONFIG, backend="cpp", seed=SEED)
        ways: dict[str, Callable[[], object]] = {
            TORCH: partial(torch_init, list(parameters.values())),
            "fills to the launch of triton or cuda": partial(to_the_launch, fills),
            "the same, and making the fills": partial(made_to_the_launch, parameters),
            "fills to the end of cpp, its draws included": partial(cpp_backend.run, fills, SEED),
            "plan": plan,
            "initialize with cpp, its report included": initialize,
        }
        seconds = seconds_of(ways)
        for name, each in seconds.items():
            rows.append(
                {
                    "tensors": n_tensors,
                    "what": name,
                    "ms": f"{each * 1e3:.3g}",
                    "us a tensor": f"{each / n_tensors * 1e6:.2f}",
                    "of torch.nn.init's": f"{each / seconds[TORCH]:.2f}",
                }
            )
        print(f"{n_tensors} tensors: the records give the bits of initialize", file=sys.stderr, flush=True)
    write("bench_host.csv", rows)


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    main()
