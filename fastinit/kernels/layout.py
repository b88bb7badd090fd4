"""The layout of the kernel's input: csrc/fill.h's records and pieces of work, as 64-bit words."""

import triton.language as tl

# One program (128 threads) runs one piece of csrc/fill.h's Work, as 64-bit words: `first`, `n` | its record << 32, the
# path. The records are fill.h's FillDesc.
#
#   RUN     memory and indices are consecutive: n trips from element `first` of the record on. The memory starts on 16
#           bytes, the index on a block, and the counter's low half does not wrap within the piece.
#   ROWS    the same for the rows of a box: n trips from element `first` of the box on. Each row starts on 16 bytes and
#           on a block and consists of whole units of 16 bytes; the box has fewer than 2^31 units.
#   BLOCKS  everything else: n Philox blocks from block `first` of the box on, stored element by element under masks.
#           The record's blocks_per_row blocks cover a row; no block counts for two rows.
WORK_WORDS = tl.constexpr(3)
RECORD_WORDS = tl.constexpr(63)
RUN, ROWS, BLOCKS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

N_THREADS = 128
# A trip of RUN or ROWS is four independent blocks of random words per thread (float64: eight), or four stores of 16
# bytes. More would need more registers, fewer would spend a larger share on the loop itself.
TRIP_ELEMENTS = 2048
CONSTANT_TRIP_BYTES = 8192

BLOCKS_OF_TRIP, THREADS = tl.constexpr(TRIP_ELEMENTS // 4), tl.constexpr(N_THREADS)

# Offsets within a record, in words.
DATA, SEED, OFFSET, FIRST_INDEX, _N_ELEMENTS = (tl.constexpr(i) for i in range(5))
SIZE, STRIDE, INDEX_STRIDE, PARAMS, RAW = (tl.constexpr(i) for i in (5, 11, 17, 23, 59))
KIND, ELEMENT = tl.constexpr(61), tl.constexpr(62)  # distribution | dtype << 32, element_bytes | blocks_per_row << 32

# csrc/fill.h's enumerations.
CONSTANT, UNIFORM, NORMAL, INSIDE, WIDE, TAIL = (tl.constexpr(i) for i in range(6))
FLOAT32, BFLOAT16, FLOAT16, FLOAT64, E4M3FN, _E5M2, E4M3FNUZ, E5M2FNUZ = (tl.constexpr(i) for i in range(8))
