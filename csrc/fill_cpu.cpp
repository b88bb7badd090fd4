// The CPU kernels. Compiled once per instruction set, named by FASTINIT_ISA.
#include <algorithm>
#include <cstring>

#include "constants.h"
#include "convert.h"
#include "digest.h"
#include "formats.h"
#include "values.h"
#include "walks.h"

namespace fastinit {
namespace FASTINIT_ISA {
namespace {

// Writes registers one after the other; a copy of the array as a whole would go through the stack.
template <class Element, size_t N>
FASTINIT_FN void store(Element* out, const f32 (&registers)[N]) {
  for (size_t i = 0; i < N; ++i) std::memcpy(out + i * (sizeof(f32) / sizeof(Element)), &registers[i], sizeof(f32));
}

// --- element types: a tile's values, four registers of float32 -> memory ----------------------------------------------
//
// kElementBytes says which block each lane must hold (block_of_lane) for the elements to be in order.

struct Float32 {
  typedef float T;
  static constexpr int kElementBytes = 4;
  static FASTINIT_FN void write_tile(float* out, const f32 (&value)[4]) {
    f32 ordered[4];
    transpose(value, ordered);
    store(out, ordered);
  }
};

struct BFloat16 {
  typedef uint16_t T;
  static constexpr int kElementBytes = 2;
  static FASTINIT_FN void write_tile(uint16_t* out, const f32 (&value)[4]) {
    const u32 first = bfloat16_pair(value[0], value[1]), second = bfloat16_pair(value[2], value[3]);
    const f32 ordered[2] = {Lanes::unpack_low32((f32)first, (f32)second), Lanes::unpack_high32((f32)first, (f32)second)};
    store(out, ordered);
  }

 private:
  // Each lane of `low` and `high` as two elements side by side.
  static FASTINIT_FN u32 bfloat16_pair(f32 low, f32 high) {
#if defined(__AVX512F__)
    // As to_bfloat16, but after the two halves of two numbers have met: 5 instructions for two registers.
    const __m512i swap = _mm512_set4_epi32(0x0D0C0F0E, 0x09080B0A, 0x05040706, 0x01000302);
    const __m512i kept = _mm512_mask_shuffle_epi8((__m512i)high, 0x3333333333333333, (__m512i)low, swap);
    const __m512i dropped = _mm512_mask_shuffle_epi8((__m512i)low, 0xCCCCCCCCCCCCCCCC, (__m512i)high, swap);
    const __m512i one = _mm512_set1_epi16(1);
    // Up if dropped > 1/2, or dropped == 1/2 and kept is odd: dropped | (kept & 1) > 1/2.
    const __m512i with_odd = _mm512_ternarylogic_epi32(dropped, kept, one, 0xF8);
    const __mmask32 up = _mm512_cmpgt_epu16_mask(with_odd, _mm512_set1_epi16(int16_t(0x8000)));
    return (u32)_mm512_mask_add_epi16(kept, up, kept, one);
#else
    return to_bfloat16<Lanes>(low) | (rounded_to_bfloat16<Lanes>(high) & 0xFFFF0000u);
#endif
  }
};

struct Float16 {
  typedef uint16_t T;
  static constexpr int kElementBytes = 4;
  static FASTINIT_FN void write_tile(uint16_t* out, const f32 (&value)[4]) {
    f32 ordered[4];
    transpose(value, ordered);
    for (int i = 0; i < 4; ++i) store_half(out + i * Lanes::kWidth, ordered[i]);
  }

