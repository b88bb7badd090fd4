"""Digests: what adds up the mixed words of tensors (contract/digests.py), on each device as fast as it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..contract.digests import box_records, sum_by_torch
from ..contract.gpu_digest_work import digest_work
from ..plans import Box
from ..progress import advance, expect, is_heard, showing
from . import cpp_backend, gpu_launch, triton_backend

_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def why_not(tensor: torch.Tensor) -> str | None:
    """Returns why a tensor that is here in one piece has no digest, None if it has one."""
    if tensor.is_meta:
        return "is on the meta device and has no values"
    if tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else f"{tensor.layout}"
        return f"is {kind}: its elements do not lie in memory as its shape has them. Digest its dense form"
    if type(tensor).__torch_dispatch__ != _PLAIN_DISPATCH:
        return f"is a {type(tensor).__name__}, which keeps its values in other tensors. Digest these"
    if tensor.numel() and tensor.untyped_storage().nbytes() == 0:
        return "has no memory: its storage was released"
    return None


def sums(boxes: Sequence[Box]) -> list[int]:
    """Returns for each box the sum of its mixed words, modulo 2^64.

    Ctrl-C ends the native core's work within a tenth of a second.
    """
    groups: dict[torch.device, list[int]] = {}
    for i, box in enumerate(boxes):
        groups.setdefault(box.tensor.device, []).append(i)
    found = [0] * len(boxes)
    for device, numbers in groups.items():
        kernel = _kernel_of(device)
        plain = [i for i in numbers if kernel is not None and not _is_turned(boxes[i].tensor)]
        if kernel is not None and plain:
            for i, total in zip(plain, kernel([boxes[i] for i in plain])):
                found[i] = total
        for i in sorted(set(numbers) - set(plain)):
            found[i] = sum_by_torch(boxes[i])
    return found


def _kernel_of(device: torch.device) -> Callable[[Sequence[Box]], list[int]] | None:
    """Returns what adds up on a device faster than operators of torch."""
    if cpp_backend.why_not(device) is None:
        return _sums_by_core
    return _sums_by_triton if device.type == "cuda" and triton_backend.why_not(device) is None else None


def _is_turned(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor's elements are not what its memory holds."""
    return tensor.is_conj() or tensor.is_neg()


def _sums_by_core(boxes: Sequence[Box]) -> list[int]:
    records, of_box = box_records(boxes)
    total = sum(box.tensor.nbytes for box in boxes)
    with showing("digest", total):
        expect(total)
        how = cpp_backend.watching(advance if is_heard() else None)
        counts = cpp_backend._core().digest(records.view(np.uint8), torch.get_num_threads(), **how)
    return _added(counts, of_box, len(boxes))


def _sums_by_triton(boxes: Sequence[Box]) -> list[int]:
    """Returns the sums of boxes on one GPU, by one launch on its current stream, for which it waits."""
    device = boxes[0].tensor.device
    records, of_box = box_records(boxes, for_gpu=True)
    work = digest_work(records)
    if not len(work):
        return [0] * len(boxes)
    with gpu_launch.on_device(device):
        counts = triton_backend.digest(*gpu_launch.uploaded(records, work, device), len(work)).cpu()
    return _added(counts.numpy().view(np.uint64), of_box[work["fill"]], len(boxes))


def _added(counts: Any, of_box: Any, n_boxes: int) -> list[int]:
    totals = np.zeros(n_boxes, np.uint64)
    np.add.at(totals, of_box, counts)
    return totals.tolist()  # type: ignore[no-any-return]
