"""docs/reproducibility.md: stock PyTorch gives the numbers of the contract, where it has the generator."""

from __future__ import annotations

import re
from pathlib import Path

import needs
import numpy as np
import pytest
import torch
from torch import nn

import fastinit
from fastinit.backends import lowering

PAGE = (Path(__file__).parent.parent / "docs" / "reproducibility.md").read_text()

needs.CPP.check()


def has_generator():
    try:
        from torch.func import _random

        _random.uniform(_random.key(0), (4,))
    except (ImportError, NotImplementedError, RuntimeError):
        return False
    return True


def snippet(random=None):
    """The functions that the page defines; ``random`` stands in for torch.func._random."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    functions = {}
    if random is not None:
        code = code.replace("from torch.func import _random\n", "")
        functions["_random"] = random
    exec(code, functions)
    return functions


def ours(rule, shape, name, seed, dtype):
    model = nn.ParameterDict({name: nn.Parameter(torch.empty(shape, dtype=dtype))})
    fastinit.initialize(model, dict(**rule, param=name), backend="cpp", seed=seed)
    return model[name].detach()


def test_the_pages_key_is_ours():
    class Random:  # torch.func._random's two functions, by their definition
        @staticmethod
        def key(seed):
            return seed, 0

        @staticmethod
        def fold_in(key, data):
            return fastinit.streams.fold_in(key, data)

    functions = snippet(Random)
    assert functions["parameter_key"](7, "a.weight") == fastinit.streams.parameter_key(7, "a.weight")


@pytest.mark.skipif(not has_generator(), reason="this torch draws no torch.func._random on the CPU (2.14 does)")
@pytest.mark.parametrize(("seed", "name"), [(0, "weight"), (2**64 - 1, "bias"), (12345, "h")])
def test_stock_pytorch_gives_the_same_numbers(seed, name):
    page, shape = snippet(), (257, 129)
    for dtype in (torch.float32, torch.float64):
        uniform = ours(dict(type="Uniform", a=-0.37, b=1.93), shape, name, seed, dtype)
        assert torch.equal(uniform, page["uniform"](seed, name, shape, -0.37, 1.93, dtype))
    for dtype, limit in ((torch.float32, 4e-6), (torch.float64, 1e-12)):
        normal = ours(dict(type="Normal", mean=0.25, std=1.0), shape, name, seed, dtype)
        distance = (normal - page["normal"](seed, name, shape, 0.25, 1.0, dtype)).abs().max()
        assert distance < limit
        assert (normal - page["normal"](seed, name + "x", shape, 0.25, 1.0, dtype)).abs().max() > 1  # the control


def test_the_page_names_every_dtype_and_the_version():
    for dtype in lowering.DTYPES:
        short = str(dtype).removeprefix("torch.").removeprefix("float8_")
        assert re.search(rf"\b{short}\b", PAGE), short
    assert f'"{lowering.NUMBERS}" today' in PAGE
    assert np.isfinite(float(re.search(r"normals within (\S+) standard", PAGE)[1]))
