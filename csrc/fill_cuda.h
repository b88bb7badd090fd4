// What the host and the kernel of the CUDA backend agree on.
#pragma once

#include "fill.h"

namespace fastinit {

// Threads of a block. With 128 the loops are the same, and twice the blocks are to be started.
constexpr int kThreads = 256;
// A trip of a thread block through its loop: 16 elements of each thread, which share the cost of counting, and are two or more
// blocks of Philox for the processor to work on side by side.
constexpr int kTripElements = kThreads * 16;
constexpr int kTripBytes = kTripElements * 4;  // of constants, whatever their size

}  // namespace fastinit
