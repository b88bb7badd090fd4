"""Modules and their kernels: launched, and asked what of them is not supported, not reached or not certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .instructions import Unsupported, built
from .memory import Memory
from .operands import Register
from .parsing import Parameter, Program, parsed
from .threads import Launch, Threads
from .types import Array, PtxError

# Threads that are executed together: their registers fit a processor's cache.
_CHUNK = 8192
# Of a block, on every GPU.
_MOST_THREADS = 1024

Argument = int | float | bytes


@dataclass(frozen=True)
class Stats:
    """What a launch did."""

    threads: int
    instructions: int
    """Executed, each by some number of threads."""
    divergent: int
    """Branches that only some of the threads took that came to them."""
    approx: list[str]
    """Executed instructions whose bits are not those of a GPU."""


class Module:
    """The text of PTX, parsed.

    Raises:
        PtxError: with the line that cannot be parsed.
    """

    def __init__(self, text: str) -> None:
        programs, self._variables = parsed(text)
        self.kernels = {name: Kernel(program, self._variables) for name, program in programs.items()}

    def kernel(self, name: str | None = None) -> Kernel:
        """Returns a kernel by its name, or the only one."""
        if name is not None:
            return self.kernels[name]
        (kernel,) = self.kernels.values()
        return kernel


class Kernel:
    """A kernel that can be launched.

    Args:
        program: its instructions.
        variables: the memory of the module's variables.
    """

    def __init__(self, program: Program, variables: dict[str, Array]) -> None:
        self.name = program.name
        self._program, self._variables = program, variables
        self._steps = [built(instruction) for instruction in program.instructions]
        # How many threads executed each instruction, over all launches.
        self._n_executed = [0] * len(self._steps)

    @property
    def params(self) -> dict[str, Parameter]:
        """Where each parameter lies among those of a launch."""
        return self._program.parameters

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Argument],
        mem: Memory,
        shared: int = 0,
        ctas: Array | None = None,
    ) -> Stats:
        """Executes the kernel to its end.

        Args:
            grid: blocks, in up to three dimensions.
            block: threads of a block, likewise.
            args: integers, which pointers are too, floats, or the bytes of structures.
            mem: what of the host's memory it may use.
            shared: bytes of dynamic shared memory.
            ctas: the numbers of the blocks to execute, to try parts of a grid that is too large; None: all.

        Raises:
            PtxError: with the line of the instruction that does what it must not, or is not supported.
        """
        x, y, z = (*grid, 1, 1)[:3]
        launch = Launch((x, y, z), self._block(block), self._parameters(args), mem, shared, approximate=set())
        for name, variable in self._variables.items():
            if not mem.holds(variable.ctypes.data):
                mem.add(variable, name=name)
        blocks = np.arange(x * y * z) if ctas is None else np.asarray(ctas)
        at_once = max(1, _CHUNK // launch.block_size)
        with np.errstate(all="ignore"):
            for first in range(0, blocks.size, at_once):
                part = Threads(self._program, self._steps, launch, blocks[first : first + at_once])
                try:
                    part.run(self._n_executed)
                except PtxError as error:
                    raise PtxError(f"{self.name}, {error}") from None
        n_threads = blocks.size * launch.block_size
        return Stats(n_threads, launch.n_instructions, launch.n_partings, sorted(launch.approximate or ()))

    def unsupported(self) -> list[str]:
        """Returns the instructions that cannot be executed, and why."""
        pairs = zip(self._program.instructions, self._steps)
        return [f"{instruction}  [{step.reason}]" for instruction, step in pairs if isinstance(step, Unsupported)]

    def unreached(self) -> list[str]:
        """Returns the instructions that no thread has executed yet: nothing is known about them."""
        return [str(each) for each, n in zip(self._program.instructions, self._n_executed) if not n]

    def contractable(self) -> list[tuple[int, int, str]]:
        """Returns products that the assembler may fuse with a sum, so that a GPU would compute other bits.

        Those are mul and add or sub without .rn, in the order of the text.

        Returns:
            (line of the product, line of the sum, the sum).
        """
        products: dict[int, int] = {}
        found = []
        for each in self._program.instructions:
            if not each.types or each.types[0].name not in ("f32", "f64", "f32x2") or not each.arguments:
                continue
            destination, *sources = each.arguments
            may_fuse = "rn" not in each.modifiers
            if each.opcode in ("add", "sub") and may_fuse:
                slots = [source.slot for source in sources if isinstance(source, Register)]
                found += [(products[slot], each.line, each.text) for slot in slots if slot in products]
            if isinstance(destination, Register):
                products.pop(destination.slot, None)
                if each.opcode == "mul" and may_fuse:
                    products[destination.slot] = each.line
        return found

    def _block(self, block: Sequence[int]) -> tuple[int, int, int]:
        """Returns the three dimensions of a block that the kernel's bounds allow."""
        x, y, z = (*block, 1, 1)[:3]
        n_threads = x * y * z
        if not 0 < n_threads <= _MOST_THREADS:
            raise PtxError(f"a block of {n_threads} threads")
        required, most = self._program.bound("reqntid"), self._program.bound("maxntid")
        if required and (*required, 1, 1)[:3] != (x, y, z):
            raise PtxError(f"a block of {x, y, z} threads, and the kernel is for {required} (.reqntid)")
        if most and n_threads > int(np.prod(most)):
            raise PtxError(f"a block of {n_threads} threads, and the kernel is for {most} at most (.maxntid)")
        return x, y, z

    def _parameters(self, arguments: Sequence[Argument]) -> bytes:
        """Returns the memory of the parameters."""
        if len(arguments) != len(self.params):
            raise PtxError(f"{self.name} takes {len(self.params)} parameters, got {len(arguments)}")
        found = bytearray(self._program.n_parameter_bytes)
        for (name, parameter), value in zip(self.params.items(), arguments):
            size = parameter.n_bytes
            if isinstance(value, float):
                dtype = parameter.type.number if parameter.type.is_float else np.dtype(f"f{size}")
                value = np.array([value], dtype).tobytes()
            elif not isinstance(value, bytes):
                value = (int(value) % (1 << 8 * size)).to_bytes(size, "little")
            if len(value) != size:
                raise PtxError(f"parameter {name} of {size} bytes got {len(value)}")
            found[parameter.offset : parameter.offset + size] = value
        return bytes(found)
