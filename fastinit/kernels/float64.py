"""Turns random words into float64 values with the operations of csrc/float64.h. The contract asks for 1e-12 only."""

import triton
import triton.language as tl

from . import tables
from .distributions import number
from .layout import NORMAL, UNIFORM, WIDE

_ARTANH64 = tl.constexpr(tables.ARTANH64)
_LN2_64 = tl.constexpr(tables.LN2)
_SIN64, _COS64 = tl.constexpr(tables.SIN64), tl.constexpr(tables.COS64)
_TURN64 = tl.constexpr(2.0**-64 * 6.283185307179586476925)
_CENTRE_END64 = tl.constexpr(tables.CENTRE_END64)
_CENTRE64 = tl.constexpr(tables.CENTRE64)
_TAIL_FIRST64, _TAIL_LAST64 = tables.TAIL_FIRST64, tables.TAIL_LAST64
_TAIL_SCALE64 = tl.constexpr(2.0 / (_TAIL_LAST64 - _TAIL_FIRST64))
_TAIL_SHIFT64 = tl.constexpr(2.0 / (_TAIL_LAST64 - _TAIL_FIRST64) * (_TAIL_FIRST64 + _TAIL_LAST64) / 2)
_TAIL_POLYNOMIAL64 = tl.constexpr(tables.TAIL64)
_N_TAIL64 = tl.constexpr(tables.TAIL_TERMS64)

_PTX_RSQRT = tl.constexpr("rsqrt.approx.ftz.f32 $0, $1;")


@triton.jit
def _bits64(x):
    return x.to(tl.uint64, bitcast=True)


@triton.jit
def _float64(bits):
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def _polynomial64(x, c: tl.constexpr):
    sum = x * c[len(c) - 1] + c[len(c) - 2]
    for i in tl.static_range(len(c) - 2):
        sum = sum * x + c[len(c) - 3 - i]
    return sum


@triton.jit
def _rsqrt_guess(x):
    """Returns 1 / sqrt(x) to 22 bits, from float32's instruction; numbers below 2^-100 count as 2^-100."""
    narrow = tl.maximum(x.to(tl.float32), 2.0**-100)
    guess = tl.inline_asm_elementwise(_PTX_RSQRT, "=f,f", [narrow], dtype=tl.float32, is_pure=True, pack=1)
    return guess.to(tl.float64)


@triton.jit
def _sqrt64(x, PTX: tl.constexpr):
    if PTX:
        y = _rsqrt_guess(x)
        g, h = x * y, 0.5 * y
        for _ in tl.static_range(2):
            e = tl.fma(-h, g, tl.full([], 0.5, tl.float64))
            g, h = tl.fma(g, e, g), tl.fma(h, e, h)
        return tl.fma(tl.fma(-g, g, x), h, g)
    else:
        return tl.sqrt(x)


@triton.jit
def _quotient64(a, b, PTX: tl.constexpr):
    """Returns a / b for b of about 2; the compiler's division has a slow path with a call."""
    if PTX:
        root = _rsqrt_guess(b)
        y = root * root
        for _ in tl.static_range(2):
            y = tl.fma(y, tl.fma(-b, y, tl.full([], 1.0, tl.float64)), y)
        q = a * y
        return tl.fma(tl.fma(-b, q, a), y, q)
    else:
        return a / b


@triton.jit
def _unit64(v):
    return (v.to(tl.float64) + 0.5) * 2.0**-64


@triton.jit
def _minus_2_ln64(u, PTX: tl.constexpr):
    e = _signed64(_bits64(u) - 0x3FE6A09E667F3BCD) >> 52
    m = _float64(_bits64(u) - (e << 52).to(tl.uint64, bitcast=True))
    s = _quotient64(m - 1.0, m + 1.0, PTX)
    return e.to(tl.int32).to(tl.float64) * (-2.0 * _LN2_64) - 2.0 * (s * _polynomial64(s * s, _ARTANH64))


@triton.jit
def _signed64(x):
    return x.to(tl.int64, bitcast=True)


@triton.jit
def _normal_pair64(v0, v1, mean, std, PTX: tl.constexpr):
    r = _sqrt64(_minus_2_ln64(_unit64(v0), PTX), PTX)
    folded = v1 ^ (_signed64(v1) >> 63).to(tl.uint64, bitcast=True)
    x = (folded.to(tl.float64) + (0.5 - 2.0**62)) * _TURN64
    y = x * x
    z0 = -r * (x * _polynomial64(y, _SIN64))
    z1 = _float64(_bits64(r * _polynomial64(y, _COS64)) ^ (v1 & 0x8000000000000000))
    return z0 * std + mean, z1 * std + mean


@triton.jit
def _wide64(v, lower, upper, width, PTX: tl.constexpr):
    in_upper_half = _signed64(v) < 0
    end = tl.where(in_upper_half, upper, lower)
    t = end + _unit64(v ^ (_signed64(v) >> 63).to(tl.uint64, bitcast=True)) * width
    c = _minus_2_ln64(4.0 * (t - t * t), PTX)
    z = (1.0 - 2.0 * t) * _polynomial64(c * (2.0 / _CENTRE_END64) - 1.0, _CENTRE64)
    s = _sqrt64(_minus_2_ln64(t, PTX), PTX)
    z = tl.where(c > _CENTRE_END64, _polynomial64(s * _TAIL_SCALE64 - _TAIL_SHIFT64, _TAIL_POLYNOMIAL64), z)
    return tl.where(in_upper_half, z, -z)


@triton.jit
def _tail64(v, record, PTX: tl.constexpr):
    x = number(record, 4) + _unit64(v) * number(record, 5)
    x = _sqrt64(_minus_2_ln64(x, PTX) + number(record, 6), PTX) * number(record, 7) + number(record, 8)
    sum = x * number(record, 8 + _N_TAIL64) + number(record, 7 + _N_TAIL64)
    for i in tl.static_range(_N_TAIL64 - 2):
        sum = sum * x + number(record, 6 + _N_TAIL64 - i)
    return sum


@triton.jit
def _truncated64(z, record):
    low, high = number(record, 2), number(record, 3)
    value = z * number(record, 1) + number(record, 0)
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@triton.jit
def values64(w0, w1, w2, w3, record, distribution, PTX: tl.constexpr):
    """Returns the bits of the two float64 values of each block's four words."""
    v0 = (w0.to(tl.uint64) << 32) | w1.to(tl.uint64)
    v1 = (w2.to(tl.uint64) << 32) | w3.to(tl.uint64)
    if distribution == NORMAL:
        x0, x1 = _normal_pair64(v0, v1, number(record, 0), number(record, 1), PTX)
    else:
        v = tl.join(v0, v1)
        if distribution == UNIFORM:
            low = number(record, 0)
            x = (v & 0x1FFFFFFFFFFFFF).to(tl.float64) * 2.0**-53 * (number(record, 1) - low) + low
        elif distribution == WIDE:
            lower, upper, width = number(record, 4), number(record, 5), number(record, 6)
            x = _truncated64(_wide64(v, lower, upper, width, PTX), record)
        else:
            x = _truncated64(_tail64(v, record, PTX), record)
        x0, x1 = tl.split(x)
    return _bits64(x0), _bits64(x1)
