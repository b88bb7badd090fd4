"""Records calls of the native core: what replay.cpp reads, and the memory as it must be after each of them.

The records are those of the real lowering. What the installed core makes of them, on its best instruction set, is what
is expected.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastinit import plans
from fastinit.backends import cpp_backend, torch_backend
from fastinit.contract import records as lowering
from fastinit.contract.digests import box_records

NATIVE: Any = cpp_backend._native
Array = np.ndarray[Any, Any]
# replay.cpp's.
KINDS = {"run": 0, "fill_from": 1, "fma": 2, "digest": 3, "compare": 4, "read_rows": 5}
PATTERN = 0xA5

INF = math.inf
# Every form of truncated normal, on both sides of the mean.
DISTRIBUTIONS = [
    plans.Constant(0.7),
    plans.Uniform(-0.37, 1.93),
    plans.Normal(0.25, 1.5),
    plans.Normal(0, 1e-7),  # subnormal in float16, zero in float8
    plans.Normal(0, 6e4),  # overflows there
    plans.TruncatedNormal(0.25, 1.5, -2.5, 3.0),
    plans.TruncatedNormal(0, 1, -1.9, 0.3),
    plans.TruncatedNormal(0.25, 1.5, -50, 50),
    plans.TruncatedNormal(0, 1, 0, INF),
    plans.TruncatedNormal(0, 1, -INF, 1.3),
    plans.TruncatedNormal(0, 1, -8, -5),
    plans.TruncatedNormal(0, 1, 28, 33),
    plans.TruncatedNormal(0, 0.5, 3, INF),
]
# For digests, to which a dtype is its number of bytes.
BYTES = [torch.int8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
WHOLE = plans.TruncatedNormal(0, 1, -INF, INF)
CONSTANT_ONLY = [torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128]
PAIRS: list[tuple[Any, torch.dtype]] = [
    (distribution, dtype)
    for dtype in lowering.DTYPES
    for distribution in DISTRIBUTIONS
    # Torch 2.1 puts no constants into float8.
    if not (isinstance(distribution, plans.Constant) and torch_backend.why_not_values(dtype, distribution))
]
PAIRS += [(plans.Constant(1), dtype) for dtype in CONSTANT_ONLY] + [(plans.Constant(1.25 - 0.5j), torch.complex128)]


@dataclass(frozen=True)
class Layout:
    """A box of a parameter, and its memory: the order of its dimensions, steps between elements, elements in front."""

    sizes: tuple[int, ...]
    order: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    lead: int = 0
    shape: tuple[int, ...] = ()
    offset: tuple[int, ...] = ()


Part = tuple[Any, torch.dtype, Layout]
LAYOUTS = [
    Layout((2503,), lead=3),
    Layout((37, 41), (0, 1), (2, 3), lead=1),
    Layout((7, 70), (1, 0), shape=(2**20, 2**16), offset=(2**20 - 8, 2**16 - 71)),  # first index near 2^36
    Layout((45, 1), shape=(50, 40), offset=(3, 7)),  # one element wide in the innermost dimension
    Layout((2, 3, 2, 2, 3, 2, 2, 3), (7, 6, 5, 4, 3, 2, 1, 0), lead=5),  # more dimensions than a record has
]
# Several pieces of 65,536 elements for threads to share; pieces end within rows.
LARGE = [
    Layout((200_003,), lead=1),
    Layout((401, 331), (1, 0)),
    Layout((350, 401), (0, 1), (1, 2), shape=(500, 600), offset=(7, 9)),
]


@dataclass
class Buffer:
    """Memory that a call is given, as it must be after it."""

    label: str
    memory: Array


@dataclass
class Call:
    """A call of the core."""

    kind: str
    buffers: list[Buffer]
    table: Array
    inputs: Array = field(default_factory=lambda: np.zeros(0, np.uint32))
    n_threads: int = 1
    n_callers: int = 1

    def encoded(self) -> bytes:
        """Returns the call as replay.cpp reads it."""
        numbers = [KINDS[self.kind], self.n_threads, self.n_callers, len(self.buffers), len(self.table)]
        header = np.array([*numbers, len(self.inputs), *(each.memory.nbytes for each in self.buffers)], np.int64)
        table, address = self.table.copy(), self.table["data"]
        for i, each in enumerate(self.buffers):
            start = each.memory.ctypes.data
            inside = (address >= start) & (address < start + each.memory.nbytes)
            table["data"][inside] = address[inside] - start + (i << 40)
        return b"".join(part.tobytes() for part in (header, table, self.inputs))


def laid_out(layout: Layout, dtype: torch.dtype) -> tuple[Array, plans.Box]:
    """Returns memory that ends with the box's last element, and the box."""
    n_dims = len(layout.sizes)
    strides, span, last = [0] * n_dims, 1, 0
    for d in reversed(layout.order or range(n_dims)):
        strides[d] = span * (layout.steps or (1,) * n_dims)[d]
        span = strides[d] * layout.sizes[d]
        last += strides[d] * (layout.sizes[d] - 1)
    memory = np.full((layout.lead + last + 1) * dtype.itemsize, PATTERN, np.uint8)
    tensor = torch.from_numpy(memory).view(dtype).as_strided(layout.sizes, strides, layout.lead)
    return memory, plans.Box.at(tensor, layout.offset or (0,) * n_dims, layout.shape or layout.sizes)


