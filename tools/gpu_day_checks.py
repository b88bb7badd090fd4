"""Steps of the GPU day that compare every byte with cpp: kinds of fills, many tensors, streams, 2^33 elements."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_day_device import CPU, DEVICE, GPU, backends, seconds_of, sleep, sync
from gpu_day_step import check, found, going_on
from gpu_workloads import CHUNK, as_promised, bits

from fastinit import plans
from fastinit.backends import BACKENDS, limits
from fastinit.contract import records as lowering

SEED = 20261126
PATTERN = 0xAA  # of the memory around the tensors and in their gaps, which a kernel must not change
MARGIN = 10  # elements of it after a tensor
INF = math.inf
C, U, N, T = plans.Constant, plans.Uniform, plans.Normal, plans.TruncatedNormal

# Each kind of record with extreme numbers: denormal scales, zero width, float16's limits, tails, narrow bounds.
DISTRIBUTIONS: list[plans.Distribution] = [
    *(U(-0.37, 1.93), U(0, 3e-38), U(2.0, 2.0), N(0.25, 1.5), N(0, 0.02), N(0, 1e-38), N(3, 0), N(0, 6e4)),
    *(T(0.25, 1.5, -2.5, 3.0), T(0, 1, -100, 100), T(0, 1, -1, 3), T(0, 1, 6, INF), T(0.5, 0.02, -INF, 0.4)),
    *(T(0, 1, -30, -29), T(0, 1e-6, -3e-6, 1e-5), T(1e4, 1, 9999.5, 10003)),
]
DTYPES = list(lowering.DTYPES)
# Constants go into every dtype, as bytes: elements of 1, 2, 4, 8 and 16.
INTEGERS = [torch.int8, torch.bool, torch.int16, torch.int32, torch.int64]
RAW = [*INTEGERS, torch.complex64, torch.complex128, *DTYPES]


@dataclass(frozen=True)
class Case:
    """A fill of a strided box."""

    name: str
    distribution: plans.Distribution
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    """Elements in front of the first."""
    shape: tuple[int, ...]
    """The shape of the whole parameter; this case is its box at ``offset``."""
    offset: tuple[int, ...]

    @staticmethod
    def whole(
        name: str, distribution: plans.Distribution, dtype: torch.dtype, size: tuple[int, ...], start: int = 0
    ) -> Case:
        """Returns a case that is a whole parameter."""
        return Case(name, distribution, dtype, size, plans.row_major(size), start, size, (0,) * len(size))

    def made_on(self, device: torch.device) -> tuple[torch.Tensor, plans.Fill]:
        """Returns memory full of the pattern, and the fill of a view of it."""
        n = self.start + sum((size - 1) * step for size, step in zip(self.size, self.stride)) + MARGIN
        base = torch.full((n * self.dtype.itemsize,), PATTERN, dtype=torch.uint8, device=device)
        view = base.view(self.dtype).as_strided(self.size, self.stride, self.start)
        box = plans.Box.at(view, self.offset, self.shape)
        return base, plans.Fill(self.name, view, self.distribution, "", "", self.shape, (box,))


def compare(what: str, backend: str, cases: Sequence[Case]) -> None:
    """Fills all cases in one call, and on the CPU; compares every byte, those around the tensors too."""
    references = [case.made_on(CPU) for case in cases]
    kept = [i for i, (_, fill) in enumerate(references) if limits.why_not_fill(fill) is None]
    results = [cases[i].made_on(DEVICE) for i in kept]
    launches: list[int] = []
    fills = [fill for _, fill in results]
    host_s, done_s = seconds_of(lambda: launches.append(BACKENDS[backend].run(fills, SEED)))
    BACKENDS["cpp"].run([references[i][1] for i in kept], SEED)
    bad = []
    for i, (base, fill) in zip(kept, results):
        right_base, right = references[i]
        if torch.equal(base.cpu(), right_base):
            continue
        # The bytes around a float64 tensor stay the pattern if they are put over the ones that may differ.
        almost = as_promised(fill.tensor, right.tensor, right.distribution)
        right.tensor.copy_(fill.tensor)
        if not (almost and torch.equal(base.cpu(), right_base)):
            bad.append(cases[i])
    numbers = dict(fills=len(kept), launches=launches[0], wrong=len(bad), host_ms=host_s * 1e3, done_ms=done_s * 1e3)
    text = f"{backend}: {what}: {len(kept)} fills, {launches[0]} launch(es), {len(bad)} wrong"
    text += f"; host {host_s * 1e3:.1f} ms, done {done_s * 1e3:.1f} ms"
    examples = "".join(f"; {case}" for case in bad[:3])
    check(not bad and bool(kept), text + examples, **numbers)


def everything() -> list[Case]:
    """Returns all distributions in all dtypes and several sizes, aligned and not, and constants in all dtypes."""
    sizes: list[tuple[int, ...]] = [(1,), (4099,), (70001,), (64, 1024)] if GPU else [(1,), (4099,)]
    cases = [
        Case.whole(f"{i}.{j}.{k}", distribution, dtype, size, k % 3)
        for i, distribution in enumerate(DISTRIBUTIONS)
        for j, dtype in enumerate(DTYPES)
        for k, size in enumerate(sizes)
    ]
    return cases + [
        Case.whole(f"c{j}.{value}", C(value), dtype, (5001,), j % 5) for value in (0, 1) for j, dtype in enumerate(RAW)
    ]


def boxes(n: int, seed: int = 0) -> list[Case]:
    """Returns random boxes: up to five dimensions in any order, gaps, offsets, parameters beyond 2^35 elements."""
    random = np.random.default_rng(seed)

    def pick(*choices: int) -> int:
        return int(random.choice(choices))

    cases = []
    for i in range(n):
        n_dims = int(random.integers(1, 6))
        size = tuple(int(x) for x in random.integers(1, 40 if n_dims < 3 else 9, n_dims))
        stride, step = [0] * n_dims, pick(1, 1, 1, 2)
        for dim in random.permutation(n_dims):
            stride[dim] = step
            step = step * size[dim] + pick(0, 0, 0, 1, 4, 16)
        offset = tuple(pick(0, 0, 4, 8, 3) for _ in size)
        shape = tuple(a + b + pick(0, 0, 4, 16, 5) for a, b in zip(size, offset))
        if i % 9 == 0:
            shape, offset = (shape[0] + 2**35, *shape[1:]), (offset[0] + 2**34 + 1, *offset[1:])
        distribution = DISTRIBUTIONS[i % len(DISTRIBUTIONS)] if i % 11 else C(1.0)
        dtype = DTYPES[int(random.integers(len(DTYPES)))]
        cases.append(Case(f"p{i}", distribution, dtype, size, tuple(stride), pick(0, 0, 4, 1), shape, offset))
    return cases


def many(n: int) -> list[Case]:
    """Returns a model of many small tensors."""
    random = np.random.default_rng(1)
    kinds: list[plans.Distribution] = [N(0, 1), U(-1, 1), T(0, 1, -2, 2), C(1.0)]
    dtypes = [torch.float32, torch.bfloat16]
    return [
        Case.whole(f"layers.{i}.w", kinds[i % 4], dtypes[i // 4 % 2], (int(random.integers(1, 3000)),))
        for i in range(n)
    ]


def smoke() -> None:
    """Checks the kernels' bits."""
    for backend in backends():
        with going_on(backend):
            first = [Case.whole("w", N(0, 1), torch.float32, (100,)).made_on(DEVICE)[1]]
            _, first_s = seconds_of(partial(BACKENDS[backend].run, first, 0))
            found(f"{backend}: the very first fill, compilation and loading in it: {first_s:.2f} s", seconds=first_s)
            compare("all distributions x dtypes", backend, everything())
            compare("boxes and strides", backend, boxes(1500 if GPU else 60))
            cases = many(20_000 if GPU else 500)
            compare(f"{len(cases):,} tensors", backend, cases)
            compare(f"{len(cases):,} tensors again", backend, cases)
    for backend in backends():
        with going_on(f"{backend}: launches that are not waited for"):
            pending(backend)
    for backend in backends():
        for dtype, n, distribution in HUGE if GPU else HUGE_IN_SMALL:
            with going_on(f"{backend}: {n:,} elements"):
                huge(backend, dtype, n, distribution)
        with going_on(f"{backend}: the same again"):
            determinism(backend)


