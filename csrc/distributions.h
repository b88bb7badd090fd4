// Turns random words into values. Each transform is a fixed sequence of correctly rounded operations, so every instruction
// set and GPU gives the same bits; that is why polynomials replace log, sin and cos.
#pragma once

#include "philox.h"

namespace fastinit {
namespace FASTINIT_ISA {

// unit * (c[0] + x * (c[1] + x * (c[2] + ...))), by Horner's rule with one fma per step. c * unit is rounded to float32, at
// compile time where both are constants.
template <class L, int N>
FASTINIT_FN typename L::f32 polynomial(typename L::f32 x, const float (&c)[N], float unit = 1.0f) {
  typename L::f32 sum = L::splat(c[N - 1] * unit);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = L::fma(sum, x, L::splat(c[i] * unit));
  return sum;
}

// (w & 0xFFFFFF) * 2^-24: one of 2^24 equally spaced numbers in [0, 1), including 0. Exact.
template <class L>
FASTINIT_FN typename L::f32 uniform01(typename L::u32 w) {
  return L::from_i32(L::as_i32(w & 0x00FFFFFFu)) * 0x1p-24f;
}

// The tables are minimax polynomials; tools/fit_coefficients.py fits them anew and compares. "Best" is the least maximal
// error with that many coefficients, before they are rounded to float32. The Triton kernels' tables are generated from
// these: run tools/kernel_tables.py after a change.

// How the logarithm differs from a straight line: -2 (ln(1 + f) - f ln 2) = f (1 - f) B(f) on 0 <= f <= 1. The error that
// counts is that of its square root, largest where the root is small: best 3.4e-7, with five coefficients 2.3e-6.
FASTINIT_TABLE float kBend[6] = {-0.6136443134447835f, 0.3848337191266087f,  -0.2686039475316288f,
                                 0.17404670412143908f, -0.08144713044460192f, 0.018530501565536255f};
// sin(2 pi a) = a S(a^2) and cos(2 pi a) = C(a^2) on |a| <= 1/4: best 3.3e-9 and 4.7e-8. Four coefficients would give
// 5.9e-7 and 6.7e-6, times up to 6.7.
FASTINIT_TABLE float kSin[5] = {6.2831851600894435f, -41.34165503140977f, 81.60100407288746f, -76.549782285581f,
                           39.53670600855013f};
FASTINIT_TABLE float kCos[5] = {0.9999999534666579f, -19.73917143469665f, 64.93459062632053f, -85.2403303108819f,
                           56.24238037012728f};
constexpr float kMinus2Ln2 = -1.3862943611198906f;

// constant - 2 ln(2^J u) * unit for 0 < 2^J u <= 1.
//   2^J u = (1 + f) 2^e: a float's bits, read as an integer, are (e + f) 2^23, so a conversion gives the logarithm except
//   for B. Both vanish where 2^J u = 1, and near it the worst cancellation is 1.39 - 0.39.
template <class L, int J, int N>
FASTINIT_FN typename L::f32 minus_2_ln(typename L::f32 u, const float (&c)[N], float unit, float constant) {
  const typename L::u32 line = L::bits(u) - (0x3F800000u - (uint32_t(J) << 23));
  const typename L::f32 f = L::fraction(u);
  const typename L::f32 straight =
      L::fma(L::from_i32(L::as_i32(line)), L::splat(kMinus2Ln2 * 0x1p-23f * unit), L::splat(constant));
  return L::fma(L::fma(-f, f, f), polynomial<L>(f, c, unit), straight);
}

// The word as a number of [2^-33, 1], rounded to float32 at the conversion and at the sum (the product is exact).
template <class L>
FASTINIT_FN typename L::f32 unit(typename L::u32 w) {
  return L::fma(L::from_u32(w), L::splat(0x1p-32f), L::splat(0x1p-33f));
}

// Added to -2 ln u, because the GPU's square root sequence cannot take a zero: sqrt gives 2^-50 at u = 1; all other results
// are at least 2^-23 and do not change.
constexpr float kNotZero = 0x1p-100f;

struct Normal {
  float mean, std;
};

// Two independent normals from two words (Box & Muller 1958), within 6.77 standard deviations:
//   u = float32(w0) * 2^-32 + 2^-33 (rounded to float32 at the conversion and at the sum), in [2^-33, 1],
//   t = 2 pi (w1 + 1/2) 2^-32, sqrt(-2 ln u) std cos t + mean and sqrt(-2 ln u) std sin t + mean.
// The largest error over all w0 (at 45 degrees) is 9.07e-7 standard deviations, over all w1 (at the largest radius)
// 1.77e-6.
template <class L>
FASTINIT_FN void normal_pair(typename L::u32 w0, typename L::u32 w1, const Normal& p, typename L::f32& value0,
                             typename L::f32& value1) {
  typedef typename L::f32 f32;
  const f32 r = L::sqrt(minus_2_ln<L, 0>(unit<L>(w0), kBend, 1.0f, kNotZero)) * p.std;
  // v = w1 2^-32 as a signed turn, in [-1/2, 1/2] (the half step is 5e-9 of the value), and a = |v| - 1/4: then
  // cos 2 pi v = -sin 2 pi a, and sin 2 pi v = +-cos 2 pi a with the sign of v.
  const f32 v = L::from_i32(L::as_i32(w1)) * 0x1p-32f;
  const f32 a = L::abs(v) - 0.25f;
  const f32 y = a * a;
  const f32 sine = a * polynomial<L>(y, kSin);
  const f32 cosine = L::from_bits(L::bits(polynomial<L>(y, kCos)) ^ (w1 & 0x80000000u));
  value0 = L::fma(-r, sine, L::splat(p.mean));
  value1 = L::fma(r, cosine, L::splat(p.mean));
}

// --- truncated normals: the inverse of the distribution function at (w + 1/2) 2^-32 of the way between the bounds' ---
//
// Q is the upper tail probability; lower, upper and width are the probabilities below, above and between the bounds,
// which tails.py computes. A tensor uses one of three forms. Each applies mean and std itself, so that its last operation is
// one fma. The largest errors over all 2^32 words (tools/check_numbers.py), in standard deviations: 1.11e-6 inside two of
// them, 1.52e-6 wide, 1.71e-6 in a tail from 1.6.

// As kBend, but five coefficients that minimize the error of the logarithm itself, 3.1e-6; at most a fifth of it reaches z.
FASTINIT_TABLE float kBendTruncated[5] = {-0.6134975550077484f, 0.38206310025328616f, -0.25223448666089626f,
                                          0.13302357458700803f, -0.035823696555597216f};

// z = x P(sqrt(1 - x^2)) with x = 2 Phi(z) - 1, for |z| <= 2.001: no logarithm. The polynomial's variable is mapped
// from [kInsideEnd, 1] to [-1, 1] (unmapped, its rounding errors are ten times larger): best 3.5e-7, with nine 1.3e-6.
constexpr float kInsideEnd = 0.2978f;
FASTINIT_TABLE float kInside[10] = {1.547133957146439f,      -0.3773243655487106f,    0.11071793957626713f,
                               -0.03708453383849878f,   0.013982445004244375f,   -0.0059652697513995325f,
                               0.0020997107315305075f,  -0.0004841747071564203f, 0.0008722420665618857f,
                               -0.0006398174485916866f};

struct TruncatedInside {
  float mean, std, scale, middle;  // x = scale * (the word as a signed number) + middle
};

template <class L>
FASTINIT_FN typename L::f32 truncated_inside(typename L::u32 w, const TruncatedInside& p) {
  typedef typename L::f32 f32;
  const f32 x = L::fma(L::from_i32(L::as_i32(w ^ 0x80000000u)), L::splat(p.scale), L::splat(p.middle));
  const f32 y = L::sqrt(L::fma(-x, x, L::splat(1.0f)));
  constexpr float kWidth = 1.0f - kInsideEnd;
  const f32 mapped = L::fma(y, L::splat(2.0f / kWidth), L::splat(-(1.0f + kInsideEnd) / kWidth));
  return L::fma(x * p.std, polynomial<L>(mapped, kInside), L::splat(p.mean));
}

// z = (1 - 2 t) G(v) with t = Q(z) and v = -2 ln(4 t (1 - t)), which is symmetric about t = 1/2 and smooth there, on
// 0 <= v <= kCentreEnd (|z| <= 3.70), in v mapped to [-1, 1]: best 6.3e-7; with nine 8.8e-7, but rounded far worse.
constexpr float kCentreEnd = 15.5f;
FASTINIT_TABLE float kCentre[10] = {2.5881845207340244f,   1.2612360624362267f,    -0.15150860123143303f,
                               -0.021859110373191857f, 0.041329025474145235f,  -0.019671074248366175f,
                               0.0006167413287614669f, 0.004322417751120436f,  -0.00144823348566594f,
                               -0.00016379034334447652f};
// Beyond, z = T(sqrt(-2 ln t)), mapped likewise, down to the least t of this form (|z| = 6.8): best 2.3e-7.
constexpr float kTailFirst = 4.2f, kTailLast = 7.4f;
FASTINIT_TABLE float kTail[7] = {5.328315035016169f,    1.685852289952468f,     -0.01803492209548546f, 0.003998523831134332f,
                            -0.0009150268633868559f, 0.0002391145333706455f, -5.876300073991592e-05f};

struct TruncatedWide {
  float mean, std, lower, upper, width;  // below w = 2^31: t = lower + w * width, else upper + (2^32 - 1 - w) * width
};

// Each half of the words counts its tail up from the end, so that small probabilities keep all their digits. Several words
// at a time share one branch for rare values, and their long polynomials overlap.
template <class L, int N>
FASTINIT_FN void truncated_wide(const typename L::u32 (&w)[N], const TruncatedWide& p, typename L::f32 (&value)[N]) {
  typedef typename L::f32 f32;
  typedef typename L::u32 u32;
  f32 t[N], v[N];
  decltype(f32{} > f32{}) rare{};
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const auto s = L::as_i32(w[i]), in_upper_half = s >> 31;
    const u32 lower = L::bits(L::splat(p.lower)), either = lower ^ L::bits(L::splat(p.upper));
    t[i] = L::fma(L::from_i32(s ^ in_upper_half), L::splat(p.width), L::from_bits(lower ^ (either & u32(in_upper_half))));
    v[i] = minus_2_ln<L, 2>(L::fma(-t[i], t[i], t[i]), kBendTruncated, 2.0f / kCentreEnd, -1.0f);
    const f32 x = L::fma(t[i], L::splat(2.0f * p.std), L::splat(-p.std));
    const u32 sign = w[i] & 0x80000000u;
    value[i] = L::fma(L::from_bits(L::bits(x) ^ sign), polynomial<L>(v[i], kCentre), L::splat(p.mean));
    rare = rare | (v[i] > L::splat(1.0f));
  }
  if (L::any(rare)) {  // one value in 4600 of a whole normal
    for (int i = 0; i < N; ++i) {
      if (!L::any(v[i] > L::splat(1.0f))) continue;
      const f32 s = L::sqrt(minus_2_ln<L, 0>(t[i], kBendTruncated, 1.0f, 0.0f));
      const f32 mapped = L::fma(s, L::splat(2.0f / (kTailLast - kTailFirst)),
                                L::splat(-(kTailLast + kTailFirst) / (kTailLast - kTailFirst)));
      const f32 std = L::from_bits(L::bits(L::splat(-p.std)) ^ (w[i] & 0x80000000u));
      value[i] = v[i] > L::splat(1.0f) ? L::fma(std, polynomial<L>(mapped, kTail), L::splat(p.mean)) : value[i];
    }
  }
}

// One tail: v = rho + u (1 - rho) is the probability below the value relative to that below the upper bound. The value is a
// polynomial in s = sqrt(k - 2 ln v) mapped to [-1, 1], interpolated per tensor (tails.Tail).
struct TruncatedTail {
  float base, width, k, scale, shift, coefficients[10];  // v = base + w * width
};

template <class L>
FASTINIT_FN typename L::f32 truncated_tail(typename L::u32 w, const TruncatedTail& p) {
  typedef typename L::f32 f32;
  const f32 v = L::fma(L::from_u32(w), L::splat(p.width), L::splat(p.base));
  const f32 s = L::sqrt(minus_2_ln<L, 0>(v, kBendTruncated, 1.0f, p.k));
  return polynomial<L>(L::fma(s, L::splat(p.scale), L::splat(p.shift)), p.coefficients);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
