"""The cpp backend against the number contract: known answers, and what must not show in the values."""

from __future__ import annotations

import json
import math
from decimal import Decimal, localcontext

import known_answers
import needs
import numpy as np
import pytest
import torch
from helpers import same_bits
from hypothesis import given
from hypothesis import strategies as st
from paths import DATA
from torch import nn

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.contract import records as lowering
from fastinit.contract import streams, tails

needs.CPP.check()

CONTRACT = json.loads((DATA / "contract.json").read_text())["tensors"]
NATIVE = cpp_backend._native
ISAS = NATIVE.instruction_sets()
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FLOAT8 = [getattr(torch, name) for name in lowering.FLOAT8 if hasattr(torch, name)]
NORMAL, UNIFORM = plans.Normal(0.25, 1.5), plans.Uniform(-0.37, 1.93)
TRUNCATED = plans.TruncatedNormal(0.25, 1.5, -2.5, 3.0)
INF = math.inf
# In standard deviations: around the mean, from it, beside it, far out, one-sided, narrow.
BOUNDS = [(-2, 2), (-1, 0.5), (-100, 100), (-INF, INF), (0, INF), (1, INF), (-INF, -3), (3, 3.01), (5, 8), (-8, -5)]
BOUNDS += [(4.6, INF), (-INF, -4.7), (-30, -29), (6, INF), (-7, -6.5), (-3.4, 3.3), (-INF, -1.6)]
BOUNDS += [(-INF, -1.55), (1.6, INF), (1.5, 3), (-2.001, 2.001), (-2.0, -1.9)]
answers = pytest.mark.parametrize("answer", CONTRACT, ids=lambda answer: f"{answer['seed']}-{answer['name']}")


def fill(tensor, distribution=NORMAL, *, name="weight", seed=0, shape=None, offset=None, isa="", threads=2):
    """Fills a tensor that is the box at ``offset`` of a parameter of ``shape``, and returns it."""
    shape = tuple(shape or tensor.shape)
    box = plans.Box.at(tensor, offset or (0,) * tensor.dim(), shape)
    made = plans.Fill(name, tensor, distribution, "rule", "", shape, (box,))
    assert cpp_backend.why_not_fill(made) is None
    NATIVE.fill(lowering.lowered([made], seed).view(np.uint8), threads, isa)
    return tensor


def record(tensor, distribution=NORMAL, key=(0, 0), first=0):
    """The record of a contiguous tensor; ``distribution`` may be "words", their bits themselves."""
    words = distribution == "words"
    table = lowering.lowered([plans.Fill.whole("", tensor, UNIFORM if words else distribution, "", "")], 0)
    table["key"], table["first_index"] = key, first
    if words:
        table["distribution"] = lowering.WORDS
    return table.view(np.uint8)


def words_of(key, first, n, isa=""):
    """Returns the words [first, first + n) of a stream."""
    out = torch.empty(n)
    NATIVE.fill(record(out, "words", key, first), 1, isa)
    return out.numpy().view(np.uint32)


def from_words(words, distribution, isa="", dtype=torch.float32):
    """Returns what a distribution makes of given words."""
    whole = np.concatenate([words, np.zeros(-len(words) % 64, np.uint32)])
    out = torch.empty(len(whole), dtype=dtype)
    NATIVE.fill_from(record(out, distribution), whole, isa)
    return out[: len(words)]


def normal_pairs(w0, w1, isa=""):
    """Returns the two standard normals of each pair of words."""
    pairs = from_words(np.stack([w0, w1], 1).reshape(-1), plans.Normal(0, 1), isa).numpy()
    return pairs[::2], pairs[1::2]


# --- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@answers
def test_words_are_the_contracts(answer, isa):
    key = streams.parameter_key(answer["seed"], answer["name"])
    assert [f"{word:08x}" for word in words_of(key, 0, 8, isa)] == answer["words"]
    for index, word in answer["far"].items():  # beyond 2^32 and 2^34, without the memory
        assert f"{words_of(key, int(index), 1, isa)[0]:08x}" == word
    whole = words_of(key, 0, 700, isa)
    for first in range(1, 131):
        assert (words_of(key, first, 300, isa) == whole[first : first + 300]).all()


