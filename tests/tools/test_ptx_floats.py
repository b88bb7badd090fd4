"""Floating-point operations of tools/ptx against the C library, exact fractions, and numpy where it rounds once."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import operator
from fractions import Fraction

import numpy as np
import ptx
import pytest
from ptx.exact import fma32, fma64
from ptx_operations import Operation, bits_of, executed, float_of, floats, integers, is_nan, kernel_of

N = 10_000
NAN = 0x7FFFFFFF
F32, F64 = np.float32, np.float64

libm = ctypes.CDLL(ctypes.util.find_library("m"))
libm.fmaf.restype, libm.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
fmaf = np.frompyfunc(libm.fmaf, 3, 1)


def operation(text, n_sources, expected, result="f32", source="f32"):
    return Operation(text, result, [source] * n_sources, expected, [floats(N, seed) for seed in range(n_sources)])


def rounded_once(function):
    """Returns an operation on bits, from one that numpy rounds once; every NaN is the hardware's."""

    def expected(*values):
        with np.errstate(all="ignore"):
            result = int(np.asarray(function(*(np.array(v, np.uint32).view(F32) for v in values))).view(np.uint32))
        return NAN if is_nan(result) else result

    return expected


def flushed(value):
    return value & 0x80000000 if value & 0x7F800000 == 0 else value


def flushing(expected):
    return lambda *values: flushed(expected(*map(flushed, values)))


def saturating(expected):
    def saturated(*values):
        result = expected(*values)
        return 0 if is_nan(result) else bits_of(min(1.0, max(0.0, float_of(result))))

    return saturated


def extreme(is_max):
    def expected(a, b):
        if is_nan(a) or is_nan(b):
            return NAN if is_nan(a) and is_nan(b) else b if is_nan(a) else a
        if float_of(a) == float_of(b) == 0:
            return a & b if is_max else a | b
        return (max if is_max else min)(a, b, key=float_of)

    return expected


ADD, MUL = rounded_once(operator.add), rounded_once(operator.mul)
ARITHMETIC = [
    operation("add.f32", 2, ADD),
    operation("add.rn.f32", 2, ADD),
    operation("sub.rn.f32", 2, rounded_once(operator.sub)),
    operation("mul.rn.f32", 2, MUL),
    operation("div.rn.f32", 2, rounded_once(operator.truediv)),
    operation("sqrt.rn.f32", 1, rounded_once(np.sqrt)),
    operation("rcp.rn.f32", 1, rounded_once(lambda x: F32(1) / x)),
    operation("fma.rn.f32", 3, rounded_once(lambda a, b, c: F32(libm.fmaf(a, b, c)))),
    operation("mad.rn.f32", 3, rounded_once(lambda a, b, c: F32(libm.fmaf(a, b, c)))),
    operation("add.ftz.f32", 2, flushing(ADD)),
    operation("mul.ftz.f32", 2, flushing(MUL)),
    operation("add.sat.f32", 2, saturating(ADD)),
    operation("neg.f32", 1, lambda a: a ^ 0x80000000),
    operation("abs.f32", 1, lambda a: a & 0x7FFFFFFF),
    operation("abs.ftz.f32", 1, lambda a: flushed(a) & 0x7FFFFFFF),
    operation("max.f32", 2, extreme(True)),
    operation("min.f32", 2, extreme(False)),
    operation("max.NaN.f32", 2, lambda a, b: NAN if is_nan(a) or is_nan(b) else extreme(True)(a, b)),
    operation("copysign.f32", 2, lambda sign, size: sign & 0x80000000 | size & 0x7FFFFFFF),
    operation("selp.f32 $d, $s, %p1;", 2, lambda a, b: b),
    operation("add.f32 $d, %r0, 0f3F800000;", 1, rounded_once(lambda a: a + F32(1))),
    operation("add.f32 $d, %r0, 0d3FF0000000000000;", 1, rounded_once(lambda a: a + F32(1))),
    operation("cvt.rni.f32.f32", 1, rounded_once(np.rint)),
    operation("cvt.rpi.f32.f32", 1, rounded_once(np.ceil)),
    operation("cvt.sat.f32.f32", 1, saturating(lambda a: a)),
    operation("cvt.ftz.f32.f32", 1, rounded_once(lambda a: np.array(flushed(int(a.view(np.uint32))), np.uint32))),
]


