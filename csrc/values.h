// Turns random words into a fill's values, given its numbers (the params of its record).
#pragma once

#include "distributions.h"
#include "fill.h"
#include "float64.h"

namespace fastinit {
namespace FASTINIT_ISA {

typedef Lanes::f32 f32;
typedef Lanes::u32 u32;

// --- float32: four registers of words -> four registers of values, in the words' order -------------------------------

struct WordValues {  // the words' own bits
  FASTINIT_FN explicit WordValues(const double*) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = Lanes::from_bits(words.w[i]);
  }
};

struct UniformValues {
  float low, range;
  FASTINIT_FN explicit UniformValues(const double* params)
      : low(float(params[0])), range(float(params[1]) - float(params[0])) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = uniform01<Lanes>(words.w[i]) * range + low;
  }
};

// The same bits with one operation fewer, if float32 holds the range times 2^-24 exactly: either way one product rounds.
struct ScaledUniformValues {
  float low, scale;
  FASTINIT_FN explicit ScaledUniformValues(const double* params) : low(float(params[0])), scale(float(params[2])) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = Lanes::from_i32(Lanes::as_i32(words.w[i] & 0x00FFFFFFu)) * scale + low;
  }
};

struct NormalValues {
  Normal form;
  FASTINIT_FN explicit NormalValues(const double* p) : form{float(p[0]), float(p[1])} {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    normal_pair<Lanes>(words.w[0], words.w[1], form, value[0], value[1]);
    normal_pair<Lanes>(words.w[2], words.w[3], form, value[2], value[3]);
  }
};

// A truncated normal in one of the three forms, clamped to [low, high]. The target dtype holds both bounds exactly, so
// rounding to it cannot cross them.
struct Bounds {
  float low, high;
  FASTINIT_FN explicit Bounds(const double* params) : low(float(params[2])), high(float(params[3])) {}
  FASTINIT_FN f32 operator()(f32 value) const {
    return Lanes::min(Lanes::splat(high), Lanes::max(Lanes::splat(low), value));
  }
};

struct TruncatedInsideValues {
  Bounds bounds;
  TruncatedInside form;
  FASTINIT_FN explicit TruncatedInsideValues(const double* p)
      : bounds(p), form{float(p[0]), float(p[1]), float(p[4]), float(p[5])} {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = bounds(truncated_inside<Lanes>(words.w[i], form));
  }
};

// Whether a wide truncated normal's values, |z| < 6.8, can reach its bounds.
FASTINIT_FN bool reaches_bounds(const double* p) {
  const double reach = 7 * (p[1] < 0 ? -p[1] : p[1]);
  return p[2] > p[0] - reach || p[3] < p[0] + reach;
}

template <bool kBounded>
struct TruncatedWideValues {
  Bounds bounds;
  TruncatedWide form;
  FASTINIT_FN explicit TruncatedWideValues(const double* p)
      : bounds(p), form{float(p[0]), float(p[1]), float(p[4]), float(p[5]), float(p[6])} {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    truncated_wide<Lanes>(words.w, form, value);
    if (kBounded)
      for (int i = 0; i < 4; ++i) value[i] = bounds(value[i]);
  }
};

struct TruncatedTailValues {
  Bounds bounds;
  TruncatedTail form;
  FASTINIT_FN explicit TruncatedTailValues(const double* p)
      : bounds(p), form{float(p[4]), float(p[5]), float(p[6]), float(p[7]), float(p[8]), {}} {
    for (int i = 0; i < 10; ++i) form.coefficients[i] = float(p[9 + i]);
  }
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = bounds(truncated_tail<Lanes>(words.w[i], form));
  }
};

// --- the same in float64: two registers of 64-bit numbers, those of the even and those of the odd elements -------------

typedef Lanes::f64 f64;
typedef Lanes::u64 u64;

struct UniformValues64 {
  double low, range;
  FASTINIT_FN explicit UniformValues64(const double* p) : low(p[0]), range(p[1] - p[0]) {}
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    for (int i = 0; i < 2; ++i) value[i] = uniform64<Lanes>(v[i]) * range + low;
  }
};

struct NormalValues64 {
  double mean, std;
  FASTINIT_FN explicit NormalValues64(const double* p) : mean(p[0]), std(p[1]) {}
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    normal_pair64<Lanes>(v[0], v[1], value[0], value[1]);
    for (int i = 0; i < 2; ++i) value[i] = value[i] * std + mean;
  }
};

struct Truncated64 {
  double mean, std, low, high;
  FASTINIT_FN explicit Truncated64(const double* p) : mean(p[0]), std(p[1]), low(p[2]), high(p[3]) {}
  FASTINIT_FN f64 operator()(f64 z) const {
    const f64 value = z * std + mean;
    const f64 above = value < low ? Lanes::splat64(low) : value;
    return above > high ? Lanes::splat64(high) : above;
  }
};

struct TruncatedWideValues64 {
  Truncated64 truncated;
  TruncatedWide64 form;
  FASTINIT_FN explicit TruncatedWideValues64(const double* p) : truncated(p), form{p[4], p[5], p[6]} {}
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    for (int i = 0; i < 2; ++i) value[i] = truncated(truncated_wide64<Lanes>(v[i], form));
  }
};

struct TruncatedTailValues64 {
  Truncated64 truncated;
  TruncatedTail64 form;
  FASTINIT_FN explicit TruncatedTailValues64(const double* p)
      : truncated(p), form{p + 4} {}
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    for (int i = 0; i < 2; ++i) value[i] = truncated(truncated_tail64<Lanes>(v[i], form));
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
