// Chooses the instruction set, and divides the work among threads.
#pragma once

#include <cstddef>
#include <vector>

#include "fill.h"

namespace fastinit {

// The instruction sets of this processor, best first; the last is the baseline.
std::vector<const Kernels*> instruction_sets();

// Runs the fills on at most n_threads threads, including the caller's. The fills' memory must not overlap.
//
// must_stop, where given, is asked now and then by the caller's thread. If it says so, pieces that nobody has begun are left
// undone; no thread writes after the return.
void run(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads, bool (*must_stop)() = nullptr);

}  // namespace fastinit
