"""The digest on GPUs: one launch adds up the mixed words of parts of many tensors (csrc/digest.h)."""

import triton
import triton.language as tl

from .fill import _n_rows, _row_starts
from .layout import DATA, ELEMENT, FIRST_INDEX, INDEX_STRIDE, RECORD_WORDS, SIZE, STRIDE, THREADS, WORK_WORDS

# Paths of a piece of work (contract/gpu_digest_work.py). UNITS: n units of 16 bytes from element `first` on; the upper half
# of the index is the same for all. ELEMENTS: n elements.
UNITS = tl.constexpr(0)

_ADD, _ADD_HIGH = tl.constexpr(0x9E3779B9), tl.constexpr(0x85EBCA6B)
_MULTIPLY, _MULTIPLY_HIGH, _MULTIPLY_FIRST = (tl.constexpr(x) for x in (0xD413CCCE, 0xC2B2AE36, 0xD2511F53))


@triton.jit
def _counts(words, add, multiply):
    """Returns what words count, as 64 bits."""
    u = words.to(tl.uint32) + add
    u ^= u >> 16
    u *= 0x7FEB352D
    u ^= u >> 15
    u *= 0x846CA68B
    u ^= u >> 16
    return u.to(tl.uint64) * multiply.to(tl.uint64)


@triton.jit
def _keys(low, high):
    """Returns what indices add and by what they multiply, from their halves."""
    return low * _ADD + high * _ADD_HIGH, low * _MULTIPLY + high * _MULTIPLY_HIGH + _MULTIPLY_FIRST


@triton.jit
def _halves(index):
    bits = index.to(tl.uint64, bitcast=True)
    return bits.to(tl.uint32), (bits >> 32).to(tl.uint32)


@triton.jit
def _unit_counts(address, low, high, step, is_here, T: tl.constexpr, K: tl.constexpr):
    """Returns the sum for each thread's unit of K elements of type T: its address, and the halves of its first index."""
    column = tl.arange(0, K)
    pointers = address.to(tl.pointer_type(T))[:, None] + column[None, :]
    pointers = tl.max_contiguous(tl.multiple_of(pointers, [16, 16]), [1, K])
    add, multiply = _keys(low, high)
    more = column.to(tl.uint32) * step
    words = tl.load(pointers, is_here[:, None], other=0)
    counts = _counts(words, add[:, None] + (more * _ADD)[None, :], multiply[:, None] + (more * _MULTIPLY)[None, :])
    return tl.where(is_here, tl.sum(counts, axis=1), 0)


@triton.jit
def _units(record, first, n, T: tl.constexpr, K: tl.constexpr):
    lane = tl.arange(0, THREADS)
    step = tl.load(record + INDEX_STRIDE + 5).to(tl.uint32)
    n_rows = _n_rows(record)
    data, index = tl.load(record + DATA), tl.load(record + FIRST_INDEX)
    total = tl.zeros([THREADS], tl.uint64)
    if n_rows == 1:
        low, high = _halves(index + first * tl.load(record + INDEX_STRIDE + 5))
        low += lane.to(tl.uint32) * K * step
        address = data + first * (16 // K) + lane * 16
        for done in range(0, n, THREADS):
            total += _unit_counts(address, low, high, step, done + lane < n, T, K)
            low += THREADS * K * step
            address += THREADS * 16
    else:
        per_row = (tl.load(record + SIZE + 5) // K).to(tl.uint32)
        for done in range(0, n, THREADS):
            is_here = done + lane < n
            unit = tl.where(is_here, (first // K).to(tl.uint32) + (done + lane).to(tl.uint32), 0)
            row = unit // per_row
            column = (unit - row * per_row).to(tl.int64) * K
            memory, of_row = _row_starts(record, row, n_rows)
            low, high = _halves(index + of_row + column * tl.load(record + INDEX_STRIDE + 5))
            total += _unit_counts(data + (memory + column) * (16 // K), low, high, step, is_here, T, K)
    return total


@triton.jit
def _elements(record, first, n, width):
    lane = tl.arange(0, THREADS)
    n_rows = _n_rows(record)
    total = tl.zeros([THREADS], tl.uint64)
    for done in range(0, n, THREADS):
        is_here = done + lane < n
        k = first + tl.where(is_here, done + lane, 0)
        memory, index = tl.zeros_like(k), tl.zeros_like(k)
        if n_rows > 1:
            size = tl.load(record + SIZE + 5).to(tl.uint32)
            row = k.to(tl.uint32) // size
            k = (k.to(tl.uint32) - row * size).to(tl.int64)
            memory, index = _row_starts(record, row, n_rows)
        index += tl.load(record + FIRST_INDEX) + k * tl.load(record + INDEX_STRIDE + 5)
        address = tl.load(record + DATA) + (memory + k * tl.load(record + STRIDE + 5)) * width
        words = tl.zeros([THREADS], tl.uint32)
        if width == 4:
            words = tl.load(address.to(tl.pointer_type(tl.uint32)), is_here, other=0)
        elif width == 2:
            words = tl.load(address.to(tl.pointer_type(tl.uint16)), is_here, other=0).to(tl.uint32)
        else:
            words = tl.load(address.to(tl.pointer_type(tl.uint8)), is_here, other=0).to(tl.uint32)
        low, high = _halves(index)
        add, multiply = _keys(low, high)
        total += tl.where(is_here, _counts(words, add, multiply), 0)
    return total


@triton.jit
def digest(table, work, out):
    """Writes what each thread has added up of one piece of work to its place in ``out``: threads exchange nothing."""
    number = tl.program_id(0).to(tl.int64)
    piece = work + WORK_WORDS * number
    first, rest, path = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2).to(tl.int32)
    n, record = rest.to(tl.int32), table + RECORD_WORDS * (rest >> 32)
    width = tl.load(record + ELEMENT).to(tl.int32)
    total = tl.zeros([THREADS], tl.uint64)
    if path == UNITS:
        if width == 4:
            total = _units(record, first, n, tl.uint32, 4)
        elif width == 2:
            total = _units(record, first, n, tl.uint16, 8)
        else:
            total = _units(record, first, n, tl.uint8, 16)
    else:
        total = _elements(record, first, n, width)
    tl.store(out + number * THREADS + tl.arange(0, THREADS), total.to(tl.int64, bitcast=True))
