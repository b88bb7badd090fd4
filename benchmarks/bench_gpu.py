"""Whole lists of tensors on a GPU: our backends `triton` and `cuda` against torch.nn.init and torch's other ways.

Without a CUDA device it says so and writes nothing. Workloads are one large tensor, the parameters of Llama 3 8B, and
20,000 experts' matrices. Contenders: torch.nn.init, tensor by tensor (its normal_ and uniform_ draw with cuRAND's
Philox; its trunc_normal_ is a loop in Python in recent releases); ``torch.func._random``, in place, with a key for each
tensor (it has normals and uniforms only); one ``normal_`` or ``uniform_`` over all the bytes, the least that torch can
do; and ours. A list lies in one flat piece of memory, tensor behind tensor, so that no contender needs a second one.

Checked before anything is timed, or the benchmark stops: small tensors of our backends equal the ``cpp`` backend's bit
for bit. In every workload every contender writes every element, windows at the start, in the middle and at the end of
tensors hold the bits that ``cpp`` makes of those boxes, and the first tensor has the distribution's mean and deviation
(where torch.nn.init misses them, its row says so). Without the ``cpp`` backend, our rows say that bits are unchecked.

- seconds: between two CUDA events around the call, on an idle GPU. What the host does before the first kernel starts
  (records of the fills, lowering, upload) is in it. Medians; contenders run in turns, after a round that is not timed.
- host: of the same calls until they return, without waiting for the GPU.
- launches, copies (memsets too), time in kernels: of one more call, seen by torch.profiler after all timing.
- write ceiling: the fastest of ``zero_``, ``fill_`` and the driver's memset over 4 GiB, in the same run.

All sizes are far beyond the caches, which therefore do not matter. Writes ``results/bench_gpu.csv``; rows of workloads
that are not run (``--only``) stay there if they are of the same machine. ``--elements 2^20`` is for a trial, and writes
nothing. Needs no package but fastinit's own. Run it with ``python benchmarks/bench_gpu.py``.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import importlib
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit import plans, streams
from fastinit.backends import cpp_backend, cuda_backend, triton_backend

RESULT = Path(__file__).parent / "results" / "bench_gpu.csv"
OURS = {"triton": triton_backend, "cuda": cuda_backend}
TORCH = "torch.nn.init"
CPP_WHY_NOT = cpp_backend.why_not(torch.device("cpu"))
SEED = 1234
N_ELEMENTS = 1 << 30
CEILING_BYTES = 1 << 32
REPEATS = 11  # odd, so that the median is a measurement
SLOW_ROUND_S = 2.0  # torch may take seconds for a list: at most three rounds then
CHUNK = 1 << 28  # elements that are looked at at once: the mask has 256 MiB
WINDOW = 4096  # elements
N_SAMPLE = 1 << 20

# 20,000 matrices of 768 x 1024 are 31.5 GB in bfloat16. An H100 has 80 GB, of which 70 are surely free: room for the
# list and for what a contender or a check holds beside it (see needed_bytes), were it as much again.
EXPERT_LAYERS, EXPERTS = 50, 200
EXPERT_WIDTH, EXPERT_HIDDEN = 1024, 768

STD = 0.02
NORMAL, UNIFORM, ONE = plans.Normal(0, STD), plans.Uniform(-0.1, 0.1), plans.Constant(1.0)
INSIDE = plans.TruncatedNormal(0, STD, -2 * STD, 2 * STD)
WIDE = plans.TruncatedNormal(0, STD, -100 * STD, 100 * STD)
LABELS: dict[plans.Distribution, str] = {INSIDE: "trunc_normal, 2 sigma", WIDE: "trunc_normal, 100 sigma"}
DTYPES = [torch.float32, torch.bfloat16]

Row = dict[str, str]


# --- workloads -------------------------------------------------------------------------------------------------------


class Spec(NamedTuple):
    """One tensor of a list."""

    name: str
    shape: tuple[int, ...]
    distribution: plans.Distribution


@dataclass(frozen=True)
class Workload:
    """A list of tensors of one dtype."""

    name: str
    dtype: torch.dtype
    distribution: str
    specs: tuple[Spec, ...]

    def __str__(self) -> str:
        return ", ".join(self.key)

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells its rows from others."""
        return self.name, str(self.dtype).removeprefix("torch."), self.distribution

    @property
    def n_elements(self) -> int:
        """How many elements are written."""
        return sum(math.prod(spec.shape) for spec in self.specs)

    @property
    def n_bytes(self) -> int:
        """How many bytes are written."""
        return self.n_elements * self.dtype.itemsize

    @property
    def needed_bytes(self) -> int:
        """Of GPU memory: the list, and the copies and masks that torch.nn.init.trunc_normal_ makes of one tensor."""
        return self.n_bytes + 4 * self.dtype.itemsize * max(math.prod(spec.shape) for spec in self.specs)


