// float64: two words an element, in double with the C library, to which the contract allows 1e-12. Scalar.
#pragma once

#include <algorithm>
#include <cmath>

#include "fill.h"
#include "philox.h"

namespace fastinit {
namespace FASTINIT_ISA {

// The z >= 0 for which -2 ln Q(z) = minus_2_ln_t, from a first guess by Newton's method.
inline double inverse_tail(double minus_2_ln_t, double z) {
  constexpr double kSqrtHalf = 0.70710678118654752440, kLnSqrt2Pi = 0.91893853320467274178;
  const auto ln_tail = [&](double z) {
    if (z < 25) return std::log(0.5 * std::erfc(z * kSqrtHalf));
    const double r = 1 / (z * z);  // the asymptotic series, whose next term is below 1e-13 here
    return -0.5 * z * z - std::log(z) - kLnSqrt2Pi + std::log1p(-r * (1 - r * (3 - r * (15 - r * (105 - r * 945)))));
  };
  for (int i = 0; i < 60; ++i) {
    const double ln_q = ln_tail(z);
    const double hazard = std::exp(-0.5 * z * z - kLnSqrt2Pi - ln_q);
    const double step = (-2 * ln_q - minus_2_ln_t) / (2 * hazard);
    z -= step;
    // The method doubles the digits: after a step of 1e-7 another would be of 1e-14.
    if (std::fabs(step) <= 1e-7 * (1 + std::fabs(z))) break;
  }
  return z;
}

inline double truncated_double(const FillDesc& fill, uint64_t v) {
  const double* p = fill.params;
  const double u = (double(v) + 0.5) * 0x1p-64, u_bar = (double(~v) + 0.5) * 0x1p-64;
  double z;
  if (fill.distribution == kTruncatedWide) {
    const double below = p[4] + u * p[6], above = p[5] + u_bar * p[6], t = std::min(std::min(below, above), 0.5);
    const double minus_2_ln_t = -2 * std::log(t);
    z = inverse_tail(minus_2_ln_t, std::sqrt(minus_2_ln_t));
    if (below < above) z = -z;
  } else {
    const double s = std::sqrt(p[6] - 2 * std::log(p[4] + u * p[5]));
    z = inverse_tail(s * s, s);
  }
  return std::min(std::max(z * p[1] + p[0], p[2]), p[3]);
}

// The elements 2 block and 2 block + 1 from the four words of the block.
inline void doubles_of(const FillDesc& fill, const uint32_t (&w)[4], double (&value)[2]) {
  constexpr double kTwoPi = 6.283185307179586476925;
  const double p0 = fill.params[0], p1 = fill.params[1];
  const uint64_t v[2] = {uint64_t(w[0]) << 32 | w[1], uint64_t(w[2]) << 32 | w[3]};
  if (fill.distribution == kUniform) {
    for (int i = 0; i < 2; ++i) value[i] = double(v[i] & ((uint64_t(1) << 53) - 1)) * 0x1p-53 * (p1 - p0) + p0;
  } else if (fill.distribution == kNormal) {
    const double r = std::sqrt(-2.0 * std::log((double(v[0]) + 0.5) * 0x1p-64));
    const double t = kTwoPi * ((double(v[1]) + 0.5) * 0x1p-64);
    value[0] = r * std::cos(t) * p1 + p0;
    value[1] = r * std::sin(t) * p1 + p0;
  } else {
    for (int i = 0; i < 2; ++i) value[i] = truncated_double(fill, v[i]);
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
