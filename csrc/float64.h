// float64: two words per element, v = word 2i << 32 | word 2i + 1. Uses only +, -, *, / and sqrt on lanes of doubles, each
// rounded once and none fused, and no C library: CPUs give the same bits here too, though the contract asks for 1e-12 only.
#pragma once

#include "lanes.h"

namespace fastinit {
namespace FASTINIT_ISA {

// Horner's rule; each product and each sum is rounded.
template <class L, int N, class Coefficients>
FASTINIT_FN typename L::f64 polynomial64(typename L::f64 x, const Coefficients& c) {
  typename L::f64 sum = L::splat64(c[N - 1]);
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) sum = sum * x + c[i];
  return sum;
}

// Rounded to nearest. Each half becomes the low bits of a power of two, whose bits the constant supplies: exact.
template <class L>
FASTINIT_FN typename L::f64 to_f64(typename L::u64 v) {
  const typename L::f64 high = L::from_bits64((v >> 32) | 0x4530000000000000u);         // 2^84 + high half * 2^32
  const typename L::f64 low = L::from_bits64((v & 0xFFFFFFFFu) | 0x4330000000000000u);  // 2^52 + low half
  return (high - (0x1p84 + 0x1p52)) + low;
}

// (v + 1/2) 2^-64, rounded to double at the conversion and at the sum, in [2^-65, 1].
template <class L>
FASTINIT_FN typename L::f64 unit64(typename L::u64 v) {
  return (to_f64<L>(v) + 0.5) * 0x1p-64;
}

// 2 / (2 k + 1): the series of 2 artanh. On |s| <= 0.1716 the first omitted term is below 6e-17 of the sum.
FASTINIT_TABLE double kArtanh64[10] = {2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19};
constexpr double kLn2 = 0.69314718055994530942;

// -2 ln u for u > 0: u = m 2^e with sqrt(1/2) <= m < sqrt(2), and ln m = 2 artanh((m - 1) / (m + 1)).
template <class L>
FASTINIT_FN typename L::f64 minus_2_ln64(typename L::f64 u) {
  typedef typename L::f64 f64;
  typedef typename L::u64 u64;
  const u64 above = L::bits64(u) - 0x3FE6A09E667F3BCDu;  // the bits of sqrt(1/2)
  const u64 e = above >> 52, sign = e >> 11;             // e has 12 bits; its highest is the sign
  // e as a double: added to the low bits of 3 * 2^51.
  const f64 exponent = L::from_bits64((e - (sign << 12)) + 0x4338000000000000u) - 0x1.8p52;
  const f64 m = L::from_bits64(L::bits64(u) - (e << 52));
  const f64 s = (m - 1.0) / (m + 1.0);
  return exponent * (-2.0 * kLn2) - 2.0 * (s * polynomial64<L, 10>(s * s, kArtanh64));
}

// 1 / n!: the series of sine and cosine. On |x| <= pi / 2 the first omitted terms are below 2e-18 and 1e-19.
FASTINIT_TABLE double kSin64[11] = {1.0,
                               -1.0 / 6,
                               1.0 / 120,
                               -1.0 / 5040,
                               1.0 / 362880,
                               -1.0 / 39916800,
                               1.0 / 6227020800,
                               -1.0 / 1307674368000,
                               1.0 / 355687428096000,
                               -1.0 / 121645100408832000,
                               1.0 / 51090942171709440000.0};
FASTINIT_TABLE double kCos64[12] = {1.0,
                               -1.0 / 2,
                               1.0 / 24,
                               -1.0 / 720,
                               1.0 / 40320,
                               -1.0 / 3628800,
                               1.0 / 479001600,
                               -1.0 / 87178291200,
                               1.0 / 20922789888000,
                               -1.0 / 6402373705728000,
                               1.0 / 2432902008176640000,
                               -1.0 / 1124000727777607680000.0};

// (v & (2^53 - 1)) 2^-53. Exact.
template <class L>
FASTINIT_FN typename L::f64 uniform64(typename L::u64 v) {
  return to_f64<L>(v & ((uint64_t(1) << 53) - 1)) * 0x1p-53;
}

// Two independent standard normals, as normal_pair of distributions.h.
template <class L>
FASTINIT_FN void normal_pair64(typename L::u64 v0, typename L::u64 v1, typename L::f64& z0, typename L::f64& z1) {
  typedef typename L::f64 f64;
  const f64 r = L::sqrt64(minus_2_ln64<L>(unit64<L>(v0)));
  const typename L::u64 folded = v1 ^ (0 - (v1 >> 63));  // |signed turn|
  const f64 x = (to_f64<L>(folded) + (0.5 - 0x1p62)) * (0x1p-64 * 6.283185307179586476925);
  const f64 y = x * x;
  z0 = -r * (x * polynomial64<L, 11>(y, kSin64));
  z1 = L::from_bits64(L::bits64(r * polynomial64<L, 12>(y, kCos64)) ^ (v1 & 0x8000000000000000u));
}

// Truncated normals: the forms of distributions.h without the one inside two sigma. The tables come from
// tools/fit_coefficients.py and are within 1e-13.
constexpr double kCentreEnd64 = 15.5;
FASTINIT_TABLE double kCentre64[22] = {
    2.5881838843463547, 1.2612367878226556, -0.15147396721498957, -0.021876155800809566, 0.04102982738079329,
    -0.01954474463796268, 0.001515546492978888, 0.003926709365306735, -0.002537016922807269, 0.0003962642197395979,
    0.0004259003920758782, -0.0003301481527007126, 6.975087515696446e-05, 4.7262143673220825e-05,
    -4.4808711380030805e-05, 1.1574830375595708e-05, 7.114318909388355e-06, -6.447907774384362e-06,
    3.311770422604018e-07, 1.2115853496497368e-06, -1.977772807826543e-07, -8.642644984848125e-08};
constexpr double kTailFirst64 = 4.2, kTailLast64 = 9.9;
FASTINIT_TABLE double kTail64[18] = {
    6.636001464621127, 2.9632684449822624, -0.03554579755284418, 0.01177857217888502, -0.004022002841936545,
    0.0014002380750758553, -0.0004942422024357984, 0.00017630257008574468, -6.344192830514101e-05,
    2.299335826127401e-05, -8.35602757162966e-06, 3.065823413585893e-06, -1.1849407842779155e-06,
    4.399752747410343e-07, -1.10829913224415e-07, 4.116545348200791e-08, -4.379470447929573e-08,
    1.660767383066906e-08};

struct TruncatedWide64 {
  double lower, upper, width;  // probabilities below, above and between the bounds
};

// The standard normal's value (v + 1/2) 2^-64 of the way from bound to bound, in probability.
template <class L>
FASTINIT_FN typename L::f64 truncated_wide64(typename L::u64 v, const TruncatedWide64& p) {
  typedef typename L::f64 f64;
  typedef typename L::u64 u64;
  const u64 in_upper_half = 0 - (v >> 63);
  const u64 end = (L::bits64(L::splat64(p.upper)) & in_upper_half) | (L::bits64(L::splat64(p.lower)) & ~in_upper_half);
  const f64 t = L::from_bits64(end) + unit64<L>(v ^ in_upper_half) * p.width;
  const f64 c = minus_2_ln64<L>(4.0 * (t - t * t));
  f64 z = (1.0 - 2.0 * t) * polynomial64<L, 22>(c * (2.0 / kCentreEnd64) - 1.0, kCentre64);
  const auto rare = c > kCentreEnd64;
  if (L::any64(rare)) {
    const f64 s = L::sqrt64(minus_2_ln64<L>(t));
    constexpr double kScale = 2.0 / (kTailLast64 - kTailFirst64);
    const f64 tail = polynomial64<L, 18>(s * kScale - kScale * (kTailFirst64 + kTailLast64) / 2, kTail64);
    z = rare ? tail : z;
  }
  return L::from_bits64(L::bits64(z) ^ (~v & 0x8000000000000000u));
}

constexpr int kTailTerms64 = 26;
struct TruncatedTail64 {
  const double* numbers;  // rho, 1 - rho, k, scale, shift, coefficients (tails.Tail)
};

// The numbers, to be read from memory for each value: in registers they would halve the GPU's occupancy.
#if defined(__CUDACC__)
FASTINIT_FN const double* reread(const double* numbers) {
  // The compiler does not know that this is the same address each time, and so moves no load out of the loop. Volatile loads
  // would also pass by the near cache: 30 trips per value to the cache that all multiprocessors share take 25 times as long.
  asm volatile("" : "+l"(numbers));
  __builtin_assume(__isGlobal(numbers));
  return numbers;
}
#else
FASTINIT_FN const volatile double* reread(const double* numbers) { return numbers; }
#endif

template <class L>
FASTINIT_FN typename L::f64 truncated_tail64(typename L::u64 v, const TruncatedTail64& p) {
  const auto numbers = reread(p.numbers);
  const typename L::f64 s = L::sqrt64(minus_2_ln64<L>(numbers[0] + unit64<L>(v) * numbers[1]) + numbers[2]);
  return polynomial64<L, kTailTerms64>(s * numbers[3] + numbers[4], numbers + 5);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