def label(distribution: plans.Distribution) -> str:
    """Returns what a table calls a distribution."""
    return LABELS.get(distribution, distribution.kind)


def llama(weights: plans.Distribution, divisor: int = 1) -> Iterator[Spec]:
    """Yields the parameters of Llama 3 8B; widths, and the vocabulary, divided by ``divisor``."""
    width, hidden, kv, vocabulary = (shrunk(n, divisor) for n in (4096, 14336, 1024, 128256))
    yield Spec("tok_embeddings.weight", (vocabulary, width), weights)
    for i in range(32):
        layer = f"layers.{i}"
        for name, rows in (("wq", width), ("wk", kv), ("wv", kv), ("wo", width)):
            yield Spec(f"{layer}.attention.{name}.weight", (rows, width), weights)
        yield Spec(f"{layer}.feed_forward.w1.weight", (hidden, width), weights)
        yield Spec(f"{layer}.feed_forward.w2.weight", (width, hidden), weights)
        yield Spec(f"{layer}.feed_forward.w3.weight", (hidden, width), weights)
        yield Spec(f"{layer}.attention_norm.weight", (width,), ONE)
        yield Spec(f"{layer}.ffn_norm.weight", (width,), ONE)
    yield Spec("norm.weight", (width,), ONE)
    yield Spec("output.weight", (vocabulary, width), weights)


def experts(weights: plans.Distribution, divisor: int = 1) -> Iterator[Spec]:
    """Yields the experts' matrices of a mixture of experts, 20,000 tensors, and the norms of its layers."""
    width, hidden = shrunk(EXPERT_WIDTH, divisor), shrunk(EXPERT_HIDDEN, divisor)
    for i in range(EXPERT_LAYERS):
        for j in range(EXPERTS):
            yield Spec(f"layers.{i}.experts.{j}.up.weight", (hidden, width), weights)
            yield Spec(f"layers.{i}.experts.{j}.down.weight", (width, hidden), weights)
        yield Spec(f"layers.{i}.norm.weight", (width,), ONE)


