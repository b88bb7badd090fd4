// Philox-4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), and its use in
// the number contract: a parameter's key is fold_in((seed, 0), stream of its name); block b of the parameter has the
// counter key.offset + b, and element i takes word i % 4 of block i / 4. Letters are the paper's.
#pragma once

#include "lanes.h"

namespace fastinit {
namespace FASTINIT_ISA {

// The paper's multipliers and Weyl increments, section 4; 10 rounds are the safe choice of the paper, cuRAND and PyTorch.
constexpr uint32_t kM0 = 0xD2511F53, kM1 = 0xCD9E8D57;
constexpr uint32_t kW0 = 0x9E3779B9, kW1 = 0xBB67AE85;
constexpr int kRounds = 10;

// The round keys: a Weyl sequence that starts at the key.
struct RoundKeys {
  uint32_t first0, first1;
  FASTINIT_FN explicit RoundKeys(uint64_t key) : first0(uint32_t(key)), first1(uint32_t(key >> 32)) {}
  FASTINIT_FN uint32_t k0(int round) const { return first0 + uint32_t(round) * kW0; }
  FASTINIT_FN uint32_t k1(int round) const { return first1 + uint32_t(round) * kW1; }
};

// One register of 64-bit lanes per word, one block per lane. Only the low halves count: products leave garbage in the upper
// halves, which neither the next product nor the final packing reads.
template <class Wide>
struct Block {
  Wide c0, c1, c2, c3;
};

template <class L, class Keys>
FASTINIT_FN Block<typename L::wide> philox_round(const Block<typename L::wide>& c, const Keys& keys, int round) {
  const auto p0 = L::mul_low32(c.c0, kM0), p1 = L::mul_low32(c.c2, kM1);
  return {L::upper_half(p1) ^ c.c1 ^ keys.k0(round), p1, L::upper_half(p0) ^ c.c3 ^ keys.k1(round), p0};
}

template <class L, class Keys>
FASTINIT_FN Block<typename L::wide> philox4x32(typename L::wide counter, const Keys& keys) {
  typedef typename L::wide wide;
  Block<wide> c{counter, counter >> 32, wide{}, wide{}};
#pragma GCC unroll 10
  for (int round = 0; round < kRounds; ++round) c = philox_round<L>(c, keys, round);
  return c;
}

// Where a stream of blocks starts.
struct Key {
  uint64_t seed, offset;
};

// The four words of kWidth consecutive blocks.
struct TileWords {
  Lanes::u32 w[4];
};

#if defined(__CUDACC__)

template <class Keys>
FASTINIT_FN TileWords words_at(uint64_t counter, const Keys& keys) {
  const Block<Lanes::wide> c = philox4x32<Lanes>(counter, keys);
  return TileWords{{uint32_t(c.c0), uint32_t(c.c1), uint32_t(c.c2), uint32_t(c.c3)}};
}

#else

// What blocks have in common whose counters share their upper half, as runs of up to 2^32 blocks do: in the second round one
// product is theirs, so two multiplications of twenty are spared with the zero of the first round, and what goes with them.
struct Stretch {
  RoundKeys keys;
  uint32_t second, third;
  FASTINIT_FN Stretch(uint64_t key, uint32_t upper_half) : keys(key) {
    const uint64_t product = uint64_t(upper_half ^ keys.k0(0)) * kM0;
    second = uint32_t(product >> 32) ^ keys.k1(1);
    third = uint32_t(product) ^ keys.k1(2);
  }
};

// How many counters from this one have its upper half.
FASTINIT_FN int64_t counters_in_stretch(uint64_t counter) { return int64_t(0x100000000u - uint32_t(counter)); }

// All rounds but the last.
template <class L>
FASTINIT_FN Block<typename L::wide> most_rounds(typename L::wide counter, const Stretch& s) {
  typedef typename L::wide wide;
  const wide first = L::mul_low32(counter, kM0);
  const wide second = L::mul_low32(L::upper_half(first) ^ s.keys.k1(0), kM1);
  const wide p0 = L::mul_low32(L::upper_half(second) ^ s.keys.k0(1), kM0), p1 = L::mul_low32(first ^ s.second, kM1);
  Block<wide> c{L::upper_half(p1) ^ second ^ s.keys.k0(2), p1, L::upper_half(p0) ^ s.third, p0};
#pragma GCC unroll 10
  for (int round = 3; round < kRounds - 1; ++round) c = philox_round<L>(c, s.keys, round);
  return c;
}

template <class L>
FASTINIT_FN Block<typename L::wide> philox4x32_within(typename L::wide counter, const Stretch& s) {
  return philox_round<L>(most_rounds<L>(counter, s), s.keys, kRounds - 1);
}

// Which block each lane holds, among kWidth consecutive ones, so that the lanes' values are in natural order once words and
// then elements are put side by side (write_tile in fill_cpu.cpp). L counts parts of 128 bits, j lanes within them.
template <int kElementBytes>
constexpr int block_of_lane(int lane) {
  constexpr int parts = Lanes::kWidth / 4;
  const int part = lane / 4, j = lane % 4;
  if (kElementBytes == 1) return lane;                                   // a block is a lane
  if (kElementBytes == 2) return 2 * parts * (j / 2) + 2 * part + j % 2;  // two blocks are a part, lanes 0 and 1 of each first
  return parts * j + part;                                               // a block is a part
}

// The counters of a tile's blocks: those of the even and those of the odd 32-bit lanes.
struct TileCounters {
  Lanes::wide even, odd;
};

template <int kElementBytes>
FASTINIT_FN TileCounters counters_of_tile(uint64_t first) {
  TileCounters counters{};
  for (int i = 0; i < Lanes::kWidth / 2; ++i) {
    counters.even[i] = uint64_t(block_of_lane<kElementBytes>(2 * i));
    counters.odd[i] = uint64_t(block_of_lane<kElementBytes>(2 * i + 1));
  }
  counters.even += first, counters.odd += first;
  return counters;
}

// The counters of as many blocks as there are 64-bit lanes; two doubles of a block are a part.
FASTINIT_FN Lanes::wide counters_of_tile64(uint64_t first) {
  Lanes::wide counters{};
  for (int lane = 0; lane < Lanes::kWidth64; ++lane) counters[lane] = uint64_t(Lanes::kWidth64 / 2 * (lane % 2) + lane / 2);
  return counters + first;
}

// For any counters.
FASTINIT_FN TileWords words_of_tile(const TileCounters& counters, uint64_t key) {
  const RoundKeys keys(key);
  const auto x = philox4x32<Lanes>(counters.even, keys), y = philox4x32<Lanes>(counters.odd, keys);
  return TileWords{{Lanes::lower_halves(x.c0, y.c0), Lanes::lower_halves(x.c1, y.c1), Lanes::lower_halves(x.c2, y.c2),
                    Lanes::lower_halves(x.c3, y.c3)}};
}

// For counters within a stretch. The last round works on the words of both registers at once.
FASTINIT_FN TileWords words_of_tile(const TileCounters& counters, const Stretch& stretch) {
  const auto x = most_rounds<Lanes>(counters.even, stretch), y = most_rounds<Lanes>(counters.odd, stretch);
  const auto x0 = Lanes::mul_low32(x.c0, kM0), x1 = Lanes::mul_low32(x.c2, kM1);
  const auto y0 = Lanes::mul_low32(y.c0, kM0), y1 = Lanes::mul_low32(y.c2, kM1);
  const RoundKeys& keys = stretch.keys;
  return TileWords{{Lanes::upper_halves(x1, y1) ^ Lanes::lower_halves(x.c1, y.c1) ^ keys.k0(kRounds - 1),
                    Lanes::lower_halves(x1, y1),
                    Lanes::upper_halves(x0, y0) ^ Lanes::lower_halves(x.c3, y.c3) ^ keys.k1(kRounds - 1),
                    Lanes::lower_halves(x0, y0)}};
}

// Turns the values of words 0, 1, 2, 3 of each block into four registers of consecutive elements.
FASTINIT_FN void transpose(const Lanes::f32 (&z)[4], Lanes::f32 (&out)[4]) {
  const auto a = Lanes::unpack_low32(z[0], z[1]), b = Lanes::unpack_high32(z[0], z[1]);
  const auto c = Lanes::unpack_low32(z[2], z[3]), d = Lanes::unpack_high32(z[2], z[3]);
  out[0] = Lanes::unpack_low64(a, c);
  out[1] = Lanes::unpack_high64(a, c);
  out[2] = Lanes::unpack_low64(b, d);
  out[3] = Lanes::unpack_high64(b, d);
}

#endif

}  // namespace FASTINIT_ISA
}  // namespace fastinit
