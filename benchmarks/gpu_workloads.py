"""The workloads of bench_gpu.py: lists of tensors, ways to fill them, and the checks before anything is timed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit import plans
from fastinit.backends import cpp_backend, cuda_backend, triton_backend
from fastinit.contract import streams

# Without a GPU the reference takes their place, so that all of the code runs.
OURS: dict[str, dict[str, Any]] = {
    "cuda": {"triton": triton_backend, "cuda": cuda_backend},
    "cpu": {"cpp": cpp_backend},
}
TORCH = "torch.nn.init"
CPP_WHY_NOT = cpp_backend.why_not(torch.device("cpu"))
SEED = 1234
N_ELEMENTS = 1 << 30
CHUNK = 1 << 28  # elements checked at a time: the mask has 256 MiB
WINDOW = 4096  # elements
N_SAMPLE = 1 << 20
DOUBLE_ERROR = 1e-12  # of random float64, whose bits the contract does not promise

# 20,000 matrices of 768 x 1024 are 31.5 GB in bfloat16. Of an H100's 80 GB at least 70 are free: room for the list, and
# for as much again in contenders and checks (see needed_bytes).
EXPERT_LAYERS, EXPERTS = 50, 200
EXPERT_WIDTH, EXPERT_HIDDEN = 1024, 768

STD = 0.02
NORMAL, UNIFORM, ONE = plans.Normal(0, STD), plans.Uniform(-0.1, 0.1), plans.Constant(1.0)
INSIDE = plans.TruncatedNormal(0, STD, -2 * STD, 2 * STD)
WIDE = plans.TruncatedNormal(0, STD, -100 * STD, 100 * STD)
LABELS: dict[plans.Distribution, str] = {INSIDE: "trunc_normal, 2 sigma", WIDE: "trunc_normal, 100 sigma"}
DTYPES = [torch.float32, torch.bfloat16]


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
        """Identifies its rows in the table."""
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
        """The GPU memory needed: the list, and torch.nn.init.trunc_normal_'s copies and masks of one tensor."""
        return self.n_bytes + 4 * self.dtype.itemsize * max(math.prod(spec.shape) for spec in self.specs)


def label(distribution: plans.Distribution) -> str:
    """Returns a distribution's label in the tables."""
    return LABELS.get(distribution, distribution.kind)


def llama(weights: plans.Distribution, divisor: int = 1) -> Iterator[Spec]:
    """Yields the parameters of Llama 3 8B, with widths and vocabulary divided by ``divisor``."""
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
    """Yields a mixture of experts: 20,000 experts' matrices, and its layers' norms."""
    width, hidden = shrunk(EXPERT_WIDTH, divisor), shrunk(EXPERT_HIDDEN, divisor)
    for i in range(EXPERT_LAYERS):
        for j in range(EXPERTS):
            yield Spec(f"layers.{i}.experts.{j}.up.weight", (hidden, width), weights)
            yield Spec(f"layers.{i}.experts.{j}.down.weight", (width, hidden), weights)
        yield Spec(f"layers.{i}.norm.weight", (width,), ONE)