@pytest.mark.parametrize("isa", ISAS)
@answers
def test_uniforms_have_the_contracts_bits(answer, isa):
    made = fill(torch.empty(8), UNIFORM, name=answer["name"], seed=answer["seed"], isa=isa)
    assert [f"{bits:08x}" for bits in made.numpy().view(np.uint32)] == answer["uniform_bits"]


@pytest.mark.parametrize("isa", ISAS)
@answers
def test_normals_are_within_2e_minus_6_of_the_contracts(answer, isa):
    made = fill(torch.empty(8), plans.Normal(0, 1), name=answer["name"], seed=answer["seed"], isa=isa)
    assert np.abs(made.double().numpy() - answer["normal"]).max() < 2e-6


@answers
def test_float64_is_the_contracts(answer):
    options = dict(name=answer["name"], seed=answer["seed"])
    uniform = fill(torch.empty(4, dtype=torch.float64), plans.Uniform(0, 1), **options)
    assert uniform.tolist() == [float.fromhex(number) for number in answer["float64_uniform"]]
    normal = fill(torch.empty(4, dtype=torch.float64), plans.Normal(0, 1), **options)
    assert np.abs(normal.numpy() - answer["float64_normal"]).max() < 1e-12


def test_contract_1_stays_as_it_is():
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
        assert tensor.double().min() >= low and tensor.double().max() <= high


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
    assert found.min() >= bounds[0] and found.max() <= bounds[1]
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


def test_a_wrong_bit_would_be_seen():
    a, b = fill(torch.empty(100)), fill(torch.empty(100))
    assert same_bits(a, b)
    b.numpy().view(np.uint32)[57] ^= 1
    assert not same_bits(a, b)


# --- what must not show in the values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", [NORMAL, UNIFORM], ids=plans.describe)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_to_nearest(dtype, distribution):
    exact = fill(torch.empty(70_001), distribution)
    assert same_bits(fill(torch.empty(70_001, dtype=dtype), distribution), exact.to(dtype))


@pytest.mark.parametrize("std", [1e-8, 3e-6, 6e4])
def test_float16_rounds_its_subnormals_and_overflows_as_torch_does(std):
    for isa in ISAS:
        exact = fill(torch.empty(20_000), plans.Normal(0, std))
        assert same_bits(fill(torch.empty(20_000, dtype=torch.float16), plans.Normal(0, std), isa=isa), exact.half())


def converted(exact, dtype):
    """Torch's conversion; what is too large for float8_e4m3fn becomes the largest, which torch does since about 2.13."""
    return (exact.clamp(-448, 448) if dtype == torch.float8_e4m3fn else exact).to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=str)
def test_conversions_are_torchs(dtype, isa):
    # Around every number of the dtype and every middle of two of them, from below the subnormals to overflow.
    steps = torch.arange(1 << 16 if dtype.itemsize == 2 else 1 << 8, dtype=torch.int32).to(torch.int16)
    numbers = steps.view(dtype) if dtype.itemsize == 2 else steps.to(torch.uint8).view(dtype)
    exact = numbers.float()[~numbers.float().isnan()].unique()
    middles = torch.cat(
        [(exact[1:].double() + exact[:-1].double()) / 2, exact[exact.isfinite()].abs().max()[None] * 1.1]
    )
    around = torch.cat([exact, middles.float(), -middles.float()]).numpy().view(np.uint32)
    bits = np.concatenate([around - 1, around, around + 1, np.random.default_rng(0).integers(0, 2**32, 2**18)])
    values = torch.from_numpy(bits.astype(np.uint32).view(np.float32))
    values = values[~values.isnan()]
    found = from_words(values.numpy().view(np.uint32), "words", isa, dtype)
    assert same_bits(found, converted(values, dtype))