@pytest.mark.parametrize("operation", ARITHMETIC, ids=str)
def test_float32_has_the_bits_of_one_rounding(operation):
    operation.check()


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("is_unordered", [False, True])
def test_comparisons_with_a_nan_are_true_only_for_the_unordered(name, is_unordered):
    compare = getattr(operator, name)

    def expected(a, b):
        if is_nan(a) or is_nan(b):
            return is_unordered
        return compare(float_of(a), float_of(b))

    suffix = "u" if is_unordered else ""
    operation(f"setp.{name}{suffix}.f32 %p2, $s; selp.b32 $d, 1, 0, %p2;", 2, expected, "b32").check()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("setp.nan.f32 %p2, $s;", lambda a, b: is_nan(a) or is_nan(b)),
        ("setp.num.f32 %p2, $s;", lambda a, b: not (is_nan(a) or is_nan(b))),
        ("setp.eq.ftz.f32 %p2, $s;", lambda a, b: float_of(flushed(a)) == float_of(flushed(b))),
        ("testp.finite.f32 %p2, %r0;", lambda a, b: math.isfinite(float_of(a))),
        ("testp.infinite.f32 %p2, %r0;", lambda a, b: math.isinf(float_of(a))),
        ("testp.number.f32 %p2, %r0;", lambda a, b: not is_nan(a)),
        ("testp.notanumber.f32 %p2, %r0;", lambda a, b: is_nan(a)),
    ],
)
def test_floats_are_told_apart(text, expected):
    operation(f"{text} selp.b32 $d, 1, 0, %p2;", 2, expected, "b32").check()


def test_set_writes_one_for_true_in_floating_point():
    operation("set.lt.f32.f32", 2, lambda a, b: bits_of(float(float_of(a) < float_of(b)))).check()


# --- conversions ------------------------------------------------------------------------------------------------------


def bfloat16(a):
    if is_nan(a):
        return 0x7FFF
    high, low = a >> 16, a & 0xFFFF
    return high + (low > 0x8000 or (low == 0x8000 and high & 1))


def float16(a):
    with np.errstate(over="ignore"):
        return 0x7FFF if is_nan(a) else int(np.array(float_of(a), F32).astype(np.float16).view(np.uint16))


def float32_of_integer(value):
    """To nearest, to even in the middle."""
    size, sign = abs(value), 0x80000000 if value < 0 else 0
    exponent = size.bit_length() - 24
    if exponent > 0:
        quotient, rest = divmod(size, 1 << exponent)
        half = 1 << (exponent - 1)
        size = (quotient + (rest > half or (rest == half and quotient & 1))) << exponent
    return sign | bits_of(float(size))


def to_integer(low, high, rounded, of_nan=0):
    def expected(a):
        if is_nan(a):
            return of_nan
        value = float_of(a)
        return (high if value > 0 else low) if math.isinf(value) else max(low, min(high, rounded(Fraction(value))))

    return expected


def signed_of(width):
    return lambda value: value - (value >> (width - 1) << width)


CONVERSIONS = [
    operation("cvt.rn.bf16.f32", 1, bfloat16, "b16"),
    operation("cvt.rn.bf16x2.f32", 2, lambda a, b: bfloat16(a) << 16 | bfloat16(b), "b32"),
    operation("cvt.rn.f16.f32", 1, float16, "b16"),
    operation("cvt.rn.f16x2.f32", 2, lambda a, b: float16(a) << 16 | float16(b), "b32"),
    Operation("cvt.f32.bf16", "f32", ["b16"], lambda a: a << 16),
    Operation("cvt.rn.f32.u32", "f32", ["u32"], float32_of_integer),
    Operation("cvt.rn.f32.s32", "f32", ["s32"], lambda a: float32_of_integer(signed_of(32)(a))),
    Operation("cvt.rn.f32.u64", "f32", ["u64"], float32_of_integer),
    Operation("cvt.rn.f32.s64", "f32", ["s64"], lambda a: float32_of_integer(signed_of(64)(a))),
    operation("cvt.rzi.s32.f32", 1, to_integer(-(2**31), 2**31 - 1, math.trunc), "s32"),
    operation("cvt.rni.s32.f32", 1, to_integer(-(2**31), 2**31 - 1, round), "s32"),
    operation("cvt.rpi.s32.f32", 1, to_integer(-(2**31), 2**31 - 1, math.ceil), "s32"),
    operation("cvt.rzi.u32.f32", 1, to_integer(0, 2**32 - 1, math.trunc), "u32"),
    operation("cvt.rmi.s64.f32", 1, to_integer(-(2**63), 2**63 - 1, math.floor, 1 << 63), "s64"),
    operation("cvt.rzi.u64.f32", 1, to_integer(0, 2**64 - 1, math.trunc, 1 << 63), "u64"),
]


