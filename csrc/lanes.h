// Lanes: the same few operations on one number (GPU) and on a whole vector register of the host (AVX-512, AVX2, SSE2, NEON),
// so that philox.h and distributions.h are written once.
//
// Every operation (add, mul, fma, sqrt, conversions) is rounded exactly as IEEE 754 requires, so all instruction sets give
// the same bits. Compile with -ffp-contract=off (nvcc: -fmad=false): only an explicit fma may be fused.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTINIT_FN __device__ __forceinline__
#define FASTINIT_TABLE __device__ constexpr  // for arrays and structs; scalars are plain constexpr
#else
#define FASTINIT_FN inline __attribute__((always_inline))
#define FASTINIT_TABLE constexpr
#endif

#if !defined(__CUDACC__) && defined(__x86_64__)
#include <immintrin.h>
#elif !defined(__CUDACC__) && defined(__aarch64__)
#include <arm_neon.h>
#endif

// fill_cpu.cpp is compiled once per instruction set; the namespace keeps the copies apart at link time.
#ifndef FASTINIT_ISA
#define FASTINIT_ISA scalar
#endif

namespace fastinit {
namespace FASTINIT_ISA {

#if defined(__CUDACC__)

// One lane: philox.h and distributions.h on the GPU. A tile is one block of four words.
struct Lanes {
  static constexpr int kWidth = 1;  // blocks in a tile
  using f32 = float;
  using u32 = uint32_t;
  using i32 = int32_t;
  using wide = uint64_t;
  using f64 = double;
  using u64 = uint64_t;

  // The compiler's 64-bit product would add the products of the upper halves, which are zero.
  FASTINIT_FN static wide mul_low32(wide a, uint32_t b) {
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(uint32_t(a)), "r"(b));
    return product;
  }
  FASTINIT_FN static wide upper_half(wide a) { return a >> 32; }
  FASTINIT_FN static f32 fma(f32 a, f32 b, f32 c) { return ::fmaf(a, b, c); }
  // Correctly rounded for 2^-100 <= a <= 2^100, without the slow path that the compiler's root calls for other numbers:
  // two Markstein corrections, from a seed that may be off by four units in the last place (ten times NVIDIA's stated
  // error). With one correction, two of the 2^24 mantissas fail if the seed is one unit too high.
  FASTINIT_FN static f32 sqrt(f32 a) {
    float seed;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(seed) : "f"(a));
    const float half = opaque_product(seed, 0.5f);
    const float first = a * seed;
    const float second = ::fmaf(first, ::fmaf(-half, first, 0.5f), first);
    return ::fmaf(::fmaf(-second, second, a), half, second);
  }
  FASTINIT_FN static f32 splat(float a) { return a; }
  FASTINIT_FN static u32 splat_u32(uint32_t a) { return a; }
  FASTINIT_FN static f32 from_i32(i32 a) { return float(a); }
  FASTINIT_FN static f32 from_u32(u32 a) { return float(a); }
  FASTINIT_FN static u32 bits(f32 a) { return __float_as_uint(a); }
  FASTINIT_FN static f32 from_bits(u32 a) { return __uint_as_float(a); }
  FASTINIT_FN static i32 as_i32(u32 a) { return i32(a); }
  // a * b with b hidden from the compiler, which would otherwise compute a second product for the negated constant.
  FASTINIT_FN static f32 opaque_product(f32 a, float b) {
    float product;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
    return product;
  }
  // The f of a = (1 + f) 2^e. Its bits alone are a subnormal number, which costs nothing extra on a GPU.
  FASTINIT_FN static f32 fraction(f32 a) { return opaque_product(from_bits(bits(a) & 0x007FFFFFu), 0x1p126f); }
  FASTINIT_FN static f32 abs(f32 a) { return ::fabsf(a); }
  FASTINIT_FN static f32 min(f32 a, f32 b) { return ::fminf(a, b); }
  FASTINIT_FN static f32 max(f32 a, f32 b) { return ::fmaxf(a, b); }
  FASTINIT_FN static bool any(bool mask) { return mask; }
  FASTINIT_FN static f64 splat64(double a) { return a; }
  FASTINIT_FN static u64 bits64(f64 a) { return u64(__double_as_longlong(a)); }
  FASTINIT_FN static f64 from_bits64(u64 a) { return __longlong_as_double((long long)(a)); }
  FASTINIT_FN static f64 sqrt64(f64 a) { return ::sqrt(a); }
  FASTINIT_FN static bool any64(bool mask) { return mask; }
};

#else

#if defined(__AVX512F__)
#define FASTINIT_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTINIT_VECTOR_BYTES 32
#else
#define FASTINIT_VECTOR_BYTES 16
#endif

struct Lanes {
  static constexpr int kWidth = FASTINIT_VECTOR_BYTES / 4;  // blocks in a tile: one per 32-bit lane
  typedef float f32 __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
  typedef uint32_t u32 __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
  typedef int32_t i32 __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
  typedef uint64_t wide __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
  static constexpr int kWidth64 = FASTINIT_VECTOR_BYTES / 8;  // 64-bit lanes
  typedef double f64 __attribute__((vector_size(FASTINIT_VECTOR_BYTES)));
  typedef wide u64;

