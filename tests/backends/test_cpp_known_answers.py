"""The cpp backend against the number contract: known answers, the ends of all words, every instruction set."""

from __future__ import annotations

import json
from decimal import Decimal, localcontext

import known_answers
import numpy as np
import pytest
import torch
from cpp_core import (
    BOUNDS,
    FLOATS,
    INF,
    ISAS,
    NATIVE,
    NORMAL,
    TRUNCATED,
    UNIFORM,
    fill,
    normal_pairs,
    words_of,
)
from helpers import same_bits
from paths import DATA

from fastinit import plans
from fastinit.contract import streams, tails

CONTRACT = json.loads((DATA / "contract.json").read_text())["tensors"]

answers = pytest.mark.parametrize("answer", CONTRACT, ids=lambda answer: f"{answer['seed']}-{answer['name']}")


@pytest.mark.parametrize("isa", ISAS)
@answers
def test_words_match_the_contract(answer, isa):
    key = streams.parameter_key(answer["seed"], answer["name"])
    assert [f"{word:08x}" for word in words_of(key, 0, 8, isa)] == answer["words"]
    for index, word in answer["far"].items():  # beyond 2^32 and 2^34, without the memory
        assert f"{words_of(key, int(index), 1, isa)[0]:08x}" == word
    whole = words_of(key, 0, 700, isa)
    for first in range(1, 131):
        assert (words_of(key, first, 300, isa) == whole[first : first + 300]).all()


@pytest.mark.parametrize("isa", ISAS)
@answers
def test_uniforms_match_the_contract_bit_for_bit(answer, isa):
    made = fill(torch.empty(8), UNIFORM, name=answer["name"], seed=answer["seed"], isa=isa)
    assert [f"{bits:08x}" for bits in made.numpy().view(np.uint32)] == answer["uniform_bits"]


@pytest.mark.parametrize("isa", ISAS)
@answers
def test_normals_match_the_contract_to_2e_minus_6(answer, isa):
    made = fill(torch.empty(8), plans.Normal(0, 1), name=answer["name"], seed=answer["seed"], isa=isa)
    assert np.abs(made.double().numpy() - answer["normal"]).max() < 2e-6


@answers
def test_float64_matches_the_contract(answer):
    options = dict(name=answer["name"], seed=answer["seed"])
    uniform = fill(torch.empty(4, dtype=torch.float64), plans.Uniform(0, 1), **options)
    assert uniform.tolist() == [float.fromhex(number) for number in answer["float64_uniform"]]
    normal = fill(torch.empty(4, dtype=torch.float64), plans.Normal(0, 1), **options)
    assert np.abs(normal.numpy() - answer["float64_normal"]).max() < 1e-12


def test_contract_1_is_unchanged():
    found = known_answers.answers()
    assert len(found) >= 100  # of 156 those whose dtypes torch 2.1 has
    for answer in found:
        tensor = known_answers.filled(known_answers.distribution_of(answer), answer["dtype"], answer["first_index"])
        assert known_answers.first_bytes(tensor) == answer["first_bytes"], answer
        assert known_answers.digest(tensor) == answer["blake2b_128"], answer


def reference_normals(w0, w1):
    """The contract's formula in float64, from the float32-rounded u."""
    u = (w0.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)).astype(np.float64)
    r, t = np.sqrt(-2 * np.log(u)), 2 * np.pi * (w1.astype(np.float64) + 0.5) * 2**-32
    return r * np.cos(t), r * np.sin(t)


@pytest.mark.parametrize("isa", ISAS)
def test_normals_stay_within_2e_minus_6_over_the_ends_and_a_sample_of_all_words(isa):
    generator = np.random.default_rng(0)
    ends = [0, 2**12, 2**31 - 2**12, 2**31, 2**32 - 2**12]
    w0 = np.concatenate([np.arange(end, end + 2**12, dtype=np.uint64) for end in ends]).astype(np.uint32)
    w0 = np.concatenate([w0, generator.integers(0, 2**32, 2**18, dtype=np.uint32)])
    angles = np.arange(2**16, dtype=np.uint32) * np.uint32(2**16) + np.uint32(7)
    pairs = [(w0, generator.integers(0, 2**32, len(w0), dtype=np.uint32)), (np.zeros_like(angles), angles)]
    for a, b in pairs:
        for found, expected in zip(normal_pairs(a, b, isa), reference_normals(a, b)):
            assert np.abs(found - expected).max() < 2e-6


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_truncated_normals_are_the_inverse_of_the_distribution_function(bounds):
    from scipy.special import log_ndtr, ndtr, ndtri, ndtri_exp

    low, high = bounds
    n = 1 << 18
    words = words_of(streams.parameter_key(0, "weight"), 0, n)
    words[:4] = [0, 1, 2**32 - 2, 2**32 - 1]
    u, u_bar = (
        (each.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)).astype(np.float64)
        for each in (words, ~words)
    )
    if low < 0 < high:
        below, above = ndtr(low) + u * (ndtr(high) - ndtr(low)), ndtr(-high) + u_bar * (ndtr(high) - ndtr(low))
        expected = np.where(below < above, ndtri(below), -ndtri(above))
    else:  # one tail, and in its logarithm: scipy's own inverse is exact there too
        a, b = (low, high) if high <= 0 else (-high, -low)
        rho = np.exp(log_ndtr(a) - log_ndtr(b))
        expected = ndtri_exp(log_ndtr(b) + np.log(rho + u * (1 - rho))) * (1 if high <= 0 else -1)
    found = fill(torch.empty(n), plans.TruncatedNormal(0, 1, low, high)).double().numpy()
    error = np.abs(found - np.clip(expected, low, high))[4:] / np.maximum(1, np.abs(expected[4:]) / 6)
    assert error.max() < 2e-6


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "bounds", [*BOUNDS, (1.0, 1.0), (0.1, 0.104), (-1e-3, 2e-3), (-0.3, 0.0), (0, 70000), (-1, -1e-9)], ids=str
)
def test_truncated_normals_stay_within_their_bounds_in_the_target_dtype(bounds, dtype):
    for std in (1.0, 0.02):
        low, high = bounds[0] * std, bounds[1] * std
        if low == high and torch.tensor(low, dtype=dtype).item() != low:
            continue  # refused: no number of the dtype lies there
        tensor = fill(torch.empty(100_000, dtype=dtype), plans.TruncatedNormal(0, std, low, high))
        assert tensor.double().min() >= low
        assert tensor.double().max() <= high


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_truncated_normals_are_float32_rounded_but_for_the_bounds(dtype):
    exact = fill(torch.empty(70_001), TRUNCATED)
    made = fill(torch.empty(70_001, dtype=dtype), TRUNCATED)
    assert same_bits(made, exact.to(dtype).clamp(-2.5, 3.0))  # both are numbers of the dtype


