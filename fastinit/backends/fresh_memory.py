"""Gives fresh memory its pages just before it is written, by other means than the native core's fills.

The first touch of memory costs a page fault for every 4 KiB, which can take longer than what is written there. The
native core gets many pages at once, on all cores, by the kind of page that is cheaper just now (csrc/page_choice.h).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..plans import byte_span
from . import cpp_backend

# With less, a call costs as much as it saves.
_WORTH_BYTES = 1 << 20


def back(spans: Sequence[tuple[int, int]], n_threads: int) -> None:
    """Gives memory that nobody has touched its pages; leaves contents, and memory that has been touched, as they are.

    Does nothing without the native core.

    Args:
        spans: (address of the first byte, address after the last) of mapped memory that is about to be written.
        n_threads: that work on it.
    """
    if cpp_backend._native is not None and sum(end - begin for begin, end in spans) >= _WORTH_BYTES:
        cpp_backend._native.back(np.array(spans, dtype=np.uint64), n_threads)


def back_tensor(tensor: torch.Tensor) -> None:
    """Does the same for a plain tensor on the CPU, with torch's number of threads; others are left alone."""
    if tensor.layout != torch.strided or tensor.nbytes < _WORTH_BYTES or tensor.device.type != "cpu":
        return
    begin, end = byte_span(tensor)
    if end - begin == tensor.nbytes:  # all of it will be written
        back([(begin, end)], torch.get_num_threads())
