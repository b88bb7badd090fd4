"""The ``cuda`` backend: one launch of the CUDA kernel (csrc/fill_cuda.cu) per device, by the number contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..contract import records as contract
from ..contract.gpu_work import Trips
from ..errors import InitRuntimeError
from ..plans import Fill
from ..progress import Listener
from . import extensions, gpu_launch, limits
from .generators import Generators

NUMBERS = contract.NUMBERS
IS_CONTRACT = True
why_not_fill = limits.why_not_fill

_extension, _WHY_NOT = extensions.imported("_cuda", "the CUDA kernel", "cuda_missing.txt")


def why_not(device: torch.device) -> str | None:
    """Returns why the backend cannot run on a device: it is no NVIDIA GPU, or the kernel or driver is missing."""
    if _extension is None:
        return _WHY_NOT
    if torch.version.hip is not None:
        return "it needs an NVIDIA GPU, but this torch is built for AMD GPUs; try the backend 'triton'"
    return gpu_launch.why_not_device(device) or _core().why_not()


def why_not_now(device: torch.device) -> str | None:
    """Returns why the backend must not launch now: a CUDA graph is being captured, and would record the launch."""
    return gpu_launch.why_not_now(device)


def engine() -> str:
    """Returns the engine's name for reports."""
    return f"CUDA kernel of runtime {_core().RUNTIME_VERSION}"


def run(
    fills: Sequence[Fill],
    seed: int | None,
    generators: Generators | None = None,
    *,
    advance: Listener | None = None,
) -> int:
    """Runs the fills of one device with one launch on its current stream, without waiting for the device.

    Raises:
        RuntimeError: CUDA refused the launch; its message is included.
    """
    assert seed is not None, "contract backends need a seed"
    return gpu_launch.run(fills, seed, _trips(), _launch)


def _trips() -> Trips:
    return Trips(_core().TRIP_ELEMENTS, _core().TRIP_BYTES)


def _launch(records: torch.Tensor, work: torch.Tensor, n_pieces: int) -> None:
    stream = torch.cuda.current_stream(records.device).cuda_stream
    try:
        _core().launch(records.data_ptr(), work.data_ptr(), n_pieces, records.device.index, stream)
    except RuntimeError as error:
        raise InitRuntimeError(str(error), place=records.device) from None


def _core() -> Any:
    assert _extension is not None, "call why_not first"
    return _extension
