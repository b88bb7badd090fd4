// What the host and the kernel of the CUDA backend agree on.
#pragma once

#include <cstdint>

#include "fill.h"

namespace fastinit {

// Threads of a block. With 128 the loops are the same, and twice the blocks are to be started.
constexpr int kThreads = 256;
// Thread blocks of a multiprocessor at once: 64 registers a thread, which is what float64 takes. The others take 30 to 40.
constexpr int kBlocksAtOnce = 4;
// A trip of a thread block through its loop: 16 elements of each thread, which share the cost of counting, and are two or more
// blocks of Philox for the processor to work on side by side.
constexpr int kTripElements = kThreads * 16;
constexpr int kTripBytes = kTripElements * 4;  // of constants, whatever their size

// Starts the kernel on a device's stream (a cudaStream_t). The tables are in the device's memory. Returns nullptr, or CUDA's
// message.
const char* launch(const FillDesc* fills, const Work* works, int64_t n_works, int device, void* stream);

// CUDA's message if it finds no device that it could use, else nullptr.
const char* why_not();

// Of the CUDA runtime in this build, e.g. 13000 for 13.0.
int runtime_version();

}  // namespace fastinit
