// float32 -> narrower formats, rounded to nearest, ties to even, as torch converts them. The code stands in the low bits of
// the lane. NaN does not come.
#pragma once

#include "lanes.h"

namespace fastinit {
namespace FASTINIT_ISA {

template <class L>
FASTINIT_FN typename L::u32 to_bfloat16(typename L::f32 value) {
  const typename L::u32 bits = L::bits(value);
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

// What a format of one sign bit, exponent and kMantissa bits is. kOverflow is the code of all that is too large.
// kUnsignedZero: there is no -0; its code is NaN.
template <int kMantissaBits, int kExponentBias, uint32_t kOverflowCode, int kSignBit, bool kNoNegativeZero = false>
struct Format {
  static constexpr int kMantissa = kMantissaBits, kBias = kExponentBias, kSign = kSignBit;
  static constexpr uint32_t kOverflow = kOverflowCode;
  static constexpr bool kUnsignedZero = kNoNegativeZero;
};
typedef Format<10, 15, 0x7C00, 15> Half;        // IEEE 754, up to 65504, then infinity
typedef Format<3, 7, 0x7E, 7> E4M3FN;           // up to 448, and 448 beyond, as torch 2.13 has it (torch 2.1: NaN)
typedef Format<2, 15, 0x7C, 7> E5M2;            // up to 57344, then infinity
typedef Format<3, 8, 0x80, 7, true> E4M3FNUZ;   // up to 240, then NaN
typedef Format<2, 16, 0x80, 7, true> E5M2FNUZ;  // up to 57344, then NaN

template <class L, class F>
FASTINIT_FN typename L::u32 to_format(typename L::f32 value) {
  typedef typename L::u32 u32;
  constexpr int kDropped = 23 - F::kMantissa;
  const u32 bits = L::bits(value), magnitude = bits & 0x7FFFFFFFu;
  // Normal numbers: round away the dropped bits, and move the exponent to the other bias.
  const u32 normal = ((magnitude + ((1u << (kDropped - 1)) - 1u) + ((magnitude >> kDropped) & 1u)) >> kDropped) -
                     (uint32_t(127 - F::kBias) << F::kMantissa);
  // Subnormal ones are multiples of 2^(1 - bias - mantissa): added to a float32 whose last bit is worth that much, they
  // stand in its last bits, rounded by the addition.
  constexpr uint32_t kAligned = uint32_t(127 + 1 - F::kBias + kDropped) << 23;
  const u32 subnormal =
      L::bits(L::from_bits(magnitude) + L::from_bits(L::splat_u32(kAligned))) - kAligned;
  const u32 finite = magnitude < (uint32_t(127 - F::kBias + 1) << 23) ? subnormal : normal;
  const u32 code = finite < F::kOverflow ? finite : L::splat_u32(F::kOverflow);
  const u32 sign = (bits >> (31 - F::kSign)) & (1u << F::kSign);
  if (F::kUnsignedZero) return code == 0u ? code : code | sign;
  return code | sign;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
