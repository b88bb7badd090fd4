"""The kernel of the ``triton`` backend: one launch fills parts of many parameters, by the number contract.

The arithmetic is that of csrc/, rounding by rounding: compile with ``enable_fp_fusion=False``, so that only an explicit
fma is fused.
"""

import triton
import triton.language as tl

from .distributions import bits_of, parameters, values, values_of_any
from .float64 import values64
from .formats import bfloat16_pair, code_of, float8_code, float8_format, float16_pair
from .layout import (
    BFLOAT16,
    BLOCKS,
    BLOCKS_OF_TRIP,
    CONSTANT,
    DATA,
    ELEMENT,
    FIRST_INDEX,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INDEX_STRIDE,
    INSIDE,
    KIND,
    NORMAL,
    OFFSET,
    RAW,
    RECORD_WORDS,
    ROWS,
    RUN,
    SEED,
    SIZE,
    STRIDE,
    TAIL,
    THREADS,
    UNIFORM,
    WIDE,
    WORK_WORDS,
)
from .philox import philox

# --- stores of 16 bytes ---------------------------------------------------------------------------------------------
#
# A trip's 512 blocks are tensors in which thread t holds positions t + 128 i. The dtype decides which blocks those are:
# they form whole units of 16 bytes (of one, two or four blocks), so threads exchange nothing. The shapes below only
# express this to Triton, and cost nothing.


