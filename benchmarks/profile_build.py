"""Where the time of ``build`` goes, for a Llama of 3 billion parameters, a mixture of experts, and a detector.

Stages, each without those within it: the constructors and the library's own init code; what watches them (torch's
operators included, such as getting addresses for memory); from what is pending to the kernel's records; the fills. The
same records are then run again, in memory that is there by then: the difference is what its pages cost. Beside them is
what cannot be avoided, measured in the same process: touching each page of so much fresh memory (with small or huge
pages, whichever is faster), and a memset of it afterwards, on all cores.

Each round has a process of its own, after 12 s in which nobody used memory. Checked first: the digest of the model that
is built without timers is that of the measured ones, after the first fill and after the second. Medians of the rounds.
``--only TEXT`` measures the models with this in their names, and keeps the rows of the others. Writes
``results/profile_build.csv``. Run with ``make bench``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from bench_build import llama
from tables import print_table, replace
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.detr import modeling_detr  # noqa: F401  (transformers imports it at first use)

import fastinit
from fastinit.backends import cpp_backend
from fastinit.recording import capturing

ROUNDS = 3
IDLE_S = 12
# As much fresh memory is touched for the limits, at most.
LIMIT_BYTES = 2 << 30
AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM


# --- the models ------------------------------------------------------------------------------------------------------


class Expert(nn.Module):
    """A gated feed-forward net."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)


class Layer(nn.Module):
    """Attention, and experts with a tensor for each matrix, as checkpoints have them."""

    def __init__(self, width: int, inner: int, n_experts: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.router = nn.Linear(width, n_experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, inner) for _ in range(n_experts))


class Experts(nn.Module):
    """A mixture of experts that initializes itself as transformers' models do: constructors, then its own normals."""

    def __init__(self, layers: int, width: int, inner: int, n_experts: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32000, width)
        self.layers = nn.ModuleList(Layer(width, inner, n_experts) for _ in range(layers))
        self.head = nn.Linear(width, 32000, bias=False)
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)


def make_llama(small: bool) -> nn.Module:
    """Makes transformers' Llama."""
    config = llama(256, 512, 2, "bfloat16") if small else llama(3072, 8192, 24, "bfloat16")
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def make_experts(small: bool) -> nn.Module:
    """Makes a mixture of experts of 10,000 tensors."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        return Experts(2, 64, 32, 8) if small else Experts(26, 512, 256, 126)
    finally:
        torch.set_default_dtype(torch.float32)


def make_detector(small: bool) -> nn.Module:
    """Makes transformers' DETR on its ResNet-50."""
    layers = 1 if small else 6
    configs: Any = transformers  # whose releases declare different arguments
    backbone = configs.ResNetConfig(depths=[1, 1, 1, 1] if small else [3, 4, 6, 3], out_features=["stage4"])
    config = configs.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        encoder_layers=layers,
        decoder_layers=layers,
    )
    model: nn.Module = transformers.DetrForObjectDetection(config)
    return model


MODELS: Mapping[str, Callable[[bool], nn.Module]] = {
    "Llama, bfloat16": make_llama,
    "mixture of experts, bfloat16": make_experts,
    "DETR, float32": make_detector,
}


# --- stages ----------------------------------------------------------------------------------------------------------