  static FASTINIT_FN f64 splat64(double a) {
#if defined(__AVX512F__)
    return (f64)_mm512_set1_pd(a);
#elif defined(__AVX2__)
    return (f64)_mm256_set1_pd(a);
#else
    return f64{a, a};
#endif
  }
  static FASTINIT_FN u64 bits64(f64 a) { return (u64)a; }
  static FASTINIT_FN f64 from_bits64(u64 a) { return (f64)a; }
  template <class Mask>
  static FASTINIT_FN bool any64(Mask mask) { return any((i32)mask); }
  static FASTINIT_FN f64 sqrt64(f64 a) {
#if defined(__AVX512F__)
    return (f64)_mm512_sqrt_pd((__m512d)a);
#elif defined(__AVX2__)
    return (f64)_mm256_sqrt_pd((__m256d)a);
#elif defined(__x86_64__)
    return (f64)_mm_sqrt_pd((__m128d)a);
#else
    f64 result;
    for (int lane = 0; lane < kWidth64; ++lane) result[lane] = __builtin_sqrt(a[lane]);
    return result;
#endif
  }

  // Not a sum with zeros, which would turn -0.0 into 0.0. Not lane by lane: GCC 12 would really do it lane by lane.
  static FASTINIT_FN f32 splat(float a) {
#if defined(__AVX512F__)
    return (f32)_mm512_set1_ps(a);
#elif defined(__AVX2__)
    return (f32)_mm256_set1_ps(a);
#elif defined(__x86_64__)
    return (f32)_mm_set1_ps(a);
#else
    return f32{a, a, a, a};
#endif
  }
  static FASTINIT_FN u32 splat_u32(uint32_t a) { return u32{} + a; }
  static FASTINIT_FN u32 bits(f32 a) { return (u32)a; }
  static FASTINIT_FN f32 from_bits(u32 a) { return (f32)a; }
  static FASTINIT_FN i32 as_i32(u32 a) { return (i32)a; }
  static FASTINIT_FN f32 from_i32(i32 a) { return __builtin_convertvector(a, f32); }
  // The f of a = (1 + f) 2^e.
  static FASTINIT_FN f32 fraction(f32 a) { return from_bits((bits(a) & 0x007FFFFFu) | 0x3F800000u) - 1.0f; }
  static FASTINIT_FN f32 abs(f32 a) { return from_bits(bits(a) & 0x7FFFFFFFu); }

  // Whether a comparison (all bits or none) is true in any lane.
  static FASTINIT_FN bool any(i32 mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)mask) != 0;
#elif defined(__aarch64__)
    return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
    for (int lane = 0; lane < kWidth; ++lane)
      if (mask[lane]) return true;
    return false;
#endif
  }

  // The product of the low halves of 64-bit lanes; ignores the upper half of `a`.
  static FASTINIT_FN wide mul_low32(wide a, uint32_t b) {
#if defined(__AVX512F__)
    return (wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__x86_64__)
    return (wide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(__aarch64__)
    return (wide)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
    return (a & 0xFFFFFFFFu) * (wide{} + b);
#endif
  }

  // The upper halves of 64-bit lanes, in the lower ones; what is then in the upper ones counts for nothing. On Intel 512-bit
  // shifts share a port with multiplications: shuffles gave 3 to 10% more normals in two runs on a Xeon (Emerald Rapids);
  // some of them by shifts made no clear difference. AVX2 was seen to lose 3 to 5% by shuffles. Not measured on AMD.
  static FASTINIT_FN wide upper_half(wide a) {
#if defined(__AVX512F__)
    return (wide)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_DDBB);
#else
    return a >> 32;
#endif
  }

  // Interleaves the lower (upper) halves of the 64-bit lanes of two registers.
  static FASTINIT_FN u32 lower_halves(wide even, wide odd) {
#if defined(__AVX512F__)
    return (u32)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CCAA);
#elif defined(__AVX2__)
    return (u32)_mm256_blend_epi32((__m256i)even, _mm256_slli_epi64((__m256i)odd, 32), 0xAA);
#else
    return (u32)((even & 0xFFFFFFFFu) | (odd << 32));
#endif
  }
  static FASTINIT_FN u32 upper_halves(wide even, wide odd) {
#if defined(__AVX512F__)
    return (u32)_mm512_mask_shuffle_epi32((__m512i)odd, 0x5555, (__m512i)even, _MM_PERM_DDBB);
#elif defined(__AVX2__)
    return (u32)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)even, 32), (__m256i)odd, 0xAA);
#else
    return (u32)((even >> 32) | (odd & 0xFFFFFFFF00000000u));
