"""Where tests run the GPU kernels: compiled and executed on the CPU by tools/ptx, or on a real GPU.

A machine executes the records that the real lowering made. The emulated ones check too that every byte of the records is
written exactly once, and no other byte.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import torch
from paths import ROOT
from ptx import Memory, Module

from fastinit import plans
from fastinit.backends import cpp_backend, cuda_backend, gpu_launch, limits, triton_backend
from fastinit.contract import gpu_work as device_work
from fastinit.contract import records as lowering

# Pieces of work at most: so few that each is several trips of a loop, and so many that each is one. The second, which is
# the same code with less of it executed, on one architecture only.
PIECES = {"sm_80": (3,), "sm_90": (3, 1 << 15), "sm_90-plain": (3,), "sm_100": (3,), "cuda": (3, 1 << 15)}
CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@dataclass
class Case:
    """A fill of a strided box: ``n_base`` elements of memory, of which it is a view."""

    distribution: plans.Distribution
    dtype: torch.dtype = torch.float32
    size: tuple[int, ...] = (5000,)
    stride: tuple[int, ...] | None = None
    start: int = 0
    shape: tuple[int, ...] | None = None
    offset: tuple[int, ...] | None = None
    name: str = "weight"
    steps: tuple[int, ...] | None = None

    def made_on(self, device: torch.device | str) -> tuple[torch.Tensor, plans.Fill]:
        """Returns the memory, full of a pattern, and the fill of a view of it."""
        end = self.start + sum((n - 1) * step for n, step in zip(self.size, self.strides)) + 1
        base = torch.full(((end + 9) * self.dtype.itemsize,), 0xAA, dtype=torch.uint8, device=device)
        view = base.view(self.dtype).as_strided(self.size, self.strides, self.start)
        shape, offset = tuple(self.shape or self.size), self.offset or (0,) * len(self.size)
        box = plans.Box.at(view, offset, shape) if self.steps is None else plans.Box(view, offset[0], self.steps)
        return base, plans.Fill(self.name, view, self.distribution, "rule", "", shape, (box,))

    @property
    def strides(self) -> tuple[int, ...]:
        return self.stride or tuple(int(np.prod(self.size[d + 1 :])) for d in range(len(self.size)))

    def written(self, n_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Returns 1 for each of the memory's bytes that belongs to the view, else 0."""
        counts, width = np.zeros(n_bytes, np.uint8), self.dtype.itemsize
        strides = (*(stride * width for stride in self.strides), 1)
        np.lib.stride_tricks.as_strided(counts[self.start * width :], (*self.size, width), strides)[...] = 1
        return counts


class Machine:
    """Executes records."""

    device = "cpu"
    trips: device_work.Trips

    def __init__(self, backend: str, target: str) -> None:
        self.backend, self.target = backend, target

    def __str__(self) -> str:
        return f"{self.backend} on {self.target}"

    def execute(self, records: lowering.Records, cases: list[Case], buffers: list[torch.Tensor]) -> None:
        raise NotImplementedError

    def check(self, cases: list[Case], seed: int = 7, change: Any = None) -> list[torch.Tensor]:
        """Executes the cases in one launch, and compares every byte with what the CPU's kernels make of the same records.

        Returns the tensors, on the CPU.
        """
        for n_pieces in PIECES[self.target]:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(device_work, "_PIECES", n_pieces)
                tensors = self._check(cases, seed, change)
        return tensors

    def _check(self, cases: list[Case], seed: int, change: Any) -> list[torch.Tensor]:
        here, there = ([case.made_on(device) for case in cases] for device in ("cpu", self.device))
        for _, fill in here:
            assert limits.why_not_fill(fill) is None
        expected, records = (lowering.lowered([fill for _, fill in made], seed) for made in (here, there))
        if change is not None:
            for each in (expected, records):
                change(each)
        cpp_backend._core().fill(expected.view(np.uint8), 2)
        self.execute(records, cases, [base for base, _ in there])
        for case, (right, _), (found, _) in zip(cases, here, there):
            different = right != found.cpu()
            if case.dtype == torch.float64 and not isinstance(case.distribution, plans.Constant):
                values = [each.view(torch.float64) for each in (right, found.cpu())]
                different = ((values[0] - values[1]).abs() > 1e-12).repeat_interleave(8) & different
            assert not different.any(), f"{self}: {case}: {int(different.sum())} of {len(right)} bytes differ"
        return [fill.tensor.cpu() for _, fill in there]


class Real(Machine):
    """A GPU, through the backend's own launch."""

    device = "cuda"

    def __init__(self, backend: str, target: str) -> None:
        super().__init__(backend, target)
        module = {"cuda": cuda_backend, "triton": triton_backend}[backend]
        needs.CPP.check()  # what its bits are compared with
        needs.backend(backend, module.why_not(torch.device("cuda"))).check()
        self.trips, self.start = module._trips(), module._launch

    def execute(self, records: lowering.Records, cases: list[Case], buffers: list[torch.Tensor]) -> None:
        gpu_launch.execute(records, torch.device("cuda", torch.cuda.current_device()), self.trips, self.start)
        torch.cuda.synchronize()


