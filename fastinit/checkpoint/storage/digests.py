"""What a checkpoint holds under a name, in 64 digits: so that a plan that was kept can tell another one's content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .stored import StoredTensor

# SHA-256 without the interpreter's lock; at 1 to 2 GB/s a thread, the disk is the limit.
_THREADS = 4


def digests_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns by name the SHA-256 of dtype, shape and row-major bytes of each; at most four are in memory at a time.

    Of the tensors and not of the file, so that a copy of it in other shards, or in another format, is the same. It has
    to be all of the bytes: a model that was trained on has the header and the size of the one that it came from.

    Raises:
        OSError, RuntimeError: the file was changed, or is damaged.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(tensors, pool.map(_digest_of, tensors.values())))


def _digest_of(tensor: torch.Tensor) -> str:
    if isinstance(tensor, StoredTensor):
        geometry = tensor.geometry
        whole = torch.empty(geometry.shape, dtype=geometry.dtype, device="cpu")
        whole.copy_(tensor)  # straight from the file; what reads it later finds it in the system's cache
    else:
        whole = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{str(whole.dtype).removeprefix('torch.')} {tuple(whole.shape)}\n".encode())
    if whole.numel():
        memory: Any = whole.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy()
        found.update(memory)
    return found.hexdigest()
