// The CUDA kernel: one launch fills every tensor of a plan on a device. Thread block i does works[i].
#include "walks_cuda.h"

namespace fastinit {
namespace FASTINIT_ISA {
namespace {

template <class Maker>
FASTINIT_DEVICE void run_or_rows(const FillDesc& fill, const Work& work) {
  if (work.path == kRun) return run<Maker>(fill, work);
  rows<Maker>(fill, work);
}

template <class Values, class Values64, class BlocksValues = Values>
FASTINIT_DEVICE void fill_random(const FillDesc& fill, const Work& work) {
  if (work.path == kBlocks) {
    if (fill.dtype == kFloat64) return blocks<Double<Values64>>(fill, work);
    return blocks<AnyNarrow<BlocksValues>>(fill, work);
  }
  switch (fill.dtype) {
    case kFloat32: return run_or_rows<Narrow<Float32, Values>>(fill, work);
    case kBFloat16: return run_or_rows<Narrow<BFloat16, Values>>(fill, work);
    case kFloat16: return run_or_rows<Narrow<Float16, Values>>(fill, work);
    case kFloat64: return run_or_rows<Double<Values64>>(fill, work);
    default: return run_or_rows<Narrow<Float8, Values>>(fill, work);
  }
}

}  // namespace
}  // namespace FASTINIT_ISA

// Four blocks of a multiprocessor at once: 64 registers a thread, which is what float64 takes. The others take 30 to 40.
extern "C" __global__ void __launch_bounds__(kThreads, 4)
    fastinit_fill(const FillDesc* __restrict__ fills, const Work* __restrict__ works) {
  using namespace FASTINIT_ISA;
  const Work work = works[blockIdx.x];
  const FillDesc& fill = fills[work.fill];
  switch (fill.distribution) {
    case kConstant: return work.path == kRun ? run_constant(fill, work) : blocks<AnyConstant>(fill, work);
    // The scaled form is for ranges that have a scale; the elements of others are sent over blocks.
    case kUniform: return fill_random<ScaledUniformValues, UniformValues64, UniformValues>(fill, work);
    case kNormal: return fill_random<NormalValues, NormalValues64>(fill, work);
    case kTruncatedInside: return fill_random<TruncatedInsideValues, TruncatedWideValues64>(fill, work);
    case kTruncatedWide:
      if (reaches_bounds(fill.params)) return fill_random<TruncatedWideValues<true>, TruncatedWideValues64>(fill, work);
      return fill_random<TruncatedWideValues<false>, TruncatedWideValues64>(fill, work);
    case kTruncatedTail: return fill_random<TruncatedTailValues, TruncatedTailValues64>(fill, work);
  }
}

}  // namespace fastinit
