// The records that Python passes to the kernels: each is a fill of one box of one parameter. GPUs also get a list of pieces
// of work. POD; records.py and gpu_work.py in fastinit/contract have the same layout (tests compare the sizes).
#pragma once

#include <cstdint>

namespace fastinit {

// After merging the dimensions that can be walked as one; the Python side splits boxes that have more.
constexpr int kMaxDims = 6;
constexpr int kMaxParams = 36;

enum Distribution : int32_t { kConstant = 0, kUniform = 1, kNormal = 2, kTruncatedInside = 3, kTruncatedWide = 4,
                              kTruncatedTail = 5,
                              kWords = 6 };  // the words' own bits: for known answers and exhaustive tests
enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3, kFloat8E4M3FN = 4, kFloat8E5M2 = 5,
                       kFloat8E4M3FNUZ = 6, kFloat8E5M2FNUZ = 7, kRaw = 8 };

struct FillDesc {
  void* data;                     // the box's first element in local memory
  uint64_t key_seed, key_offset;  // of the parameter's random stream
  uint64_t first_index;           // row-major index of the box's first element in the full tensor, in elements
  int64_t n_elements;             // of the box; the product of size
  int64_t size[kMaxDims];         // of the box, in elements, outermost first; unused ones in front are 1
  int64_t stride[kMaxDims];       // of the local memory, in elements
  int64_t index_stride[kMaxDims]; // of the full tensor, row-major, in elements
  double params[kMaxParams];      // uniform: low, high, (high - low) 2^-24 where float32
                                  // has that number, else 0; normal: mean, std; truncated: mean, std (negative: mirrored),
                                  // low and high (rounded inward to the dtype), then
                                  // the fields of TruncatedInside or Wide after std, or those of TruncatedTail
                                  // (distributions.h), or for float64 of TruncatedWide64 or Tail64 (float64.h)
  uint64_t raw[2];                // constant: the element's bytes
  int32_t distribution, dtype;
  int32_t element_bytes;          // 1, 2, 4, 8 or 16
  int32_t blocks_per_row;         // for the GPU: blocks that cover a run along the innermost dimension (Path::kBlocks)
};

// How a piece of work on the GPU walks its record.
enum Path : int32_t {
  kRun = 0,     // whole trips; memory and indices are consecutive and begin together on 16 bytes and on a block
  kRows = 1,    // whole trips over rows, each of which qualifies for kRun
  kBlocks = 2,  // block after block, element by element
};
// One piece of work, of one thread block.
struct Work {
  int64_t first;  // element (kRun, kRows) or block (kBlocks) of the record's box where it begins
  int32_t n;      // trips (kRun, kRows) or blocks
  int32_t fill;   // index of the record
  int32_t path;
  int32_t reserved;
};

// Fills the elements [begin, end) of the box, counted row-major within the box.
using FillRange = void (*)(const FillDesc& fill, int64_t begin, int64_t end);
// For exhaustive tests: writes the values of given words, whole tiles of them, to contiguous memory. float32, or kWords in a
// narrower dtype.
using FillFromWords = void (*)(const FillDesc& fill, const uint32_t* words);
// Writes a * b + c, rounded once: for tests.
using FusedMultiplyAdd = void (*)(const float* a, const float* b, const float* c, int64_t n, float* out);

// Returns the first of the elements [begin, end) of the box whose bytes in memory are not those that fill_range would write,
// or end. The record's memory is read only.
using CompareRange = int64_t (*)(const FillDesc& fill, int64_t begin, int64_t end);

// Returns the sum, modulo 2^64, of the digest's mixed words (digest.h) of the elements [begin, end) of the box.
using DigestRange = uint64_t (*)(const FillDesc& fill, int64_t begin, int64_t end);

// Converts n elements from one dtype (DType) to another, or returns false if it does not know how.
using Convert = bool (*)(int32_t from, int32_t to, const void* in, void* out, int64_t n);

// The largest tile, in elements: the four words of a block for each lane of the widest register.
constexpr int64_t kMaxTile = 64;

struct Kernels {  // of one instruction set
  const char* isa;
  FillRange fill_range;
  FillFromWords fill_from_words;
  FusedMultiplyAdd fma;
  DigestRange digest_range;
  CompareRange compare_range;
  Convert convert;
};

}  // namespace fastinit
