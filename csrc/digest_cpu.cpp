// The digest on the CPU. Compiled once per instruction set, named by FASTINIT_ISA.
#include "digest.h"

#include <algorithm>
#include <cstring>

#include "walks.h"

namespace fastinit {
namespace FASTINIT_ISA {
namespace {

typedef Lanes::u32 u32;
typedef Lanes::u64 u64;
constexpr int kLanes = Lanes::kWidth;

// --- words from memory ----------------------------------------------------------------------------------------------

FASTINIT_FN u32 load(const uint32_t* memory) {
  u32 words;
  std::memcpy(&words, memory, sizeof words);
  return words;
}

// GCC 12 takes narrow vectors apart where an instruction widens them.
template <class T>
FASTINIT_FN u32 load(const T* memory) {
  static_assert(sizeof(T) < 4, "words and narrower");
#if defined(__AVX512F__)
  if (sizeof(T) == 1) return (u32)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(memory)));
  return (u32)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(memory)));
#elif defined(__AVX2__)
  if (sizeof(T) == 1) return (u32)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(memory)));
  return (u32)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(memory)));
#else
  typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T))));
  Narrow narrow;
  std::memcpy(&narrow, memory, sizeof narrow);
  return __builtin_convertvector(narrow, u32);
#endif
}

// The 64-bit products of the even lanes.
FASTINIT_FN u64 products(u64 a, u64 b) {
#if defined(__AVX512F__)
  return (u64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (u64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (u64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  return (u64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// --- runs -----------------------------------------------------------------------------------------------------------

template <class T>
FASTINIT_FN uint64_t digest_word(T word, uint64_t index) {
  const IndexKey key = index_key(index);
  return uint64_t(mixed(uint32_t(word) + key.add)) * key.multiply;
}

// How far the index of each lane's word is from that of the first, where elements of kWords words are `step` apart.
template <int kWords>
FASTINIT_FN u32 lane_offsets(uint64_t step) {
  u32 offsets;
  for (int lane = 0; lane < kLanes; ++lane) offsets[lane] = uint32_t(uint64_t(lane / kWords) * step) + uint32_t(lane % kWords);
  return offsets;
}

// The words of n elements of kWords words each that lie one behind the other; the first word of the first has this index,
// and the next element's is `step` further. The upper half of the index is the same throughout.
template <class T, int kWords>
uint64_t digest_run(const T* memory, uint64_t index, uint64_t step, int64_t n, const u32& offsets) {
  uint64_t sum = 0;
  int64_t done = 0;  // words
  constexpr int64_t kAtOnce = kLanes / kWords;
  static_assert(kLanes % kWords == 0, "a register holds whole elements");
  if (n >= kAtOnce) {
    const IndexKey key = index_key(index);
    const uint32_t ahead = uint32_t(kAtOnce * step);
    u32 add = offsets * kAdd + key.add, multiply = offsets * kMultiply + key.multiply;
    const u32 more_add = u32{} + ahead * kAdd, more_multiply = u32{} + ahead * kMultiply;
    u64 even{}, odd{};
    for (; done + kLanes <= n * kWords; done += kLanes) {
      const u32 word = mixed(load(memory + done) + add);
      even += products((u64)word, (u64)multiply);
      odd += products((u64)word >> 32, (u64)multiply >> 32);
      add += more_add, multiply += more_multiply;
    }
    even += odd;
    for (int lane = 0; lane < kLanes / 2; ++lane) sum += even[lane];
  }
  for (; done < n * kWords; ++done)
    sum += digest_word(memory[done], index + uint64_t(done / kWords) * step + uint64_t(done % kWords));
  return sum;
}

// Elements [begin, end) of a box.
template <class T, int kWords>
uint64_t digest_box(const FillDesc& fill, int64_t begin, int64_t end) {
  constexpr int last = kMaxDims - 1;
  const int64_t stride = fill.stride[last] * kWords;
  const uint64_t step = uint64_t(fill.index_stride[last]) * kWords;
  const u32 offsets = lane_offsets<kWords>(step);
  uint64_t sum = 0;
  for_each_row(fill, begin, end, [&](char* row, uint64_t first, int64_t count) {
    const T* memory = reinterpret_cast<const T*>(row);
    uint64_t index = first * kWords;
    if (stride != kWords) {
      for (int64_t i = 0; i < count; ++i, memory += stride, index += step)
        for (int k = 0; k < kWords; ++k) sum += digest_word(memory[k], index + uint64_t(k));
      return;
    }
    while (count > 0) {
      // Up to where the upper half of the index changes.
      const uint64_t left = (uint64_t(1) << 32) - uint32_t(index);
      const uint64_t fit = step == 0 ? uint64_t(count) : (left + step - 1) / step;
      const int64_t n = int64_t(std::min(uint64_t(count), fit));
      sum += digest_run<T, kWords>(memory, index, step, n, offsets);
      memory += n * kWords, index += uint64_t(n) * step, count -= n;
    }
  });
  return sum;
}

}  // namespace

uint64_t digest_range(const FillDesc& fill, int64_t begin, int64_t end) {
  switch (fill.element_bytes) {
    case 1: return digest_box<uint8_t, 1>(fill, begin, end);
    case 2: return digest_box<uint16_t, 1>(fill, begin, end);
    case 4: return digest_box<uint32_t, 1>(fill, begin, end);
    case 8: return digest_box<uint32_t, 2>(fill, begin, end);
    case 16: return digest_box<uint32_t, 4>(fill, begin, end);
  }
  return 0;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