@pytest.mark.parametrize("distribution", [plans.Normal(0, 0.02), UNIFORM, TRUNCATED, plans.Normal(0, 200)], ids=str)
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8_is_float32_rounded(dtype, distribution):
    exact = fill(torch.empty(70_001), distribution)
    made = fill(torch.empty(70_001).to(dtype), distribution)
    if distribution == TRUNCATED:
        exact = exact.clamp(-2.5, 3.0)
    assert same_bits(made, converted(exact, dtype))
    box = fill(torch.empty(7, 11).to(dtype).t(), distribution, shape=(40, 50), offset=(3, 5))
    whole = fill(torch.empty(40, 50).to(dtype), distribution)
    assert same_bits(box.contiguous(), whole[3:14, 5:12].contiguous())


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize(
    "bounds", [(-2.3, 1.7), (-INF, INF), (-1e9, 0.3), (0.0, 0.0), (-1e-4, 1e-4), (3, 1e6), (-1, -1e-7)], ids=str
)
def test_float8_truncated_normals_stay_within_their_bounds(dtype, bounds):
    for std in (1.0, 1e5):
        made = fill(torch.empty(100_000).to(dtype), plans.TruncatedNormal(0, std, *bounds)).float()
        assert made.min() >= bounds[0] and made.max() <= bounds[1] and made.isfinite().all()


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_a_model_in_float8_is_initialized(dtype):
    made = nn.Linear(64, 64, bias=False)
    made.weight = nn.Parameter(made.weight.detach().to(dtype), requires_grad=False)
    report = fastinit.initialize(made, dict(type="Kaiming", layer="Linear"), backend="cpp", seed=0)
    assert report.n_bytes == 4096
    exact = nn.Linear(64, 64, bias=False)
    fastinit.initialize(exact, dict(type="Kaiming", layer="Linear"), backend="cpp", seed=0)
    assert same_bits(made.weight.detach(), exact.weight.detach().to(dtype))


