// The digest of elements: a sum, modulo 2^64, over their words of 32 bits, each mixed with its index. The order of the sum
// does not matter, so that boxes, threads and ranks each add up what they have. docs/digests.md has the formula;
// fastinit/contract/digests.py and fastinit/kernels/digests.py are the same on tensors and on GPUs.
#pragma once

#include "fill.h"
#include "lanes.h"

namespace fastinit {
namespace FASTINIT_ISA {

// Words of 32 bits in an element, lowest first. Narrower elements are one word, with zeros above.
FASTINIT_FN int words_of(int element_bytes) { return element_bytes > 4 ? element_bytes / 4 : 1; }

// What the index of a word contributes: `add` to the word before it is mixed, `multiply` to the mixed one.
struct IndexKey {
  uint32_t add, multiply;
};

constexpr uint32_t kAdd = 0x9E3779B9u, kAddHigh = 0x85EBCA6Bu;
// Even, so that every multiplier is odd and no change of a word can cancel.
constexpr uint32_t kMultiply = 0xD413CCCEu, kMultiplyHigh = 0xC2B2AE36u, kMultiplyFirst = 0xD2511F53u;

FASTINIT_FN IndexKey index_key(uint64_t index) {
  const uint32_t low = uint32_t(index), high = uint32_t(index >> 32);
  return {low * kAdd + high * kAddHigh, low * kMultiply + high * kMultiplyHigh + kMultiplyFirst};
}

// A bijection of 32 bits, lane by lane: Wellons's lowbias32. With one multiplication less, pairs of small numbers collide.
template <class U32>
FASTINIT_FN U32 mixed(U32 word) {
  word ^= word >> 16;
  word *= 0x7FEB352Du;
  word ^= word >> 15;
  word *= 0x846CA68Bu;
  return word ^ (word >> 16);
}

uint64_t digest_range(const FillDesc& fill, int64_t begin, int64_t end);

}  // namespace FASTINIT_ISA
}  // namespace fastinit
