// The CPU kernels. Compiled once for each instruction set, with FASTINIT_ISA naming it.
#include <algorithm>
#include <cmath>

#include "distributions.h"
#include "fill.h"

namespace fastinit {
namespace FASTINIT_ISA {
namespace {

constexpr int kTile = 4 * Lanes::kWidth;  // elements that one step makes
typedef Lanes::f32 f32;
typedef Lanes::u32 u32;
typedef uint16_t u16 __attribute__((vector_size(FASTINIT_VECTOR_BYTES / 2)));

// --- distributions: four registers of words -> four registers of values, in the words' order ------------------------

struct UniformValues {
  float low, range;
  explicit UniformValues(const double* params)
      : low(float(params[0])), range(float(params[1]) - float(params[0])) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = uniform01<Lanes>(words.w[i]) * range + low;
  }
};

struct NormalValues {
  float mean, std;
  explicit NormalValues(const double* params) : mean(float(params[0])), std(float(params[1])) {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; i += 2) {
      f32 z0, z1;
      normal_pair<Lanes>(words.w[i], words.w[i + 1], z0, z1);
      value[i] = z0 * std + mean;
      value[i + 1] = z1 * std + mean;
    }
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
  explicit TruncatedWideValues(const double* p)
      : bounds(p), form{float(p[0]), float(p[1]), float(p[4]), float(p[5]), float(p[6])} {}
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    truncated_wide<Lanes>(words.w, form, value);
    for (int i = 0; i < 4; ++i) value[i] = bounds(value[i]);
  }
};

struct TruncatedTailValues {
  Bounds bounds;
  TruncatedTail form;
  explicit TruncatedTailValues(const double* p)
      : bounds(p), form{float(p[0]), float(p[1]), float(p[4]), float(p[5]), float(p[6]), float(p[7]), float(p[8]), {}} {
    for (int i = 0; i < 10; ++i) form.coefficients[i] = float(p[9 + i]);
  }
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = bounds(truncated_tail<Lanes>(words.w[i], form));
  }
};

// --- element types: a register of float32 -> memory, rounded to nearest, ties to even ---------------------------------

struct Float32 {
  typedef float T;
  static FASTINIT_FN void store(float* out, f32 value) { std::memcpy(out, &value, sizeof value); }
};

struct BFloat16 {
  typedef uint16_t T;
  static FASTINIT_FN void store(uint16_t* out, f32 value) {  // values are finite or infinite, never NaN
    const u32 bits = (u32)value;
    const u16 half = __builtin_convertvector((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, u16);
    std::memcpy(out, &half, sizeof half);
  }
};

struct Float16 {
  typedef uint16_t T;
  static FASTINIT_FN void store(uint16_t* out, f32 value) {
#if defined(__AVX512F__)
    const __m256i half = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(out, &half, sizeof half);
#elif defined(__AVX2__)
    const __m128i half = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(out, &half, sizeof half);
#elif defined(__aarch64__)
    const float16x4_t half = vcvt_f16_f32((float32x4_t)value);
    std::memcpy(out, &half, sizeof half);
#else
    for (int lane = 0; lane < Lanes::kWidth; ++lane) out[lane] = to_half(value[lane]);
#endif
  }

 private:
  static uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x477FF000u) return uint16_t(sign | 0x7C00u);  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: the half is subnormal, a multiple of 2^-24
      // Adding 1/2 leaves the multiples of 2^-24 in the last bits, rounded to nearest even by the addition.
      float shifted;
      std::memcpy(&shifted, &magnitude, 4);
      shifted += 0.5f;
      std::memcpy(&bits, &shifted, 4);
      return uint16_t(sign | (bits - 0x3F000000u));
    }
    return uint16_t(sign | ((magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13));
  }
};

// --- runs of consecutive elements ------------------------------------------------------------------------------------

template <class Type, class Values>
FASTINIT_FN void make_tile(Key key, uint64_t block, const Values& values, typename Type::T* out) {
  f32 value[4], ordered[4];
  values(tile_words(key, block), value);
  transpose(value, ordered);
  for (int i = 0; i < 4; ++i) Type::store(out + i * Lanes::kWidth, ordered[i]);
}

// Elements [index, index + n) of the full tensor into contiguous memory.
template <class Type, class Values>
void make_run(Key key, const Values& values, uint64_t index, int64_t n, typename Type::T* out) {
  typename Type::T tile[kTile];
  uint64_t block = index / 4;
  if (const int64_t skip = int64_t(index % 4)) {  // begins within a block: copy the rest of its tile
    const int64_t some = std::min(n, kTile - skip);
    make_tile<Type>(key, block, values, tile);
    std::copy(tile + skip, tile + skip + some, out);
    n -= some, out += some, block += Lanes::kWidth;
  }
  for (; n >= kTile; n -= kTile, out += kTile, block += Lanes::kWidth) make_tile<Type>(key, block, values, out);
  if (n > 0) {
    make_tile<Type>(key, block, values, tile);
    std::copy(tile, tile + n, out);
  }
}

