"""docs/reproducibility.md: stock PyTorch gives the numbers of the contract, where it has the generator."""

from __future__ import annotations

import math
import re

import needs
import numpy as np
import pytest
import torch
from helpers import same_bits
from paths import ROOT
from torch import nn

import fastinit
from fastinit.contract import records as lowering

PAGE = (ROOT / "docs" / "reproducibility.md").read_text()

needs.CPP.check()


class Random:
    """torch.func._random as far as the page takes it, by the formulas of the page, for torch without it."""

    @staticmethod
    def key(seed):
        return seed, 0

    @staticmethod
    def fold_in(key, data):
        return fastinit.contract.streams.fold_in(key, data)

    @staticmethod
    def words(key, shape, dtype):
        assert dtype == torch.float32, "what torch draws in narrower dtypes are other numbers"
        n = math.prod(shape)
        words = [word for block in range(-(-n // 4)) for word in fastinit.contract.streams.block(key, block)]
        return np.array(words, np.uint64), n

    @classmethod
    def uniform(cls, key, shape, *, low, high, dtype):
        words, n = cls.words(key, shape, dtype)
        unit = (words % 2**24).astype(np.float32) * np.float32(2**-24)
        values = unit * (np.float32(high) - np.float32(low)) + np.float32(low)
        return torch.from_numpy(values[:n].reshape(shape))

    @classmethod
    def normal(cls, key, shape, *, mean, std, dtype):
        words, n = cls.words(key, shape, dtype)
        radius = np.sqrt(-2 * np.log(words[::2] * 2.0**-32 + 2.0**-33))
        angle = 2 * np.pi * (words[1::2] + 0.5) * 2.0**-32
        values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel() * std + mean
        return torch.from_numpy(values[:n].astype(np.float32).reshape(shape))


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


def test_the_pages_key_matches_ours():
    functions = snippet(Random)
    assert functions["parameter_key"](7, "a.weight") == fastinit.contract.streams.parameter_key(7, "a.weight")


def assert_the_pages_numbers_are_ours(page, shape, name, seed, dtype):
    """Compares a uniform bit for bit, and a normal as closely as a rounding to the dtype lets one."""
    uniform = ours(dict(type="Uniform", a=-0.37, b=1.93), shape, name, seed, dtype)
    assert same_bits(uniform, page["uniform"](seed, name, shape, -0.37, 1.93, dtype))
    normal = ours(dict(type="Normal", mean=0.25, std=1.0), shape, name, seed, dtype)
    found = page["normal"](seed, name, shape, 0.25, 1.0, dtype)
    assert found.dtype == dtype and agree(normal, found)
    assert not agree(normal, page["normal"](seed, name + "x", shape, 0.25, 1.0, dtype))  # the control


def agree(ours, theirs):
    """Tells whether normals are within 4e-6 (1e-12) of each other; in a narrow dtype, before they were rounded."""
    wide = torch.float64 if ours.dtype == torch.float64 else torch.float32
    distance = (ours.to(wide) - theirs.to(wide)).abs()
    limit = 1e-12 if wide == torch.float64 else 4e-6
    if wide == ours.dtype:
        return bool((distance < limit).all())
    # Two values on both sides of a bound between roundings become neighbours, a few in a thousand of them.
    step = torch.finfo(ours.dtype).eps * ours.to(wide).abs().clamp(min=torch.finfo(ours.dtype).tiny)
    return bool((distance <= step + limit).all() and (distance > 0).float().mean() < 0.01)


@needs.mark(needs.torch_from(2, 14))  # which draws from torch.func._random on the CPU
@pytest.mark.parametrize("dtype", lowering.DTYPES, ids=str)
@pytest.mark.parametrize(("seed", "name"), [(0, "weight"), (2**64 - 1, "bias"), (12345, "h")])
def test_stock_pytorch_gives_the_same_numbers(seed, name, dtype):
    assert_the_pages_numbers_are_ours(snippet(), (257, 129), name, seed, dtype)


@needs.mark(needs.torch_from(2, 14))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pytorch_draws_other_numbers_in_narrow_dtypes(dtype):
    from torch.func import _random

    key = snippet()["parameter_key"](0, "weight")
    uniform = ours(dict(type="Uniform", a=0, b=1), (1000,), "weight", 0, dtype)
    assert not same_bits(uniform, _random.uniform(key, (1000,), low=0, high=1, dtype=dtype))


@pytest.mark.parametrize("dtype", [dtype for dtype in lowering.DTYPES if dtype != torch.float64], ids=str)
def test_the_page_draws_in_float32_and_rounds(dtype):
    assert_the_pages_numbers_are_ours(snippet(Random), (33, 31), "weight", 2**64 - 1, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_uniform_may_round_to_its_upper_end(dtype):
    uniform = ours(dict(type="Uniform", a=0, b=1), (1 << 18,), "weight", 0, dtype)
    assert uniform.max() == 1
    if dtype == torch.bfloat16:
        assert (uniform == 1).float().mean() == pytest.approx(
            float(re.search(r"1 in (\d+) of bf", PAGE)[1]) ** -1, rel=0.1
        )


def test_the_page_names_every_dtype_and_the_version():
    for dtype in lowering.DTYPES:
        short = str(dtype).removeprefix("torch.").removeprefix("float8_")
        assert re.search(rf"\b{short}\b", PAGE), short
    assert f'"{lowering.NUMBERS}" today' in PAGE
    assert np.isfinite(float(re.search(r"normals within (\S+) standard", PAGE)[1]))