 private:
  static FASTINIT_FN void store_half(uint16_t* out, f32 value) {
#if defined(__AVX512F__)
    const __m256i code = _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    const __m128i code = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
    const float16x4_t code = vcvt_f16_f32((float32x4_t)value);
#else
    typedef uint16_t u16 __attribute__((vector_size(FASTINIT_VECTOR_BYTES / 2)));
    const u16 code = __builtin_convertvector(to_format<Lanes>(value, kHalf), u16);
#endif
    std::memcpy(out, &code, sizeof code);
  }
};

template <const Format& kFormat>
struct Float8 {
  typedef uint8_t T;
  static constexpr int kElementBytes = 1;
  static FASTINIT_FN void write_tile(uint8_t* out, const f32 (&value)[4]) {
    u32 code[4];
    for (int i = 0; i < 4; ++i) code[i] = to_format<Lanes>(value[i], kFormat);
    const u32 block = code[0] | code[1] << 8 | code[2] << 16 | code[3] << 24;
    std::memcpy(out, &block, sizeof block);
  }
};

// --- runs of consecutive elements ------------------------------------------------------------------------------------

constexpr int kTile = 4 * Lanes::kWidth;  // elements per step

template <class Type, class Values>
FASTINIT_FN void make_tile(const TileWords& words, const Values& values, typename Type::T* out) {
  f32 value[4];
  values(words, value);
  Type::write_tile(out, value);
}

// Writes n elements from the skip-th of the tile whose first block has the counter `first`, whatever the counters are.
template <class Type, class Values>
__attribute__((noinline)) void make_part(uint64_t key, const Values& values, uint64_t first, int64_t skip, int64_t n,
                                         typename Type::T* out) {
  typename Type::T tile[kTile];
  make_tile<Type>(words_of_tile(counters_of_tile<Type::kElementBytes>(first), key), values, tile);
  std::copy(tile + skip, tile + skip + n, out);
}

// Writes elements [index, index + n) of the full tensor to contiguous memory. Takes the numbers by value: through a
// reference, the compiler would have to assume that storing values changes them.
template <class Type, class Values>
void make_run(Key key, const Values values, uint64_t index, int64_t n, typename Type::T* out) {
  uint64_t counter = key.offset + index / 4;
  if (const int64_t skip = int64_t(index % 4)) {  // starts within a block
    const int64_t some = std::min(n, kTile - skip);
    make_part<Type>(key.seed, values, counter, skip, some, out);
    n -= some, out += some, counter += Lanes::kWidth;
  }
  while (n >= kTile) {
    int64_t tiles = std::min(n / kTile, counters_in_stretch(counter) / Lanes::kWidth);
    if (tiles == 0) {
      make_part<Type>(key.seed, values, counter, 0, kTile, out);
      tiles = 1;
    } else {
      const Stretch stretch(key.seed, uint32_t(counter >> 32));
      TileCounters counters = counters_of_tile<Type::kElementBytes>(counter);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        make_tile<Type>(words_of_tile(counters, stretch), values, out + tile * kTile);
        counters.even += Lanes::kWidth, counters.odd += Lanes::kWidth;
      }
    }
    n -= tiles * kTile, out += tiles * kTile, counter += uint64_t(tiles) * Lanes::kWidth;
  }
  if (n > 0) make_part<Type>(key.seed, values, counter, 0, n, out);
}

// As above, with two values per block, and tiles of one register of blocks.
constexpr int kTile64 = 2 * Lanes::kWidth64;

template <class Values>
FASTINIT_FN void make_tile64(const Block<Lanes::wide>& words, const Values& values, double* out) {
  const auto joined = [](Lanes::wide high, Lanes::wide low) { return high << 32 | (low & 0xFFFFFFFFu); };
  const Lanes::u64 v[2] = {joined(words.c0, words.c1), joined(words.c2, words.c3)};
  Lanes::f64 value[2];
  values(v, value);
  const f32 even = (f32)value[0], odd = (f32)value[1];
  const f32 ordered[2] = {Lanes::unpack_low64(even, odd), Lanes::unpack_high64(even, odd)};
  store(out, ordered);
}

template <class Values>
__attribute__((noinline)) void make_part64(uint64_t key, const Values& values, uint64_t first, int64_t skip, int64_t n,
                                           double* out) {
  double tile[kTile64];
  make_tile64(philox4x32<Lanes>(counters_of_tile64(first), RoundKeys(key)), values, tile);
  std::copy(tile + skip, tile + skip + n, out);
}

template <class Values>
void make_run64(Key key, const Values values, uint64_t index, int64_t n, double* out) {
  uint64_t counter = key.offset + index / 2;
  if (const int64_t skip = int64_t(index % 2)) {
    const int64_t some = std::min(n, kTile64 - skip);
    make_part64(key.seed, values, counter, skip, some, out);
    n -= some, out += some, counter += Lanes::kWidth64;
  }
  while (n >= kTile64) {
    int64_t tiles = std::min(n / kTile64, counters_in_stretch(counter) / Lanes::kWidth64);
    if (tiles == 0) {
      make_part64(key.seed, values, counter, 0, kTile64, out);
      tiles = 1;
    } else {
      const Stretch stretch(key.seed, uint32_t(counter >> 32));
      Lanes::wide counters = counters_of_tile64(counter);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        make_tile64(philox4x32_within<Lanes>(counters, stretch), values, out + tile * kTile64);
        counters += Lanes::kWidth64;
      }
    }
    n -= tiles * kTile64, out += tiles * kTile64, counter += uint64_t(tiles) * Lanes::kWidth64;
  }
  if (n > 0) make_part64(key.seed, values, counter, 0, n, out);
}

// --- boxes -----------------------------------------------------------------------------------------------------------

// Random values: make(index, n, out) writes a run of consecutive indices to contiguous memory.
template <class T, class Make>
void fill_random(const FillDesc& fill, int64_t begin, int64_t end, const Make& make) {
  constexpr int last = kMaxDims - 1;
  constexpr int64_t kBuffer = 2048;  // elements; fits the first-level cache
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
    } else {  // the box is one element wide in the innermost dimension
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

template <class Values>
void fill_values64(const FillDesc& fill, int64_t begin, int64_t end) {
  const Key key{fill.key_seed, fill.key_offset};
  const Values values(fill.params);
  fill_random<double>(fill, begin, end, [&](uint64_t index, int64_t n, double* out) {
    make_run64(key, values, index, n, out);
  });
}

template <class Values, class Values64>
void fill_dtype(const FillDesc& fill, int64_t begin, int64_t end) {
  switch (fill.dtype) {
    case kFloat32: return fill_values<Float32, Values>(fill, begin, end);
    case kBFloat16: return fill_values<BFloat16, Values>(fill, begin, end);
    case kFloat16: return fill_values<Float16, Values>(fill, begin, end);
    case kFloat8E4M3FN: return fill_values<Float8<kE4M3FN>, Values>(fill, begin, end);
    case kFloat8E5M2: return fill_values<Float8<kE5M2>, Values>(fill, begin, end);
    case kFloat8E4M3FNUZ: return fill_values<Float8<kE4M3FNUZ>, Values>(fill, begin, end);
    case kFloat8E5M2FNUZ: return fill_values<Float8<kE5M2FNUZ>, Values>(fill, begin, end);
    case kFloat64: return fill_values64<Values64>(fill, begin, end);
  }
}

void fill_range(const FillDesc& fill, int64_t begin, int64_t end) {
  switch (fill.distribution) {
    case kUniform: return fill_dtype<UniformValues, UniformValues64>(fill, begin, end);
    case kNormal: return fill_dtype<NormalValues, NormalValues64>(fill, begin, end);
    case kTruncatedInside: return fill_dtype<TruncatedInsideValues, TruncatedWideValues64>(fill, begin, end);
    case kTruncatedWide:
      if (reaches_bounds(fill.params))
        return fill_dtype<TruncatedWideValues<true>, TruncatedWideValues64>(fill, begin, end);
      return fill_dtype<TruncatedWideValues<false>, TruncatedWideValues64>(fill, begin, end);
    case kTruncatedTail: return fill_dtype<TruncatedTailValues, TruncatedTailValues64>(fill, begin, end);
    case kWords: return fill_values<Float32, WordValues>(fill, begin, end);
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

// --- comparing --------------------------------------------------------------------------------------------------------

// Returns the first of n elements in memory that differs from those that lie one behind the other, or n.
int64_t first_different(const char* memory, int64_t stride, const char* expected, int64_t n, int64_t element_bytes) {
  if (stride == 1 && std::memcmp(memory, expected, size_t(n * element_bytes)) == 0) return n;
  int64_t i = 0;
  while (i < n && std::memcmp(memory + i * stride * element_bytes, expected + i * element_bytes, size_t(element_bytes)) == 0)
    ++i;
  return i;
}

int64_t compare_range(const FillDesc& fill, int64_t begin, int64_t end) {
  // What is drawn stays in the first-level cache, so that memory is read once and not written at all.
  alignas(64) char buffer[16 << 10];
  const int64_t bytes = fill.element_bytes, at_once = int64_t(sizeof buffer) / bytes;
  FillDesc drawn = fill;  // the same elements, one behind the other
  int64_t stride = 1;
  for (int d = kMaxDims - 1; d >= 0; --d) drawn.stride[d] = stride, stride *= fill.size[d];
  int64_t n_constant = 0;  // elements of the buffer that hold the constant
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t n = std::min(at_once, end - first);
    if (n_constant < n) {
      // Where element 0 would be, so that element `first` is the buffer's first.
      drawn.data = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(buffer) - uintptr_t(first * bytes));
      fill_range(drawn, first, first + n);
      if (fill.distribution == kConstant) n_constant = n;
    }
    int64_t done = 0, different = n;
    for_each_row(fill, first, first + n, [&](char* memory, uint64_t, int64_t count) {
      if (different == n) {
        const int64_t at = first_different(memory, fill.stride[kMaxDims - 1], buffer + done * bytes, count, bytes);
        if (at < count) different = done + at;
      }
      done += count;
    });
    if (different < n) return first + different;
  }
  return end;
}

// --- for tests -------------------------------------------------------------------------------------------------------

template <class Type, class Values>
void use_words(const FillDesc& fill, const uint32_t* given) {
  const Values values(fill.params);
  typename Type::T* out = static_cast<typename Type::T*>(fill.data);
  for (int64_t done = 0; done < fill.n_elements; done += kTile) {
    TileWords words;
    for (int lane = 0; lane < Lanes::kWidth; ++lane)
      for (int i = 0; i < 4; ++i) words.w[i][lane] = given[done + 4 * block_of_lane<Type::kElementBytes>(lane) + i];
    make_tile<Type>(words, values, out + done);
  }
}

void fill_from_words(const FillDesc& fill, const uint32_t* words) {
  switch (fill.distribution) {
    case kUniform: return use_words<Float32, UniformValues>(fill, words);
    case kNormal: return use_words<Float32, NormalValues>(fill, words);
    case kTruncatedInside: return use_words<Float32, TruncatedInsideValues>(fill, words);
    case kTruncatedWide: return use_words<Float32, TruncatedWideValues<true>>(fill, words);
    case kTruncatedTail: return use_words<Float32, TruncatedTailValues>(fill, words);
    case kWords:  // the words' bits as float32, converted
      switch (fill.dtype) {
        case kBFloat16: return use_words<BFloat16, WordValues>(fill, words);
        case kFloat16: return use_words<Float16, WordValues>(fill, words);
        case kFloat8E4M3FN: return use_words<Float8<kE4M3FN>, WordValues>(fill, words);
        case kFloat8E5M2: return use_words<Float8<kE5M2>, WordValues>(fill, words);
        case kFloat8E4M3FNUZ: return use_words<Float8<kE4M3FNUZ>, WordValues>(fill, words);
        case kFloat8E5M2FNUZ: return use_words<Float8<kE5M2FNUZ>, WordValues>(fill, words);
      }
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
const Kernels kernels = {FASTINIT_TEXT(FASTINIT_ISA), fill_range, fill_from_words, fused_multiply_add, digest_range,
                         compare_range, convert};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