# More than 2^32 elements, and more than 2^33 of one byte each; 8.6 GB each.
HUGE: list[tuple[torch.dtype, int, plans.Distribution]] = [
    (torch.bfloat16, 2**32 + 12347, N(0.25, 1.5)),
    (getattr(torch, "float8_e4m3fn", torch.float16), 2**33 + 7, U(-1, 1)),
]
HUGE_IN_SMALL: list[tuple[torch.dtype, int, plans.Distribution]] = [(torch.bfloat16, 2**20 + 7, N(0, 1))]
HUGE_WINDOW = 1 << 16  # elements


def pending(backend: str) -> None:
    """Checks launches whose tables are freed while the device is busy, on alternating streams that reuse the memory."""
    streams: list[Any] = [torch.cuda.Stream() for _ in range(4)] if GPU else []  # type: ignore[no-untyped-call]
    n, rounds = (300_001, 200) if GPU else (3001, 8)
    kept = []
    for i in range(rounds):
        if streams:
            torch.cuda.set_stream(streams[i % len(streams)])
            if i % 10 == 0:
                sleep()  # the next launches wait behind it
        tensor, junk = torch.empty(n, device=DEVICE), torch.empty(n, device=DEVICE)
        fills = [plans.Fill.whole(f"w{i}", tensor, N(0, 1), "", ""), plans.Fill.whole("junk", junk, U(0, 1), "", "")]
        BACKENDS[backend].run(fills, i)
        del junk, fills
        kept.append(tensor)
        for n_bytes in (2048, 4096, 65536):  # would reuse the memory of tables, if it were free already
            torch.full((n_bytes,), 77, dtype=torch.uint8, device=DEVICE)
    sync()
    if streams:
        torch.cuda.set_stream(torch.cuda.default_stream())
    n_wrong = 0
    for i, tensor in enumerate(kept):
        right = torch.empty(n)
        BACKENDS["cpp"].run([plans.Fill.whole(f"w{i}", right, N(0, 1), "", "")], i)
        n_wrong += not torch.equal(tensor.cpu(), right)
    what = f"{rounds} launches on {len(streams) or 1} stream(s), none waited for, tables let go of while pending"
    check(not n_wrong, f"{backend}: {what}: {n_wrong} wrong", launches=rounds, wrong=n_wrong)


