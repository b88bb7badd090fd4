// What a fill's numbers make of random words, and how the values are stored, for the CPU kernels.
#pragma once

#include <cmath>
#include <cstring>

#include "distributions.h"
#include "fill.h"
#include "float64.h"
#include "formats.h"

namespace fastinit {
namespace FASTINIT_ISA {

typedef Lanes::f32 f32;
typedef Lanes::u32 u32;
typedef uint16_t u16 __attribute__((vector_size(FASTINIT_VECTOR_BYTES / 2)));
typedef uint8_t u8 __attribute__((vector_size(FASTINIT_VECTOR_BYTES / 4)));

// --- distributions: four registers of words -> four registers of values, in the words' order ------------------------

struct WordValues {  // the words as they are
  explicit WordValues(const double*) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = (f32)words.w[i];
  }
};

struct UniformValues {
  float low, range;
  explicit UniformValues(const double* params)
      : low(float(params[0])), range(float(params[1]) - float(params[0])) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = uniform01<Lanes>(words.w[i]) * range + low;
  }
};

struct NormalValues {
  Normal form;
  explicit NormalValues(const double* p) : form{float(p[0]), float(p[1])} {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    normal_pair<Lanes>(words.w[0], words.w[1], form, value[0], value[1]);
    normal_pair<Lanes>(words.w[2], words.w[3], form, value[2], value[3]);
  }
};

// A truncated normal in one of the three forms, into [low, high]: both are numbers of the target dtype, so rounding to it
// stays within them.
struct Bounds {
  float low, high;
  explicit Bounds(const double* params) : low(float(params[2])), high(float(params[3])) {}
  FASTINIT_FN f32 operator()(f32 value) const {
    return Lanes::min(Lanes::splat(high), Lanes::max(Lanes::splat(low), value));
  }
};

struct TruncatedInsideValues {
  Bounds bounds;
  TruncatedInside form;
  explicit TruncatedInsideValues(const double* p)
      : bounds(p), form{float(p[0]), float(p[1]), float(p[4]), float(p[5])} {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = bounds(truncated_inside<Lanes>(words.w[i], form));
  }
};

struct TruncatedWideValues {
  Bounds bounds;
  TruncatedWide form;
  bool is_bounded;  // or the bounds are so far out that no value comes near them: |z| < 6.8
  explicit TruncatedWideValues(const double* p)
      : bounds(p), form{float(p[0]), float(p[1]), float(p[4]), float(p[5]), float(p[6])},
        is_bounded(p[2] > p[0] - 7 * std::fabs(p[1]) || p[3] < p[0] + 7 * std::fabs(p[1])) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    truncated_wide<Lanes>(words.w, form, value);
    if (is_bounded)
      for (int i = 0; i < 4; ++i) value[i] = bounds(value[i]);
  }
};

struct TruncatedTailValues {
  Bounds bounds;
  TruncatedTail form;
  explicit TruncatedTailValues(const double* p)
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
  explicit UniformValues64(const double* p) : low(p[0]), range(p[1] - p[0]) {}
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    for (int i = 0; i < 2; ++i) value[i] = uniform64<Lanes>(v[i]) * range + low;
  }
};

struct NormalValues64 {
  double mean, std;
  explicit NormalValues64(const double* p) : mean(p[0]), std(p[1]) {}
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    normal_pair64<Lanes>(v[0], v[1], value[0], value[1]);
    for (int i = 0; i < 2; ++i) value[i] = value[i] * std + mean;
  }
};

struct Truncated64 {
  double mean, std, low, high;
  explicit Truncated64(const double* p) : mean(p[0]), std(p[1]), low(p[2]), high(p[3]) {}
  FASTINIT_FN f64 operator()(f64 z) const {
    const f64 value = z * std + mean;
    const f64 above = value < low ? Lanes::splat64(low) : value;
    return above > high ? Lanes::splat64(high) : above;
  }
};

struct TruncatedWideValues64 {
  Truncated64 truncated;
  TruncatedWide64 form;
  explicit TruncatedWideValues64(const double* p) : truncated(p), form{p[4], p[5], p[6]} {}
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    for (int i = 0; i < 2; ++i) value[i] = truncated(truncated_wide64<Lanes>(v[i], form));
  }
};

struct TruncatedTailValues64 {
  Truncated64 truncated;
  TruncatedTail64 form;
  explicit TruncatedTailValues64(const double* p) : truncated(p), form{p[4], p[5], p[6], p[7], p[8], {}} {
    std::memcpy(form.coefficients, p + 9, sizeof form.coefficients);
  }
  FASTINIT_FN void operator()(const u64 (&v)[2], f64 (&value)[2]) const {
    for (int i = 0; i < 2; ++i) value[i] = truncated(truncated_tail64<Lanes>(v[i], form));
  }
};

// --- element types: a register of float32 -> memory -----------------------------------------------------------------

struct Float32 {
  typedef float T;
  static FASTINIT_FN void store(float* out, f32 value) { std::memcpy(out, &value, sizeof value); }
};

struct BFloat16 {
  typedef uint16_t T;
  static FASTINIT_FN void store(uint16_t* out, f32 value) {
    const u16 code = __builtin_convertvector(to_bfloat16<Lanes>(value), u16);
    std::memcpy(out, &code, sizeof code);
  }
};

struct Float16 {
  typedef uint16_t T;
  static FASTINIT_FN void store(uint16_t* out, f32 value) {
#if defined(__AVX512F__)
    const __m256i code = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    const __m128i code = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
    const float16x4_t code = vcvt_f16_f32((float32x4_t)value);
#else
    const u16 code = __builtin_convertvector((to_format<Lanes, Half>(value)), u16);
#endif
    std::memcpy(out, &code, sizeof code);
  }
};

template <class F>
struct Float8 {
  typedef uint8_t T;
  static FASTINIT_FN void store(uint8_t* out, f32 value) {
    const u8 code = __builtin_convertvector((to_format<Lanes, F>(value)), u8);
    std::memcpy(out, &code, sizeof code);
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
