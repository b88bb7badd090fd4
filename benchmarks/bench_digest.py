"""Digests against a plain sum of the same memory: the native core, whole models, and a GPU where there is one.

Nothing is timed before its results are right: the core's sums of any view, on every instruction set, are those of
torch's operators (which tests compare with the formula). The plain sum is ``torch.sum`` over that memory as float32,
which reads it as fast as torch can, in turns with the digest; of views, over the same view. "in cache" is memory that
fits a core's second-level cache, "in memory" is far larger than all caches. Writes ``results/bench_digest.csv``. Run
with ``make bench``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

import machine
import numpy as np
import torch
from tables import write
from torch import nn

import fastinit
from fastinit.backends import cpp_backend, digests, triton_backend
from fastinit.contract.digests import box_records, sum_by_torch
from fastinit.demo import GPT
from fastinit.plans import Box

ROUNDS = 7
# A round takes at least so long, so that starting threads counts as little as it does in a model.
SECONDS = 0.05
SIZES = {"in cache": 1 << 18, "in memory": 1 << 29}
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float64]
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: x.view(1 << 10, -1).t(),
    "channels last": lambda x: x.view(-1, 3, 3, 512).permute(0, 3, 1, 2),
    "half of the columns": lambda x: x.view(-1, 4096)[:, 1024:3072],
}
GPU = torch.device("cuda")


def numbers(n_bytes: int, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    """Returns memory whose bytes are neither subnormal numbers nor NaN in any dtype."""
    return torch.randint(48, 64, (n_bytes,), dtype=torch.uint8).to(device).view(dtype)


def must_be_right(dtype: torch.dtype, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Exits unless every instruction set, torch's operators and the GPU give one sum."""
    box = Box.whole(view(numbers(9 << 19, dtype)))
    expected = sum_by_torch(box)
    records, _ = box_records([box])
    for isa in cpp_backend._core().instruction_sets():
        sums = cpp_backend._core().digest(records.view(np.uint8), 2, isa)
        if int(sums.sum(dtype=np.uint64)) != expected:
            sys.exit(f"{dtype}: the sum of {isa} is wrong")
    if triton_backend.why_not(GPU) is None and digests.sums([Box.whole(box.tensor.to(GPU))]) != [expected]:
        sys.exit(f"{dtype}: the sum of the GPU is wrong")


def medians(*functions: Callable[[], object]) -> list[float]:
    """Returns the median seconds of each function, called in turns, as often in a row as fills a round."""
    repeats = []
    for function in functions:
        began = time.perf_counter()
        function()
        repeats.append(max(1, int(SECONDS / max(1e-9, time.perf_counter() - began))))
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, n, found in zip(functions, repeats, seconds):
            began = time.perf_counter()
            for _ in range(n):
                function()
            found.append((time.perf_counter() - began) / n)
    return [statistics.median(found) for found in seconds]


def rates(what: str, tensor: torch.Tensor, plain_tensor: torch.Tensor) -> dict[str, object]:
    """Returns a row: the digest of a tensor against the sum of one in float32 of the same memory."""
    threads, core = torch.get_num_threads(), cpp_backend._core()
    records, _ = box_records([Box.whole(tensor)])
    table = records.view(np.uint8)
    isas = [isa for isa in core.instruction_sets() if isa != "baseline"] or ["baseline"]
    plain, ours, *one_core = medians(
        partial(torch.sum, plain_tensor),
        partial(core.digest, table, threads),
        *(partial(core.digest, table, 1, isa) for isa in isas),
    )
    n_bytes = tensor.numel() * tensor.element_size()
    row: dict[str, object] = {
        "what": what,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "MB": f"{n_bytes / 1e6:.3g}",
        "sum, GB/s": f"{n_bytes / plain / 1e9:.1f}",
        "digest, GB/s": f"{n_bytes / ours / 1e9:.1f}",
    }
    for isa, seconds in zip(isas, one_core):
        row[f"{isa}, 1 thread, GB/s"] = f"{n_bytes / seconds / 1e9:.1f}"
    row["speed of the sum"] = f"{plain / ours:.2f}"
    return row


def sum_each(tensors: Iterable[torch.Tensor]) -> list[float]:
    """Returns the sum of each tensor."""
    return [tensor.sum().item() for tensor in tensors]


def of_models() -> Iterable[dict[str, object]]:
    """Yields rows of whole models, by ``fastinit.digest`` and by a sum of every tensor."""
    models: dict[str, nn.Module] = {
        "GPT of 600M": GPT(27, 1280, 50257, 1024),
        "20,000 tensors": nn.ModuleList(nn.Linear(32, 32) for _ in range(10_000)),
    }
    for name, model in models.items():
        tensors = [tensor.detach() for tensor in model.state_dict().values()]
        again = fastinit.digest({key: tensor.clone() for key, tensor in model.state_dict().items()})
        if fastinit.digest(model) != again:
            sys.exit(f"{name}: a copy has another digest")
        plain, ours = medians(partial(sum_each, tensors), partial(fastinit.digest, model))
        n_bytes = sum(tensor.nbytes for tensor in tensors)
        yield {
            "what": f"{name}, {1e6 * ours / len(tensors):.1f} us a tensor",
            "dtype": "float32",
            "MB": f"{n_bytes / 1e6:.3g}",
            "sum, GB/s": f"{n_bytes / plain / 1e9:.1f}",
            "digest, GB/s": f"{n_bytes / ours / 1e9:.1f}",
            "speed of the sum": f"{plain / ours:.2f}",
        }


def on_gpu() -> Iterable[dict[str, object]]:
    """Yields rows of the Triton kernel, none without a GPU."""
    if triton_backend.why_not(GPU) is not None:
        return
    for dtype in DTYPES:
        tensor = numbers(1 << 32, dtype, "cuda")
        plain, ours = medians(
            partial(sum_each, [tensor.view(torch.float32)]), partial(digests.sums, [Box.whole(tensor)])
        )
        yield {
            "what": f"on {torch.cuda.get_device_name()}",
            "dtype": str(dtype).removeprefix("torch."),
            "MB": f"{tensor.nbytes / 1e6:.3g}",
            "sum, GB/s": f"{tensor.nbytes / plain / 1e9:.1f}",
            "digest, GB/s": f"{tensor.nbytes / ours / 1e9:.1f}",
            "speed of the sum": f"{plain / ours:.2f}",
        }


def main() -> None:
    """Times everything and writes the table."""
    for dtype in DTYPES:
        for view in (lambda x: x, *VIEWS.values()):
            must_be_right(dtype, view)
    rows: list[dict[str, object]] = []
    for dtype in DTYPES:
        for where, n_bytes in SIZES.items():
            tensor = numbers(n_bytes, dtype)
            rows.append(rates(where, tensor, tensor.view(torch.float32)))
    memory = numbers(9 << 25, torch.float32)
    rows += [rates(name, view(memory), view(memory)) for name, view in VIEWS.items()]
    rows += [*of_models(), *on_gpu()]
    write("bench_digest.csv", [{name: row.get(name, "") for name in rows[0]} for row in rows])


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    main()
