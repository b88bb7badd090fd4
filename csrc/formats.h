// float32 -> narrower formats, rounded to nearest, ties to even, as torch does. The result is in the lane's low bits. NaN
// never occurs.
#pragma once

#include "lanes.h"

namespace fastinit {
namespace FASTINIT_ISA {

// In the upper half of each lane; the lower ones count for nothing.
template <class L>
FASTINIT_FN typename L::u32 rounded_to_bfloat16(typename L::f32 value) {
  const typename L::u32 bits = L::bits(value);
  return bits + 0x7FFFu + ((bits >> 16) & 1u);
}

template <class L>
FASTINIT_FN typename L::u32 to_bfloat16(typename L::f32 value) {
  return rounded_to_bfloat16<L>(value) >> 16;
}

// A format of a sign bit, exponent bits and mantissa bits.
struct Format {
  int mantissa_bits, exponent_bias, sign_bit;
  uint32_t overflow;   // the code of everything too large
  bool unsigned_zero;  // there is no -0; its code is NaN
};
FASTINIT_TABLE Format kHalf{10, 15, 15, 0x7C00, false};       // IEEE 754, up to 65504, then infinity
FASTINIT_TABLE Format kE4M3FN{3, 7, 7, 0x7E, false};          // up to 448, saturating as in torch 2.13 (torch 2.1: NaN)
FASTINIT_TABLE Format kE5M2{2, 15, 7, 0x7C, false};           // up to 57344, then infinity
FASTINIT_TABLE Format kE4M3FNUZ{3, 8, 7, 0x80, true};         // up to 240, then NaN
FASTINIT_TABLE Format kE5M2FNUZ{2, 16, 7, 0x80, true};        // up to 57344, then NaN

template <class L>
FASTINIT_FN typename L::u32 to_format(typename L::f32 value, const Format& format) {
  typedef typename L::u32 u32;
  const int dropped = 23 - format.mantissa_bits;
  const u32 bits = L::bits(value), magnitude = bits & 0x7FFFFFFFu;
  // Normal numbers: round away the dropped bits, and rebias the exponent.
  const u32 normal = ((magnitude + ((1u << (dropped - 1)) - 1u) + ((magnitude >> dropped) & 1u)) >> dropped) -
                     (uint32_t(127 - format.exponent_bias) << format.mantissa_bits);
  // Subnormal numbers are multiples of 2^(1 - bias - mantissa): added to a float32 whose last bit is worth that much, they
  // end up in its low bits, rounded by the addition.
  const uint32_t aligned = uint32_t(127 + 1 - format.exponent_bias + dropped) << 23;
  const u32 subnormal = L::bits(L::from_bits(magnitude) + L::from_bits(L::splat_u32(aligned))) - aligned;
  const u32 finite = magnitude < (uint32_t(127 - format.exponent_bias + 1) << 23) ? subnormal : normal;
  const u32 code = finite < format.overflow ? finite : L::splat_u32(format.overflow);
  const u32 sign = (bits >> (31 - format.sign_bit)) & (1u << format.sign_bit);
  if (format.unsigned_zero) return code == 0u ? code : code | sign;
  return code | sign;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