#endif
  }

  static FASTINIT_FN f32 fma(f32 a, f32 b, f32 c) {
#if defined(__AVX512F__)
    return (f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (f32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (f32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return fma_in_double(a, b, c);
#endif
  }

  static FASTINIT_FN f32 sqrt(f32 a) {
#if defined(__AVX512F__)
    return (f32)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (f32)_mm256_sqrt_ps((__m256)a);
#elif defined(__x86_64__)
    return (f32)_mm_sqrt_ps((__m128)a);
#elif defined(__aarch64__)
    return (f32)vsqrtq_f32((float32x4_t)a);
#else
    f32 result;
    for (int lane = 0; lane < kWidth; ++lane) result[lane] = __builtin_sqrtf(a[lane]);
    return result;
#endif
  }

  // Instruction sets disagree on zeros of different signs; lowering.py signs the bounds so that it never shows.
  static FASTINIT_FN f32 min(f32 a, f32 b) {
#if defined(__AVX512F__)
    return (f32)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (f32)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (f32)_mm_min_ps((__m128)a, (__m128)b);
#else
    return a < b ? a : b;
#endif
  }
  static FASTINIT_FN f32 max(f32 a, f32 b) {
#if defined(__AVX512F__)
    return (f32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (f32)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (f32)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
  }

  // Rounded to nearest, ties to even, as AVX-512's conversion instruction does.
  static FASTINIT_FN f32 from_u32(u32 a) {
#if defined(__AVX512F__)
    return (f32)_mm512_cvtepu32_ps((__m512i)a);
#elif defined(__aarch64__)
    return (f32)vcvtq_f32_u32((uint32x4_t)a);
#else
    // Both halves and the product are exact; the sum is the one rounding.
    f32 high = from_i32((i32)(a >> 16)), low = from_i32((i32)(a & 0xFFFFu));
    return high * 65536.0f + low;
#endif
  }

  // Interleaves the lower (upper) halves of each 128-bit part, by 32 and by 64 bits.
  static FASTINIT_FN f32 unpack_low32(f32 a, f32 b) {
#if defined(__AVX512F__)
    return (f32)_mm512_unpacklo_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (f32)_mm256_unpacklo_ps((__m256)a, (__m256)b);
#else
    return __builtin_shuffle(a, b, i32{0, 4, 1, 5});
#endif
  }
  static FASTINIT_FN f32 unpack_high32(f32 a, f32 b) {
#if defined(__AVX512F__)
    return (f32)_mm512_unpackhi_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (f32)_mm256_unpackhi_ps((__m256)a, (__m256)b);
#else
    return __builtin_shuffle(a, b, i32{2, 6, 3, 7});
#endif
  }
  static FASTINIT_FN f32 unpack_low64(f32 a, f32 b) {
#if defined(__AVX512F__)
    return (f32)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    return (f32)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
#else
    return __builtin_shuffle(a, b, i32{0, 1, 4, 5});
#endif
  }
  static FASTINIT_FN f32 unpack_high64(f32 a, f32 b) {
#if defined(__AVX512F__)
    return (f32)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    return (f32)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
#else
    return __builtin_shuffle(a, b, i32{2, 3, 6, 7});
#endif
  }

 private:
  // Without the instruction: in double the product is exact and the sum is rounded once, to 53 bits. Making that rounding to
  // odd keeps the second one, to 24 bits, from seeing a false tie (Boldo & Melquiond 2008). Not inlined, because hundreds of
  // copies would take a minute to compile.
  static __attribute__((noinline)) f32 fma_in_double(f32 a, f32 b, f32 c) {
    f32 result;
    for (int lane = 0; lane < kWidth; lane += 2) {
      const f32x2 two = fma_in_double(f32x2{a[lane], a[lane + 1]}, f32x2{b[lane], b[lane + 1]}, f32x2{c[lane], c[lane + 1]});
      result[lane] = two[0], result[lane + 1] = two[1];
    }
    return result;
  }

  typedef float f32x2 __attribute__((vector_size(8)));
  typedef double f64x2 __attribute__((vector_size(16)));
  typedef int64_t i64x2 __attribute__((vector_size(16)));

  static FASTINIT_FN f32x2 fma_in_double(f32x2 a, f32x2 b, f32x2 c) {
    const f64x2 product = __builtin_convertvector(a, f64x2) * __builtin_convertvector(b, f64x2);  // exact: 24 + 24 bits
    const f64x2 addend = __builtin_convertvector(c, f64x2), sum = product + addend;
    // The exact error of the sum (Knuth's two-sum): where it is not zero, make the sum's last bit odd in its direction, so
    // that only the rounding to float below takes effect.
    const f64x2 back = sum - product;
    const f64x2 error = (product - (sum - back)) + (addend - back);
    const i64x2 up = error > 0.0, inexact = up | (error < 0.0), away = ~(up ^ (sum > 0.0)), bits = (i64x2)sum;
    const i64x2 even = (bits & 1) - 1;
    const i64x2 step = ((away & 2) - 1) & inexact & even;  // one more if away from zero
    return __builtin_convertvector((f64x2)(bits + step), f32x2);
  }
};

#endif

}  // namespace FASTINIT_ISA
}  // namespace fastinit
