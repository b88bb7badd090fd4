// Shared by the host side and the kernel of the CUDA backend.
#pragma once

#include <cstdint>

#include "fill.h"

namespace fastinit {

// Threads per block. 128 would give the same loops, but twice as many blocks to start.
constexpr int kThreads = 256;
// Resident thread blocks per multiprocessor: leaves 80 registers per thread, of which float64 needs 70. On an H200, 2 to 4
// write equally fast, as do blocks of 128 threads: multiplications bind, not the number of warps.
constexpr int kBlocksAtOnce = 3;
// A trip of a thread block through its loop: 16 elements per thread share the cost of the loop, and give the processor two
// or more independent Philox blocks to overlap.
constexpr int kTripElements = kThreads * 16;
constexpr int kTripBytes = kTripElements * 4;  // for constants, whatever their element size

// Launches the kernel on a device's stream (a cudaStream_t). Both tables are in device memory. Returns nullptr, or CUDA's
// error message.
const char* launch(const FillDesc* fills, const Work* works, int64_t n_works, int device, void* stream);

// CUDA's error message if no device is usable, else nullptr.
const char* why_not();

// The version of this build's CUDA runtime, e.g. 13000 for 13.0.
int runtime_version();

}  // namespace fastinit
