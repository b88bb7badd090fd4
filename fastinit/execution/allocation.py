"""Memory for tensors that are about to be filled."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import torch

from ..plans import byte_span

_PAGE = 4096
_HUGE_PAGE = 2 << 20
# linux/mman.h
_MADV_HUGEPAGE = 14


def allocate_like(metas: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Returns uninitialized tensors on ``device``, each with shape, strides and dtype of one on the meta device.

    On the CPU (Linux) the kernel is asked for transparent huge pages: the first touch of fresh memory costs a page
    fault for every 4 KiB otherwise, more time than drawing random numbers takes. All is allocated before it is asked,
    so that pages can reach over neighbours. Nothing is touched here: whoever fills the tensors touches them first.
    """
    tensors = [torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device=device) for meta in metas]
    if device.type == "cpu":
        ask_for_huge_pages(tensors)
    return tensors


def ask_for_huge_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Advises the kernel to back memory that nobody has touched yet by huge pages.

    That is done for every stretch of neighbouring tensors that has room for one.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    stretches: list[list[int]] = []
    for start, end in sorted(byte_span(tensor) for tensor in tensors if tensor.numel()):
        # Whole pages, and what the allocator keeps in front of a tensor.
        start, end = start // _PAGE * _PAGE, -(-end // _PAGE) * _PAGE
        if stretches and start - stretches[-1][1] <= _PAGE:
            stretches[-1][1] = max(end, stretches[-1][1])
        else:
            stretches.append([start, end])
    for start, end in stretches:
        if end - start >= _HUGE_PAGE:
            madvise(start, end - start, _MADV_HUGEPAGE)  # advice: a kernel that does not take it changes nothing
