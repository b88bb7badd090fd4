"""Digests: what adds up the mixed words of tensors (contract/digests.py), on each device as fast as it can."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch

from ..contract.digests import box_records, sum_by_torch
from ..plans import Box
from . import cpp_backend

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
    found = [0] * len(boxes)
    by_core = [i for i, box in enumerate(boxes) if _is_for_core(box.tensor)]
    if by_core:
        for i, total in zip(by_core, _sums_by_core([boxes[i] for i in by_core])):
            found[i] = total
    for i in sorted(set(range(len(boxes))) - set(by_core)):
        found[i] = sum_by_torch(boxes[i])
    return found


def _is_for_core(tensor: torch.Tensor) -> bool:
    return cpp_backend.why_not(tensor.device) is None and not (tensor.is_conj() or tensor.is_neg())


def _sums_by_core(boxes: Sequence[Box]) -> list[int]:
    records, of_box = box_records(boxes)
    is_main = threading.current_thread() is threading.main_thread()
    counts = cpp_backend._core().digest(records.view(np.uint8), torch.get_num_threads(), handles_signals=is_main)
    totals = np.zeros(len(boxes), np.uint64)
    np.add.at(totals, of_box, counts)
    return totals.tolist()  # type: ignore[no-any-return]
