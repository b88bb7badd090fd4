"""The digest of elements: a sum, modulo 2^64, over their words of 32 bits, each mixed with its index.

The order of a sum does not matter, so threads, chunks and ranks each add up what they have. An element of 8 or 16 bytes
is two or four words, the lowest first; a narrower one is a word with zeros above. Word j of a tensor counts, all in 32
bits except the product::

    r, q = j mod 2^32, j div 2^32
    u = word + 0x9E3779B9 r + 0x85EBCA6B q
    u = (u ^ (u >> 16)) * 0x7FEB352D
    u = (u ^ (u >> 15)) * 0x846CA68B
    u = u ^ (u >> 16)
    multiplier = 0xD413CCCE r + 0xC2B2AE36 q + 0xD2511F53
    counts u * multiplier, a number of 64 bits

The mix is a bijection (lowbias32 of Chris Wellons) and the multiplier odd, so that a change of one word always shows.
The arithmetic is of 32 bits because a 64-bit mix, such as SplitMix64's, takes three times as long with AVX2.
csrc/digest.h and kernels/digests.py are the same; here it is on tensors of any device, and boxes become records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..plans import Box, row_major
from ..plans.geometry import merged
from .records import MAX_DIMS, RAW, RECORD, Records

_LOW = 0xFFFFFFFF
# Sizes but the last, and strides, of what lies in order.
_ONES, _ONE_STEP = (1,) * (MAX_DIMS - 1), (0,) * (MAX_DIMS - 1) + (1,)
# Elements at a time, with temporaries of some 60 bytes each: in a processor's cache, and enough for all of a GPU.
_CHUNK, _CHUNK_OF_OTHERS = 1 << 17, 1 << 22
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}


def sum_by_torch(box: Box) -> int:
    """Returns the sum of a box's mixed words, by operators of torch that every device has, in bounded memory."""
    total: torch.Tensor | None = None
    for part in _chunks(box):
        words, first = _words(part.tensor), _indices(part)
        n_words = words.shape[1]
        found = _counts(words, first[:, None] * n_words + torch.arange(n_words, device=first.device)).sum()
        total = found if total is None else total + found
    return 0 if total is None else int(total.item()) % (1 << 64)


