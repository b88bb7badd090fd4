// Chooses the instruction set, and divides the work among threads.
#pragma once

#include <cstddef>
#include <vector>

#include "fill.h"

namespace fastinit {

// The instruction sets of this processor, best first; the last is the baseline.
std::vector<const Kernels*> instruction_sets();

// Runs the fills on at most n_threads threads, including the caller's. The fills' memory must not overlap.
void run(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads);

}  // namespace fastinit
