// Fills of one value, on the CPU.
#pragma once

#include <algorithm>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "fill.h"
#include "lanes.h"
#include "walks.h"

namespace fastinit {
namespace FASTINIT_ISA {

typedef Lanes::u32 u32;

struct Bytes16 {
  uint64_t a, b;
};

// From so many bytes on, a constant goes around the caches, which would read each line before they write it, into memory
// that has pages. Single runs on a Xeon (Emerald Rapids, 2 MiB of second-level cache), GB/s through and around the caches: 8 MiB
// 17 and 9, 64 MiB 8 and 16, 256 MiB with two threads 13 and 29 at best (64 MiB with two threads and small pages: 15 and 19).
// The limit lies between the sizes measured. Pages that have just been cleared are in the caches: there it is about 0.66 of
// the speed. On an AMD EPYC an earlier attempt gained nothing that lasted: not measured there since. (`rep stosq` through
// the caches: 20, 9 and 15. Not taken: sanitizers do not see what it writes.)
constexpr int64_t kAroundCaches = 32 << 20;

// Whether the record is as large as that and its memory had pages before: asked of a page near the end, as threads take
// pieces from the beginning on, and far enough from the end not to share a huge page with what comes behind.
inline bool goes_around_caches([[maybe_unused]] const FillDesc& fill) {
#if defined(__x86_64__) && defined(__linux__)
  if (fill.n_elements < kAroundCaches / fill.element_bytes) return false;
  int64_t last = 0;
  for (int d = 0; d < kMaxDims; ++d) last += (fill.size[d] - 1) * fill.stride[d];
  const uintptr_t near_end = reinterpret_cast<uintptr_t>(fill.data) + uintptr_t(last * fill.element_bytes) - (4 << 20);
  unsigned char is_resident = 0;
  constexpr uintptr_t kPage = 4096;
  return mincore(reinterpret_cast<void*>(near_end / kPage * kPage), 1, &is_resident) == 0 && (is_resident & 1);
#else
  return false;
#endif
}

#if defined(__x86_64__)
FASTINIT_FN void write_around_caches(char* out, u32 pattern) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(out), (__m512i)pattern);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(out), (__m256i)pattern);
#else
  _mm_stream_si128(reinterpret_cast<__m128i*>(out), (__m128i)pattern);
#endif
}

// Elements that do not lie on multiples of their size are left to the caches.
template <class T>
void fill_around_caches(T* out, int64_t count, const T value) {
  constexpr int64_t kStep = int64_t(sizeof(u32) / sizeof(T));
  const auto misaligned = [&] { return reinterpret_cast<uintptr_t>(out) % sizeof(u32); };
  for (; count > 0 && misaligned() != 0 && misaligned() % sizeof(T) == 0; --count) *out++ = value;
  if (misaligned() == 0) {
    T repeated[kStep];
    std::fill(repeated, repeated + kStep, value);
    u32 pattern;
    std::memcpy(&pattern, repeated, sizeof pattern);
    for (; count >= kStep; count -= kStep, out += kStep) write_around_caches(reinterpret_cast<char*>(out), pattern);
    _mm_sfence();  // before other threads are told that it is done
  }
  std::fill(out, out + count, value);
}
#endif

template <class T>
void fill_constant(const FillDesc& fill, int64_t begin, int64_t end) {
  T value;
  std::memcpy(&value, fill.raw, sizeof value);
  const int64_t stride = fill.stride[kMaxDims - 1];
  [[maybe_unused]] const bool around_caches = goes_around_caches(fill);
  for_each_row(fill, begin, end, [&](char* memory, uint64_t, int64_t count) {
    T* out = reinterpret_cast<T*>(memory);
    if (stride == 1) {
#if defined(__x86_64__)
      if (around_caches) return fill_around_caches(out, count, value);
#endif
      std::fill(out, out + count, value);
    } else {
      for (int64_t i = 0; i < count; ++i) out[i * stride] = value;
    }
  });
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
