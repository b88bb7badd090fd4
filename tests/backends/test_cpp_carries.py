"""Where the lower half of a block's counter overflows: the kernels have a shorter way for all blocks but those."""

from __future__ import annotations

import pytest
import torch
from cpp_core import FLOAT8, FLOATS, ISAS, NATIVE, NORMAL, record, words_of
from helpers import same_bits

from fastinit.contract import streams

N = 700
# In the middle of a tile on every instruction set, at the beginning of one, and once around.
OFFSETS = {"within": 2**32 * 5 - 37, "between": 2**32 * 5 - 64, "around": 2**64 - 37}

offsets = pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS)


@pytest.mark.parametrize("isa", ISAS)
@offsets
def test_words_on_both_sides_of_a_carry_are_the_generators(offset, isa):
    key = (0x1234567890ABCDEF, offset)
    expected = [word for block in range(N // 4) for word in streams.block(key, block)]
    for first in (0, 3):
        assert words_of(key, first, N - first, isa).tolist() == expected[first:]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [*FLOATS, *FLOAT8], ids=lambda dtype: str(dtype).removeprefix("torch."))
@offsets
def test_elements_on_both_sides_of_a_carry_are_those_that_are_made_one_by_one(offset, dtype, isa):
    key = (7, offset)
    whole, single = torch.empty(N, dtype=dtype), torch.empty(N, dtype=dtype)
    NATIVE.fill(record(whole, NORMAL, key), 1, isa)
    for i in range(N):
        NATIVE.fill(record(single[i : i + 1], NORMAL, key, i), 1, isa)
    assert same_bits(whole, single)