// --- float64: two words an element; in double with the C library, which the contract allows 1e-12 --------------------

void words_of_block(Key key, uint64_t block, uint64_t (&v)[2]) {
  uint32_t counter[4] = {uint32_t(key.offset + block), uint32_t((key.offset + block) >> 32), 0, 0};
  uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t(kM0) * counter[0], p1 = uint64_t(kM1) * counter[2];
    const uint32_t next[4] = {uint32_t(p1 >> 32) ^ counter[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter[3] ^ k1,
                              uint32_t(p0)};
    std::copy(next, next + 4, counter);
    k0 += kW0;
    k1 += kW1;
  }
  v[0] = uint64_t(counter[0]) << 32 | counter[1];
  v[1] = uint64_t(counter[2]) << 32 | counter[3];
}

// The z >= 0 for which -2 ln Q(z) = minus_2_ln_t, from a first guess by Newton's method.
double inverse_tail(double minus_2_ln_t, double z) {
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

double truncated_double(const FillDesc& fill, uint64_t v) {
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

void make_double_run(Key key, const FillDesc& fill, uint64_t index, int64_t n, double* out) {
  constexpr double kTwoPi = 6.283185307179586476925;
  const double p0 = fill.params[0], p1 = fill.params[1];
  for (int64_t done = 0; done < n;) {
    uint64_t v[2];
    words_of_block(key, index / 2, v);
    double value[2];
    if (fill.distribution == kUniform) {
      for (int i = 0; i < 2; ++i) value[i] = double(v[i] & ((uint64_t(1) << 53) - 1)) * 0x1p-53 * (p1 - p0) + p0;
    } else if (fill.distribution != kNormal) {
      for (int i = 0; i < 2; ++i) value[i] = truncated_double(fill, v[i]);
    } else {
      const double r = std::sqrt(-2.0 * std::log((double(v[0]) + 0.5) * 0x1p-64));
      const double t = kTwoPi * ((double(v[1]) + 0.5) * 0x1p-64);
      value[0] = r * std::cos(t) * p1 + p0;
      value[1] = r * std::sin(t) * p1 + p0;
    }
    for (int i = int(index % 2); i < 2 && done < n; ++i, ++done, ++index) out[done] = value[i];
  }
}

// --- boxes -----------------------------------------------------------------------------------------------------------

// Calls row(memory of the first element, index of the first element, count) for each run along the innermost dimension
// of the elements [begin, end) of the box.
template <class Row>
void for_each_row(const FillDesc& fill, int64_t begin, int64_t end, const Row& row) {
  int64_t at[kMaxDims], rest = begin;
  for (int d = kMaxDims - 1; d >= 0; --d) at[d] = rest % fill.size[d], rest /= fill.size[d];
  constexpr int last = kMaxDims - 1;
  while (begin < end) {
    int64_t memory = 0;
    uint64_t index = fill.first_index;
    for (int d = 0; d < kMaxDims; ++d) {
      memory += at[d] * fill.stride[d];
      index += uint64_t(at[d]) * uint64_t(fill.index_stride[d]);
    }
    const int64_t count = std::min(fill.size[last] - at[last], end - begin);
    row(static_cast<char*>(fill.data) + memory * fill.element_bytes, index, count);
    begin += count;
    at[last] = 0;
    for (int d = last - 1; d >= 0 && ++at[d] == fill.size[d]; --d) at[d] = 0;
  }
}

// Random values: make(index, n, out) gives a run of consecutive indices in contiguous memory.
template <class T, class Make>
void fill_random(const FillDesc& fill, int64_t begin, int64_t end, const Make& make) {
  constexpr int last = kMaxDims - 1;
  constexpr int64_t kBuffer = 2048;  // elements; stays in the first-level cache
  T buffer[kBuffer];
  const int64_t stride = fill.stride[last], step = fill.index_stride[last];
  for_each_row(fill, begin, end, [&](char* memory, uint64_t index, int64_t count) {
    T* out = reinterpret_cast<T*>(memory);
    if (step == 1 && stride == 1) {
      make(index, count, out);
    } else if (step == 1) {
      for (int64_t done = 0; done < count; done += kBuffer) {
        const int64_t n = std::min(kBuffer, count - done);
        make(index + uint64_t(done), n, buffer);
        for (int64_t i = 0; i < n; ++i) out[(done + i) * stride] = buffer[i];
      }
    } else {  // a box that is one element wide in the innermost dimension
      for (int64_t i = 0; i < count; ++i) make(index + uint64_t(i) * uint64_t(step), 1, out + i * stride);
    }
  });
}

template <class Type, class Values>
void fill_values(const FillDesc& fill, int64_t begin, int64_t end) {
  const Key key{fill.key_seed, fill.key_offset};
  const Values values(fill.params);
  fill_random<typename Type::T>(fill, begin, end, [&](uint64_t index, int64_t n, typename Type::T* out) {
    make_run<Type>(key, values, index, n, out);
  });
}

template <class T>
void fill_constant(const FillDesc& fill, int64_t begin, int64_t end) {
  T value;
  std::memcpy(&value, fill.raw, sizeof value);
  const int64_t stride = fill.stride[kMaxDims - 1];
  for_each_row(fill, begin, end, [&](char* memory, uint64_t, int64_t count) {
    T* out = reinterpret_cast<T*>(memory);
    if (stride == 1) {
      std::fill(out, out + count, value);
    } else {
      for (int64_t i = 0; i < count; ++i) out[i * stride] = value;
    }
  });
}

struct Bytes16 {
  uint64_t a, b;
};

template <class Values>
void fill_dtype(const FillDesc& fill, int64_t begin, int64_t end) {
  switch (fill.dtype) {
    case kFloat32: return fill_values<Float32, Values>(fill, begin, end);
    case kBFloat16: return fill_values<BFloat16, Values>(fill, begin, end);
    case kFloat16: return fill_values<Float16, Values>(fill, begin, end);
    case kFloat64:
      return fill_random<double>(fill, begin, end, [&](uint64_t index, int64_t n, double* out) {
        make_double_run(Key{fill.key_seed, fill.key_offset}, fill, index, n, out);
      });
  }
}

void fill_range(const FillDesc& fill, int64_t begin, int64_t end) {
  switch (fill.distribution) {
    case kUniform: return fill_dtype<UniformValues>(fill, begin, end);
    case kNormal: return fill_dtype<NormalValues>(fill, begin, end);
    case kTruncatedInside: return fill_dtype<TruncatedInsideValues>(fill, begin, end);
    case kTruncatedWide: return fill_dtype<TruncatedWideValues>(fill, begin, end);
    case kTruncatedTail: return fill_dtype<TruncatedTailValues>(fill, begin, end);
    case kConstant:
      switch (fill.element_bytes) {
        case 1: return fill_constant<uint8_t>(fill, begin, end);
        case 2: return fill_constant<uint16_t>(fill, begin, end);
        case 4: return fill_constant<uint32_t>(fill, begin, end);
        case 8: return fill_constant<uint64_t>(fill, begin, end);
        case 16: return fill_constant<Bytes16>(fill, begin, end);
      }
  }
}

// --- for known answers -----------------------------------------------------------------------------------------------

struct WordValues {
  FASTINIT_FN void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = (f32)words.w[i];
  }
};

void write_words(uint64_t key_seed, uint64_t key_offset, uint64_t first, int64_t n, uint32_t* out) {
  make_run<Float32>(Key{key_seed, key_offset}, WordValues{}, first, n, reinterpret_cast<float*>(out));
}

void normal_pairs(const uint32_t* w0, const uint32_t* w1, int64_t n, float* z0, float* z1) {
  for (int64_t done = 0; done < n; done += Lanes::kWidth) {
    const int64_t some = std::min<int64_t>(Lanes::kWidth, n - done);
    u32 a{}, b{};
    std::memcpy(&a, w0 + done, size_t(some) * 4);
    std::memcpy(&b, w1 + done, size_t(some) * 4);
    f32 x, y;
    normal_pair<Lanes>(a, b, x, y);
    std::memcpy(z0 + done, &x, size_t(some) * 4);
    std::memcpy(z1 + done, &y, size_t(some) * 4);
  }
}

void fused_multiply_add(const float* a, const float* b, const float* c, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const f32 result = Lanes::fma(Lanes::splat(a[i]), Lanes::splat(b[i]), Lanes::splat(c[i]));
    out[i] = result[0];
  }
}

}  // namespace

#define FASTINIT_TEXT_(name) #name
#define FASTINIT_TEXT(name) FASTINIT_TEXT_(name)

extern const Kernels kernels;
const Kernels kernels = {FASTINIT_TEXT(FASTINIT_ISA), fill_range, write_words, normal_pairs, fused_multiply_add};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
