"""GPU arithmetic, exact to the last bit, for operations that numpy lacks."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np

from .types import F32, F64, I64, U16, U32, U64, Array

# The one NaN that a GPU returns in float32.
_NAN32 = U32(0x7FFFFFFF)
_SIGN32, _EXPONENT32 = U32(0x80000000), U32(0x7F800000)
# A float64 has 29 more bits than a float32; with these it is halfway between two float32.
_BELOW_FLOAT32, _HALF = I64((1 << 29) - 1), I64(1 << 28)
# Twice the smallest normal float32: below it a float32 has fewer bits, and the test for halfway does not apply.
_FEWER_BITS = F64(2.0**-125)

_libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
_libm.fma.restype, _libm.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
_fma64 = np.frompyfunc(_libm.fma, 3, 1)


def canonical(value: Array) -> Array:
    """Returns floats with the hardware's NaN; float64 stays as it is."""
    if value.itemsize == 4 and np.isnan(value.max()):
        value = value.copy()
        value.view(U32)[np.isnan(value)] = _NAN32
    return value


def flushed(value: Array) -> Array:
    """Returns float32 with subnormal numbers replaced by zeros of the same sign (.ftz)."""
    bits = value.view(U32)
    return np.where((bits & _EXPONENT32) == 0, bits & _SIGN32, bits).view(F32)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """Returns a * b + c in float32, rounded once.

    The product is exact in float64. The sum is rounded twice, to float64 and to float32. That matters only if the first
    rounding lands halfway between two float32: there it is made odd, so that the second one rounds by the exact sum.
    """
    product, addend = a.astype(F64) * b.astype(F64), c.astype(F64)
    total = product + addend
    doubtful = (total.view(I64) & _BELOW_FLOAT32) == _HALF
    doubtful |= np.abs(total) < _FEWER_BITS
    if doubtful.any():
        at = np.flatnonzero(doubtful & np.isfinite(total))
        product, addend = (np.broadcast_to(each, total.shape)[at] for each in (product, addend))
        total[at] = _rounded_to_odd(total[at], product, addend)
    return total.astype(F32)


def _rounded_to_odd(total: Array, product: Array, addend: Array) -> Array:
    """Returns sums of float64 rounded to odd: an inexact sum becomes its neighbour with an odd last bit."""
    # Knuth's two-sum: the exact error of the rounded sum.
    shared = total - product
    error = (product - (total - shared)) + (addend - shared)
    bits = total.view(I64)
    towards_the_sum = np.where((error > 0) == (total > 0), 1, -1)
    odd: Array = np.where((error != 0) & ((bits & 1) == 0), bits + towards_the_sum, bits)
    return odd.view(F64)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """Returns a * b + c in float64, rounded once, by the C library: slow."""
    return np.asarray(_fma64(a, b, c)).astype(F64)


def multiply_high(a: Array, b: Array) -> Array:
    """Returns the upper half of the products of integers of 16, 32 or 64 bits, signed or not."""
    dtype = a.dtype
    if dtype.itemsize <= 4:
        wide = np.dtype(f"{dtype.kind}{dtype.itemsize * 2}")
        product: Array = a.astype(wide) * b.astype(wide)
        product >>= wide.type(dtype.itemsize * 8)
        return product.astype(dtype)
    low, shift = U64(0xFFFFFFFF), U64(32)
    x, y = a.view(U64), b.view(U64)
    x_low, x_high, y_low, y_high = x & low, x >> shift, y & low, y >> shift
    middle = x_high * y_low + ((x_low * y_low) >> shift)
    rest = x_low * y_high + (middle & low)
    high: Array = x_high * y_high + (middle >> shift) + (rest >> shift)
    if dtype.kind == "i":
        high = high - np.where(a < 0, y, U64(0)) - np.where(b < 0, x, U64(0))
    return high.view(dtype)


def divided(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns quotients and remainders of integers, towards zero.

    As on the hardware, division by zero gives all ones and the dividend; the smallest number divided by -1 is itself.
    """
    a, b = np.broadcast_arrays(a, b)
    one, zero = b.dtype.type(1), b.dtype.type(0)
    by_zero = b == 0
    by_minus_one = (b == -1) if b.dtype.kind == "i" else np.zeros(b.shape, bool)
    divisor = np.where(by_zero | by_minus_one, one, b)
    quotient = a // divisor
    remainder = a - quotient * divisor
    # numpy rounds towards minus infinity.
    is_below = (remainder != 0) & ((a < 0) != (divisor < 0))
    quotient = quotient + is_below.astype(b.dtype)
    remainder = remainder - np.where(is_below, divisor, zero)
    quotient = np.where(by_minus_one, zero - a, quotient)
    return np.where(by_zero, ~zero, quotient), np.where(by_zero, a, np.where(by_minus_one, zero, remainder))


def bfloat16_of(value: Array) -> Array:
    """Returns the bits of float32 rounded to bfloat16, to nearest even."""
    bits = value.view(U32)
    rounded: Array = ((bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)).astype(U16)
    is_nan = (bits & ~_SIGN32) > _EXPONENT32
    return np.where(is_nan, U16(0x7FFF), rounded)


def float16_of(value: Array) -> Array:
    """Returns the bits of floats rounded to float16, to nearest even."""
    return np.where(np.isnan(value), U16(0x7FFF), value.astype(np.float16).view(U16))


def float32_of_bfloat16(bits: Array) -> Array:
    """Returns the float32 of the bits of bfloat16."""
    value: Array = bits.astype(U32) << U32(16)
    return value.view(F32)