def _counts(words: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Returns what each word counts, as int64; ``words`` are int64 from 0 to 2^32 - 1, and are written over."""
    low, high = index & _LOW, index >> 32
    u = words.add_(low * 0x9E3779B9).add_(high * 0x85EBCA6B).bitwise_and_(_LOW)
    u.bitwise_xor_(u >> 16).mul_(0x7FEB352D).bitwise_and_(_LOW)
    u.bitwise_xor_(u >> 15).mul_(0x846CA68B).bitwise_and_(_LOW)
    u.bitwise_xor_(u >> 16)
    multiplier = low.mul_(0xD413CCCE).add_(high.mul_(0xC2B2AE36)).add_(0xD2511F53).bitwise_and_(_LOW)
    return u.mul_(multiplier)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the words of a tensor's elements as int64, of shape (elements, words of one)."""
    width = tensor.element_size()
    elements = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    words = elements.view(_INTEGERS[width]).to(torch.int64)
    return (words & ((1 << 8 * min(width, 4)) - 1)).reshape(tensor.numel(), -1)


def _indices(box: Box) -> torch.Tensor:
    """Returns the index of each of a box's elements."""
    device = box.tensor.device
    index = torch.full((), box.first_index, dtype=torch.int64, device=device)
    for size, step in zip(box.tensor.shape, box.steps):
        index = index[..., None] + torch.arange(size, device=device) * step
    return index.reshape(-1)


def _chunks(box: Box) -> Iterator[Box]:
    """Yields parts of a box, of so many elements as are added up at a time; none for an empty one."""
    tensor = box.tensor
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous() and box.steps == row_major(tensor.shape):
        box = Box(tensor.reshape(-1), box.first_index, (1,))
    yield from _cut(box, _CHUNK if tensor.device.type == "cpu" else _CHUNK_OF_OTHERS)


def _cut(box: Box, most: int) -> Iterator[Box]:
    tensor, steps = box.tensor, box.steps
    if tensor.numel() <= most:
        yield box
        return
    dim = max(range(tensor.dim()), key=lambda d: (tensor.shape[d] > 1, tensor.stride(d)))
    at_once = max(1, most * tensor.shape[dim] // tensor.numel())
    for start in range(0, tensor.shape[dim], at_once):
        part = tensor.narrow(dim, start, min(at_once, tensor.shape[dim] - start))
        yield from _cut(Box(part, box.first_index + start * steps[dim], steps), most)


def box_records(
    boxes: Sequence[Box], *, for_gpu: bool = False
) -> tuple[Records, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Returns the records of boxes, as csrc/fill.h has them, and the number of each record's box.

    They are walked in the order of their memory, whatever that of the index is. Empty boxes have no records.

    Args:
        boxes: of any strided memory.
        for_gpu: wide elements are words of 4 bytes, and records are cut where the kernel could not count, and runs
            where the upper half of the index changes.
    """
    rows = [(walk, i) for i, box in enumerate(boxes) for walk in _walks(box, for_gpu)]
    records = np.zeros(len(rows), RECORD)
    of_box = np.fromiter((i for _, i in rows), np.int64, len(rows))
    if rows:
        data, index, size, stride, steps, width = zip(*(walk for walk, _ in rows))
        records["data"], records["first_index"] = np.array(data, np.uint64), np.array(index, np.uint64)
        records["size"], records["stride"], records["index_stride"] = size, stride, steps
        records["n_elements"], records["element_bytes"] = records["size"].prod(axis=1), width
        records["dtype"] = RAW
    return records, of_box


_Walk = tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def _walks(box: Box, for_gpu: bool) -> Iterator[_Walk]:
    """Yields address, first index, size, strides and steps of nested loops of MAX_DIMS dimensions, and the width."""
    tensor, width = box.tensor, box.tensor.element_size()
    if tensor.numel() == 0:
        return
    first = box.first_index
    if not for_gpu and tensor.is_contiguous() and box.steps == row_major(tensor.shape):  # as nearly all are
        yield tensor.data_ptr(), first, (*_ONES, tensor.numel()), _ONE_STEP, _ONE_STEP, width
        return
    # The dimension of the smallest stride is the innermost loop; that of an expanded one, 0, the outermost.
    order = sorted(zip(tensor.stride(), tensor.shape, box.steps), key=lambda dim: (dim[0] != 0, -dim[0]))
    if for_gpu and width > 4:
        n_words, width = width // 4, 4
        order = [(stride * n_words, size, step * n_words) for stride, size, step in order] + [(1, n_words, 1)]
        first *= n_words
    strides, sizes, steps = zip(*order) if order else ((), (), ())
    dims = merged(sizes, strides, steps) or [(1, 1, 1)]
    for offset, index, inner in _parts(dims, first, for_gpu):
        padded = [(1, 0, 0)] * (MAX_DIMS - len(inner)) + inner
        size, stride, step = (tuple(column) for column in zip(*padded))
        yield tensor.data_ptr() + offset * width, index, size, stride, step, width


_Dim = tuple[int, ...]  # size, stride, step of the index
# The GPU kernel numbers the elements of a box of several rows with 32 bits.
_MAX_ELEMENTS = 1 << 31
# With such a step of the index a run is not cut where the index passes a multiple of 2^32: that would be too often.
_WIDE_STEP = 1 << 24


def _parts(dims: list[_Dim], first: int, for_gpu: bool) -> Iterator[tuple[int, int, list[_Dim]]]:
    """Yields (offset, first index, dimensions) of parts that a record can hold."""
    if len(dims) <= MAX_DIMS and (not for_gpu or _counts_in_32_bits(dims, first)):
        yield 0, first, dims
        return
    (n, stride, step), inner = dims[0], dims[1:]
    # Into halves; a dimension too many, into single ones.
    at_once = 1 if len(dims) > MAX_DIMS else (n + 1) // 2
    for start in range(0, n, at_once):
        count = min(at_once, n - start)
        rest = inner if count == 1 and inner else [(count, stride, step), *inner]
        for offset, index, part in _parts(rest, first + start * step, for_gpu):
            yield start * stride + offset, index, part


def _counts_in_32_bits(dims: list[_Dim], first: int) -> bool:
    if len(dims) > 1:
        return math.prod(n for n, _, _ in dims) < _MAX_ELEMENTS
    n, _, step = dims[0]
    return n == 1 or step >= _WIDE_STEP or first >> 32 == (first + (n - 1) * step) >> 32
