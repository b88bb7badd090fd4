"""Turns random words into float32 values, rounding by rounding as csrc/distributions.h, which explains the numbers."""

import struct

import triton
import triton.language as tl

from . import tables
from .layout import INSIDE, NORMAL, PARAMS, TAIL, UNIFORM, WIDE


def _f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def _times(c, unit=1.0):
    # A product of two float32 is exact in a double, so this rounds once, as the C++ compiler does.
    return tl.constexpr(tuple(_f32(_f32(x) * unit) for x in c))


_BEND = _times(tables.BEND)
# Minus the sine, so that -r sin needs no negation: all operations are symmetric in the sign.
_MINUS_SIN = _times(tables.SIN, -1.0)
_COS = _times(tables.COS)
_NOT_ZERO = tl.constexpr(tables.NOT_ZERO)

_BEND_TRUNCATED = _times(tables.BEND_TRUNCATED)
# -2 ln 2, for an exponent that comes 2^23 times too large.
_MINUS_2_LN_2 = _f32(_f32(tables.MINUS2_LN2) * 2.0**-23)
_SLOPE = tl.constexpr(_MINUS_2_LN_2)

_INSIDE_END, _ONE_MINUS = _f32(tables.INSIDE_END), _f32(1.0 - _f32(tables.INSIDE_END))
_INSIDE_SCALE = tl.constexpr(_f32(2.0 / _ONE_MINUS))
_INSIDE_SHIFT = tl.constexpr(_f32(-_f32(1.0 + _INSIDE_END) / _ONE_MINUS))
_INSIDE_POLYNOMIAL = _times(tables.INSIDE)

_CENTRE_UNIT = _f32(2.0 / tables.CENTRE_END)
_BEND_CENTRE = _times(tables.BEND_TRUNCATED, _CENTRE_UNIT)
_SLOPE_CENTRE = tl.constexpr(_f32(_MINUS_2_LN_2 * _CENTRE_UNIT))
_CENTRE = _times(tables.CENTRE)
_TAIL_FIRST, _TAIL_LAST = _f32(tables.TAIL_FIRST), _f32(tables.TAIL_LAST)
_TAIL_WIDTH = _f32(_TAIL_LAST - _TAIL_FIRST)
_TAIL_SCALE = tl.constexpr(_f32(2.0 / _TAIL_WIDTH))
_TAIL_SHIFT = tl.constexpr(_f32(-_f32(_TAIL_LAST + _TAIL_FIRST) / _TAIL_WIDTH))
_TAIL_POLYNOMIAL = _times(tables.TAIL)
_N_TAIL = tl.constexpr(10)  # terms of the polynomial that is interpolated per tensor

# The correctly rounded root for 2^-100 <= x <= 2^100 without sqrt.rn's slow path for other numbers: Markstein's
# sequence, which csrc/lanes.h explains.
_PTX_SQRT = tl.constexpr("""{
    .reg .f32 y, g, h, e, d;
    rsqrt.approx.ftz.f32 y, $1;
    mul.rn.f32 g, $1, y;
    mul.rn.f32 h, y, 0f3F000000;
    neg.f32 d, h;
    fma.rn.f32 e, d, g, 0f3F000000;
    fma.rn.f32 g, g, e, g;
    neg.f32 d, g;
    fma.rn.f32 d, d, g, $1;
    fma.rn.f32 $0, d, h, g;
}""")


def _hex(x):
    return "0f" + struct.pack(">f", x).hex().upper()


