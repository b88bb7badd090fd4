// How the CUDA kernel turns random words into elements, and how it walks over a record's memory.
#pragma once

#include "fill_cuda.h"
#include "formats.h"
#include "values.h"

namespace fastinit {
namespace FASTINIT_ISA {

#define FASTINIT_DEVICE __device__ __forceinline__

// --- element types: float32 -> an element's bits, and four elements -> words of memory ---------------------------------

struct Float32 {
  static constexpr int kBytes = 4;
  FASTINIT_DEVICE explicit Float32(const FillDesc&) {}
  FASTINIT_DEVICE void pack(const f32 (&value)[4], uint32_t* out) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = Lanes::bits(value[i]);
  }
};

struct BFloat16 {
  static constexpr int kBytes = 2;
  FASTINIT_DEVICE explicit BFloat16(const FillDesc&) {}
  FASTINIT_DEVICE void pack(const f32 (&value)[4], uint32_t* out) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out[i]) : "f"(value[2 * i + 1]), "f"(value[2 * i]));
  }
};

struct Float16 {
  static constexpr int kBytes = 2;
  FASTINIT_DEVICE explicit Float16(const FillDesc&) {}
  FASTINIT_DEVICE void pack(const f32 (&value)[4], uint32_t* out) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out[i]) : "f"(value[2 * i + 1]), "f"(value[2 * i]));
  }
};

// One type for all four formats, whose numbers are looked up once per piece of work. The hardware's conversions (from sm_89)
// do not help: they saturate where torch's overflow.
struct Float8 {
  static constexpr int kBytes = 1;
  Format format;
  FASTINIT_DEVICE explicit Float8(const FillDesc& fill)
      : format(fill.dtype == kFloat8E4M3FN     ? kE4M3FN
               : fill.dtype == kFloat8E5M2     ? kE5M2
               : fill.dtype == kFloat8E4M3FNUZ ? kE4M3FNUZ
                                               : kE5M2FNUZ) {}
  FASTINIT_DEVICE void pack(const f32 (&value)[4], uint32_t* out) const {
    out[0] = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) out[0] |= to_format<Lanes>(value[i], format) << (8 * i);
  }
};

// --- makers: they turn a block of four words into elements -------------------------------------------------------------

// Four elements of a type that is converted from float32.
template <class Type, class Values>
struct Narrow {
  static constexpr int kElements = 4, kBytes = Type::kBytes;
  Values values;
  Type type;
  FASTINIT_DEVICE explicit Narrow(const FillDesc& fill) : values(fill.params), type(fill) {}

  template <class Keys>
  FASTINIT_DEVICE void pack(uint64_t counter, const Keys& keys, uint32_t* out) const {
    f32 value[4];
    values(words_at(counter, keys), value);
    type.pack(value, out);
  }
};

// Two float64.
template <class Values>
struct Double {
  typedef uint64_t Element;
  static constexpr int kElements = 2, kBytes = 8;
  Values values;
  FASTINIT_DEVICE explicit Double(const FillDesc& fill) : values(fill.params) {}

  template <class Keys>
  FASTINIT_DEVICE void make(uint64_t counter, const Keys& keys, uint64_t (&out)[2]) const {
    const TileWords words = words_at(counter, keys);
    const u64 v[2] = {u64(words.w[0]) << 32 | words.w[1], u64(words.w[2]) << 32 | words.w[3]};
    f64 value[2];
    values(v, value);
    for (int i = 0; i < 2; ++i) out[i] = Lanes::bits64(value[i]);
  }
  template <class Keys>
  FASTINIT_DEVICE void pack(uint64_t counter, const Keys& keys, uint32_t* out) const {
    uint64_t code[2];
    make(counter, keys, code);
    for (int i = 0; i < 2; ++i) out[2 * i] = uint32_t(code[i]), out[2 * i + 1] = uint32_t(code[i] >> 32);
  }
  FASTINIT_DEVICE void store(char* out, uint64_t code) const { *reinterpret_cast<uint64_t*>(out) = code; }
};

// As Narrow, for a type chosen at run time, element by element.
template <class Values>
struct AnyNarrow {
  typedef uint32_t Element;
  static constexpr int kElements = 4;
  Values values;
  Float8 float8;
  int dtype, bytes;
  FASTINIT_DEVICE explicit AnyNarrow(const FillDesc& fill)
      : values(fill.params), float8(fill), dtype(fill.dtype), bytes(fill.element_bytes) {}