@pytest.mark.parametrize("operation", CONVERSIONS, ids=str)
def test_conversions_round_as_they_say_and_saturate(operation):
    operation.check()


def test_float64_is_rounded_to_float32_once():
    def expected(bits):
        with np.errstate(all="ignore"):
            result = int(np.array(bits, np.uint64).view(F64).astype(F32).view(np.uint32))
        return NAN if is_nan(result) else result

    near = [0x3FF0000000000000 + (seed << 28) + at for seed in range(100) for at in (-1, 0, 1)]
    Operation("cvt.rn.f32.f64", "f32", ["f64"], expected, [[*integers(64, N, 0), *near]]).check()


# --- float64 and pairs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opcode, function",
    [
        ("add.rn.f64", operator.add),
        ("sub.rn.f64", operator.sub),
        ("mul.rn.f64", operator.mul),
        ("div.rn.f64", operator.truediv),
    ],
)
def test_float64_arithmetic_matches_numpy(opcode, function):
    a, b = (np.random.default_rng(seed).normal(size=N) for seed in range(2))
    found = executed(opcode, "f64", ["f64", "f64"], [a.view(np.uint64).tolist(), b.view(np.uint64).tolist()])
    assert (np.array(found, np.uint64).view(F64) == function(a, b)).all()


def test_a_float64_fma_keeps_what_the_product_would_lose():
    a = F64(1) + F64(2) ** -52
    assert fma64(np.array([a]), np.array([a]), np.array([-a * a]))[0] == F64(2) ** -104


@pytest.mark.parametrize(
    "opcode, n, expected",
    [
        ("add.rn.f32x2", 2, ADD),
        ("mul.rn.f32x2", 2, MUL),
        ("fma.rn.f32x2", 3, rounded_once(lambda a, b, c: F32(libm.fmaf(a, b, c)))),
    ],
)
def test_pairs_are_computed_each_half_by_itself(opcode, n, expected):
    columns = [[low << 32 | high for low, high in zip(floats(N, i), floats(N, i + 9))] for i in range(n)]

    def both(*values):
        return expected(*(v >> 32 for v in values)) << 32 | expected(*(v & 0xFFFFFFFF for v in values))

    Operation(opcode, "b64", ["b64"] * n, both, columns).check()


# --- multiply-add where rounding twice would show ---------------------------------------------------------------------


def bits_between(generator, low, high, n, mask):
    """Returns float32 with exponents in a range, and only the bits of a mask."""
    words = (
        generator.integers(low, high, n) << 23 | generator.integers(0, 1 << 23, n) | generator.integers(0, 2, n) << 31
    )
    return (words & mask).astype(np.uint32).view(F32)