@needs.mark(needs.torch_from(2, 7))  # which has float8_e8m0fnu
def test_a_format_of_powers_of_two_and_numbers_beyond_a_format_are_refused():
    made = nn.ParameterList([nn.Parameter(torch.zeros(4).to(torch.float8_e8m0fnu), requires_grad=False)])
    with pytest.raises(RuntimeError, match="no random numbers into torch.float8_e8m0fnu"):
        fastinit.initialize(made, dict(type="Normal", param="0"), backend="cpp", seed=0)
    made = nn.ParameterList([nn.Parameter(torch.zeros(4).to(torch.float8_e4m3fn), requires_grad=False)])
    for rule, message in (
        (dict(type="Uniform", a=-500, b=0), "out of bounds for torch.float8_e4m3fn"),
        (dict(type="TruncNormal", std=1000, a=470, b=500), "no number of torch.float8_e4m3fn lies within"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fastinit.initialize(made, dict(**rule, param="0"), backend="cpp", seed=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_number_of_threads_does_not_show(dtype):
    one = fill(torch.empty(300_007, dtype=dtype), threads=1)
    assert same_bits(fill(torch.empty(300_007, dtype=dtype), threads=7), one)


@st.composite
def layouts(draw):
    """A shape, a box in it, an order of the dimensions in memory, steps, and a dtype."""
    shape = draw(st.lists(st.integers(1, 9), min_size=0, max_size=5))
    offset = [draw(st.integers(0, n - 1)) for n in shape]
    sizes = [draw(st.integers(0 if draw(st.integers(0, 9)) == 0 else 1, n - o)) for n, o in zip(shape, offset)]
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in shape]
    return (
        shape,
        offset,
        sizes,
        order,
        steps,
        draw(st.sampled_from(FLOATS)),
        draw(st.sampled_from([NORMAL, UNIFORM, TRUNCATED])),
    )


@given(layouts())
def test_a_box_in_any_layout_holds_the_values_of_its_slice_of_the_whole(layout):
    shape, offset, sizes, order, steps, dtype, distribution = layout
    whole = fill(torch.empty(shape, dtype=dtype), distribution)
    memory = torch.full([sizes[d] * steps[d] for d in order], 77.0, dtype=dtype)
    inverse = [order.index(d) for d in range(len(order))]
    box = memory.permute(inverse)[tuple(slice(0, size * step, step) for size, step in zip(sizes, steps))]
    assert list(box.shape) == sizes
    fill(box, distribution, shape=shape, offset=offset)
    expected = whole[tuple(slice(o, o + n) for o, n in zip(offset, sizes))]
    assert same_bits(box.contiguous(), expected.contiguous())
    box.fill_(77.0)
    assert (memory == 77).all()  # nothing else was written


def test_more_dimensions_than_a_record_has_are_split():
    whole = fill(torch.empty(2, 3, 2, 2, 3, 2, 2, 3))
    scattered = torch.empty(3, 2, 2, 3, 2, 2, 3, 2).permute(7, 6, 5, 4, 3, 2, 1, 0)
    assert len(lowering.lowered([plans.Fill.whole("weight", scattered, NORMAL, "", "")], 0)) > 1
    assert same_bits(fill(scattered).contiguous(), whole)


def test_far_parts_of_a_huge_parameter_need_no_memory_for_the_rest():
    shape, offset = (2**20, 2**16), (2**20 - 1, 2**16 - 64)  # 2^36 elements
    part = fill(torch.empty(1, 64), UNIFORM, shape=shape, offset=offset)
    words = words_of(streams.parameter_key(0, "weight"), 2**36 - 64, 64)
    u = (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
    low, high = np.float32(-0.37), np.float32(1.93)
    assert (part.numpy().reshape(-1) == u * (high - low) + low).all()


# --- constants, versions, refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [*FLOATS, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]
    + [torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_constants_go_into_every_dtype(dtype):
    if dtype in FLOAT8:
        needs.torch_from(2, 2).check()  # which fills them
    expected = torch.full((3, 1000), 1.0).to(dtype)
    assert same_bits(fill(torch.zeros(3, 1000).to(dtype), plans.Constant(1)), expected)
    strided = torch.zeros(1000, 6).to(dtype)
    fill(strided.t()[1:4], plans.Constant(1))
    assert strided.to(torch.complex64).sum() == 3000


def test_a_default_device_does_not_matter():
    lowering._raw.cache_clear()
    layer = nn.Linear(2, 2)
    with torch.device("meta"):
        fastinit.initialize(layer, dict(type="Constant", val=2.5, layer="Linear"), backend="cpp", seed=0)
    assert (layer.weight == 2.5).all()


def model():
    made = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 40, bias=False), nn.LayerNorm(40))
    made[1].weight = nn.Parameter(made[1].weight.t().contiguous().t())
    return made


CFG = [
    dict(type="Normal", std=0.5, layer="Linear"),
    dict(type="Uniform", param="2.*"),
    dict(type="Xavier", param="0.weight"),
]


def run(made, **options):
    return fastinit.initialize(made, CFG, backend="cpp", **options)


def test_values_depend_on_seed_and_name_alone():
    a, b = model(), model()
    report = run(a, seed=3)
    rng = torch.get_rng_state()
    fastinit.initialize(b, CFG[::-1][1:] + [CFG[2]], backend="cpp", seed=3)  # another order
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert report.numbers == "contract 1" and report.seed == 3
    alone = nn.Linear(40, 30)
    fastinit.initialize(alone, dict(type="Xavier", layer="Linear"), backend="cpp", seed=3, prefix="0")
    assert torch.equal(alone.weight, a[0].weight)
    run(b, seed=4)
    assert not torch.equal(a[0].weight, b[0].weight)


def test_a_replaced_fill_is_not_run_and_each_byte_is_written_once():
    report = run(model(), seed=3)
    assert [row.parameter for row in report.rows] == ["0.bias", "1.weight", "2.weight", "2.bias", "0.weight"]
    assert report.n_bytes == 4 * (30 + 1200 + 80 + 1200)


def test_without_a_seed_one_is_drawn_from_torchs_generator_and_reported():
    torch.manual_seed(5)
    expected = int(torch.empty((), dtype=torch.int64).random_())
    torch.manual_seed(5)
    a, b, c = model(), model(), model()
    torch.manual_seed(5)
    first, second = run(a), run(b)
    assert first.seed == expected != second.seed
    run(c, seed=first.seed)
    assert torch.equal(a[0].weight, c[0].weight) and not torch.equal(a[0].weight, b[0].weight)
    assert fastinit.plan(model(), CFG, backend="cpp").seed is None


def test_version_counters_are_bumped_as_an_in_place_operation_would():
    made = model()
    before = [parameter._version for parameter in made.parameters()]
    run(made, seed=0)
    assert all(parameter._version > version for parameter, version in zip(made.parameters(), before))
    x = torch.ones(2, 40)
    loss = made[0](x).pow(2).sum()
    run(made, seed=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made[1](torch.ones(2, 30))
        loss.backward()
        (made[0].weight * made[0].weight).sum().backward()
        y = (made[0].weight * made[0].weight).sum()
        run(made, seed=2)
        y.backward()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_tensors_of_no_elements_or_no_dimensions_are_filled(shape):
    made = nn.ParameterList([nn.Parameter(torch.full(shape, 77.0))])
    fastinit.initialize(made, dict(type="Normal", param="0"), backend="cpp", seed=0)
    assert not (made[0] == 77).any()


@pytest.mark.parametrize(
    ("tensor", "rule", "message"),
    [
        (torch.zeros(3).expand(4, 3), dict(type="Normal"), "share memory"),
        (torch.zeros(9).as_strided((4, 4), (1, 1)), dict(type="Constant", val=1), "share memory"),
        (torch.zeros(3, dtype=torch.int64), dict(type="Normal"), "no random numbers into torch.int64"),
        (torch.zeros(3), dict(type="TruncNormal", std=1e-9, a=1, b=2), "standard deviations from the mean"),
        (torch.zeros(3), dict(type="TruncNormal", std=math.inf), "not finite"),
        (
            torch.zeros(3, dtype=torch.bfloat16),
            dict(type="TruncNormal", a=0.7001, b=0.7002),
            "no number of torch.bfloat16",
        ),
        (torch.zeros(3, dtype=torch.int64), dict(type="TruncNormal"), "no random numbers into torch.int64"),
        (torch.zeros(3), dict(type="Normal", mean=math.inf), "not finite"),
        (torch.zeros(3, dtype=torch.float16), dict(type="Uniform", a=-1e5, b=1e5), "out of bounds"),
        (torch.eye(3).to_sparse(), dict(type="Constant", val=1), "plain strided tensors"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_by_name_before_anything_is_written(tensor, rule, message):
    made = nn.Linear(2, 2)
    made.bad = nn.Parameter(tensor, requires_grad=False)
    before = made.weight.clone()
    with pytest.raises(
        RuntimeError, match=rf"init_cfg\[1\]: the backend 'cpp' cannot fill the parameter 'bad'.*{message}"
    ):
        fastinit.initialize(made, [dict(type="Normal", layer="Linear"), dict(**rule, param="bad")], backend="cpp")
    assert torch.equal(made.weight, before)


def test_tensors_that_share_memory_are_filled_in_the_rules_order(monkeypatch):
    records = []

    class Spy:
        instruction_sets = staticmethod(NATIVE.instruction_sets)

        @staticmethod
        def fill(table, threads):
            records.append(len(table) // NATIVE.RECORD_BYTES)
            NATIVE.fill(table, threads)

    monkeypatch.setattr(cpp_backend, "_native", Spy)
    memory = torch.zeros(8)
    made = nn.ParameterDict({"whole": nn.Parameter(memory), "part": nn.Parameter(memory[2:4])})
    rules = [dict(type="Constant", val=1, param="whole"), dict(type="Constant", val=2, param="part")]
    fastinit.initialize(made, rules, backend="cpp", seed=0)
    assert memory.tolist() == [1, 1, 2, 2, 1, 1, 1, 1]
    fastinit.initialize(made, rules[::-1], backend="cpp", seed=0)
    assert memory.tolist() == [1] * 8
    assert records == [1, 1, 1, 1]  # not in one call, where threads would race
    run(model(), seed=0)
    assert records[4:] == [5]


def test_slices_of_a_fused_weight_hold_the_values_that_they_would_have_alone():
    fused = torch.zeros(30, 40)
    made = nn.ParameterDict({"q": nn.Parameter(fused[:, :15]), "k": nn.Parameter(fused[:, 15:])})
    alone = nn.ParameterDict({"q": nn.Parameter(torch.zeros(30, 15)), "k": nn.Parameter(torch.zeros(30, 25))})
    for each in (made, alone):
        fastinit.initialize(each, dict(type="Normal", param="*"), backend="cpp", seed=0)
    assert torch.equal(made["q"], alone["q"]) and torch.equal(made["k"], alone["k"])


def test_a_tree_is_one_plan_and_user_code_sees_what_was_filled_before_it():
    seen = []

    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            seen.append(self.fc.weight.detach().clone())
            fastinit.uniform_init(self.fc, 5, 6)
            seen.append(self.fc.weight.detach().clone())
            fastinit.initialize(self.fc, dict(type="Constant", val=3, layer="Linear"))
            seen.append(self.fc.weight.detach().clone())

    root = fastinit.Sequential(Custom(), nn.Linear(2, 2), init_cfg=dict(type="Constant", val=7, layer="Linear"))
    with fastinit.use(backend="cpp", seed=1):
        root.init_weights()
    assert (seen[0] == 7).all() and ((seen[1] >= 5) & (seen[1] < 6)).all() and (seen[2] == 3).all()
    assert root.last_init_report.seed == 1 and (root[1].weight == 7).all()
    info = root.last_init_report.provenance
    assert info["0.fc.weight"] == "ConstantInit: val=3, bias=0" and info["1.weight"] == "ConstantInit: val=7, bias=0"


def test_twin_blocks_and_unnamed_tensors_get_different_values():
    with fastinit.use(backend="cpp", seed=1):
        root = fastinit.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), init_cfg=dict(type="Normal", layer="Linear"))
        root.init_weights()
        layers = [nn.Linear(9, 9), nn.Linear(9, 9)]
        for layer in layers:
            fastinit.normal_init(layer)
    assert not torch.equal(root[0].weight, root[1].weight) and not torch.equal(layers[0].weight, layers[1].weight)


def test_names_with_one_stream_are_an_error(monkeypatch):
    monkeypatch.setattr("fastinit.execution.session.streams_of", lambda names: np.full(len(names), 7, np.uint64))
    with pytest.raises(RuntimeError, match="have the same random stream"):
        run(model(), seed=0)


def test_it_works_in_forked_children_and_in_several_threads():
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    expected = fill(torch.empty(500_000))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    child = context.Process(target=lambda: sender.send(bytes(fill(torch.empty(500_000)).numpy().data)))
    child.start()
    assert receiver.poll(60) and receiver.recv() == bytes(expected.numpy().data)
    child.join()
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: fill(torch.empty(500_000)), range(8)):
            assert torch.equal(made, expected)


def test_the_report_says_which_instruction_set_ran():
    assert ISAS[0] in str(run(model(), seed=0)) and ISAS[-1] == "baseline"


def test_the_record_has_the_same_size_on_both_sides():
    assert lowering.RECORD.itemsize == NATIVE.RECORD_BYTES
    assert (lowering.MAX_DIMS, lowering.MAX_PARAMS) == (NATIVE.MAX_DIMS, NATIVE.MAX_PARAMS)


def test_bad_calls_of_the_core_are_refused():
    for call in (
        lambda: NATIVE.fill(np.zeros(7, np.uint8), 1),
        lambda: NATIVE.fill(np.zeros(0, np.uint8), 0),
        lambda: NATIVE.fill(np.zeros(0, np.uint8), 1, "sse9"),
        lambda: NATIVE.fill(record(torch.empty(64, dtype=torch.float16), "words"), 1),
        lambda: NATIVE.fill_from(record(torch.empty(65)), np.zeros(65, np.uint32)),
        lambda: NATIVE.fill_from(record(torch.empty(64)), np.zeros(128, np.uint32)),
        lambda: NATIVE.fill_from(record(torch.empty(64, dtype=torch.float16)), np.zeros(64, np.uint32)),
    ):
        with pytest.raises(ValueError):
            call()


# --- distribution: fixed seeds, so a test passes always or never; 1e-4 is the chance that a right generator fails one --


SIGNIFICANCE = 1e-4


def p_values(distribution, sample):
    from scipy import stats

    if isinstance(distribution, plans.TruncatedNormal):
        mean, std, low, high = (getattr(distribution, name) for name in ("mean", "std", "low", "high"))
        exact = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    elif isinstance(distribution, plans.Normal):
        exact = stats.norm(distribution.mean, distribution.std)
    else:
        exact = stats.uniform(distribution.low, distribution.high - distribution.low)
    n = len(sample)
    probabilities = exact.cdf(sample)
    counts = np.histogram(probabilities, 256, (0, 1))[0]
    z = stats.norm.ppf(np.clip(probabilities, 1e-15, 1 - 1e-15))
    # The k-th moment of a standard normal and its variance; correlations of neighbours at lags 1 to 4 (one block).
    moments = [
        2 * stats.norm.sf(abs(np.mean(z**k) - m) / math.sqrt(v / n))
        for k, m, v in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]
    ]
    lags = [2 * stats.norm.sf(abs(np.mean(z[lag:] * z[:-lag])) * math.sqrt(n - lag)) for lag in (1, 2, 3, 4)]
    return [stats.kstest(sample, exact.cdf).pvalue, stats.chisquare(counts).pvalue, *moments, *lags]


@pytest.mark.parametrize("distribution", [NORMAL, UNIFORM], ids=plans.describe)
def test_values_have_their_distribution(distribution):
    sample = fill(torch.empty(1 << 20), distribution, seed=11).double().numpy()
    assert min(p_values(distribution, sample)) > SIGNIFICANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [bounds for bounds in BOUNDS if bounds != (3, 3.01)], ids=str)
def test_truncated_normals_have_their_distribution(bounds, dtype):
    distribution = plans.TruncatedNormal(0.0, 1.0, *bounds)
    n = 1 << (18 if dtype == torch.float32 else 16)
    sample = fill(torch.empty(n, dtype=dtype), distribution, seed=12).numpy()
    # A float32 far out stands for all numbers that round to it: without that, the bound itself would be an outlier.
    spread = np.spacing(np.abs(sample)).astype(np.float64) * (np.random.default_rng(3).random(n) - 0.5)
    sample = sample + spread
    for bound, outside in ((bounds[0], sample < bounds[0]), (bounds[1], sample > bounds[1])):
        sample[outside] = 2 * bound - sample[outside]
    assert min(p_values(distribution, sample)) > SIGNIFICANCE
    wider = plans.TruncatedNormal(0.0, 1.2, *bounds)  # the control
    assert min(p_values(wider, sample)) < SIGNIFICANCE


@pytest.mark.parametrize("spoil", ["scale", "shift", "repeat", "shuffle of pairs"])
def test_a_spoiled_sample_is_rejected(spoil):
    sample = fill(torch.empty(1 << 20), NORMAL, seed=11).double().numpy()
    spoiled = {
        "scale": lambda: (sample - 0.25) * 1.005 + 0.25,
        "shift": lambda: sample + 0.01,
        "repeat": lambda: np.where(np.arange(1 << 20) % 64 == 1, np.roll(sample, 1), sample),
        "shuffle of pairs": lambda: np.repeat(sample[::2], 2),
    }[spoil]()
    assert min(p_values(NORMAL, spoiled)) < SIGNIFICANCE


def test_streams_of_similar_names_and_seeds_are_uncorrelated():
    from scipy import stats

    n = 1 << 18
    standard = plans.Normal(0, 1)
    variants = [
        ("layer.0.weight", 0),
        ("layer.1.weight", 0),
        ("layer.0.bias", 0),
        ("layer.0.weight", 1),
        ("layer.0.weight", 2**63),
    ]
    samples = [fill(torch.empty(n), standard, name=name, seed=seed).double().numpy() for name, seed in variants]
    for i, a in enumerate(samples):
        for b in samples[:i]:
            assert 2 * stats.norm.sf(abs(np.mean(a * b)) * math.sqrt(n)) > SIGNIFICANCE
    assert 2 * stats.norm.sf(abs(np.mean(samples[0] * samples[0])) * math.sqrt(n)) < SIGNIFICANCE


def test_tails_reach_beyond_five_sigma_with_the_right_frequency():
    from scipy import stats

    n = 1 << 25
    sample = fill(torch.empty(n), plans.Normal(0, 1), seed=2)
    for sigma in (4.0, 4.5, 5.0):
        expected = 2 * stats.norm.sf(sigma) * n
        found = int((sample.abs() > sigma).sum())
        assert (
            stats.poisson.cdf(found, expected) > SIGNIFICANCE and stats.poisson.sf(found - 1, expected) > SIGNIFICANCE
        )
    assert 5 < float(sample.abs().max()) < 6.8