  template <class Keys>
  FASTINIT_DEVICE void make(uint64_t counter, const Keys& keys, uint32_t (&out)[4]) const {
    f32 value[4];
    values(words_at(counter, keys), value);
    for (int i = 0; i < 4; ++i)
      out[i] = dtype == kFloat32    ? Lanes::bits(value[i])
               : dtype == kBFloat16 ? to_bfloat16<Lanes>(value[i])
               : dtype == kFloat16  ? to_format<Lanes>(value[i], kHalf)
                                    : to_format<Lanes>(value[i], float8.format);
  }
  FASTINIT_DEVICE void store(char* out, uint32_t code) const {
    switch (bytes) {
      case 1: *reinterpret_cast<uint8_t*>(out) = uint8_t(code); break;
      case 2: *reinterpret_cast<uint16_t*>(out) = uint16_t(code); break;
      default: *reinterpret_cast<uint32_t*>(out) = code;
    }
  }
};

// A constant, element by element.
struct AnyConstant {
  typedef uint64_t Element;
  static constexpr int kElements = 4;
  uint64_t raw0, raw1;
  int bytes;
  FASTINIT_DEVICE explicit AnyConstant(const FillDesc& fill) : raw0(fill.raw[0]), raw1(fill.raw[1]), bytes(fill.element_bytes) {}

  template <class Keys>
  FASTINIT_DEVICE void make(uint64_t, const Keys&, uint64_t (&)[4]) const {}
  FASTINIT_DEVICE void store(char* out, uint64_t) const {
    switch (bytes) {
      case 1: *reinterpret_cast<uint8_t*>(out) = uint8_t(raw0); break;
      case 2: *reinterpret_cast<uint16_t*>(out) = uint16_t(raw0); break;
      case 4: *reinterpret_cast<uint32_t*>(out) = uint32_t(raw0); break;
      case 16: reinterpret_cast<uint64_t*>(out)[1] = raw1; [[fallthrough]];
      default: *reinterpret_cast<uint64_t*>(out) = raw0;
    }
  }
};

// --- walks -------------------------------------------------------------------------------------------------------------

// Where a record's memory starts; tells the compiler that it is global memory.
FASTINIT_DEVICE char* memory_of(const FillDesc& fill) {
  __builtin_assume(__isGlobal(fill.data));
  return static_cast<char*>(fill.data);
}

// The round keys, kept in registers. Without the shuffle the compiler would recompute some of them in every trip; with it, it
// still sees that they are uniform across the warp.
struct KeptKeys {
  uint32_t keys0[kRounds], keys1[kRounds];
  FASTINIT_DEVICE explicit KeptKeys(uint64_t key) {
    const RoundKeys keys(key);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      keys0[round] = __shfl_sync(0xFFFFFFFFu, keys.k0(round), 0);
      keys1[round] = __shfl_sync(0xFFFFFFFFu, keys.k1(round), 0);
    }
  }
  FASTINIT_DEVICE uint32_t k0(int round) const { return keys0[round]; }
  FASTINIT_DEVICE uint32_t k1(int round) const { return keys1[round]; }
};

// In a trip through the loop each thread stores kUnits units of 16 bytes, side by side with its neighbours'.
template <class Maker>
struct Trip {
  static constexpr int kUnitElements = 16 / Maker::kBytes;
  static constexpr int kUnitBlocks = kUnitElements / Maker::kElements;
  static constexpr int kUnits = kTripElements / (kThreads * kUnitElements);
  static constexpr int kUnroll = Maker::kBytes == 8 ? 1 : kUnits;  // float64's code is long: do not unroll it
};

template <class Maker, class Keys>
FASTINIT_DEVICE uint4 make_unit(const Maker& maker, uint64_t counter, const Keys& keys) {
  uint32_t out[4];
#pragma unroll
  for (int i = 0; i < Trip<Maker>::kUnitBlocks; ++i) maker.pack(counter + i, keys, out + i * Maker::kElements * Maker::kBytes / 4);
  return make_uint4(out[0], out[1], out[2], out[3]);
}

// Path::kRun.
template <class Maker>
FASTINIT_DEVICE void run(const FillDesc& fill, const Work& work) {
  typedef Trip<Maker> Trip;
  const Maker maker(fill);
  char* out = memory_of(fill) + (work.first + threadIdx.x * Trip::kUnitElements) * Maker::kBytes;
  // The counter's low half does not overflow within a piece of work, so the upper half, and its part of Philox's first two
  // rounds, is computed once.
  const uint64_t counter = fill.key_offset + (fill.first_index + work.first) / Maker::kElements;
  const uint64_t high = counter & 0xFFFFFFFF00000000u;
  uint32_t low = uint32_t(counter) + threadIdx.x * Trip::kUnitBlocks;
  const KeptKeys keys(fill.key_seed);
#pragma unroll 1
  for (int trip = work.n; trip > 0; --trip) {
#pragma unroll Trip::kUnroll
    for (int i = 0; i < Trip::kUnits; ++i)
      *reinterpret_cast<uint4*>(out + i * kThreads * 16) =
          make_unit(maker, high | (low + i * kThreads * Trip::kUnitBlocks), keys);
    out += kTripElements * Maker::kBytes;
    low += kTripElements / Maker::kElements;
  }
}