class Emulated(Machine):
    """The PTX that nvcc or Triton compiled, executed on the CPU."""

    def __init__(self, backend: str, target: str) -> None:
        super().__init__(backend, target)
        ptx, self.shared_bytes = ptx_of(backend, target)
        self.kernel = Module(ptx).kernel()
        if backend == "cuda":
            self.trips, self.threads = device_work.Trips(4096, 16384), 256
        else:
            from fastinit.kernels import layout

            self.trips, self.threads = triton_backend._trips(), layout.N_THREADS
        # Triton's kernels have one or two more parameters: scratch memory that this one does not use.
        self.more_arguments = [0] * (len(self.kernel.params) - 2)

    def execute(self, records: lowering.Records, cases: list[Case], buffers: list[torch.Tensor]) -> None:
        work = device_work.device_work(records, self.trips)
        memory = self.memory()
        for buffer in buffers:
            memory.add(buffer)
        self.launch(records, work, memory)
        for case, buffer in zip(cases, buffers):
            found, right = memory.writes(buffer), case.written(len(buffer))
            assert (found == right).all(), f"{self}: {case}: bytes are written {sorted(set(found[right > 0]))} times"

    def memory(self) -> Memory:
        return Memory(track=True)

    def launch(self, records: lowering.Records, work: lowering.Records, memory: Memory) -> None:
        memory.add(records)
        memory.add(work)
        arguments = [records.ctypes.data, work.ctypes.data, *self.more_arguments]
        self.kernel.launch((len(work),), (self.threads,), arguments, memory, shared=self.shared_bytes)


def skip_without(*backends: str) -> None:
    """Skips a test that would prove backends' kernels where that cannot be done; where they were asked for, it fails."""
    for backend in backends:
        needs.proof(backend, missing(backend)).check()


def missing(backend: str) -> str | None:
    """Returns why a backend's kernels cannot be proved here."""
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return f"tools/ptx needs numpy 2, and found {np.__version__}"
    if cpp_backend._native is None:
        return f"there is nothing to compare with: {cpp_backend.why_not(torch.device('cpu'))}"
    if backend == "cuda":
        return None if NVCC else "nvcc is not installed"
    return triton_backend.why_not_installed()


def triton_version() -> tuple[int, int]:
    """Returns major and minor version of the triton that compiles the kernels."""
    major, minor = version("triton").split(".")[:2]
    return int(major), int(minor)


@cache
def machine(backend: str, target: str) -> Machine:
    """Returns the machine of a backend for a target (a GPU's architecture, or "cuda": a real one)."""
    if target == "cuda":
        return Real(backend, target)
    skip_without(backend)
    return Emulated(backend, target)


@cache
def ptx_of(backend: str, target: str) -> tuple[str, int]:
    """Returns what a backend's compiler makes of its kernel for e.g. "sm_90", and the bytes of shared memory that it takes.

    "sm_90-plain" is the Triton kernel without PTX of ours.
    """
    if backend == "triton":
        architecture, _, plain = target.partition("-")
        compiled = triton_backend.compiled_for(architecture, inline_ptx=not plain)
        return compiled.asm["ptx"], compiled.metadata.shared
    return nvcc("-ptx", target, CSRC / "fill_cuda.cu").read_text(), 0


@cache
def _nvcc_release() -> str:
    return subprocess.run([str(NVCC), "--version"], check=True, text=True, capture_output=True).stdout


def nvcc(what: str, target: str, source: Path, *more: str) -> Path:
    """Compiles a source to PTX ("-ptx") or machine code ("-cubin"), and returns the file; what nvcc says is in one beside it.

    The whole kernel takes seconds, and several tests and processes ask for it: the same compiler's file of the same texts is
    kept in build/kernels.
    """
    flags = [what, "-std=c++17", "-fmad=false", f"-arch={target}", *more]
    texts = [path.read_bytes() for path in (source, *sorted(CSRC.iterdir()))]
    key = hashlib.blake2b(repr((_nvcc_release(), flags, texts)).encode(), digest_size=8).hexdigest()
    out = ROOT / "build" / "kernels" / f"{source.stem}-{key}{what.replace('-', '.')}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            new = Path(folder) / out.name
            command = [str(NVCC), *flags, "-I", str(CSRC), str(source), "-o", str(new)]
            done = subprocess.run(command, check=True, text=True, capture_output=True, timeout=300)
            said(new).write_text(done.stdout + done.stderr)
            for path in (said(new), new):  # the second tells that both are there
                path.replace(out.with_name(path.name))
    return out


def said(out: Path) -> Path:
    """Returns the file with what nvcc said as it made another."""
    return out.with_name(f"{out.name}.txt")


def resources(target: str) -> dict[str, int]:
    """Returns what the machine code of the CUDA kernel takes: registers, stack, spills and shared memory, in bytes."""
    ptx = nvcc("-ptx", target, CSRC / "fill_cuda.cu")
    text = said(nvcc("-cubin", target, ptx, "-Xptxas", "-v")).read_text()
    patterns = {
        "stack frame": r"(\d+) bytes stack frame",
        "spill stores": r"(\d+) bytes spill stores",
        "spill loads": r"(\d+) bytes spill loads",
        "registers": r"Used (\d+) registers",
        "smem": r"(\d+) bytes smem",
    }
    return {name: int(found[1]) if (found := re.search(each, text)) else 0 for name, each in patterns.items()}
