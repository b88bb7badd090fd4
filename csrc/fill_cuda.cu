// The CUDA kernel: one launch fills all of a plan's tensors on a device. Thread block i runs works[i].
#include "walks_cuda.h"

namespace fastinit {
namespace FASTINIT_ISA {
namespace {

template <class Maker>
FASTINIT_DEVICE void run_or_rows(const FillDesc& fill, const Work& work) {
  if (work.path == kRun) return run<Maker>(fill, work);
  rows<Maker>(fill, work);
}

template <class Values, class BlocksValues = Values>
FASTINIT_DEVICE void fill_narrow(const FillDesc& fill, const Work& work) {
  if (work.path == kBlocks) return blocks<AnyNarrow<BlocksValues>>(fill, work);
  switch (fill.dtype) {
    case kFloat32: return run_or_rows<Narrow<Float32, Values>>(fill, work);
    case kBFloat16: return run_or_rows<Narrow<BFloat16, Values>>(fill, work);
    case kFloat16: return run_or_rows<Narrow<Float16, Values>>(fill, work);
    default: return run_or_rows<Narrow<Float8, Values>>(fill, work);
  }
}

template <class Values>
FASTINIT_DEVICE void fill_double(const FillDesc& fill, const Work& work) {
  if (work.path == kBlocks) return blocks<Double<Values>>(fill, work);
  run_or_rows<Double<Values>>(fill, work);
}

}  // namespace
}  // namespace FASTINIT_ISA

extern "C" __global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    fastinit_fill(const FillDesc* __restrict__ fills, const Work* __restrict__ works) {
  using namespace FASTINIT_ISA;
  const Work work = works[blockIdx.x];
  const FillDesc& fill = fills[work.fill];
  if (fill.distribution == kConstant) return work.path == kRun ? run_constant(fill, work) : blocks<AnyConstant>(fill, work);
  if (fill.dtype == kFloat64) {
    switch (fill.distribution) {
      case kUniform: return fill_double<UniformValues64>(fill, work);
      case kNormal: return fill_double<NormalValues64>(fill, work);
      case kTruncatedTail: return fill_double<TruncatedTailValues64>(fill, work);
      default: return fill_double<TruncatedWideValues64>(fill, work);
    }
  }
  switch (fill.distribution) {
    // The scaled form needs a scale; ranges without one take the path over blocks.
    case kUniform: return fill_narrow<ScaledUniformValues, UniformValues>(fill, work);
    case kNormal: return fill_narrow<NormalValues>(fill, work);
    case kTruncatedInside: return fill_narrow<TruncatedInsideValues>(fill, work);
    case kTruncatedTail: return fill_narrow<TruncatedTailValues>(fill, work);
    default:
      if (reaches_bounds(fill.params)) return fill_narrow<TruncatedWideValues<true>>(fill, work);
      return fill_narrow<TruncatedWideValues<false>>(fill, work);
  }
}

const char* launch(const FillDesc* fills, const Work* works, int64_t n_works, int device, void* stream) {
  int before = device;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    // Any list of work that fits in memory fits in a grid.
    fastinit_fill<<<dim3(unsigned(n_works)), dim3(kThreads), 0, static_cast<cudaStream_t>(stream)>>>(fills, works);
    error = cudaGetLastError();
    if (before != device) {
      const cudaError_t back = cudaSetDevice(before);
      if (error == cudaSuccess) error = back;  // or the caller's next kernel would run on another device
    }
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* why_not() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // clear CUDA's last error, so that later calls do not report it
    return cudaGetErrorString(error);
  }
  return count > 0 ? nullptr : "no CUDA device";
}

int runtime_version() { return CUDART_VERSION; }

}  // namespace fastinit