def _ptx_far_tails():
    """Returns PTX that replaces those of four values of the wide form whose v exceeds 1, one in 4600 of a normal.

    It branches per thread, which Triton cannot express. Operands: $0-$3 values, $4-$7 values before, $8-$11 v,
    $12-$15 t, $16-$19 words, $20 mean, $21 std.
    """
    lines = ["{", ".reg .pred p; .reg .b32 e, b, s; .reg .f32 x, f, sum, y, g, h, d, r0, r1, r2, r3;"]
    lines += [f"mov.f32 r{i}, ${4 + i};" for i in range(4)]
    one = _hex(1.0)
    lines += [f"setp.gt.f32 p, $8, {one};"]
    lines += [f"setp.gt.or.f32 p, ${8 + i}, {one}, p;" for i in (1, 2, 3)]
    lines += ["@!p bra NEAR${:uid};"]
    for i in range(4):
        lines += [f"setp.gt.f32 p, ${8 + i}, {one};", f"@!p bra NEXT{i}_${{:uid}};"]
        # s = sqrt(-2 ln t), as in _minus_2_ln and _sqrt
        lines += [
            f"mov.b32 b, ${12 + i};",
            "sub.s32 e, b, 0x3F800000;",
            "and.b32 b, b, 0x007FFFFF;",
            "or.b32 b, b, 0x3F800000;",
            "mov.b32 x, b;",
            f"sub.f32 x, x, {one};",
            "cvt.rn.f32.s32 f, e;",
            f"fma.rn.f32 f, f, {_hex(_SLOPE.value)}, {_hex(0.0)};",
            "neg.f32 d, x;",
            "fma.rn.f32 d, d, x, x;",
        ]
        lines += [f"mov.f32 sum, {_hex(_BEND_TRUNCATED.value[-1])};"]
        lines += [f"fma.rn.f32 sum, sum, x, {_hex(c)};" for c in _BEND_TRUNCATED.value[-2::-1]]
        lines += ["fma.rn.f32 x, d, sum, f;"]
        lines += [
            "rsqrt.approx.ftz.f32 y, x;",
            "mul.rn.f32 g, x, y;",
            f"mul.rn.f32 h, y, {_hex(0.5)};",
            "neg.f32 d, h;",
            f"fma.rn.f32 f, d, g, {_hex(0.5)};",
            "fma.rn.f32 g, g, f, g;",
            "neg.f32 d, g;",
            "fma.rn.f32 d, d, g, x;",
            "fma.rn.f32 g, d, h, g;",
        ]
        lines += [f"fma.rn.f32 x, g, {_hex(_TAIL_SCALE.value)}, {_hex(_TAIL_SHIFT.value)};"]
        lines += [f"mov.f32 sum, {_hex(_TAIL_POLYNOMIAL.value[-1])};"]
        lines += [f"fma.rn.f32 sum, sum, x, {_hex(c)};" for c in _TAIL_POLYNOMIAL.value[-2::-1]]
        # -std with the sign of the word
        lines += [
            "mov.b32 b, $21;",
            f"not.b32 s, ${16 + i};",
            "and.b32 s, s, 0x80000000;",
            "xor.b32 b, b, s;",
            "mov.b32 f, b;",
            f"fma.rn.f32 r{i}, f, sum, $20;",
            f"NEXT{i}_${{:uid}}:",
        ]
    lines += ["NEAR${:uid}:"] + [f"mov.f32 ${i}, r{i};" for i in range(4)] + ["}"]
    return "\n".join(lines)


_PTX_FAR_TAILS = tl.constexpr(_ptx_far_tails())
_PTX_FAR_TAILS_OPERANDS = tl.constexpr(",".join(["=f"] * 4 + ["f"] * 12 + ["r"] * 4 + ["f"] * 2))


