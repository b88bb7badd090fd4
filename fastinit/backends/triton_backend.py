"""The ``triton`` backend: one launch of the Triton kernel (kernels/) per device, by the number contract.

Triton compiles the kernel on first use, which takes one core 15 to 20 seconds, and caches it on disk for later
processes. Users need no NVIDIA compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..contract import records as contract
from ..contract.gpu_work import Trips
from ..plans import Fill
from ..progress import Listener
from . import gpu_launch, limits
from .generators import Generators

NUMBERS = contract.NUMBERS
IS_CONTRACT = True
why_not_fill = limits.why_not_fill

# The oldest release that passes the kernel's tests; 3.3 does not compile it. Before 3.8 the kernel takes a few
# kilobytes of shared memory.
MIN_TRITON = (3, 4)


@lru_cache(maxsize=1)
def why_not_installed() -> str | None:
    """Returns why no installed Triton can compile the kernel, None if one can."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "the package triton is not installed: pip install triton"
    if tuple(int(part) for part in found.split(".")[:2]) < MIN_TRITON:
        return f"it needs triton {'.'.join(map(str, MIN_TRITON))} or later, and found {found}"
    return None


def why_not(device: torch.device) -> str | None:
    """Returns why the backend cannot run on a device: it is not a GPU, or Triton is missing."""
    return why_not_installed() or gpu_launch.why_not_device(device)


def why_not_now(device: torch.device) -> str | None:
    """Returns why the backend must not launch now: a CUDA graph is being captured, and would record the launch."""
    return gpu_launch.why_not_now(device)


def engine() -> str:
    """Returns the engine's name for reports."""
    return f"kernel of Triton {version('triton')}"


def run(
    fills: Sequence[Fill],
    seed: int | None,
    generators: Generators | None = None,
    *,
    advance: Listener | None = None,
) -> int:
    """Runs the fills of one device with one launch on its current stream, without waiting for the device."""
    assert seed is not None, "contract backends need a seed"
    return gpu_launch.run(fills, seed, _trips(), _launch)


def _trips() -> Trips:
    from ..kernels import layout

    return Trips(layout.TRIP_ELEMENTS, layout.CONSTANT_TRIP_BYTES)


def _launch(records: torch.Tensor, work: torch.Tensor, n_pieces: int) -> None:
    from ..kernels.fill import fill

    is_nvidia = torch.version.hip is None
    fill[(n_pieces,)](records.view(torch.int64), work.view(torch.int64), PTX=is_nvidia, **_options(is_nvidia))


def digest(records: torch.Tensor, work: torch.Tensor, n_pieces: int) -> torch.Tensor:
    """Starts the kernel that adds up mixed words, and returns the sum of each piece of work, as int64."""
    from ..kernels.digests import digest as kernel
    from ..kernels.layout import N_THREADS

    out = torch.empty(n_pieces, N_THREADS, dtype=torch.int64, device=records.device)
    kernel[(n_pieces,)](
        records.view(torch.int64), work.view(torch.int64), out, **_digest_options(torch.version.hip is None)
    )
    return out.sum(1)


def _digest_options(is_nvidia: bool) -> dict[str, Any]:
    return dict(num_warps=4 if is_nvidia else 2, enable_fp_fusion=False)  # 128 threads; nothing is to be fused


def _options(is_nvidia: bool) -> dict[str, Any]:
    """Returns the compiler's options; it must not fuse a multiply and an add that the source keeps apart."""
    if not is_nvidia:  # two wavefronts of 64 are the kernel's 128 threads
        return dict(num_warps=2, enable_fp_fusion=False)
    # With 128 registers per thread a multiprocessor holds four programs, and the main loops do not spill.
    return dict(num_warps=4, enable_fp_fusion=False, maxnreg=128)


def compiled_for(target: str, inline_ptx: bool | None = None) -> Any:
    """Compiles the kernel for an architecture, e.g. "sm_90" or "gfx942", without such a GPU; returns Triton's result.

    Args:
        target: an NVIDIA or AMD architecture.
        inline_ptx: whether the kernel uses its inline PTX; None: on NVIDIA only.
    """
    from ..kernels.fill import fill

    is_nvidia = target.startswith("sm_")
    constants = {"PTX": is_nvidia if inline_ptx is None else inline_ptx}
    return _compiled(fill, ("table", "work"), constants, target, _options(is_nvidia))


def compiled_digest_for(target: str) -> Any:
    """Compiles the kernel of digests as ``compiled_for`` does."""
    from ..kernels.digests import digest as kernel

    return _compiled(kernel, ("table", "work", "out"), {}, target, _digest_options(target.startswith("sm_")))


def _compiled(
    kernel: Any, pointers: Sequence[str], constants: dict[str, Any], target: str, options: dict[str, Any]
) -> Any:
    """Compiles a kernel whose arguments are aligned pointers to 64-bit words, and constants."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    gpu = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
    signature = {**dict.fromkeys(pointers, "*i64"), **dict.fromkeys(constants, "constexpr")}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return compile(source, target=gpu, options=options)