def test_mirrored_bounds_give_mirrored_values():
    for low, high in ((5, 8), (6, INF), (1, 2)):
        up = fill(torch.empty(1000), plans.TruncatedNormal(0, 1, low, high))
        assert torch.equal(up, -fill(torch.empty(1000), plans.TruncatedNormal(0, 1, -high, -low)))


@pytest.mark.parametrize(
    "bounds", [(-2, 2), (-1, 0.5), (-6, -1), (-INF, INF), (-INF, -1.59), (-INF, -1.61), (-30, -9)], ids=str
)
def test_float64_truncated_normals_are_exact(bounds):
    n = 40_000
    words = words_of(streams.parameter_key(0, "weight"), 0, 2 * n).astype(np.uint64)
    numbers = words[0::2] << np.uint64(32) | words[1::2]
    found = fill(torch.empty(n, dtype=torch.float64), plans.TruncatedNormal(0, 1, *bounds)).numpy()
    assert found.min() >= bounds[0]
    assert found.max() <= bounds[1]
    order = np.argsort(numbers)
    with localcontext(tails._CONTEXT):
        low, high = (Decimal(bound) for bound in bounds)
        below, inside = tails.upper_tail(-low), tails.upper_tail(-high) - tails.upper_tail(-low)
        for i in [*order[:20], *order[-20:], *order[:: n // 40]]:
            u = (Decimal(int(numbers[i])) + Decimal("0.5")) / 2**64
            probability = below + u * inside
            if probability < Decimal("0.5"):
                exact = -tails.inverse_tail((-2 * probability.ln()).sqrt())
            else:
                exact = tails.inverse_tail((-2 * (1 - probability).ln()).sqrt())
            assert abs(found[i] - float(exact)) < 1e-12


@pytest.mark.parametrize("isa", ISAS[1:])
def test_every_instruction_set_gives_the_same_bits(isa):
    generator = np.random.default_rng(1)
    words = generator.integers(0, 2**32, (2, 2**18), dtype=np.uint32)
    for a, b in zip(normal_pairs(*words, ISAS[0]), normal_pairs(*words, isa)):
        assert (a.view(np.uint32) == b.view(np.uint32)).all()
    for dtype in FLOATS:
        more = [plans.TruncatedNormal(0, 1, *bounds) for bounds in BOUNDS]
        for distribution in (NORMAL, UNIFORM, TRUNCATED, plans.Normal(0, 1e-7), plans.Normal(0, 6e4), *more):
            made = [fill(torch.empty(5001, dtype=dtype), distribution, isa=each) for each in (ISAS[0], isa)]
            assert same_bits(*made), (dtype, distribution)


@pytest.mark.parametrize("isa", ISAS)
def test_multiply_add_is_rounded_once_with_and_without_the_instruction(isa):
    # 24929 * 673 = 2^24 + 1: the product lies halfway between two float32 numbers, and a third that double precision
    # drops decides. Rounding twice gives 1 for all of them.
    a, b = np.float32([24929] * 4), np.float32([673 * 2.0**-24] * 4)
    c = np.float32([2.0**-80, -(2.0**-80), 0, 2.0**-24])
    assert NATIVE.fma(a, b, c, isa).tolist() == [1 + 2**-23, 1.0, 1.0, 1 + 2**-23]
    assert NATIVE.fma(-a, b, -c, isa).tolist() == [-1 - 2**-23, -1.0, -1.0, -1 - 2**-23]


def test_a_flipped_bit_is_detected():
    a, b = fill(torch.empty(100)), fill(torch.empty(100))
    assert same_bits(a, b)
    b.numpy().view(np.uint32)[57] ^= 1
    assert not same_bits(a, b)
