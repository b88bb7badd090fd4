// From random words to values. Each transform is one fixed sequence of correctly rounded operations, so every
// instruction set and the device give the same bits; polynomials are in place of log, sin and cos for that reason.
#pragma once

#include "philox.h"

namespace fastinit {
namespace FASTINIT_ISA {

// Horner's rule, each step one fma: c[0] + x * (c[1] + x * (c[2] + ...)).
template <class L, int N>
FASTINIT_FN typename L::f32 polynomial(typename L::f32 x, const float (&c)[N]) {
  typename L::f32 sum = L::splat(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = L::fma(sum, x, L::splat(c[i]));
  return sum;
}

// (w & 0xFFFFFF) * 2^-24: one of 2^24 equally spaced numbers of [0, 1). The smallest is 0. Exact.
template <class L>
FASTINIT_FN typename L::f32 uniform01(typename L::u32 w) {
  return L::from_i32(L::as_i32(w & 0x00FFFFFFu)) * 0x1p-24f;
}

// -2 ln(1 - x) = x P(x) on 0 <= x <= 1/2. Fitted to the least maximal error of the square root of the result, 3.1e-7
// before the coefficients are rounded; six coefficients would give 2.0e-6.
constexpr float kLog[7] = {2.000017852660764f, 0.9987396580838381f, 0.6921569066659504f, 0.27658956648861055f,
                           1.374217696951962f, -1.8024299971803162f, 2.3055367151656156f};
// sin(2 pi a) = a S(a^2) and cos(2 pi a) = C(a^2) on |a| <= 1/4, least maximal errors: 3.3e-9 and 2.2e-10 before the
// coefficients are rounded. Four for the sine would give 5.9e-7, five for the cosine 4.7e-8, times up to 6.7.
constexpr float kSin[5] = {6.2831851600894435f, -41.34165503140977f, 81.60100407288746f, -76.549782285581f,
                           39.53670600855013f};
constexpr float kCos[5] = {0.9999999534666579f, -19.73917143469665f, 64.93459062632053f, -85.2403303108819f,
                           56.24238037012728f};
constexpr float kMinus2Ln2 = -1.3862943611198906f;

// Two independent standard normals from two words (Box & Muller 1958), |z| <= 6.77:
//   u = float32(w0) * 2^-32 + 2^-33 (rounded to float32 at the conversion and at the sum), in [2^-33, 1],
//   t = 2 pi (w1 + 1/2) 2^-32, z0 = sqrt(-2 ln u) cos t, z1 = sqrt(-2 ln u) sin t.
template <class L>
FASTINIT_FN void normal_pair(typename L::u32 w0, typename L::u32 w1, typename L::f32& z0, typename L::f32& z1) {
  typedef typename L::f32 f32;
  typedef typename L::u32 u32;
  typedef typename L::i32 i32;
  const f32 u = L::from_u32(w0) * 0x1p-32f + 0x1p-33f;  // the product is exact
  // u = m 2^e with 1/2 < m <= 1: for u <= 1 the exponent is never positive, both terms of -2 ln u = -2 e ln 2 - 2 ln m
  // are positive or zero, and nothing cancels. e stays where it stands in the bits, 2^23 times too large.
  const u32 e = (L::bits(u) - 0x3F000001u) & 0xFF800000u;
  const f32 x = 1.0f - L::from_bits(L::bits(u) - e);  // exact
  const f32 minus_2_ln_u = L::fma(L::from_i32(L::as_i32(e)), L::splat(kMinus2Ln2 * 0x1p-23f), x * polynomial<L>(x, kLog));
  const f32 r = L::sqrt(minus_2_ln_u);
  // v = (w1 + 1/2) 2^-32 as a signed turn, in (-1/2, 1/2), and a = |v| - 1/4: then cos 2 pi v = -sin 2 pi a and
  // sin 2 pi v = +-cos 2 pi a with the sign of v. |v| is taken before the conversion, where it is exact.
  const i32 s = L::as_i32(w1);
  const i32 folded = s ^ (s >> 31);
  const f32 a = L::from_i32(folded - 0x40000000) * 0x1p-32f + 0x1p-33f;
  const f32 y = a * a;
  const f32 sine = a * polynomial<L>(y, kSin);
  const f32 cosine = polynomial<L>(y, kCos);
  z0 = L::from_bits(L::bits(r * sine) ^ 0x80000000u);
  z1 = L::from_bits(L::bits(r * cosine) ^ (w1 & 0x80000000u));
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