@triton.jit
def bits_of(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _signed(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _polynomial(x, c: tl.constexpr):
    sum = tl.fma(x, c[len(c) - 1], c[len(c) - 2])
    for i in tl.static_range(len(c) - 2):
        sum = tl.fma(sum, x, c[len(c) - 3 - i])
    return sum


@triton.jit
def _sqrt(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise(_PTX_SQRT, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _minus_2_ln(u, J: tl.constexpr, bend: tl.constexpr, slope: tl.constexpr, constant):
    """Returns constant - 2 ln(2^J u) times the unit of the tables, for 0 < 2^J u <= 1."""
    line = bits_of(u) - (0x3F800000 - (J << 23))
    f = float_of((bits_of(u) & 0x007FFFFF) | 0x3F800000) - 1.0
    return tl.fma(tl.fma(-f, f, f), _polynomial(f, bend), tl.fma(_signed(line).to(tl.float32), slope, constant))


@triton.jit
def _normal_pair(w0, w1, mean, std, PTX: tl.constexpr):
    u = tl.fma(w0.to(tl.float32), 2.0**-32, 2.0**-33)  # the product is exact
    r = _sqrt(_minus_2_ln(u, 0, _BEND, _SLOPE, _NOT_ZERO), PTX) * std
    a = tl.abs(_signed(w1).to(tl.float32) * 2.0**-32) - 0.25
    y = a * a
    cosine = float_of(bits_of(_polynomial(y, _COS)) ^ (w1 & 0x80000000))
    return tl.fma(r, a * _polynomial(y, _MINUS_SIN), mean), tl.fma(r, cosine, mean)


@triton.jit
def _inside(w, mean, std, scale, middle, PTX: tl.constexpr):
    x = tl.fma(_signed(w ^ 0x80000000).to(tl.float32), scale, middle)
    y = _sqrt(tl.fma(-x, x, 1.0), PTX)
    return tl.fma(x * std, _polynomial(tl.fma(y, _INSIDE_SCALE, _INSIDE_SHIFT), _INSIDE_POLYNOMIAL), mean)


@triton.jit
def _wide(w, mean, std, lower, upper, width):
    """Returns the centre form's values (invalid where v > 1), v, and the tail probabilities t."""
    s = _signed(w)
    in_upper_half = s >> 31
    end = bits_of(lower) ^ ((bits_of(lower) ^ bits_of(upper)) & in_upper_half.to(tl.uint32, bitcast=True))
    t = tl.fma((s ^ in_upper_half).to(tl.float32), width, float_of(end))
    v = _minus_2_ln(tl.fma(-t, t, t), 2, _BEND_CENTRE, _SLOPE_CENTRE, -1.0)
    x = float_of(bits_of(tl.fma(t, 2.0 * std, -std)) ^ (w & 0x80000000))
    return tl.fma(x, _polynomial(v, _CENTRE), mean), v, t


@triton.jit
def _far_tail(value, v, t, w, mean, std):
    s = tl.sqrt_rn(_minus_2_ln(t, 0, _BEND_TRUNCATED, _SLOPE, 0.0))
    mapped = tl.fma(s, _TAIL_SCALE, _TAIL_SHIFT)
    signed_std = float_of(bits_of(-std) ^ (w & 0x80000000))
    return tl.where(v > 1.0, tl.fma(signed_std, _polynomial(mapped, _TAIL_POLYNOMIAL), mean), value)


@triton.jit
def _tail(w, p, PTX: tl.constexpr):
    v = tl.fma(w.to(tl.float32), p[3], p[2])
    x = tl.fma(_sqrt(_minus_2_ln(v, 0, _BEND_TRUNCATED, _SLOPE, p[4]), PTX), p[5], p[6])
    sum = tl.fma(x, p[16], p[15])
    for i in tl.static_range(_N_TAIL - 2):
        sum = tl.fma(sum, x, p[14 - i])
    return sum


@triton.jit
def number(record, i: tl.constexpr):
    return tl.load(record + PARAMS + i).to(tl.float64, bitcast=True)


@triton.jit
def _numbers(record, FIRST: tl.constexpr, N: tl.constexpr):
    numbers = ()
    for i in tl.static_range(N):
        numbers = numbers + (number(record, FIRST + i).to(tl.float32),)
    return numbers


@triton.jit
def parameters(record, SCALED: tl.constexpr, DISTRIBUTION: tl.constexpr):
    """Returns a distribution's numbers in the order that `values` takes."""
    if DISTRIBUTION == UNIFORM:
        low, high = _numbers(record, 0, 2)
        if SCALED:
            return low, number(record, 2).to(tl.float32)
        else:
            return low, high - low
    elif DISTRIBUTION == NORMAL:
        return _numbers(record, 0, 2)
    elif DISTRIBUTION == INSIDE:
        return _numbers(record, 0, 6)
    elif DISTRIBUTION == WIDE:
        return _numbers(record, 0, 7)
    else:
        return _numbers(record, 2, 7 + _N_TAIL)


@triton.jit
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def values(w0, w1, w2, w3, p, SCALED: tl.constexpr, DISTRIBUTION: tl.constexpr, PTX: tl.constexpr):
    """Returns the float32 values of each block's four words. SCALED: a uniform's range is already times 2^-24."""
    if DISTRIBUTION == UNIFORM:
        unit: tl.constexpr = 1.0 if SCALED else 2.0**-24
        v0 = _signed(w0 & 0x00FFFFFF).to(tl.float32) * unit * p[1] + p[0]
        v1 = _signed(w1 & 0x00FFFFFF).to(tl.float32) * unit * p[1] + p[0]
        v2 = _signed(w2 & 0x00FFFFFF).to(tl.float32) * unit * p[1] + p[0]
        v3 = _signed(w3 & 0x00FFFFFF).to(tl.float32) * unit * p[1] + p[0]
        return v0, v1, v2, v3
    elif DISTRIBUTION == NORMAL:
        v0, v1 = _normal_pair(w0, w1, p[0], p[1], PTX)
        v2, v3 = _normal_pair(w2, w3, p[0], p[1], PTX)
        return v0, v1, v2, v3
    elif DISTRIBUTION == INSIDE:
        v0 = _clamp(_inside(w0, p[0], p[1], p[4], p[5], PTX), p[2], p[3])
        v1 = _clamp(_inside(w1, p[0], p[1], p[4], p[5], PTX), p[2], p[3])
        v2 = _clamp(_inside(w2, p[0], p[1], p[4], p[5], PTX), p[2], p[3])
        v3 = _clamp(_inside(w3, p[0], p[1], p[4], p[5], PTX), p[2], p[3])
        return v0, v1, v2, v3
    elif DISTRIBUTION == WIDE:
        v0, far0, t0 = _wide(w0, p[0], p[1], p[4], p[5], p[6])
        v1, far1, t1 = _wide(w1, p[0], p[1], p[4], p[5], p[6])
        v2, far2, t2 = _wide(w2, p[0], p[1], p[4], p[5], p[6])
        v3, far3, t3 = _wide(w3, p[0], p[1], p[4], p[5], p[6])
        if PTX:
            v0, v1, v2, v3 = tl.inline_asm_elementwise(
                _PTX_FAR_TAILS,
                _PTX_FAR_TAILS_OPERANDS,
                [v0, v1, v2, v3, far0, far1, far2, far3, t0, t1, t2, t3, w0, w1, w2, w3, p[0], p[1]],
                dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
                is_pure=True,
                pack=1,
            )
        else:
            v0 = _far_tail(v0, far0, t0, w0, p[0], p[1])
            v1 = _far_tail(v1, far1, t1, w1, p[0], p[1])
            v2 = _far_tail(v2, far2, t2, w2, p[0], p[1])
            v3 = _far_tail(v3, far3, t3, w3, p[0], p[1])
        return _clamp(v0, p[2], p[3]), _clamp(v1, p[2], p[3]), _clamp(v2, p[2], p[3]), _clamp(v3, p[2], p[3])
    else:
        v0, v1, v2, v3 = _tail(w0, p, PTX), _tail(w1, p, PTX), _tail(w2, p, PTX), _tail(w3, p, PTX)
        return _clamp(v0, p[0], p[1]), _clamp(v1, p[0], p[1]), _clamp(v2, p[0], p[1]), _clamp(v3, p[0], p[1])


@triton.jit
def values_of_any(w0, w1, w2, w3, record, distribution, PTX: tl.constexpr):
    """Returns the values of a distribution that is known only at run time, with the numbers of the record."""
    if distribution <= NORMAL:  # nested: tools/ptx does not support jump tables
        if distribution == UNIFORM:
            v0, v1, v2, v3 = values(w0, w1, w2, w3, parameters(record, False, UNIFORM), False, UNIFORM, PTX)
        else:
            v0, v1, v2, v3 = values(w0, w1, w2, w3, parameters(record, False, NORMAL), False, NORMAL, PTX)
    elif distribution == INSIDE:
        v0, v1, v2, v3 = values(w0, w1, w2, w3, parameters(record, False, INSIDE), False, INSIDE, PTX)
    elif distribution == WIDE:
        v0, v1, v2, v3 = values(w0, w1, w2, w3, parameters(record, False, WIDE), False, WIDE, PTX)
    else:
        v0, v1, v2, v3 = values(w0, w1, w2, w3, parameters(record, False, TAIL), False, TAIL, PTX)
    return v0, v1, v2, v3
