"""Modules and their kernels: launches them, and lists what is unsupported, was not reached, or may be fused."""

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

# Threads executed together: their registers fit a processor's cache.
_CHUNK = 8192
# Per block, on every GPU.
_MOST_THREADS = 1024

Argument = int | float | bytes


@dataclass(frozen=True)
class Stats:
    """Counts of a launch."""

    threads: int
    instructions: int
    """Executed instructions, whatever their number of threads."""
    divergent: int
    """Branches that only some of the threads at them took."""
    approx: list[str]
    """Executed instructions whose bits may differ from a GPU's."""


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
        # The number of threads that executed each instruction, over all launches.
        self._n_executed = [0] * len(self._steps)

    @property
    def params(self) -> dict[str, Parameter]:
        """Each parameter's offset in the parameter memory."""
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
        """Runs the kernel to its end.

        Args:
            grid: blocks, in up to three dimensions.
            block: threads per block, likewise.
            args: integers (pointers included), floats, or the bytes of structures.
            mem: the host memory that it may use.
            shared: bytes of dynamic shared memory.
            ctas: indices of the blocks to run, for parts of a large grid; None: all.

        Raises:
            PtxError: an instruction is unsupported or does something forbidden; names its line.
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
        """Returns the unsupported instructions, with reasons."""
        pairs = zip(self._program.instructions, self._steps)
        return [f"{instruction}  [{step.reason}]" for instruction, step in pairs if isinstance(step, Unsupported)]

    def unreached(self) -> list[str]:
        """Returns the instructions that no thread has executed yet, so that nothing is known about them."""
        return [str(each) for each, n in zip(self._program.instructions, self._n_executed) if not n]

    def contractable(self) -> list[tuple[int, int, str]]:
        """Returns products that the assembler may fuse with a sum, which would change the bits on a GPU.

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
        """Returns a block's three dimensions; raises PtxError if the kernel's bounds do not allow them."""
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
        """Returns the parameter memory."""
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
