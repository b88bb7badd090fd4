"""Shared by the GPU backends: from the fills of a device to launches, and uploading the tables that kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from ..contract import records as lowering
from ..contract.gpu_work import Trips, device_work
from ..errors import InitRuntimeError
from ..plans import Fill
from ..progress import Listener
from . import structured

# Earlier GPUs lack the instruction that converts two float32 to bfloat16, which the kernels use.
MIN_CAPABILITY = (8, 0)

# Of both tables, in bytes: Triton would compile another kernel for a table aligned to 8 only.
_ALIGNMENT = 16

Launch = Callable[[torch.Tensor, torch.Tensor, int], None]
"""Starts the kernel on the current stream of the tables' device: (records, pieces of work, number of pieces)."""


def why_not_device(device: torch.device) -> str | None:
    """Returns why no GPU kernel can run on a device."""
    if device.type != "cuda":
        return f"it only fills GPU tensors, but these are on {device}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        major, minor = MIN_CAPABILITY
        return f"it needs a GPU of compute capability {major}.{minor} or later"
    return None


def why_not_now(device: torch.device) -> str | None:
    """Returns why no kernel may be launched on a device's current stream now."""
    with on_device(device):
        if torch.cuda.is_current_stream_capturing():
            # A replay of the graph would read a table in host memory that was freed long ago.
            return "the current stream is being captured into a CUDA graph: initialize before the capture"
    return None


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context that makes a GPU the current device."""
    return torch.cuda.device(device)


def run(fills: Sequence[Fill], seed: int, trips: Trips, launch: Launch) -> int:
    """Runs the fills of one device with one launch on its current stream, without waiting for the device.

    Fills that overlap in memory need one more launch each, and structured ones several; orthogonal ones wait for the
    device, to see whether their factors exist.

    Raises:
        RuntimeError: the stream is being captured into a CUDA graph; nothing has been launched.
    """
    if not fills:
        return 0
    device = fills[0].tensor.device
    if reason := why_not_now(device):  # the fills were checked earlier, and may have been pending since
        raise InitRuntimeError(reason)

    def draw(plain: Sequence[Fill], _advance: Listener | None = None, /) -> int:
        n_launches = 0
        for _, records in lowering.launches(plain, seed):
            execute(records, device, trips, launch)
            n_launches += 1
        return n_launches

    return structured.run(fills, draw)


def execute(records: lowering.Records, device: torch.device, trips: Trips, launch: Launch) -> None:
    """Runs records with one launch."""
    work = device_work(records, trips)
    if len(work):
        with on_device(device):
            launch(*uploaded(records, work, device), len(work))


def uploaded(
    records: lowering.Records, work: lowering.Records, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies both tables to the device in one transfer on the current stream, and returns them there.

    Torch's allocators reuse neither the pinned nor the device memory before the stream is done with it, so the caller
    may drop the tables once the kernel is launched.
    """
    begin = -(-records.nbytes // _ALIGNMENT) * _ALIGNMENT
    pinned = _pinned(begin + work.nbytes)
    host = pinned.numpy()
    host[: records.nbytes] = records.view(np.uint8)
    host[begin:] = work.view(np.uint8)
    table = pinned.to(device, non_blocking=True)
    return table[: records.nbytes], table[begin:]


def _pinned(n_bytes: int) -> torch.Tensor:
    """Returns pinned host memory, from which the copy is asynchronous."""
    return torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