def shrunk(n: int, divisor: int) -> int:
    """Returns a dimension for a trial: a multiple of 8 keeps every tensor of the flat buffer 16-byte aligned."""
    return max(8, n // divisor // 8 * 8)


def workloads(n_elements: int = N_ELEMENTS) -> list[Workload]:
    """Returns all workloads; lists have their real size at 2^30 elements, and narrower matrices below."""
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
    """Returns a flat buffer for a list, and the tensors, which are consecutive views of it."""
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
    """Whether it promises the ``cpp`` backend's bits."""
    is_floor: bool = False
    """Whether it writes other values than requested, as a lower bound for torch."""


def contenders(workload: Workload, flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[Contender]:
    """Returns the contenders for a workload, torch.nn.init first; one that cannot run has a reason."""
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
    for name, module in OURS[flat.device.type].items():
        call = partial(by_contract, module.run, workload.specs, tensors)
        found.append(Contender(name, call, note, module.why_not(flat.device), is_contract=True))
    return found


def by_torch(specs: Sequence[Spec], tensors: Sequence[torch.Tensor]) -> None:
    """The way that users write today."""
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
    """One of our backends, from names, tensors and distributions to the launch."""
    run([plans.Fill.whole(each.name, tensor, each.distribution, "", "") for each, tensor in zip(specs, tensors)], SEED)


def stateless(workload: Workload, tensors: Sequence[torch.Tensor]) -> Contender:
    """torch.func._random, tried on a small tensor first: releases differ in how much of it works."""
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
    """Raises SystemExit if an element is still the NaN from before."""
    for part in torch.split(flat, CHUNK):
        if part.isnan().any():
            raise SystemExit(f"{what}: not every element was written")


def windows(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields (offset, size) of boxes at the start, middle and end of a tensor, each part of a row."""
    size = (*(1 for _ in shape[:-1]), min(WINDOW, shape[-1]))
    for quarters in (0, 2, 4):
        yield tuple((n - part) * quarters // 4 for n, part in zip(shape, size)), size


def sampled(specs: Sequence[Spec]) -> list[int]:
    """Returns the indices of the first tensor of each kind, of some in between, and of the last."""
    first: dict[object, int] = {}
    for i, spec in enumerate(specs):
        first.setdefault((spec.shape, spec.distribution), i)
    return sorted({*first.values(), *range(0, len(specs), max(1, len(specs) // 12)), len(specs) - 1})


def must_have_the_contracts_bits(what: str, specs: Sequence[Spec], tensors: Sequence[torch.Tensor]) -> None:
    """Raises SystemExit unless windows of sampled tensors hold the ``cpp`` backend's values of those boxes."""
    for i in sampled(specs):
        spec, tensor = specs[i], tensors[i]
        for offset, size in windows(spec.shape):
            right = torch.full(size, math.nan, dtype=tensor.dtype)
            box = plans.Box.at(right, offset, spec.shape)
            cpp_backend.run([plans.Fill(spec.name, right, spec.distribution, "", "", spec.shape, (box,))], SEED)
            found = tensor[tuple(slice(start, start + n) for start, n in zip(offset, size))]
            if not as_promised(found, right, spec.distribution):
                raise SystemExit(f"{what}: {spec.name} differs from the cpp backend at {offset}; nothing is timed")


def as_promised(found: torch.Tensor, right: torch.Tensor, distribution: plans.Distribution) -> bool:
    """Tells whether a tensor matches the ``cpp`` backend's as the contract asks: its bits, or 1e-12 in float64."""
    if right.dtype == torch.float64 and not isinstance(distribution, plans.Constant):
        errors = (found.detach().cpu() - right).abs()
        return bool((errors <= DOUBLE_ERROR * right.abs().clamp(min=1)).all())
    return torch.equal(bits(found), bits(right))


def moments(distribution: plans.Distribution) -> tuple[float, float]:
    """Returns mean and standard deviation of a distribution; a truncated one is symmetric here."""
    if isinstance(distribution, plans.Constant):
        return float(distribution.value.real), 0.0
    if isinstance(distribution, plans.Uniform):
        return (distribution.low + distribution.high) / 2, (distribution.high - distribution.low) / 12**0.5
    if isinstance(distribution, plans.Normal):
        return distribution.mean, distribution.std
    assert isinstance(distribution, plans.TruncatedNormal), f"{distribution} has no moments here"
    c = (distribution.high - distribution.mean) / distribution.std
    cut = 2 * c * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) / math.erf(c / math.sqrt(2))
    return distribution.mean, distribution.std * math.sqrt(1 - cut)


def wrong_moments(tensor: torch.Tensor, distribution: plans.Distribution) -> str | None:
    """Returns what is wrong with the mean and deviation of a tensor's first elements, beyond ten standard errors."""
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
        By contender, what is wrong with the moments of torch.nn.init's values: a finding, not a reason to stop.
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