def shrunk(n: int, divisor: int) -> int:
    """Returns a dimension for a trial: a multiple of 8, so that in flat memory every tensor is 16-byte aligned."""
    return max(8, n // divisor // 8 * 8)


def workloads(n_elements: int = N_ELEMENTS) -> list[Workload]:
    """Returns all workloads; the lists have their real size at 2^30 elements, below it narrower matrices."""
    size = f"2^{n_elements.bit_length() - 1}" if n_elements & (n_elements - 1) == 0 else f"{n_elements:,}"
    big = [
        Workload(f"one tensor of {size}", dtype, label(each), (Spec("weight", (n_elements,), each),))
        for dtype in DTYPES
        for each in (NORMAL, UNIFORM, INSIDE, WIDE, ONE)
    ]
    divisor = 1 << max(0, math.ceil(math.log2(N_ELEMENTS / n_elements) / 2))
    kinds = (("Llama 3 8B", llama, NORMAL), ("Llama 3 8B", llama, INSIDE), ("mixture of experts", experts, NORMAL))
    lists = []
    for name, specs_of, weights in kinds:
        specs = tuple(specs_of(weights, divisor))
        name = f"{name}{f' / {divisor}' * (divisor > 1)}, {len(specs):,} tensors"
        lists.append(Workload(name, torch.bfloat16, f"{label(weights)}; norms constant", specs))
    return [*big, *lists]


def placed(workload: Workload, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns flat memory for a list, and the tensors that lie in it one behind the other."""
    flat = torch.empty(workload.n_elements, dtype=workload.dtype, device=device)
    parts = torch.split(flat, [math.prod(spec.shape) for spec in workload.specs])
    return flat, [part.view(spec.shape) for part, spec in zip(parts, workload.specs)]


# --- contenders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """One way to fill the memory of a workload."""

    name: str
    call: Callable[[], object]
    note: str = ""
    why_not: str | None = None
    is_contract: bool = False
    """Whether it promises the bits of the ``cpp`` backend."""
    is_floor: bool = False
    """Whether it writes other values than asked for, as the least that torch has to do."""


def contenders(workload: Workload, flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[Contender]:
    """Returns all that apply to a workload, torch.nn.init first; with a reason where one cannot run."""
    found = [Contender(TORCH, partial(by_torch, workload.specs, tensors))]
    kinds = {type(spec.distribution) for spec in workload.specs}
    if kinds & {plans.Normal, plans.Uniform} and plans.TruncatedNormal not in kinds:
        found.append(stateless(workload, tensors))
    if kinds == {plans.Uniform}:
        found.append(Contender("tensor.uniform_(), all flat", partial(flat.uniform_, -0.1, 0.1), is_floor=True))
    elif kinds != {plans.Constant}:
        note = "" if kinds == {plans.Normal} else "writes normals everywhere"
        found.append(Contender("tensor.normal_(), all flat", partial(flat.normal_, 0, STD), note, is_floor=True))
    note = f"bits not compared: {CPP_WHY_NOT}" if CPP_WHY_NOT else ""
    for name, module in OURS.items():
        call = partial(by_contract, module.run, workload.specs, tensors)
        found.append(Contender(name, call, note, module.why_not(flat.device), is_contract=True))
    return found


def by_torch(specs: Sequence[Spec], tensors: Sequence[torch.Tensor]) -> None:
    """What users write today."""
    for spec, tensor in zip(specs, tensors):
        TORCH_INIT[type(spec.distribution)](tensor, *plans.numbers_of(spec.distribution).values())


TORCH_INIT: dict[type, Callable[..., object]] = {
    plans.Constant: nn.init.constant_,
    plans.Normal: nn.init.normal_,
    plans.Uniform: nn.init.uniform_,
    plans.TruncatedNormal: nn.init.trunc_normal_,
}

Run = Callable[[Sequence[plans.Fill], "int | None"], object]


def by_contract(run: Run, specs: Sequence[Spec], tensors: Sequence[torch.Tensor]) -> None:
    """A backend of ours, from names, tensors and distributions to the launch."""
    run([plans.Fill.whole(each.name, tensor, each.distribution, "", "") for each, tensor in zip(specs, tensors)], SEED)


def stateless(workload: Workload, tensors: Sequence[torch.Tensor]) -> Contender:
    """torch.func._random, tried on a small tensor first: it has come in several steps."""
    name, device = "torch.func._random", tensors[0].device
    try:
        random: Any = importlib.import_module(name)
        key = random.key(SEED, device=device)
        call = partial(by_stateless, random, key)
        call(workload.specs[:1], [torch.empty(8, dtype=workload.dtype, device=device)])
    except (ImportError, AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = f"torch {torch.__version__}: {repr(error)[:100]}"
        return Contender(name, int, why_not=reason)
    return Contender(name, partial(call, workload.specs, tensors), "a key for each tensor")


def by_stateless(random: Any, key: torch.Tensor, specs: Sequence[Spec], tensors: Sequence[torch.Tensor]) -> None:
    """Torch's stateless generator with the keys of the number contract (docs/reproducibility.md), in place."""
    for spec, tensor in zip(specs, tensors):
        if isinstance(spec.distribution, plans.Constant):
            nn.init.constant_(tensor, float(spec.distribution.value.real))
            continue
        own = random.fold_in(key, streams.stream_of(spec.name))
        fill = random.normal_ if isinstance(spec.distribution, plans.Normal) else random.uniform_
        fill(own, tensor, **plans.numbers_of(spec.distribution))


# --- checks ----------------------------------------------------------------------------------------------------------


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor's bytes, on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def must_equal_cpp(name: str, run: Run, device: torch.device) -> None:
    """Raises SystemExit unless small tensors of all kinds, in one call, equal the ``cpp`` backend's bit for bit."""
    specs = [
        (dtype, Spec(f"{i}.{label(each)}.{dtype}", shape, each))
        for i, shape in enumerate([(1,), (100_003,), (257, 1031), (64, 4096)])
        for dtype in DTYPES
        for each in (NORMAL, UNIFORM, INSIDE, WIDE, ONE)
    ]
    found, right = (
        [torch.full(spec.shape, math.nan, dtype=dtype, device=where) for dtype, spec in specs]
        for where in (device, torch.device("cpu"))
    )
    by_contract(run, [spec for _, spec in specs], found)
    by_contract(cpp_backend.run, [spec for _, spec in specs], right)
    for (_, spec), a, b in zip(specs, found, right):
        if not torch.equal(bits(a), bits(b)):
            raise SystemExit(f"{name}: {spec} differs from the cpp backend; nothing is timed")


def must_be_written(what: str, flat: torch.Tensor) -> None:
    """Raises SystemExit if an element still is the NaN that was there before."""
    for part in torch.split(flat, CHUNK):
        if part.isnan().any():
            raise SystemExit(f"{what}: not every element was written")


def windows(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields (offset, size) of boxes at the start, in the middle and at the end of a tensor, each a part of a row."""
    size = (*(1 for _ in shape[:-1]), min(WINDOW, shape[-1]))
    for quarters in (0, 2, 4):
        yield tuple((n - part) * quarters // 4 for n, part in zip(shape, size)), size


def sampled(specs: Sequence[Spec]) -> list[int]:
    """Returns the indices of the first tensor of each kind, of some between, and of the last."""
    first: dict[object, int] = {}
    for i, spec in enumerate(specs):
        first.setdefault((spec.shape, spec.distribution), i)
    return sorted({*first.values(), *range(0, len(specs), max(1, len(specs) // 12)), len(specs) - 1})


def must_have_the_contracts_bits(what: str, specs: Sequence[Spec], tensors: Sequence[torch.Tensor]) -> None:
    """Raises SystemExit unless windows of sampled tensors hold what the ``cpp`` backend makes of those boxes."""
    for i in sampled(specs):
        spec, tensor = specs[i], tensors[i]
        for offset, size in windows(spec.shape):
            right = torch.full(size, math.nan, dtype=tensor.dtype)
            box = plans.Box(right, offset)
            cpp_backend.run([plans.Fill(spec.name, right, spec.distribution, "", "", spec.shape, (box,))], SEED)
            found = tensor[tuple(slice(start, start + n) for start, n in zip(offset, size))]
            if not torch.equal(bits(found), bits(right)):
                raise SystemExit(f"{what}: {spec.name} differs from the cpp backend at {offset}; nothing is timed")


def moments(distribution: plans.Distribution) -> tuple[float, float]:
    """Returns mean and standard deviation of a distribution; a truncated one is symmetric here."""
    if isinstance(distribution, plans.Constant):
        return float(distribution.value.real), 0.0
    if isinstance(distribution, plans.Uniform):
        return (distribution.low + distribution.high) / 2, (distribution.high - distribution.low) / 12**0.5
    if isinstance(distribution, plans.Normal):
        return distribution.mean, distribution.std
    c = (distribution.high - distribution.mean) / distribution.std
    cut = 2 * c * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) / math.erf(c / math.sqrt(2))
    return distribution.mean, distribution.std * math.sqrt(1 - cut)


def wrong_moments(tensor: torch.Tensor, distribution: plans.Distribution) -> str | None:
    """Returns what is wrong with mean and deviation of a tensor's first elements, beyond ten times their errors."""
    part = tensor.view(-1)[:N_SAMPLE].double()
    mean, std = part.mean().item(), part.std(correction=0).item()
    right_mean, right_std = moments(distribution)
    if max(abs(mean - right_mean), abs(std - right_std)) <= 10 * right_std / math.sqrt(len(part)):
        return None
    return f"mean {mean:.4g} and std {std:.4g} instead of {right_mean:.4g} and {right_std:.4g}"


def must_be_right(
    workload: Workload, contestants: Sequence[Contender], flat: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> dict[str, str]:
    """Lets every contender fill memory full of NaN; raises SystemExit at a wrong value.

    Returns:
        By contender what is wrong with the moments of torch.nn.init's values: that is a finding, and no reason to stop.
    """
    findings = {}
    for contender in contestants:
        what = f"{workload}, {contender.name}"
        flat.fill_(math.nan)
        contender.call()
        must_be_written(what, flat)
        if contender.is_contract and CPP_WHY_NOT is None:
            must_have_the_contracts_bits(what, workload.specs, tensors)
        wrong = None if contender.is_floor else wrong_moments(tensors[0], workload.specs[0].distribution)
        if wrong and contender.name != TORCH:
            raise SystemExit(f"{what}: {wrong}; nothing is timed")
        if wrong:
            findings[contender.name] = f"wrong: {wrong}"
    return findings


# --- measurements ----------------------------------------------------------------------------------------------------


class Times(NamedTuple):
    """What one call takes."""

    seconds: float
    host_seconds: float


class Trace(NamedTuple):
    """What one call makes the GPU do."""

    launches: int
    copies: int
    kernel_seconds: float


def timed(call: Callable[[], object]) -> Times:
    """Returns the seconds of a call on an idle GPU, and until it returned."""
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
    """Returns what torch.profiler sees of a call."""
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
    """Returns the bytes a second that each way to set memory reaches; the fastest is the write ceiling."""
    flat = torch.empty(n_bytes // 4, dtype=torch.float32, device=device)
    ways: dict[str, Callable[[], object]] = {
        "zero_, float32": flat.zero_,
        "fill_, float32": partial(flat.fill_, 1.5),
        "fill_, bfloat16": partial(flat.view(torch.bfloat16).fill_, 1.5),
    }
    if torch.version.hip is None:
        ways["the driver's memset"] = partial(memset, ctypes.CDLL("libcuda.so.1"), flat)
    return {way: n_bytes / times.seconds for way, times in zip(ways, medians(list(ways.values()), repeats))}


def memset(driver: Any, flat: torch.Tensor) -> None:
    """Sets memory with the driver's own function, to words that are not all the same byte."""
    stream = ctypes.c_void_p(torch.cuda.current_stream(flat.device).cuda_stream)
    words = ctypes.c_size_t(flat.nbytes // 4)
    if status := driver.cuMemsetD32Async(ctypes.c_uint64(flat.data_ptr()), ctypes.c_uint(0x3C8F5C29), words, stream):
        raise SystemExit(f"cuMemsetD32Async: error {status}")


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was found of one contender in one workload."""

    workload: Workload
    contender: str
    note: str
    times: Times | None = None
    """None: it did not run, and the note says why."""
    trace: Trace | None = None


COLUMNS = [
    *("workload", "dtype", "distribution", "contender", "seconds", "GB/s", "of the write ceiling", "times faster"),
    *("launches", "copies", "in kernels, ms", "kernels, of the ceiling", "host, ms", "note"),
]
CEILING = ("write ceiling", "", "")


def rows_of(results: Sequence[Result], ways: Mapping[str, float]) -> list[Row]:
    """Returns the table's rows: first the ways to set memory, in bytes a second, then what was measured."""
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
        if each.trace and each.trace.launches:  # a profiler that is not allowed to look sees none
            seconds = each.trace.kernel_seconds
            cells["launches"], cells["copies"] = str(each.trace.launches), str(each.trace.copies)
            cells["in kernels, ms"] = f"{seconds * 1e3:.4g}"
            cells["kernels, of the ceiling"] = f"{n_bytes / seconds / ceiling:.0%}"
        rows.append(named(each.workload.key, cells))
    return rows


def named(key: tuple[str, str, str], cells: Mapping[str, str]) -> Row:
    """Returns a row of all columns, empty where there is no cell."""
    return {**dict.fromkeys(COLUMNS, ""), **dict(zip(COLUMNS, key)), **cells}


def kept(path: Path, machine: str, run_now: Iterable[tuple[str, str, str]]) -> list[Row]:
    """Returns the rows of an earlier run on the same machine, but for those of workloads that were run now."""
    if not path.exists():
        return []
    now = set(run_now)
    with path.open(newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    return [
        row
        for row in rows
        if row["machine"] == machine and (row["workload"], row["dtype"], row["distribution"]) not in now
    ]


def save(path: Path, rows: Sequence[Row]) -> None:
    """Writes the table in the form of bench_initialize.write, which cannot be imported without mmengine."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def show(rows: Sequence[Row]) -> None:
    """Prints rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    print(flush=True)


def describe(device: torch.device) -> str:
    """Returns GPU, clocks and versions in one line."""
    # The limits, which stay; the clocks of the moment do not.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.memory,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(
            command + ([f"--id=GPU-{uuid}"] if uuid else []), capture_output=True, text=True, timeout=60, check=True
        )
        sm, memory, driver = asked.stdout.splitlines()[0].split(", ")
        clocks = f"clocks up to {sm} (memory {memory}), driver {driver}"
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        clocks = "clocks unknown"
    try:
        triton = f"triton {importlib.import_module('triton').__version__}"
    except ImportError:
        triton = "no triton"
    python = f"Python {platform.python_version()}"
    return f"{torch.cuda.get_device_name(device)}, {clocks}, {python}, torch {torch.__version__}, {triton}"


# --- the whole -------------------------------------------------------------------------------------------------------


def timed_workload(workload: Workload, repeats: int, device: torch.device) -> list[Result]:
    """Checks and times all contenders; its memory is let go of on return."""
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
    """Traces one call of each contender that was timed, and puts it beside the times."""
    flat, tensors = placed(workload, device)
    calls = {each.name: each.call for each in contenders(workload, flat, tensors) if each.why_not is None}
    for result in results:
        if result.workload is workload and result.contender in calls:
            result.trace = traced(calls[result.contender])


def release() -> None:
    """Gives all memory back that nothing holds."""
    gc.collect()
    torch.cuda.empty_cache()


def number(text: str) -> int:
    """Returns what ``2^20`` or ``1048576`` means, at least 8."""
    base, _, exponent = text.partition("^")
    found: int = int(base) ** int(exponent or 1)
    return max(8, found)


def main() -> None:
    """Checks, times, traces, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the workloads whose names, dtypes or distributions hold this")
    parser.add_argument("--repeat", type=int, default=REPEATS, help="rounds of which the median is taken")
    parser.add_argument("--elements", type=number, default=N_ELEMENTS, help="e.g. 2^20: a small trial, not written")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"nothing is measured and nothing written: torch {torch.__version__} finds no CUDA device")
        return
    warnings.simplefilter("ignore")  # of the profiler, and of trunc_normal_ about its bounds
    device = torch.device("cuda", torch.cuda.current_device())
    machine = describe(device)
    print(machine, file=sys.stderr, flush=True)
    chosen = [each for each in workloads(arguments.elements) if arguments.only in str(each)]
    if not chosen:
        raise SystemExit(f"no workload has {arguments.only!r} in {[str(each) for each in workloads()]}")

    for name, module in OURS.items():
        if CPP_WHY_NOT is None and module.why_not(device) is None:
            must_equal_cpp(name, module.run, device)
            print(f"{name}: small tensors equal the cpp backend's", file=sys.stderr, flush=True)
    ways = ceilings(min(CEILING_BYTES, 4 * arguments.elements), arguments.repeat, device)
    release()
    results: list[Result] = []
    ran: list[Workload] = []
    for workload in chosen:
        free, _ = torch.cuda.mem_get_info(device)
        if workload.needed_bytes > free:
            gigabytes = f"it needs {workload.needed_bytes / 1e9:.1f} GB, {free / 1e9:.1f} are free"
            print(f"{workload}: left out, {gigabytes}", file=sys.stderr, flush=True)
            continue
        results += timed_workload(workload, arguments.repeat, device)
        ran.append(workload)
        release()
    if not ran:
        raise SystemExit("no workload fits into the memory of the GPU")
    # After all timing: the profiler's hooks stay in the process, and could cost time at every launch.
    for workload in ran:
        trace_workload(workload, results, device)
        release()
    rows = rows_of(results, ways)
    show(rows)
    if arguments.elements == N_ELEMENTS:
        rows = [{**row, "machine": machine} for row in rows]
        rows += kept(RESULT, machine, [CEILING, *(each.key for each in ran)])
        order = {key: i for i, key in enumerate([CEILING, *(each.key for each in workloads())])}
        save(RESULT, sorted(rows, key=lambda row: order.get((row["workload"], row["dtype"], row["distribution"]), 99)))


if __name__ == "__main__":
    main()