def huge(backend: str, dtype: torch.dtype, n: int, distribution: plans.Distribution) -> None:
    """Checks a tensor with more elements than 32 bits count: windows of it, and that every element is written."""
    gc.collect()
    tensor = torch.empty(n, dtype=dtype, device=DEVICE)
    tensor.view(torch.uint8).fill_(0xFF)  # a NaN in both dtypes, which no distribution yields
    fills = [plans.Fill.whole("w", tensor, distribution, "", "")]
    BACKENDS[backend].run(fills, SEED)
    _, seconds = seconds_of(lambda: BACKENDS[backend].run(fills, SEED))
    random, last = np.random.default_rng(3), n - HUGE_WINDOW
    edges = {0, min(2**31, n) - HUGE_WINDOW, n // 2, min(2**32, n) - HUGE_WINDOW, last - HUGE_WINDOW // 2, last}
    starts = sorted(edges | {int(x) for x in random.integers(0, last, 60)})
    n_wrong = 0
    for start in starts:
        right = torch.empty(HUGE_WINDOW, dtype=dtype)
        box = plans.Box(right, start, (1,))
        BACKENDS["cpp"].run([plans.Fill("w", right, distribution, "", "", (n,), (box,))], SEED)
        n_wrong += not torch.equal(bits(tensor[start : start + HUGE_WINDOW]), bits(right))
    words, unset = (tensor.view(torch.uint8), 0xFF) if dtype.itemsize == 1 else (tensor.view(torch.int16), -1)
    unwritten = sum(int((part == unset).sum().item()) for part in torch.split(words, CHUNK))
    gigabytes_s = n * dtype.itemsize / seconds / 1e9
    text = f"{n:,} elements of {dtype}: {n_wrong} of {len(starts)} windows wrong, {unwritten} elements not written"
    text = f"{backend}: {text}, {seconds * 1e3:.2f} ms, {gigabytes_s:.0f} GB/s"
    check(not n_wrong and not unwritten, text, wrong=n_wrong, unwritten=unwritten, ms=seconds * 1e3, gb_s=gigabytes_s)


def determinism(backend: str) -> None:
    """Checks that the same fill gives the same bits each time."""
    n = 2**27 if GPU else 2**16
    tensors = [torch.empty(n, device=DEVICE) for _ in range(3)]
    for tensor in tensors:
        BACKENDS[backend].run([plans.Fill.whole("w", tensor, T(0, 1, -100, 100), "", "")], 3)
    good = all(torch.equal(tensors[0], each) for each in tensors[1:])
    check(good, f"{backend}: three fills of {n:,} elements are equal: {good}")


def sanitize(backend: str) -> None:
    """Checks a small launch with each path and dtype, for tools that slow kernels down."""
    if not GPU:
        backend = "cpp"
    big = Case.whole("big", N(0, 1), torch.bfloat16, (300_001,))
    compare("a launch of all kinds", backend, [*everything()[::7], *boxes(120, 5), big])
