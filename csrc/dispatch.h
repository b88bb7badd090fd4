// Which instruction set, and which thread does what.
#pragma once

#include <cstddef>
#include <vector>

#include "fill.h"

namespace fastinit {

// The instruction sets that this processor has, the best first; the last is the baseline.
std::vector<const Kernels*> instruction_sets();

// Executes the fills with at most n_threads threads, the caller's among them. None may write another's memory.
void run(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads);

}  // namespace fastinit
