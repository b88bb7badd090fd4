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
// sin(2 pi a) = a S(a^2) and cos(2 pi a) = C(a^2) on |a| <= 1/4, least maximal errors: 3.3e-9 and 4.7e-8 before the
// coefficients are rounded. Four for the sine would give 5.9e-7, four for the cosine 6.7e-6, times up to 6.7.
constexpr float kSin[5] = {6.2831851600894435f, -41.34165503140977f, 81.60100407288746f, -76.549782285581f,
                           39.53670600855013f};
constexpr float kCos[5] = {0.9999999534666579f, -19.73917143469665f, 64.93459062632053f, -85.2403303108819f,
                           56.24238037012728f};
constexpr float kMinus2Ln2 = -1.3862943611198906f;

// -2 ln u for 0 < u <= 1.
//   u = m 2^e with 1/2 < m <= 1: for u <= 1 the exponent is never positive, both terms of -2 e ln 2 - 2 ln m are positive
//   or zero, and nothing cancels. e stays where it stands in the bits, 2^23 times too large.
template <class L>
FASTINIT_FN typename L::f32 minus_2_ln(typename L::f32 u) {
  const typename L::u32 e = (L::bits(u) - 0x3F000001u) & 0xFF800000u;
  const typename L::f32 x = 1.0f - L::from_bits(L::bits(u) - e);  // exact
  return L::fma(L::from_i32(L::as_i32(e)), L::splat(kMinus2Ln2 * 0x1p-23f), x * polynomial<L>(x, kLog));
}

// The word as a number of [2^-33, 1], rounded to float32 at the conversion and at the sum (the product is exact).
template <class L>
FASTINIT_FN typename L::f32 unit(typename L::u32 w) {
  return L::from_u32(w) * 0x1p-32f + 0x1p-33f;
}

// Two independent standard normals from two words (Box & Muller 1958), |z| <= 6.77:
//   u = float32(w0) * 2^-32 + 2^-33 (rounded to float32 at the conversion and at the sum), in [2^-33, 1],
//   t = 2 pi (w1 + 1/2) 2^-32, z0 = sqrt(-2 ln u) cos t, z1 = sqrt(-2 ln u) sin t.
template <class L>
FASTINIT_FN void normal_pair(typename L::u32 w0, typename L::u32 w1, typename L::f32& z0, typename L::f32& z1) {
  typedef typename L::f32 f32;
  typedef typename L::i32 i32;
  const f32 r = L::sqrt(minus_2_ln<L>(unit<L>(w0)));
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

// The inverse of the normal distribution function, for truncated normals. Q is the upper tail probability.
// z = (1 - 2 t) G(w) with t = Q(z) and w = -2 ln(4 t (1 - t)), on 0 <= w <= 13 (z <= 3.37), in 2 w / 13 - 1: 2.5e-7.
constexpr float kCentreEnd = 13.0f;
constexpr float kCentre[10] = {2.380940025046212f,    1.0967276567696262f,     -0.09403322233837616f, -0.03153294840511574f,
                               0.028151203754287372f, -0.007584438244148819f,  -0.0019804469197747883f,
                               0.002159054686777197f, -0.00021140883711933f,   -0.0002170912071031296f};
// z = T(s) with s = sqrt(-2 ln t), on 3.9075865 <= s <= 8.5 (z from 3.3 to 8.16), in the s mapped to [-1, 1]: 7.9e-8.
constexpr float kTailMiddle = 6.2037932526333395f, kTailReach = 2.2962067473666605f;
constexpr float kTail[9] = {5.752686820928102f,     2.407370916329571f,      -0.03154696486419693f,
                            0.009475768237262419f,  -0.0029342057883529915f, 0.0009042560411938688f,
                            -0.0002895820615247939f, 0.00012422522712773207f, -4.0822989031043e-05f};

// The standard normals whose distribution function is lower + u * width, for u from n words: the numbers are those of
// tails.Near. The smaller of the two tails is carried, never 1 - x^2. Several words at once, since what is rare is one
// branch then, and the long polynomials of several words run beside each other.
template <class L, int N>
FASTINIT_FN void truncated_near(const typename L::u32 (&w)[N], float lower, float width, float upper,
                                typename L::f32 (&z)[N]) {
  typedef typename L::f32 f32;
  f32 t[N], v[N], x[N];
  decltype(f32{} > f32{}) rare{};
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const f32 below = L::fma(unit<L>(w[i]), L::splat(width), L::splat(lower));
    const f32 above = L::fma(unit<L>(~w[i]), L::splat(width), L::splat(upper));
    t[i] = below < above ? below : above;
    v[i] = minus_2_ln<L>(4.0f * (t[i] * (1.0f - t[i])));
    x[i] = below < above ? 2.0f * t[i] - 1.0f : 1.0f - 2.0f * t[i];
    z[i] = x[i] * polynomial<L>(v[i] * (2.0f / kCentreEnd) - 1.0f, kCentre);
    rare = rare | (v[i] > L::splat(kCentreEnd));
  }
  if (L::any(rare)) {  // one value in 1300
    for (int i = 0; i < N; ++i) {
      const f32 s = L::sqrt(minus_2_ln<L>(t[i]));
      const f32 tail = polynomial<L>((s - kTailMiddle) * (1.0f / kTailReach), kTail);
      z[i] = v[i] > L::splat(kCentreEnd) ? (x[i] < 0.0f ? -tail : tail) : z[i];
    }
  }
}

// As before for one small lower tail, the numbers being those of tails.Far; the polynomial was fitted for the tensor.
template <class L>
FASTINIT_FN typename L::f32 truncated_far(typename L::u32 w, float rho, float one_minus_rho, float k, float scale,
                                          float shift, const float (&coefficients)[8]) {
  const typename L::f32 v = L::fma(unit<L>(w), L::splat(one_minus_rho), L::splat(rho));
  const typename L::f32 s = L::sqrt(minus_2_ln<L>(v) + k);
  return -polynomial<L>(L::fma(s, L::splat(scale), L::splat(shift)), coefficients);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