def lowered(parts: Sequence[Part]) -> Call:
    """Returns the call, still to be executed, that fills all parts; "words" as a distribution are the words' bits."""
    buffers, tables = [], [np.zeros(0, lowering.RECORD)]
    for i, (distribution, dtype, layout) in enumerate(parts):
        memory, box = laid_out(layout, dtype)
        drawn = plans.Uniform(0, 1) if distribution == "words" else distribution
        fill = plans.Fill(f"weight{i}", box.tensor, drawn, "", "", layout.shape or layout.sizes, (box,))
        if reason := cpp_backend.why_not_fill(fill):
            raise ValueError(f"{distribution}: {reason}")
        tables.append(lowering.lowered([fill], 2026))
        if distribution == "words":
            tables[-1]["distribution"] = lowering.WORDS
        buffers.append(Buffer(f"{distribution}, {dtype}, {layout}", memory))
    return Call("run", buffers, np.concatenate(tables))


def run_call(parts: Sequence[Part], n_threads: int = 1, n_callers: int = 1) -> Call:
    """Returns the executed call that fills all parts."""
    call = lowered(parts)
    call.n_threads, call.n_callers = n_threads, n_callers
    NATIVE.fill(call.table.view(np.uint8), n_threads)
    return call


def digest_call(
    dtypes: Sequence[torch.dtype], layouts: Sequence[Layout], n_threads: int = 1, n_callers: int = 1
) -> Call:
    """Returns the executed call that digests memory of every dtype in every layout."""
    buffers, boxes = [], []
    for dtype in dtypes:
        for layout in layouts:
            memory, box = laid_out(layout, dtype)
            at = np.arange(len(memory))
            memory[:] = (37 * at + at // 11).astype(np.uint8)
            buffers.append(Buffer(f"digest, {dtype}, {layout}", memory))
            boxes.append(box)
    table, _ = box_records(boxes)
    sums = NATIVE.digest(table.view(np.uint8), n_threads)
    return Call(
        "digest", [*buffers, Buffer("sums", sums.view(np.uint8))], table, np.zeros(0, np.uint32), n_threads, n_callers
    )


def compare_call(parts: Sequence[Part], n_threads: int = 1, n_callers: int = 1) -> Call:
    """Returns the executed call that compares memory with all parts, of which every third has a wrong byte."""
    call = run_call(parts, n_threads, n_callers)
    for buffer in call.buffers[::3]:
        buffer.memory[len(buffer.memory) // 2] ^= 1
    first = NATIVE.compare(call.table.view(np.uint8), n_threads)
    call.kind = "compare"
    call.buffers.append(Buffer("first differences", first.view(np.uint8)))
    return call


def from_words_calls() -> Iterator[Call]:
    """Yields calls on given words: the ends and the middle of their range, and floats around all roundings."""
    generator = np.random.default_rng(0)
    ends = [np.arange(end - 256, end + 256) % 2**32 for end in (0, 2**24, 2**31)]
    words = np.concatenate([*ends, generator.integers(0, 2**32, 2**13)]).astype(np.uint32)
    # The upper half of every float32, with what is at, beside and away from a tie of bfloat16, float16 and float8.
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    bits = (upper | np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001], np.uint32)).reshape(-1)
    bits = bits[~np.isnan(bits.view(np.float32))]
    cases: list[tuple[Any, torch.dtype, Array]] = [(each, torch.float32, words) for each in [*DISTRIBUTIONS[1:], WHOLE]]
    cases += [("words", dtype, bits[: len(bits) // 64 * 64]) for dtype in lowering.DTYPES if dtype.itemsize < 4]
    for distribution, dtype, inputs in cases:
        call = lowered([(distribution, dtype, Layout((len(inputs),)))])
        call.kind, call.inputs = "fill_from", inputs
        NATIVE.fill_from(call.table.view(np.uint8), inputs)
        if distribution == WHOLE and np.abs(call.buffers[0].memory.view(np.float32)).max() < 6:
            raise ValueError("the words do not reach the rare branch of the wide form")
        yield call


def fma_call() -> Call:
    """Returns a call on all kinds of finite numbers, on sums that cancel, and on ties that a tiny addend breaks."""
    generator = np.random.default_rng(1)
    anything = generator.integers(0, 2**32, (3, 2**14), dtype=np.uint32).view(np.float32)
    anything = anything[:, np.isfinite(anything).all(0)]
    near = generator.uniform(-2, 2, (3, 2**14)).astype(np.float32)
    near[2, ::2] = -near[0, ::2] * near[1, ::2]
    # Odd numbers of 13 and 12 bits: their product lies halfway between two float32 if it is 2^24 or more.
    odd = generator.integers([2**12, 2**11], [2**13, 2**12], (2**14, 2)).T | 1
    third = np.ldexp(generator.choice([-1, 0, 1], 2**14), generator.integers(-120, -5, 2**14))
    ties = np.stack([*odd * generator.choice([-1, 1], (2, 2**14)), third]).astype(np.float32)
    inputs = np.concatenate([anything, near, ties], axis=1)
    expected = NATIVE.fma(*inputs)
    buffer = Buffer("fma", expected.view(np.uint8))
    return Call("fma", [buffer], np.zeros(0, lowering.RECORD), inputs.view(np.uint32).reshape(-1))


def read_rows_calls() -> Iterator[Call]:
    """Yields reads of rows of a file: with all gaps and conversions, and of a file that ends within a row."""
    generator = np.random.default_rng(3)
    # Rows read together with their gaps, one by one, one by one with advice, longer than the buffer, a single one.
    shapes = [(50, 12, 40), (50, 100, 1500), (20, 64, 9000), (3, 70_001, 70_003), (1, 70_001, 70_001), (9, 1, 2)]
    codes = lowering.DTYPES
    pairs = [(torch.float32, torch.bfloat16), (torch.float32, torch.float16)]
    pairs += [(b, a) for a, b in pairs] + [(torch.float32, torch.float32), (torch.int8, torch.int8)]
    for stored, into in pairs:
        kinds = (codes[stored], codes[into]) if stored != into else (lowering.RAW, lowering.RAW)
        for n_rows, n_columns, step in shapes:
            for n_missing in (0, 1):
                sizes = (stored.itemsize, into.itemsize)
                steps = (step * sizes[0], (n_columns + 1) * sizes[1])
                n_bytes = ((n_rows - 1) * step + n_columns) * sizes[0] + 3 - n_missing * 4
                contents = generator.normal(size=n_bytes // 4 + 2).astype(np.float32)
                if stored == torch.float16:
                    contents = contents.astype(np.float16)
                contents = np.concatenate([np.zeros(3, np.uint8), np.resize(contents.view(np.uint8), n_bytes - 3)])
                memory = np.full(((n_rows - 1) * (n_columns + 1) + n_columns) * sizes[1], PATTERN, np.uint8)
                with tempfile.TemporaryFile() as file:
                    file.write(contents.tobytes())
                    file.flush()
                    how = ((n_rows, n_columns), steps, kinds, sizes, memory.ctypes.data)
                    is_complete = NATIVE.read_rows(file.fileno(), 3, *how)
                if is_complete == bool(n_missing):
                    raise ValueError("the core does not tell where a file ends")
                numbers = np.array([3, n_rows, n_columns, *steps, *kinds, *sizes, n_bytes], np.int64)
                inputs = np.concatenate([numbers.view(np.uint8), contents, np.zeros(-n_bytes % 4, np.uint8)])
                label = f"read_rows {stored} {into} {n_rows}x{n_columns} of {step}, {n_missing} bytes missing"
                told = Buffer(label, np.array([is_complete], np.uint8))
                yield Call(
                    "read_rows", [Buffer(label, memory), told], np.zeros(0, lowering.RECORD), inputs.view(np.uint32)
                )


def random_parts(n: int) -> Iterator[Part]:
    """Yields small boxes in all kinds of layouts."""
    pick = random.Random(2)
    for _ in range(n):
        shape = tuple(pick.randint(1, 9) for _ in range(pick.randint(0, 5)))
        offset = tuple(pick.randrange(size) for size in shape)
        sizes = tuple(pick.randint(1, size - at) for size, at in zip(shape, offset))
        order = tuple(pick.sample(range(len(shape)), len(shape)))
        steps = tuple(pick.choice([1, 1, 2, 3]) for _ in shape)
        layout = Layout(sizes, order, steps, pick.randrange(9), shape, offset)
        yield (*pick.choice(PAIRS), layout)


def recorded() -> list[Call]:
    """Records the calls."""
    calls = [run_call([(*pair, layout)]) for layout in LAYOUTS for pair in PAIRS]
    calls += [run_call([("words", torch.float32, layout)]) for layout in LAYOUTS]
    calls += [*from_words_calls(), fma_call(), run_call([], n_threads=3), *read_rows_calls()]
    # Tables that threads share: every distribution, dtype and layout, but not all of their combinations.
    calls.append(run_call([(*pair, LARGE[i % len(LARGE)]) for i, pair in enumerate(PAIRS[::3])], n_threads=8))
    calls.append(run_call(list(random_parts(400)), n_threads=5, n_callers=3))
    calls.append(run_call([(*pair, LARGE[0]) for pair in PAIRS[1::16]], n_threads=3, n_callers=3))
    calls += [digest_call([dtype], [layout]) for layout in LAYOUTS for dtype in BYTES]
    calls.append(digest_call(BYTES, LARGE, n_threads=5, n_callers=3))
    calls += [compare_call([(*pair, layout)]) for layout in LAYOUTS for pair in PAIRS[::5]]
    calls.append(compare_call([(*pair, LARGE[i % len(LARGE)]) for i, pair in enumerate(PAIRS[::7])], 5, 3))
    # Large enough for threads to take as many pieces at a time as they may.
    calls.append(run_call([(plans.Constant(7), torch.int8, Layout(((1 << 24) + 77,), lead=3))], n_threads=4))
    return calls
