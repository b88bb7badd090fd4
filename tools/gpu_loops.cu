// The CUDA kernel's main loops one by one, for gpu_instructions.py to count. Each is its own kernel, with the launch bounds of
// the real one, so that the disassembly names it.
#include "walks_cuda.h"

namespace fastinit {
using namespace FASTINIT_ISA;

// To show the price of reproducible bits: normals from the GPU's own approximations of logarithm, root, sine and cosine, whose
// bits differ between GPU models and from the CPU. Not in fastinit; counted for docs/gpu.md.
FASTINIT_DEVICE void approximate_pair(float u, float turn, const Normal& p, f32& value0, f32& value1) {
  float logarithm, root, sine, cosine;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(u));
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(logarithm * kMinus2Ln2));
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(sine) : "f"(turn));
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(cosine) : "f"(turn));
  value0 = Lanes::fma(root * p.std, cosine, p.mean);
  value1 = Lanes::fma(root * p.std, sine, p.mean);
}

struct ApproximateNormal {
  Normal form;
  FASTINIT_DEVICE explicit ApproximateNormal(const double* p) : form{float(p[0]), float(p[1])} {}
  FASTINIT_DEVICE void operator()(const TileWords& words, f32 (&value)[4]) const {
    for (int i = 0; i < 4; i += 2)
      approximate_pair(unit<Lanes>(words.w[i]), float(words.w[i + 1]) * (6.2831853f * 0x1p-32f), form, value[i], value[i + 1]);
  }
};

// The same with 16 random bits per number instead of 32: a Philox block gives eight numbers.
struct HalfWords {
  static constexpr int kElements = 8, kBytes = 2;
  Normal form;
  FASTINIT_DEVICE explicit HalfWords(const FillDesc& fill) : form{float(fill.params[0]), float(fill.params[1])} {}
  template <class Keys>
  FASTINIT_DEVICE void pack(uint64_t counter, const Keys& keys, uint32_t* out) const {
    const TileWords words = words_at(counter, keys);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f32 value[2];
      const float u = Lanes::fma(float(words.w[i] & 0xFFFFu), 0x1p-16f, 0x1p-17f);
      approximate_pair(u, float(words.w[i] >> 16) * (6.2831853f * 0x1p-16f), form, value[0], value[1]);
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out[i]) : "f"(value[1]), "f"(value[0]));
    }
  }
};

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

LOOP(normal_by_hardware_float32, (run<Narrow<Float32, ApproximateNormal>>))
LOOP(normal_by_hardware_bfloat16, (run<Narrow<BFloat16, ApproximateNormal>>))
LOOP(normal_by_hardware_from_16_bits_bfloat16, (run<HalfWords>))

}  // namespace fastinit
