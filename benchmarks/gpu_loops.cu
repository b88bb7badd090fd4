// The main loops of the CUDA kernel one by one, to count their instructions (gpu_instructions.py). Each is a kernel of its own,
// with the bounds of the whole, so that a loop of the disassembly has a name.
#include "walks_cuda.h"

namespace fastinit {
using namespace FASTINIT_ISA;

#define LOOP(name, function)                                                     \
  extern "C" __global__ void __launch_bounds__(kThreads, kBlocksAtOnce)          \
      name(const FillDesc* __restrict__ fills, const Work* __restrict__ works) { \
    const Work work = works[blockIdx.x];                                         \
    function(fills[work.fill], work);                                            \
  }
#define LOOPS(name, Values)                           \
  LOOP(name##_float32, (run<Narrow<Float32, Values>>))   \
  LOOP(name##_bfloat16, (run<Narrow<BFloat16, Values>>)) \
  LOOP(name##_float16, (run<Narrow<Float16, Values>>))   \
  LOOP(name##_float8, (run<Narrow<Float8, Values>>))

LOOP(constant_any, (run_constant))
LOOPS(uniform, ScaledUniformValues)
LOOPS(normal, NormalValues)
LOOPS(truncated_inside, TruncatedInsideValues)
LOOPS(truncated_tail, TruncatedTailValues)
LOOPS(truncated_wide, TruncatedWideValues<false>)
LOOPS(truncated_bounded, TruncatedWideValues<true>)
LOOP(uniform_float64, (run<Double<UniformValues64>>))
LOOP(normal_float64, (run<Double<NormalValues64>>))
LOOP(truncated_wide_float64, (run<Double<TruncatedWideValues64>>))
LOOP(truncated_tail_float64, (run<Double<TruncatedTailValues64>>))

}  // namespace fastinit
