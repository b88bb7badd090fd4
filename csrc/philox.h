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
FASTINIT_FN Block<typename L::wide> philox4x32(typename L::wide counter, const Keys& keys) {
  typedef typename L::wide wide;
  Block<wide> c{counter, counter >> 32, wide{}, wide{}};
#pragma GCC unroll 10
  for (int round = 0; round < kRounds; ++round) {
    const wide p0 = L::mul_low32(c.c0, kM0), p1 = L::mul_low32(c.c2, kM1);
    c = Block<wide>{(p1 >> 32) ^ c.c1 ^ keys.k0(round), p1, (p0 >> 32) ^ c.c3 ^ keys.k1(round), p0};
  }
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

// Maps lanes to blocks and back, among kWidth consecutive blocks, so that `transpose` yields natural order: lane 4 * L + j
// (L counts 128-bit parts) holds block kWidth / 4 * j + L.
constexpr int block_of_lane(int lane) { return Lanes::kWidth / 4 * (lane % 4) + lane / 4; }
constexpr int lane_of_block(int block) { return 4 * (block % (Lanes::kWidth / 4)) + block / (Lanes::kWidth / 4); }

FASTINIT_FN TileWords tile_words(Key key, uint64_t first_block) {
  typedef Lanes::wide wide;
  typedef Lanes::u32 u32;
  constexpr int n = Lanes::kWidth / 2;  // 64-bit lanes per register
  wide even{}, odd{};                   // lanes 2 * i and 2 * i + 1 of the 32-bit registers
  for (int i = 0; i < n; ++i) {
    even[i] = uint64_t(block_of_lane(2 * i));
    odd[i] = uint64_t(block_of_lane(2 * i + 1));
  }
  const uint64_t base = key.offset + first_block;
  const RoundKeys keys(key.seed);
  const Block<wide> x = philox4x32<Lanes>(even + base, keys), y = philox4x32<Lanes>(odd + base, keys);
  const auto pack = [](wide low, wide high) { return (u32)((low & 0xFFFFFFFFu) | (high << 32)); };
  return TileWords{{pack(x.c0, y.c0), pack(x.c1, y.c1), pack(x.c2, y.c2), pack(x.c3, y.c3)}};
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