class Stages:
    """A stopwatch with one hand: time counts for the innermost stage only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time in the block for a stage."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function whose time counts for a stage."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return run

    def _count(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


CONSTRUCTORS, WATCHING, RECORDS, FILLS, REST = "constructors", "watching", "records", "fills", "rest"


class Core:
    """The native core, with a stopwatch, and a memory of what it filled."""

    def __init__(self, core: Any, stages: Stages) -> None:
        self._core, self._stages = core, stages
        self.calls: list[Callable[[], object]] = []

    def fill(self, *args: Any, **kwargs: Any) -> Any:
        """Fills."""
        self.calls.append(partial(self._core.fill, *args, **kwargs))
        with self._stages.stage(FILLS):
            return self._core.fill(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def modes() -> list[tuple[type, str]]:
    """Returns the methods by which recording sees operators and functions of torch."""
    kinds = ((TorchDispatchMode, "__torch_dispatch__"), (TorchFunctionMode, "__torch_function__"))
    own = "fastinit.recording."
    found = [(sub, method) for kind, method in kinds for sub in kind.__subclasses__() if sub.__module__.startswith(own)]
    if {method for _, method in found} != {method for _, method in kinds}:
        raise SystemExit(f"the modes of {own} are not found: {found}")
    return found


@contextmanager
def timers(stages: Stages) -> Iterator[Core]:
    """Installs stopwatches in the block."""
    core = Core(cpp_backend._core(), stages)
    places: list[tuple[Any, str, Any]] = [
        (kind, method, stages.timed(WATCHING, getattr(kind, method))) for kind, method in modes()
    ]
    places.append((capturing, "_execute", stages.timed(RECORDS, capturing._execute)))
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, replacement in [*places, (cpp_backend, "_native", core)]:
        setattr(owner, name, replacement)
    try:
        yield core
    finally:
        for owner, name, original in [*originals, (cpp_backend, "_native", core._core)]:
            setattr(owner, name, original)


def profiled(make: Callable[[], nn.Module]) -> tuple[dict[str, float], list[str]]:
    """Builds a model, and returns the seconds of its stages, and of the limits; and its digests after both fills."""
    stages = Stages()
    gc.collect()
    with timers(stages) as core:
        began = time.perf_counter()
        with stages.stage(REST):
            model = fastinit.build(stages.timed(CONSTRUCTORS, make), backend="cpp", seed=0)
        total = time.perf_counter() - began
    digests = [str(fastinit.digest(model))]
    began = time.perf_counter()
    for call in core.calls:
        call()
    again = time.perf_counter() - began
    digests.append(str(fastinit.digest(model)))
    n_tensors, n_bytes = sizes(model)
    found = {**dict.fromkeys((CONSTRUCTORS, WATCHING, RECORDS, FILLS, REST), 0.0), **stages.seconds}
    found |= {"total": total, "again": again, "tensors": n_tensors, "bytes": n_bytes}
    core.calls.clear()
    del model
    gc.collect()
    clearing, setting = limits(n_bytes)
    return {**found, "clearing": clearing, "setting": setting}, digests


def sizes(model: nn.Module) -> tuple[int, int]:
    """Returns how many tensors a model has, and how many bytes."""
    tensors = [*model.parameters(), *model.buffers()]
    return len(tensors), sum(tensor.nbytes for tensor in tensors)


# --- the limits ------------------------------------------------------------------------------------------------------


def limits(n_bytes: int) -> tuple[float, float]:
    """Returns the seconds in which all cores touch the pages of fresh memory, and in which they set it afterwards."""
    some = min(n_bytes, LIMIT_BYTES)
    found = [_touched_and_set(some, advice) for advice in ("MADV_NOHUGEPAGE", "MADV_HUGEPAGE") if hasattr(mmap, advice)]
    clearing, setting = min(found or [_touched_and_set(some, None)])
    return clearing * n_bytes / some, setting * n_bytes / some


def _touched_and_set(n_bytes: int, advice: str | None) -> tuple[float, float]:
    memory = mmap.mmap(-1, n_bytes)
    if advice is not None:
        memory.madvise(getattr(mmap, advice))
    pages = torch.frombuffer(memory, dtype=torch.uint8)[:: mmap.PAGESIZE]
    began = time.perf_counter()
    pages.fill_(1)  # by all threads
    touched = time.perf_counter() - began
    threads = torch.get_num_threads()
    part = n_bytes // threads
    address = pages.data_ptr()
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(lambda i: ctypes.memset(address + i * part, 1, part), range(threads)))
        return touched, time.perf_counter() - began


# --- measuring -------------------------------------------------------------------------------------------------------


def in_process(name: str, small: bool, is_profiled: bool) -> tuple[dict[str, float], list[str]]:
    """Builds a model in a process of its own, with timers or without."""
    command = [sys.executable, __file__, "--one", json.dumps([name, small, is_profiled])]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"{name}: failed")
    seconds, digests = json.loads(process.stdout.splitlines()[-1])
    return seconds, digests


def here(name: str, small: bool, is_profiled: bool) -> tuple[dict[str, float], list[str]]:
    """Builds a model in this process."""
    make = partial(MODELS[name], small)
    fastinit.build(partial(MODELS[name], True), backend="cpp", seed=0)  # imports, caches
    if is_profiled:
        time.sleep(0 if small else IDLE_S)
        return profiled(make)
    return {}, [str(fastinit.digest(fastinit.build(make, backend="cpp", seed=0)))]


def row_of(name: str, rounds: int, small: bool) -> dict[str, object]:
    """Checks and measures one model."""
    _, (expected,) = in_process(name, small, False)
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        seconds, digests = in_process(name, small, True)
        must_be_equal(name, [expected, *digests])
        found.append(seconds)
    median = {key: statistics.median(each[key] for each in found) for key in found[0]}
    pages = statistics.median(max(each[FILLS] - each["again"], 0.0) for each in found)
    least = median["clearing"] + median["setting"]
    return {
        "model": name,
        "tensors": f"{median['tensors']:,.0f}",
        "GB": f"{median['bytes'] / 1e9:.2f}",
        "build, ms": f"{1e3 * median['total']:.0f}",
        "constructors": f"{1e3 * median[CONSTRUCTORS]:.0f}",
        "watching them": f"{1e3 * median[WATCHING]:.0f}",
        "to records": f"{1e3 * median[RECORDS]:.0f}",
        "fills: pages": f"{1e3 * pages:.0f}",
        "fills: values": f"{1e3 * median['again']:.0f}",
        "rest": f"{1e3 * median[REST]:.0f}",
        "touching pages alone": f"{1e3 * median['clearing']:.0f}",
        "memset alone": f"{1e3 * median['setting']:.0f}",
        "build, of these two": f"{median['total'] / least:.1f}",
        "fills, of these two": f"{median[FILLS] / least:.1f}",
    }


def must_be_equal(name: str, digests: Sequence[str]) -> None:
    """Exits unless all digests are the same."""
    if len(set(digests)) != 1:
        raise SystemExit(f"{name}: with timers, or filled again, it has other values: nothing is recorded")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="the models with this in their names")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"processes of each (default: {ROUNDS})")
    parser.add_argument("--small", action="store_true", help="small models, which are not recorded")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(here(*json.loads(options.one))))
        return
    names = [name for name in MODELS if options.only in name]
    if not names:
        parser.error(f"--only {options.only!r} matches no model; there are: {'; '.join(MODELS)}")
    for name in names:
        row = row_of(name, options.rounds, options.small)
        if options.small:
            print_table([row])
        else:
            replace("profile_build.csv", [row], "model", packages=("transformers",))


if __name__ == "__main__":
    main()
