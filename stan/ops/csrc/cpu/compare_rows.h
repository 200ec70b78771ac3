// The comparison of a query with rows of whole pixels: sums of products, or of squared differences, over channels and patch.
#pragma once

#include "key_rows.h"
#include "simd.h"
#include "support.h"

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// How rows of comparisons lie in memory.
static inline int compared_pitch(int pixels) { return (pixels + 4 * kPixels - 1) / (4 * kPixels) * (4 * kPixels); }

// kRows rows of kVectors vectors of pixels. `query` holds groups of four channels, patch pixel by patch pixel.
template <Metric kMetric, int kRows, int kVectors>
static inline void compare_block(const float* key, int64_t row_size, int64_t group_size, int groups, const Patch& patch, const float* query,
                                 float* out, int64_t pitch) {
  Floats sums[kRows][4];
#pragma GCC unroll 10
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[r][v] = Floats{};
  for (int j = 0; j < patch.side; ++j) {
    for (int i = 0; i < patch.side; ++i) {
      const float* at = key + patch.offset(j) * row_size + patch.offset(i) * kGroup;
      for (int g = 0; g < groups; ++g, at += group_size, query += kGroup) {
        const Floats q = repeat_four(query);
#pragma GCC unroll 10
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            const Floats k = load_floats(at + r * row_size + v * kLanes);
            if (kMetric == Metric::dot) {
              sums[r][v] += q * k;
            } else {
              const Floats d = q - k;
              sums[r][v] += d * d;
            }
          }
        }
      }
    }
  }
#pragma GCC unroll 10
  for (int r = 0; r < kRows; ++r) store_floats(out + r * pitch, sum_fours(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
}

// Up to four vectors of pixels side by side, all rows. Not inlined: its loops need all registers for themselves.
template <Metric kMetric, int kVectors>
static __attribute__((noinline)) void compare_strip(const float* key, int64_t row_size, int64_t group_size, int groups, const Patch& patch,
                                 const float* query, int rows, float* out, int64_t pitch) {
  const auto block = [&](auto size) {
    constexpr int kRows = decltype(size)::value;
    for (; rows >= kRows; rows -= kRows, key += kRows * row_size, out += kRows * pitch)
      compare_block<kMetric, kRows, kVectors>(key, row_size, group_size, groups, patch, query, out, pitch);
  };
  // As many rows at once as sums fit into the registers, with a few left over.
  if constexpr (5 * kVectors + 4 < kVectorRegisters) block(Constant<5>());
  if constexpr (2 * kVectors + 4 < kVectorRegisters) block(Constant<2>());
  block(Constant<1>());
}

// All whole pixels a window touches: `rows` rows of `pixels`, into rows `pitch` apart. Up to `pitch` pixels of a row are read.
template <Metric kMetric>
static inline void compare_rows(const float* key, int64_t row_size, int64_t group_size, int groups, const Patch& patch, const float* query,
                                int rows, int pixels, float* out, int64_t pitch) {
  for (; pixels > 0; pixels -= 4 * kPixels, key += 4 * kLanes, out += 4 * kPixels) {
    const int vectors = least((pixels + kPixels - 1) / kPixels, 4);
    switch (vectors) {
      case 1: compare_strip<kMetric, 1>(key, row_size, group_size, groups, patch, query, rows, out, pitch); break;
      case 2: compare_strip<kMetric, 2>(key, row_size, group_size, groups, patch, query, rows, out, pitch); break;
      case 3: compare_strip<kMetric, 3>(key, row_size, group_size, groups, patch, query, rows, out, pitch); break;
      default: compare_strip<kMetric, 4>(key, row_size, group_size, groups, patch, query, rows, out, pitch);
    }
  }
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
