"""What the backends for GPUs share: from the fills of a device to launches, and the tables that kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from ..contract import records as lowering
from ..contract.gpu_work import Trips, device_work
from ..plans import Fill

# Before it there is no conversion of two float32 to bfloat16 at once, which the kernels use.
MIN_CAPABILITY = (8, 0)

# Of both tables in memory: Triton would compile another kernel for one that begins on 8 bytes.
_ALIGNMENT = 16

Launch = Callable[[torch.Tensor, torch.Tensor, int], None]
"""Starts the kernel on the current stream of the tables' device: (records, pieces of work, number of pieces)."""


def why_not_device(device: torch.device) -> str | None:
    """Returns why no kernel for GPUs can run on a device."""
    if device.type != "cuda":
        return f"it fills memory of GPUs, and the tensors are on {device}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        major, minor = MIN_CAPABILITY
        return f"it needs a GPU of compute capability {major}.{minor} or later"
    return None


def why_not_now(device: torch.device) -> str | None:
    """Returns why no kernel may be launched on the current stream of a device at this moment."""
    with on_device(device):
        if torch.cuda.is_current_stream_capturing():
            # A replay of the graph would read a table in host memory that is long gone.
            return "the current stream is captured into a CUDA graph: initialize before the capture"
    return None


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which a GPU is the current one."""
    return torch.cuda.device(device)


def run(fills: Sequence[Fill], seed: int, trips: Trips, launch: Launch) -> int:
    """Executes the fills of one device in one launch on its current stream, without waiting for the device.

    Tensors that write each other's memory need one more launch each.

    Raises:
        RuntimeError: the stream is captured into a CUDA graph; nothing has been launched.
    """
    if not fills:
        return 0
    device = fills[0].tensor.device
    if reason := why_not_now(device):  # fills may have waited since they were checked
        raise RuntimeError(reason)
    n_launches = 0
    for _, records in lowering.launches(fills, seed):
        execute(records, device, trips, launch)
        n_launches += 1
    return n_launches


def execute(records: lowering.Records, device: torch.device, trips: Trips, launch: Launch) -> None:
    """Executes records with one launch."""
    work = device_work(records, trips)
    if len(work):
        with on_device(device):
            launch(*_uploaded(records, work, device), len(work))


def _uploaded(
    records: lowering.Records, work: lowering.Records, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both tables in the device's memory, copied there in one go and in the order of the current stream.

    Torch's allocators give neither the pinned nor the device memory to another before what the stream has to do with it
    is done, so that the caller may let go of the tables once the kernel is launched.
    """
    begin = -(-records.nbytes // _ALIGNMENT) * _ALIGNMENT
    pinned = _pinned(begin + work.nbytes)
    host = pinned.numpy()
    host[: records.nbytes] = records.view(np.uint8)
    host[begin:] = work.view(np.uint8)
    table = pinned.to(device, non_blocking=True)
    return table[: records.nbytes], table[begin:]


def _pinned(n_bytes: int) -> torch.Tensor:
    """Returns memory of the CPU from which a GPU copies by itself."""
    return torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