def float32_midpoints(generator, n):
    """Returns products exactly between two float32, and a third term far below what a float64 sum keeps."""
    odd = generator.integers((1 << 24) // 3 + 2, (1 << 25) // 3 - 2, n) | 1
    scale = 2.0 ** generator.integers(-30, 30, n)
    rest = scale * 2.0 ** generator.integers(-40, -29, n) * generator.choice([1, -1, 0], n)
    return odd.astype(F32), (3 * scale).astype(F32), rest.astype(F32)


def near_ties(generator, n):
    a = generator.integers(1 << 23, 1 << 24, n).astype(F32)
    b = F32(2) ** generator.integers(-20, 20, n).astype(F32)
    c = a * b * F32(2) ** -24 * generator.choice([1, -1, 0.5, -0.5, 0.25], n).astype(F32)
    return a, b, np.nextafter(c, generator.choice([0, 1e9, -1e9], n).astype(F32))


def subnormal_results(generator, n):
    a = (generator.integers(1 << 23, 1 << 24, n) * 2.0**-90).astype(F32)
    b = (generator.integers(1 << 23, 1 << 24, n) * 2.0**-95).astype(F32)
    c = (generator.integers(-(1 << 23), 1 << 23, n) * 2.0**-149).astype(F32)
    # Every second product is 2^46 - 1 times 2^-196: next to half of the last bit, by less than a float64 sum keeps.
    a[::2], b[::2] = ((1 << 23) + 1) * 2.0**-90, ((1 << 23) - 1) * 2.0**-106
    return a, b, c


def cancellations(generator, n):
    a, b, _ = near_ties(generator, n)
    c = -np.abs(a) * b
    return a, b, np.where(generator.random(n) < 0.5, c, c.astype(F64) * (1 + 2.0**-23)).astype(F32)


def of_exponents(product, addend, mask):
    def made(generator, n):
        a, b = (bits_between(generator, *product, n, mask) for _ in range(2))
        return a, b, bits_between(generator, *addend, n, mask)

    return made


HARD = {
    "midpoints": float32_midpoints,
    "near ties": near_ties,
    "subnormal results": subnormal_results,
    "cancellations": cancellations,
    "any exponents": of_exponents((1, 254), (1, 254), 0xFFFFFFFF),
    "few bits": of_exponents((100, 150), (90, 170), 0xFFFFF000),
    "tiny products": of_exponents((60, 70), (0, 10), 0xFFFFFFFF),
    "tiny products of few bits": of_exponents((60, 68), (0, 5), 0xFFFFFF00),
}


@pytest.mark.parametrize("made", HARD.values(), ids=HARD.keys())
def test_fma_is_rounded_once_where_two_roundings_might_show(made):
    a, b, c = made(np.random.default_rng(3), 100_000)
    with np.errstate(all="ignore"):
        found, right = fma32(a, b, c), fmaf(a, b, c).astype(F32)
    assert ((found.view(np.uint32) == right.view(np.uint32)) | (np.isnan(found) & np.isnan(right))).all()


@pytest.mark.parametrize("made", [float32_midpoints, subnormal_results])
def test_hard_cases_are_hard(made):
    """The control: rounded twice, some of them are wrong."""
    a, b, c = made(np.random.default_rng(3), 100_000)
    twice = (a.astype(F64) * b + c).astype(F32)
    assert (twice != fmaf(a, b, c).astype(F32)).any()


# --- what is not exact, or not there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opcode, function",
    [
        ("lg2.approx.f32", np.log2),
        ("ex2.approx.f32", np.exp2),
        ("sin.approx.f32", np.sin),
        ("cos.approx.f32", np.cos),
        ("tanh.approx.f32", np.tanh),
        ("sqrt.approx.f32", np.sqrt),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x)),
        ("rcp.approx.f32", lambda x: 1 / x),
        ("div.full.f32 $d, 0f3F800000, %r0;", lambda x: 1 / x),
    ],
)
def test_approximations_are_the_nearest_float32(opcode, function):
    values = np.linspace(0.1, 3, 1000).astype(F32)
    found = np.array(executed(opcode, "f32", ["f32"], [values.view(np.uint32).tolist()]), np.uint32).view(F32)
    assert (found == function(values.astype(F64)).astype(F32)).all()


def test_approximations_that_ran_are_named():
    body = "mov.b32 %r0, 0f40000000; lg2.approx.f32 %r1, %r0; rsqrt.approx.ftz.f32 %r1, %r0; bra END;"
    kernel = kernel_of(f"{body} sin.approx.f32 %r1, %r0; END: ret;", 0)
    assert kernel.launch((1,), (32,), [], ptx.Memory()).approx == ["lg2.approx.f32", "rsqrt.approx.ftz.f32"]


@pytest.mark.parametrize(
    "text",
    [
        "sub.cc.u32",
        "add.rz.f32",
        "foo.u32",
        "mul.rm.f32",
        "add.sat.s32",
        "mul.u32",
        "fma.f32 $d, $s, %r0;",
        "add.f16x2",
        "min.bf16x2",
        "cvt.f32.f64 $d, %d0;",
        "cvt.s32.f32 $d, %r0;",
        "cvt.rz.bf16.f32 $d, %r0;",
        "add.u32 $d, %r0;",
        "setp.foo.u32 %p2, $s;",
        "setp.lo.f32 %p2, $s;",
        "prmt.b32.f4e $d, $s, 0;",
        "mov.u32 $d, nothing;",
        "mov.u32 $d, %nothing;",
        "add.u32 5, $s;",
        "mul.lo.u128",
    ],
)
def test_unsupported_operations_raise(text):
    with pytest.raises(ptx.PtxError, match="PTX line"):
        executed(text, "b32", ["b32", "b32"], [[1], [2]])


def test_float_parameters_arrive_in_their_types():
    text = ".version 8.8\n.target sm_90\n.visible .entry k(.param .u64 out, .param .f32 x, .param .f64 y) {"
    text += ".reg .b64 %a<2>; .reg .b32 %r; .reg .b64 %d; ld.param.u64 %a0, [out];"
    text += "ld.param.f32 %r, [x]; st.global.f32 [%a0], %r; ld.param.f64 %d, [y]; st.global.f64 [%a0+8], %d; ret; }"
    out = np.zeros(2, F64)
    memory = ptx.Memory()
    memory.add(out)
    ptx.Module(text).kernel("k").launch((1,), (1,), [out.ctypes.data, 0.1, 0.1], memory)
    assert (out.view(F32)[0], out[1]) == (F32(0.1), 0.1)
