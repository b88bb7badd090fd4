// Gives memory that nobody has touched yet its pages just before it is written, by the kind of page that is cheaper now.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "page_choice.h"

namespace fastinit {

struct Span {  // of addresses
  uintptr_t begin, end;
};

// Memory that is about to be written, by several threads. Knows which blocks of it, of the size of a huge page, have been
// given pages. Every byte of the spans must be in mapped memory, which stays mapped; contents stay as they are.
class FreshMemory {
 public:
  // Spans may be in any order; those whose pages follow each other count as one.
  explicit FreshMemory(std::vector<Span> spans);
  ~FreshMemory();
  FreshMemory(const FreshMemory&) = delete;
  FreshMemory& operator=(const FreshMemory&) = delete;

  // Gives pages to what is in [begin, end) and to the rest of its blocks, unless that has been done.
  void back(uintptr_t begin, uintptr_t end);

  // The blocks of all spans, for callers that back all of it.
  size_t n_blocks() const { return n_blocks_; }
  void back_block(size_t block);

 private:
  struct Stretch {  // of neighbouring spans
    Span bytes;
    size_t first_block;
  };

  static size_t n_blocks_of(const Stretch& stretch);
  static Span bytes_of(const Stretch& stretch, size_t block);
  Pages pages_of(const Stretch& stretch, size_t block);

  std::vector<Stretch> stretches_;
  size_t n_blocks_ = 0;
  std::unique_ptr<std::atomic<uint8_t>[]> states_;  // of the blocks
  std::mutex mutex_;             // for the rest
  PageChoice choice_;
  std::vector<uint8_t> chosen_;  // which pages each block gets
};

}  // namespace fastinit
