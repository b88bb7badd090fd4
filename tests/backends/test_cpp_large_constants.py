"""Constants as large as go around the caches, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from cpp_core import ISAS, fill

from fastinit import plans

N_BYTES = (32 << 20) + 3 * 4096
VALUES = {
    torch.int8: 7,
    torch.bfloat16: 1.5,
    torch.float32: -0.7,
    torch.float64: 0.3,
    torch.complex128: 1.25 - 0.5j,
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lead", [0, 1, 5])
@pytest.mark.parametrize("dtype", VALUES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_large_constant_fills_its_memory_and_nothing_beside_it(dtype, lead, isa):
    n, value = N_BYTES // dtype.itemsize + 13, VALUES[dtype]
    memory = torch.zeros(lead + n + 3, dtype=dtype)
    fill(memory[lead : lead + n], plans.Constant(value), isa=isa, threads=3)
    assert (memory[lead : lead + n] == torch.tensor(value, dtype=dtype)).all()
    assert (memory[:lead] == 0).all()
    assert (memory[lead + n :] == 0).all()
