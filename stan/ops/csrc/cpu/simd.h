// Vectors of floats as wide as this processor generation has them, in the compilers' own vector types, and the few
// operations those cannot express. Other processors (aarch64) take the generic branch.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kVectorRegisters = 16;
#else
constexpr int kLanes = 4;
constexpr int kVectorRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedFloats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t UnalignedInts __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

static inline Floats load_floats(const float* p) { return *reinterpret_cast<const UnalignedFloats*>(p); }
static inline void store_floats(float* p, Floats v) { *reinterpret_cast<UnalignedFloats*>(p) = v; }
static inline void store_ints(int32_t* p, Ints v) { *reinterpret_cast<UnalignedInts*>(p) = v; }

static inline Floats all(float value) { return value - Floats{}; }
static inline Ints all(int32_t value) { return value - Ints{}; }
static inline Ints lane_numbers() {
  Ints numbers;
  for (int i = 0; i < kLanes; ++i) numbers[i] = i;
  return numbers;
}

// Four numbers, over and over.
static inline Floats repeat_four(const float* p) {
#if defined(__AVX512F__)
  return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif defined(__AVX2__)
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load_floats(p);
#endif
}

// The sums of the fours of lanes of a, then of b, c and d, in this order.
static inline Floats sum_fours(Floats a, Floats b, Floats c, Floats d) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));  // a0 b0 c0 d0, a1 ...
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums);
#elif defined(__AVX2__)
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256 sums = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  return Floats{(a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3]), (c[0] + c[2]) + (c[1] + c[3]),
                (d[0] + d[2]) + (d[1] + d[3])};
#endif
}

// With a NaN among the two, these are b.
static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

// Bit i is set where a[i] >= b[i].
static inline uint32_t at_least(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(_mm_cmpge_ps(a, b)));
#else
  const Ints mask = a >= b;
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= uint32_t(mask[i] & 1) << i;
  return bits;
#endif
}

static inline float smallest_lane(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_ps(v);
#else
  float smallest = v[0];
  for (int i = 1; i < kLanes; ++i) smallest = v[i] < smallest ? v[i] : smallest;
  return smallest;
#endif
}

// count + 1 where a > b.
static inline Ints count_above(Ints count, Floats a, Floats b) {
#if defined(__AVX512F__)
  return Ints(_mm512_mask_add_epi32(__m512i(count), _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), __m512i(count), _mm512_set1_epi32(1)));
#else
  return count - Ints(a > b);
#endif
}
// Writes the chosen lanes of `v`, and their numbers plus `first`, one after the other; returns how many. May write kLanes of each.
static inline int compress(Floats v, uint32_t chosen, int32_t first, float* values, int32_t* numbers) {
#if defined(__AVX512F__)
  store_floats(values, _mm512_maskz_compress_ps(__mmask16(chosen), v));
  store_ints(numbers, Ints(_mm512_maskz_compress_epi32(__mmask16(chosen), __m512i(lane_numbers() + first))));
  return __builtin_popcount(chosen);
#else
  int count = 0;
  for (; chosen != 0; chosen &= chosen - 1, ++count) {
    const int lane = __builtin_ctz(chosen);
    values[count] = v[lane];
    numbers[count] = first + lane;
  }
  return count;
#endif
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
