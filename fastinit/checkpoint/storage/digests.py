"""What a checkpoint holds under a name, in 64 digits: so that a plan that was kept can tell another one's content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from .stored import StoredTensor

# SHA-256 runs without the interpreter's lock, at 1 to 2 GB/s a thread.
_THREADS = 4


def digests_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns by name the SHA-256 of dtype, shape and row-major bytes of each; a few are in memory at a time.

    Of the tensors and not of the file, so that a copy of it in other shards, or in another format, is the same. It has
    to be all of the bytes: a model that was trained on has the header and the size of the one that it came from.

    Raises:
        OSError, RuntimeError: the file was changed, or is damaged.
    """
    running: dict[str, Future[str]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for at, (name, tensor) in enumerate(tensors.items()):
            # Other threads see bytes only: functions of torch would be recorded there, where a block records.
            running[name] = pool.submit(_sha256, *_bytes_of(tensor))
            if at >= _THREADS:
                running[list(running)[at - _THREADS]].result()
    return {name: each.result() for name, each in running.items()}


def _bytes_of(tensor: torch.Tensor) -> tuple[bytes, Any]:
    """Returns the text that stands for dtype and shape, and the bytes."""
    if isinstance(tensor, StoredTensor):
        geometry = tensor.geometry
        whole = torch.empty(geometry.shape, dtype=geometry.dtype, device="cpu")
        # Straight from the file, also where functions of subclasses are off; what reads it later finds it in the cache.
        tensor.storage_in_file.copy_into(whole, tensor)
    else:
        whole = tensor.detach().cpu().contiguous()
    head = f"{str(whole.dtype).removeprefix('torch.')} {tuple(whole.shape)}\n".encode()
    return head, whole.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy() if whole.numel() else b""


def _sha256(head: bytes, content: Any) -> str:
    found = hashlib.sha256(head)
    found.update(content)
    return found.hexdigest()
