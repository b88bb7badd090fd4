// Walks over the boxes of records, on the CPU: rows along the innermost dimension.
#pragma once

#include <algorithm>

#include "fill.h"
#include "lanes.h"

namespace fastinit {
namespace FASTINIT_ISA {

// Calls row(first element's memory, first element's index, count) for each run along the innermost dimension within the
// box's elements [begin, end).
template <class Row>
void for_each_row(const FillDesc& fill, int64_t begin, int64_t end, const Row& row) {
  int64_t at[kMaxDims], rest = begin;
  for (int d = kMaxDims - 1; d >= 0; --d) at[d] = rest % fill.size[d], rest /= fill.size[d];
  constexpr int last = kMaxDims - 1;
  while (begin < end) {
    int64_t memory = 0;
    uint64_t index = fill.first_index;
    for (int d = 0; d < kMaxDims; ++d) {
      memory += at[d] * fill.stride[d];
      index += uint64_t(at[d]) * uint64_t(fill.index_stride[d]);
    }
    const int64_t count = std::min(fill.size[last] - at[last], end - begin);
    row(static_cast<char*>(fill.data) + memory * fill.element_bytes, index, count);
    begin += count;
    at[last] = 0;
    for (int d = last - 1; d >= 0 && ++at[d] == fill.size[d]; --d) at[d] = 0;
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