@triton.jit
def _places(element_bytes):
    """Returns the unit and the block within it of each of a trip's 512 positions, and the blocks per unit."""
    place = tl.arange(0, BLOCKS_OF_TRIP).to(tl.uint32)
    thread, i = place % THREADS, place // THREADS
    blocks_per_unit = tl.where(element_bytes == 4, 1, tl.where(element_bytes == 2, 2, 4)).to(tl.uint32)
    unit = tl.where(element_bytes == 4, place, tl.where(element_bytes == 2, thread + i // 2 * THREADS, thread))
    return unit, i % blocks_per_unit, blocks_per_unit


@triton.jit
def _store_words(units, words):
    """Stores rows of four 32-bit words, 16 bytes each."""
    pointers = tl.max_contiguous(tl.multiple_of(units[:, None] + tl.arange(0, 4)[None, :], [16, 16]), [1, 4])
    tl.store(pointers, words)


@triton.jit
def _rows_of_four(x0, x1, x2, x3):
    return tl.join(tl.join(x0, x2), tl.join(x1, x3)).reshape(x0.shape[0], 4)


@triton.jit
def _float8_word(v0, v1, v2, v3, format):
    low = float8_code(v0, format) | (float8_code(v1, format) << 8)
    return low | (float8_code(v2, format) << 16) | (float8_code(v3, format) << 24)


@triton.jit
def _store_32_bits(units, v0, v1, v2, v3):
    """Stores the values of 512 blocks in 512 units."""
    _store_words(units, _rows_of_four(bits_of(v0), bits_of(v1), bits_of(v2), bits_of(v3)))


@triton.jit
def _store_16_bits(units, v0, v1, v2, v3, dtype, PTX: tl.constexpr):
    """Stores the values of 512 blocks in 256 units."""
    if dtype == BFLOAT16:
        x, y = bfloat16_pair(v0, v1, PTX), bfloat16_pair(v2, v3, PTX)
    else:
        x, y = float16_pair(v0, v1, PTX), float16_pair(v2, v3, PTX)
    words = tl.join(x, y).reshape(2, 2, THREADS, 2).permute(0, 2, 1, 3)
    _store_words(units, words.reshape(2 * THREADS, 4))


@triton.jit
def _store_8_bits(units, v0, v1, v2, v3, dtype):
    """Stores the values of 512 blocks in 128 units."""
    words = _float8_word(v0, v1, v2, v3, float8_format(dtype))
    _store_words(units, words.reshape(4, THREADS).permute(1, 0))


# --- the paths ------------------------------------------------------------------------------------------------------


@triton.jit
def _constant_words(record, element_bytes):
    """Returns 16 bytes of a constant, as four 32-bit words."""
    low = tl.load(record + RAW).to(tl.uint64, bitcast=True)
    high = tl.load(record + RAW + 1).to(tl.uint64, bitcast=True)
    if element_bytes == 1:
        low *= 0x0101010101010101
    elif element_bytes == 2:
        low *= 0x0001000100010001
    elif element_bytes == 4:
        low |= low << 32
    if element_bytes < 16:
        high = low
    return low.to(tl.uint32), (low >> 32).to(tl.uint32), high.to(tl.uint32), (high >> 32).to(tl.uint32)


@triton.jit
def _pointer(address):
    return tl.multiple_of(address.to(tl.pointer_type(tl.uint32)), 16)


@triton.jit
def _run_of_constants(record, first, n, element_bytes):
    x0, x1, x2, x3 = _constant_words(record, element_bytes)
    like = tl.zeros([BLOCKS_OF_TRIP], tl.uint32)
    units = _pointer(tl.load(record + DATA) + first * element_bytes) + 4 * tl.arange(0, BLOCKS_OF_TRIP)
    for _ in range(n):
        _store_words(units, _rows_of_four(like + x0, like + x1, like + x2, like + x3))
        units += 4 * BLOCKS_OF_TRIP


@triton.jit
def _run(record, first, n, dtype, element_bytes, DISTRIBUTION: tl.constexpr, PTX: tl.constexpr):
    """Runs the path RUN for random numbers in float32 and narrower dtypes."""
    p = parameters(record, True, DISTRIBUTION)
    seed = tl.load(record + SEED)
    counter = tl.load(record + OFFSET) + ((tl.load(record + FIRST_INDEX) + first) >> 2)
    high = (counter.to(tl.uint64, bitcast=True) >> 32).to(tl.uint32)
    unit, block, blocks_per_unit = _places(element_bytes)
    low = counter.to(tl.uint32) + unit * blocks_per_unit + block
    data = _pointer(tl.load(record + DATA) + first * element_bytes)
    for _ in range(n):
        w0, w1, w2, w3 = philox(low, high, seed, PTX)
        v0, v1, v2, v3 = values(w0, w1, w2, w3, p, True, DISTRIBUTION, PTX)
        if dtype == FLOAT32:
            _store_32_bits(data + 4 * tl.arange(0, BLOCKS_OF_TRIP), v0, v1, v2, v3)
        elif dtype <= FLOAT16:
            _store_16_bits(data + 4 * tl.arange(0, 2 * THREADS), v0, v1, v2, v3, dtype, PTX)
        else:
            _store_8_bits(data + 4 * tl.arange(0, THREADS), v0, v1, v2, v3, dtype)
        low += BLOCKS_OF_TRIP
        data += BLOCKS_OF_TRIP * element_bytes


@triton.jit
def _n_rows(record):
    n = tl.load(record + SIZE)
    for d in tl.static_range(1, 5):
        n *= tl.load(record + SIZE + d)
    return n.to(tl.uint32)


@triton.jit
def _row_starts(record, row, n_rows):
    """Returns the offsets of rows from the start of the box, in elements of memory and of the index."""
    memory = tl.zeros_like(row).to(tl.int64)
    index = memory
    d = 4
    while n_rows > 1:
        size = tl.load(record + SIZE + d).to(tl.uint32)
        coordinate = row
        if n_rows > size:
            row = row // size
            coordinate -= row * size
        memory += coordinate.to(tl.int64) * tl.load(record + STRIDE + d)
        index += coordinate.to(tl.int64) * tl.load(record + INDEX_STRIDE + d)
        n_rows = n_rows // size  # 1 once the outermost dimension is done
        d -= 1
    return memory, index


@triton.jit
def _halves(counter):
    bits = counter.to(tl.uint64, bitcast=True)
    return bits.to(tl.uint32), (bits >> 32).to(tl.uint32)


@triton.jit
def _doubles(counter, record, distribution, PTX: tl.constexpr):
    """Returns the bits of the two float64 values of each block."""
    low, high = _halves(counter)
    w0, w1, w2, w3 = philox(low, high, tl.load(record + SEED), PTX)
    return values64(w0, w1, w2, w3, record, distribution, PTX)


@triton.jit
def _floats(counter, record, distribution, PTX: tl.constexpr):
    """Returns the four float32 values of each block."""
    low, high = _halves(counter)
    w0, w1, w2, w3 = philox(low, high, tl.load(record + SEED), PTX)
    return values_of_any(w0, w1, w2, w3, record, distribution, PTX)


@triton.jit
def _divided(unit, units_per_row):
    row = unit // units_per_row
    return row, unit - row * units_per_row


@triton.jit
def _sum(row, column, rows, columns, units_per_row):
    """Returns the sum of two offsets, each given as rows and units."""
    column += columns
    is_beyond = column >= units_per_row
    return row + rows + is_beyond.to(tl.uint32), tl.where(is_beyond, column - units_per_row, column)


@triton.jit
def _begin(record, row, n_rows, bytes_of_row, blocks_of_row, element_bytes, shift):
    """Returns the offsets of rows from the start of the box, in bytes and in blocks of 1 << shift elements."""
    memory, block = row.to(tl.int64) * bytes_of_row, row.to(tl.int64) * blocks_of_row
    if (bytes_of_row == 0) & (n_rows > 1):
        memory, block = _row_starts(record, row, n_rows)
        memory, block = memory * element_bytes, block >> shift
    return memory, block


@triton.jit
def _strides_of_rows(record, n_rows, element_bytes, shift):
    """Returns by how much a row advances _begin's numbers if there is one outer dimension, else two zeros."""
    is_one = tl.load(record + SIZE + 4).to(tl.uint32) == n_rows
    memory, block = tl.load(record + STRIDE + 4) * element_bytes, tl.load(record + INDEX_STRIDE + 4) >> shift
    return tl.where(is_one, memory, 0), tl.where(is_one, block, 0)


@triton.jit
def _units_of_row(record, element_bytes):
    return ((tl.load(record + SIZE + 5) * element_bytes) >> 4).to(tl.uint32)


@triton.jit
def _rows(record, first, n, distribution, dtype, element_bytes, PTX: tl.constexpr):
    """Runs the path ROWS for random numbers in float32 and narrower dtypes."""
    n_rows, per_row = _n_rows(record), _units_of_row(record, element_bytes)
    bytes_of_row, blocks_of_row = _strides_of_rows(record, n_rows, element_bytes, 2)
    data, counter = tl.load(record + DATA), tl.load(record + OFFSET) + (tl.load(record + FIRST_INDEX) >> 2)
    # Divide once what all trips have in common; each trip then adds its own start.
    unit, block, blocks_per_unit = _places(element_bytes)
    row, column = _divided(unit, per_row)
    row16, column16 = _divided(tl.arange(0, 2 * THREADS).to(tl.uint32), per_row)
    row8, column8 = _divided(tl.arange(0, THREADS).to(tl.uint32), per_row)
    rows, columns = _divided(((first * element_bytes) >> 4).to(tl.uint32), per_row)
    more_rows, more_columns = _divided(BLOCKS_OF_TRIP // blocks_per_unit, per_row)
    for _ in range(n):
        r, c = _sum(row, column, rows, columns, per_row)
        begin, first_block = _begin(record, r, n_rows, bytes_of_row, blocks_of_row, element_bytes, 2)
        counters = counter + first_block + (c * blocks_per_unit + block).to(tl.int64)
        v0, v1, v2, v3 = _floats(counters, record, distribution, PTX)
        if dtype == FLOAT32:
            _store_32_bits(_pointer(data + begin + c.to(tl.int64) * 16), v0, v1, v2, v3)
        elif dtype <= FLOAT16:
            r16, c16 = _sum(row16, column16, rows, columns, per_row)
            begin16, unused16 = _begin(record, r16, n_rows, bytes_of_row, blocks_of_row, element_bytes, 2)
            _store_16_bits(_pointer(data + begin16 + c16.to(tl.int64) * 16), v0, v1, v2, v3, dtype, PTX)
        else:
            r8, c8 = _sum(row8, column8, rows, columns, per_row)
            begin8, unused8 = _begin(record, r8, n_rows, bytes_of_row, blocks_of_row, element_bytes, 2)
            _store_8_bits(_pointer(data + begin8 + c8.to(tl.int64) * 16), v0, v1, v2, v3, dtype)
        rows, columns = _sum(rows, columns, more_rows, more_columns, per_row)


@triton.jit
def _units(record, first, n, distribution, path, PTX: tl.constexpr):
    """Runs RUN and ROWS for float64, whose arithmetic takes so long that it hides the cost of the walk."""
    n_rows, per_row = _n_rows(record), _units_of_row(record, 8)
    bytes_of_row, blocks_of_row = _strides_of_rows(record, n_rows, 8, 1)
    data, counter = tl.load(record + DATA), tl.load(record + OFFSET)
    index = tl.load(record + FIRST_INDEX)
    if path == RUN:  # as one endless row
        data += first * 8
        index += first
        first *= 0
        per_row |= 0xFFFFFFFF
    counter += index >> 1
    row, column = _divided(tl.arange(0, THREADS).to(tl.uint32), per_row)
    rows, columns = _divided(((first * 8) >> 4).to(tl.uint32), per_row)
    more_rows, more_columns = _divided(tl.zeros([], tl.uint32) + THREADS, per_row)
    for _ in range(n * (2 * BLOCKS_OF_TRIP // THREADS)):
        r, c = _sum(row, column, rows, columns, per_row)
        begin, block = _begin(record, r, n_rows, bytes_of_row, blocks_of_row, 8, 1)
        b0, b1 = _doubles(counter + block + c.to(tl.int64), record, distribution, PTX)
        w0, w1, w2, w3 = b0.to(tl.uint32), (b0 >> 32).to(tl.uint32), b1.to(tl.uint32), (b1 >> 32).to(tl.uint32)
        _store_words(_pointer(data + begin + c.to(tl.int64) * 16), _rows_of_four(w0, w1, w2, w3))
        rows, columns = _sum(rows, columns, more_rows, more_columns, per_row)


@triton.jit
def _store_element(address, low, high, mask, element_bytes):
    """Stores the lower bytes of 128-bit numbers."""
    if element_bytes <= 2:
        if element_bytes == 1:
            tl.store(address.to(tl.pointer_type(tl.uint8)), low.to(tl.uint8), mask)
        else:
            tl.store(address.to(tl.pointer_type(tl.uint16)), low.to(tl.uint16), mask)
    elif element_bytes == 4:
        tl.store(address.to(tl.pointer_type(tl.uint32)), low.to(tl.uint32), mask)
    else:
        tl.store(address.to(tl.pointer_type(tl.uint64)), low, mask)
        if element_bytes == 16:
            tl.store((address + 8).to(tl.pointer_type(tl.uint64)), high, mask)


@triton.jit
def _blocks(record, first, n, distribution, dtype, element_bytes, PTX: tl.constexpr):
    is_double = (distribution != CONSTANT) & (dtype == FLOAT64)
    shift = tl.where(is_double, 1, 2)  # log2 of the elements per block
    elements = 1 << shift
    size, stride = tl.load(record + SIZE + 5), tl.load(record + STRIDE + 5)
    index_stride, first_index = tl.load(record + INDEX_STRIDE + 5), tl.load(record + FIRST_INDEX)
    blocks_per_row = (tl.load(record + ELEMENT) >> 32).to(tl.uint32)
    n_rows = _n_rows(record)
    raw = tl.load(record + RAW).to(tl.uint64, bitcast=True)
    raw_high = tl.load(record + RAW + 1).to(tl.uint64, bitcast=True)
    for done in range(0, n, THREADS):
        lane = done + tl.arange(0, THREADS)
        k = first + lane
        memory, index = tl.zeros_like(k), tl.zeros_like(k)
        if n_rows > 1:
            row = k.to(tl.uint32) // blocks_per_row
            k = (k.to(tl.uint32) - row * blocks_per_row).to(tl.int64)
            memory, index = _row_starts(record, row, n_rows)
        index += first_index
        if index_stride == 1:
            # Element j of the block belongs to column + j, if the row has it.
            block = (index >> shift) + k
            column = (block << shift) - index
            begin, end = tl.zeros_like(k), tl.zeros_like(k) + size
        else:
            # Of the block only the element of column k is used.
            index += k * index_stride
            block = index >> shift
            column = k - (index & (elements - 1))
            begin, end = k, k + 1
        end = tl.where(lane < n, end, begin)
        b0 = tl.zeros_like(block).to(tl.uint64) + raw
        b1, b2, b3 = b0, b0, b0
        if is_double:
            b0, b1 = _doubles(tl.load(record + OFFSET) + block, record, distribution, PTX)
        elif distribution != CONSTANT:
            v0, v1, v2, v3 = _floats(tl.load(record + OFFSET) + block, record, distribution, PTX)
            b0, b1 = code_of(v0, dtype).to(tl.uint64), code_of(v1, dtype).to(tl.uint64)
            b2, b3 = code_of(v2, dtype).to(tl.uint64), code_of(v3, dtype).to(tl.uint64)
        address = tl.load(record + DATA) + (memory + column * stride) * element_bytes
        for _ in range(elements):
            _store_element(address, b0, raw_high, (column >= begin) & (column < end), element_bytes)
            b0, b1, b2 = b1, b2, b3
            column += 1
            address += stride * element_bytes


@triton.jit
def fill(table, work, PTX: tl.constexpr):
    """Runs one piece of work. PTX: use inline PTX, which only NVIDIA has; the numbers are the same without."""
    piece = work + WORK_WORDS * tl.program_id(0).to(tl.int64)
    first, rest, path = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2).to(tl.int32)
    n, record = rest.to(tl.int32), table + RECORD_WORDS * (rest >> 32)
    kind = tl.load(record + KIND)
    distribution, dtype = kind.to(tl.int32), (kind >> 32).to(tl.int32)
    element_bytes = tl.load(record + ELEMENT).to(tl.int32)
    if path == BLOCKS:
        _blocks(record, first, n, distribution, dtype, element_bytes, PTX)
    elif (path == RUN) & (distribution == CONSTANT):
        _run_of_constants(record, first, n, element_bytes)
    elif dtype == FLOAT64:
        _units(record, first, n, distribution, path, PTX)
    elif path == ROWS:
        _rows(record, first, n, distribution, dtype, element_bytes, PTX)
    elif distribution <= NORMAL:  # nested, as in values_of_any
        if distribution == UNIFORM:
            _run(record, first, n, dtype, element_bytes, UNIFORM, PTX)
        else:
            _run(record, first, n, dtype, element_bytes, NORMAL, PTX)
    elif distribution == INSIDE:
        _run(record, first, n, dtype, element_bytes, INSIDE, PTX)
    elif distribution == WIDE:
        _run(record, first, n, dtype, element_bytes, WIDE, PTX)
    else:
        _run(record, first, n, dtype, element_bytes, TAIL, PTX)
