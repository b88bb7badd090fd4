"""Executes one PTX operation on many values, for the tests of tools/ptx."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import needs
import numpy as np
import ptx

# How numbers of different types are combined is other in numpy 1, which torch before 2.3 needs.
needs.package("numpy", 2, 0).check()
Values = list[int]
"""Bits, one integer a thread."""

_PREFIXES = {16: "%h", 32: "%r", 64: "%d"}
HEADER = ".version 8.8\n.target sm_90\n.address_size 64\n"
N_THREADS = 128


@dataclass
class Operation:
    """An operation, and what it should give.

    ``text`` is an opcode, or statements with $d for the destination and $s for the sources; ``expected`` gets the bits of
    the sources as unsigned integers, and its result is cut to the destination's width; None: anything.
    """

    text: str
    result: str
    sources: list[str]
    expected: Callable[..., int | None]
    columns: Sequence[Values] | None = None

    def __str__(self) -> str:
        return self.text

    def check(self, seed: int = 0, n: int = 2000) -> None:
        """Raises AssertionError for values with another result."""
        columns = self.columns or [integers(bits(type_), n, seed + at) for at, type_ in enumerate(self.sources)]
        found = executed(self.text, self.result, self.sources, columns)
        mask = (1 << bits(self.result)) - 1
        right = [self.expected(*values) for values in zip(*columns)]
        wrong = [
            (list(map(hex, values)), hex(got), hex(due & mask))
            for values, got, due in zip(zip(*columns), found, right)
            if due is not None and got != due & mask
        ]
        assert not wrong, f"{len(wrong)} of {len(found)} are wrong, e.g. (sources, found, right) {wrong[:3]}"


def bits(type_: str) -> int:
    """Returns the width of a type."""
    return int(type_.lstrip("busf"))


def kernel_of(body: str, parameters: int = 1) -> ptx.Kernel:
    """Returns a kernel with pointers p0, p1, ... whose body has registers of all kinds."""
    names = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    registers = ".reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .b64 %d<32>; .reg .b64 %a<32>;"
    return ptx.Module(f"{HEADER}.visible .entry k({names})\n{{\n{registers}\n{body}\n}}").kernel()


def launched(kernel: ptx.Kernel, *arrays: np.ndarray[Any, Any], n_threads: int = N_THREADS, **more: Any) -> ptx.Memory:
    """Launches one block over arrays, and returns the memory."""
    memory = ptx.Memory(track=True)
    for array in arrays:
        memory.add(array)
    kernel.launch((1,), (n_threads,), [array.ctypes.data for array in arrays], memory, **more)
    return memory


def executed(text: str, result: str, sources: Sequence[str], columns: Sequence[Values]) -> Values:
    """Returns what an operation makes of values, which are the rows of the columns."""
    n = len(columns[0])
    inputs = [np.array([value % (1 << 64) for value in column], np.uint64) for column in columns]
    output = np.zeros(n, np.uint64)
    lines = [
        "mov.u32 %r30, %tid.x; mov.u32 %r31, %ctaid.x; mov.u32 %r29, %ntid.x; mad.lo.u32 %r30, %r31, %r29, %r30;",
        f"setp.ge.u32 %p1, %r30, {n}; @%p1 bra DONE; mul.wide.u32 %a30, %r30, 8;",
    ]
    registers = []
    for i, type_ in enumerate(sources):
        register = f"{_PREFIXES[bits(type_)]}{i}"
        lines.append(
            f"ld.param.u64 %a{i}, [p{i}]; add.s64 %a{i}, %a{i}, %a30; ld.global.b{bits(type_)} {register}, [%a{i}];"
        )
        registers.append(register)
    destination = f"{_PREFIXES[bits(result)]}8"
    statement = text if "$" in text else f"{text} $d, $s;"
    lines.append(statement.replace("$d", destination).replace("$s", ", ".join(registers)))
    lines.append(f"ld.param.u64 %a9, [p{len(sources)}]; add.s64 %a9, %a9, %a30;")
    lines.append(f"st.global.b{bits(result)} [%a9], {destination};\nDONE: ret;")
    memory = ptx.Memory()
    for array in (*inputs, output):
        memory.add(array)
    arguments = [array.ctypes.data for array in (*inputs, output)]
    kernel = kernel_of("\n".join(lines), len(arguments))
    kernel.launch((-(-n // N_THREADS),), (N_THREADS,), arguments, memory)
    return [int(value) % (1 << bits(result)) for value in output]


def integers(width: int, n: int, seed: int) -> Values:
    """Returns integers of all sizes, with those where carries and signs change."""
    generator, full = random.Random(seed), (1 << width) - 1
    edges = [0, 1, 2, full, 1 << (width - 1), (1 << (width - 1)) - 1, 0xAAAAAAAAAAAAAAAA & full]
    shifts = [0, 0, 0, width // 2, width - 5]
    return [
        generator.choice(edges)
        if generator.random() < 0.25
        else generator.getrandbits(width) >> generator.choice(shifts)
        for _ in range(n)
    ]


def small(n: int, seed: int, below: int = 70) -> Values:
    """Returns small integers: numbers of bits to shift by."""
    generator = random.Random(seed)
    return [generator.choice([0, 1, 31, 32, 33, 63, 64, generator.randrange(below)]) for _ in range(n)]


def floats(n: int, seed: int) -> Values:
    """Returns the bits of float32: any, those near one, those around the middle of two of a half format, special ones."""
    generator = random.Random(seed)
    special = [0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001]
    special += [1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x3F800001]

    def near_one() -> int:
        return (0x3F000000 + generator.getrandbits(24) - (1 << 23)) | generator.getrandbits(1) << 31

    def near_middle() -> int:
        cut = generator.choice([13, 16])  # bits that float16 and bfloat16 have not
        return near_one() >> cut << cut | (1 << (cut - 1)) + generator.choice([-1, 0, 1])

    kinds = [lambda: generator.choice(special), lambda: generator.getrandbits(32), near_one, near_middle]
    return [generator.choice(kinds)() for _ in range(n)]


def signed(value: int, width: int) -> int:
    """Returns the signed integer of bits."""
    value %= 1 << width
    return value - ((value >> (width - 1)) << width)


def float_of(value: int) -> float:
    """Returns the float32 of bits."""
    return float(struct.unpack("<f", struct.pack("<I", value))[0])


def bits_of(value: float) -> int:
    """Returns the bits of a float32."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def is_nan(value: int) -> bool:
    """Returns whether bits are a float32 that is not a number."""
    return (value & 0x7FFFFFFF) > 0x7F800000
