"""float32 -> narrower formats, with the operations of csrc/formats.h: rounded to nearest, ties to even."""

import triton
import triton.language as tl

from .distributions import bits_of, float_of
from .layout import BFLOAT16, E4M3FN, E4M3FNUZ, E5M2FNUZ, FLOAT16, FLOAT32

_PTX_BFLOAT16_PAIR = tl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")
_PTX_FLOAT16_PAIR = tl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")


@triton.jit
def _bfloat16_code(value):
    bits = bits_of(value)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@triton.jit
def bfloat16_pair(x, y, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise(_PTX_BFLOAT16_PAIR, "=r,f,f", [x, y], dtype=tl.uint32, is_pure=True, pack=1)
    else:
        return _bfloat16_code(x) | (_bfloat16_code(y) << 16)


@triton.jit
def _float16_code(value):
    return value.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def float16_pair(x, y, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise(_PTX_FLOAT16_PAIR, "=r,f,f", [x, y], dtype=tl.uint32, is_pure=True, pack=1)
    else:
        return _float16_code(x) | (_float16_code(y) << 16)


@triton.jit
def float8_format(dtype):
    """Returns the numbers of csrc/formats.h's Format: the mantissa's dropped bits, the bias, the code of everything too
    large, and the code of -0 (0 if the format has none)."""
    is_e4 = (dtype == E4M3FN) | (dtype == E4M3FNUZ)
    is_unsigned_zero = (dtype == E4M3FNUZ) | (dtype == E5M2FNUZ)
    dropped = tl.where(is_e4, 20, 21).to(tl.uint32)
    bias = (tl.where(is_e4, 7, 15) + is_unsigned_zero.to(tl.int32)).to(tl.uint32)
    overflow = tl.where(is_unsigned_zero, 0x80, tl.where(is_e4, 0x7E, 0x7C)).to(tl.uint32)
    return dropped, bias, overflow, tl.where(is_unsigned_zero, 0, 0x80).to(tl.uint32)


@triton.jit
def float8_code(value, format):
    dropped, bias, overflow, minus_zero = format
    bits = bits_of(value)
    magnitude = bits & 0x7FFFFFFF
    half = (1 << (dropped - 1)) - 1
    normal = ((magnitude + half + ((magnitude >> dropped) & 1)) >> dropped) - ((127 - bias) << (23 - dropped))
    # Subnormal numbers are multiples of 2^(1 - bias - mantissa): adding this rounds to one.
    aligned = (128 - bias + dropped) << 23
    subnormal = bits_of(float_of(magnitude) + float_of(aligned)) - aligned
    code = tl.minimum(tl.where(magnitude < ((128 - bias) << 23), subnormal, normal), overflow)
    sign = (bits >> 24) & 0x80
    return code | (sign & tl.where(code == 0, minus_zero, 0x80))


@triton.jit
def code_of(value, dtype):
    """Returns the bits of a value in any dtype but float64, as the low bits of a word."""
    code = bits_of(value)
    if dtype == BFLOAT16:
        code = _bfloat16_code(value)
    elif dtype == FLOAT16:
        code = _float16_code(value)
    elif dtype != FLOAT32:
        code = float8_code(value, float8_format(dtype))
    return code
