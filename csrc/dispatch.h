// Chooses the instruction set, and divides the work among threads.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "fill.h"
#include "fresh_memory.h"

namespace fastinit {

// The instruction sets of this processor, best first; the last is the baseline.
std::vector<const Kernels*> instruction_sets();

// Is told how many of the records' bytes have been begun, and says whether to stop.
using Watch = std::function<bool(int64_t n_bytes)>;

// Runs the fills on at most n_threads threads, including the caller's. The fills' memory must not overlap.
//
// watch, where given, is called now and then by the caller's thread. If it says so, pieces that nobody has begun are left
// undone; no thread writes after the return.
void run(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads, const Watch& watch = nullptr);

// Writes, for each box, the sum modulo 2^64 of its elements' mixed words (digest.h) to sums; the records' memory is read. As
// run otherwise; after a stop the sums mean nothing.
void run_digest(const Kernels& kernels, const FillDesc* boxes, size_t n_boxes, int n_threads, uint64_t* sums,
                const Watch& watch = nullptr);

// Gives memory that nobody has touched yet its pages (fresh_memory.h), for those who write it by other means than run().
void back_all(const std::vector<Span>& spans, int n_threads);

// Writes, for each record, its first element whose bytes in memory are not those that `run` would write, or -1; memory is
// read only, and what is behind a difference is mostly left out. As run otherwise; after a stop the numbers mean nothing.
void run_compare(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads, int64_t* first,
                 const Watch& watch = nullptr);

}  // namespace fastinit
