// Conversions between the dtypes of files and of models. Compiled once per instruction set, named by FASTINIT_ISA: the loops
// are plain ones, of which the compiler makes vectors.
#include "convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats.h"
#include "lanes.h"

namespace fastinit {
namespace FASTINIT_ISA {
namespace {

// Rounded to nearest, ties to even. NaN becomes the one of torch's vectors on x86.
void to_bfloat16(const uint32_t* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = in[i];
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    out[i] = uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0xFFFFu : rounded);
  }
}

void from_bfloat16(const uint16_t* in, uint32_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = uint32_t(in[i]) << 16;
}

#if defined(__F16C__)

// Eight elements an instruction; the last few by a copy of them.
template <class In, class Out, class Eight>
FASTINIT_FN void by_eights(const In* in, Out* out, int64_t n, const Eight& eight) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) eight(in + i, out + i);
  In last[8] = {};
  Out turned[8];
  std::copy(in + i, in + n, last);
  eight(last, turned);
  std::copy(turned, turned + (n - i), out + i);
}

void to_half(const float* in, uint16_t* out, int64_t n) {
  by_eights(in, out, n, [](const float* from, uint16_t* to) {
    const __m128i codes = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), codes);
  });
}

void from_half(const uint16_t* in, float* out, int64_t n) {
  by_eights(in, out, n, [](const uint16_t* from, float* to) {
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  });
}

#else

void to_half(const float* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes::kWidth) {
    const size_t some = size_t(std::min<int64_t>(Lanes::kWidth, n - i));
    Lanes::f32 values = Lanes::splat(0.0f);
    std::memcpy(&values, in + i, some * sizeof(float));
    const Lanes::u32 codes = to_format<Lanes>(values, kHalf);
    for (size_t k = 0; k < some; ++k) out[i + int64_t(k)] = uint16_t(std::isnan(in[i + int64_t(k)]) ? 0x7E00u : codes[k]);
  }
}

void from_half(const uint16_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t sign = uint32_t(in[i] & 0x8000u) << 16, magnitude = uint32_t(in[i] & 0x7FFFu) << 13;
    float scaled;  // by 2^-112, as the exponents' biases differ by that; subnormal numbers come out right, too
    std::memcpy(&scaled, &magnitude, sizeof scaled);
    scaled *= 0x1p112f;
    uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    bits = sign | (magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : bits);  // infinity, NaN
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

#endif

}  // namespace

bool convert(int32_t from, int32_t to, const void* in, void* out, int64_t n) {
  if (from == kFloat32 && to == kBFloat16)
    return to_bfloat16(static_cast<const uint32_t*>(in), static_cast<uint16_t*>(out), n), true;
  if (from == kBFloat16 && to == kFloat32)
    return from_bfloat16(static_cast<const uint16_t*>(in), static_cast<uint32_t*>(out), n), true;
  if (from == kFloat32 && to == kFloat16)
    return to_half(static_cast<const float*>(in), static_cast<uint16_t*>(out), n), true;
  if (from == kFloat16 && to == kFloat32)
    return from_half(static_cast<const uint16_t*>(in), static_cast<float*>(out), n), true;
  return false;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
