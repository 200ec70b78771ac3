// Where many threads add to the same numbers: gradients of keys, values, overlapping query patches and flows.
//
// FloatSink adds with atomics: fast, but the order of the additions, and so the last bits, change from run to run.
// FixedSink is for deterministic algorithms: it adds whole numbers, value * 2^n rounded, in 64 bits. Whole sums do not depend on
// their order, so the bits are the same whatever the threads do. 2^n is chosen on the device from the largest value that can
// arrive and from how many can meet in one number, such that nothing overflows; no number of the inputs returns to the host.
// With N arrivals at most, a sum is exact to 2^-62 N times the largest arrival: finer than float32 even for N of millions.
#pragma once

#include <math.h>

#include <cstdint>

#include "../geometry.h"
#include "device.cuh"

namespace stan::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kVectorAtomics = true;  // one 16-byte atomic for four floats
#else
constexpr bool kVectorAtomics = false;
#endif

template <typename S>
struct FloatSink {
  S* data;

  __device__ void add(int64_t at, S value) const { atomicAdd(data + at, value); }

  __device__ void add4(int64_t at, const Four<S>& value) const {
    if constexpr (kVectorAtomics && sizeof(S) == 4) {
      atomicAdd(reinterpret_cast<float4*>(data + at), make_float4(value.v[0], value.v[1], value.v[2], value.v[3]));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) add(at + i, value.v[i]);
    }
  }

  __device__ S operator()(int64_t at) const { return data[at]; }
};

template <typename S>
struct FixedSink {
  unsigned long long* data;
  unsigned char* spoilt;  // 1 where something arrived that is no number
  const double* scale;    // 2^n

  __device__ void add(int64_t at, S value) const {
    if (finite(value)) {
      atomicAdd(data + at, static_cast<unsigned long long>(llrint(double(value) * *scale)));
    } else {
      spoilt[at] = 1;  // all writers write the same
    }
  }

  __device__ void add4(int64_t at, const Four<S>& value) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) add(at + i, value.v[i]);
  }

  __device__ S operator()(int64_t at) const {
    return spoilt[at] ? S(NAN) : S(double(static_cast<long long>(data[at])) / *scale);
  }
};

// ----------------------------------------------------------------------------------------------- the scale of a FixedSink

// Largest magnitude among the finite numbers of a tensor, as the bits of a double (which order like the numbers they stand for).
template <typename E>
__global__ void __launch_bounds__(256) largest_kernel(const E* data, int64_t count, unsigned long long* largest) {
  double most = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const double v = fabs(double(data[i]));
    if (finite(v) && v > most) most = v;
  }
  for (int step = 1; step < kWarp; step *= 2) {
    const double other = __shfl_xor_sync(kAllLanes, most, step);
    if (other > most) most = other;
  }
  if (lane_of_thread() == 0) atomicMax(largest, static_cast<unsigned long long>(__double_as_longlong(most)));
}

// Arrivals are at most factor * a, factor * a * b or factor * a * (b + c), with one to three magnitudes in `largest`; there are at
// most 2^meeting_bits of them in one number.
template <typename S>  // so that it may be defined in several files
__global__ void scale_kernel(const unsigned long long* largest, int magnitudes, double factor, int meeting_bits, S* scale) {
  const auto magnitude = [&](int i) { return __longlong_as_double(static_cast<long long>(largest[i])); };
  const double others = magnitudes == 1 ? 1 : magnitudes == 2 ? magnitude(1) : magnitude(1) + magnitude(2);
  const double bound = factor * magnitude(0) * others;
  int exponent = 0;
  if (bound > 0 && finite(bound)) frexp(bound, &exponent);  // bound < 2^exponent
  int n = 61 - meeting_bits - exponent;
  n = n > 1000 ? 1000 : n < -1000 ? -1000 : n;
  *scale = ldexp(1.0, n);
}

}  // namespace stan::cuda