// Memory and index of a row of the box, which is a run along its innermost dimension.
struct Row {
  int64_t memory;  // in elements
  uint64_t index;
};

FASTINIT_DEVICE Row row_of(const FillDesc& fill, uint32_t row) {
  Row at{0, fill.first_index};
#pragma unroll 1
  for (int d = kMaxDims - 2; d >= 0; --d) {
    if (fill.size[d] == 1) continue;
    const uint32_t size = uint32_t(fill.size[d]), coordinate = row % size;
    row /= size;
    at.memory += int64_t(coordinate) * fill.stride[d];
    at.index += uint64_t(coordinate) * uint64_t(fill.index_stride[d]);
  }
  return at;
}

// Path::kRows.
template <class Maker>
FASTINIT_DEVICE void rows(const FillDesc& fill, const Work& work) {
  typedef Trip<Maker> Trip;
  const Maker maker(fill);
  char* const memory = memory_of(fill);
  const RoundKeys keys(fill.key_seed);
  const uint32_t units_per_row = uint32_t(fill.size[kMaxDims - 1] / Trip::kUnitElements);
  uint32_t unit = uint32_t(work.first / Trip::kUnitElements) + threadIdx.x;
  const uint32_t end = unit + uint32_t(work.n) * (kTripElements / Trip::kUnitElements);
#pragma unroll 1
  for (; unit != end; unit += kThreads) {
    const uint32_t row = unit / units_per_row;
    const uint64_t column = uint64_t(unit - row * units_per_row) * Trip::kUnitElements;
    const Row at = row_of(fill, row);
    *reinterpret_cast<uint4*>(memory + (at.memory + int64_t(column)) * Maker::kBytes) =
        make_unit(maker, fill.key_offset + (at.index + column) / Maker::kElements, keys);
  }
}

// Path::kBlocks: writes the record's elements in a block one by one. A block covers consecutive indices; if a row's indices
// are not consecutive, it contributes one element.
template <class Maker>
FASTINIT_DEVICE void blocks(const FillDesc& fill, const Work& work) {
  constexpr int kElements = Maker::kElements;
  const Maker maker(fill);
  char* const memory = memory_of(fill);
  const RoundKeys keys(fill.key_seed);
  const int64_t n = fill.size[kMaxDims - 1], stride = fill.stride[kMaxDims - 1], step = fill.index_stride[kMaxDims - 1];
  const bool is_one_row = fill.n_elements == n;
#pragma unroll 1
  for (int i = threadIdx.x; i < work.n; i += kThreads) {
    int64_t k = work.first + i;
    Row at{0, fill.first_index};
    if (!is_one_row) {
      const uint32_t row = uint32_t(k) / uint32_t(fill.blocks_per_row);
      k = uint32_t(k) - row * uint32_t(fill.blocks_per_row);
      at = row_of(fill, row);
    }
    // Index and column of the block's first element within the row, and their number.
    const uint64_t aligned = (at.index / kElements + uint64_t(k)) * kElements;
    const uint64_t index = step != 1 ? at.index + uint64_t(k * step) : aligned > at.index ? aligned : at.index;
    const int64_t column = step != 1 ? k : int64_t(index - at.index);
    const int first = int(index % kElements), count = step != 1 ? 1 : n - column < kElements ? int(n - column) : kElements;
    typename Maker::Element made[kElements];
    maker.make(fill.key_offset + index / kElements, keys, made);
    char* out = memory + (at.memory + column * stride) * fill.element_bytes;
#pragma unroll
    for (int j = 0; j < kElements; ++j)
      if (first <= j && j < first + count) maker.store(out + (j - first) * stride * fill.element_bytes, made[j]);
  }
}

// Path::kRun for constants: stores only.
FASTINIT_DEVICE void run_constant(const FillDesc& fill, const Work& work) {
  // The element's bytes, repeated to 16.
  const int bytes = fill.element_bytes;
  const uint64_t one = fill.raw[0];
  const uint64_t two = bytes == 1   ? (one & 0xFFu) * 0x0101010101010101u
                       : bytes == 2 ? (one & 0xFFFFu) * 0x0001000100010001u
                       : bytes == 4 ? (one & 0xFFFFFFFFu) * 0x0000000100000001u
                                    : one;
  const ulonglong2 unit = make_ulonglong2(two, bytes == 16 ? fill.raw[1] : two);
  char* out = memory_of(fill) + work.first * bytes + threadIdx.x * 16;
#pragma unroll 1
  for (int trip = work.n; trip > 0; --trip, out += kTripBytes)
#pragma unroll
    for (int i = 0; i < kTripBytes / (kThreads * 16); ++i) *reinterpret_cast<ulonglong2*>(out + i * kThreads * 16) = unit;
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
