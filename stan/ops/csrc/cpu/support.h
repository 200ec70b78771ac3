// What all kernels stand on: memory, torch's thread pool, element types, and channel-last copies of videos.
//
// The headers from here on enter kernels.cpp alone, each in the namespace of one processor generation. Nothing here may come from a header
// with inline functions of its own (no <vector>, no <algorithm>): a copy of such a function compiled for AVX-512 could be the one the
// linker keeps for everybody.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/c/shim.h>

#include "kernels.h"

#ifndef STAN_CAPABILITY
#define STAN_CAPABILITY generic
#endif

namespace stan::cpu {

[[noreturn]] void throw_out_of_memory();  // dispatch.cpp
[[noreturn]] void throw_failed_thread();

}  // namespace stan::cpu

namespace stan::cpu::STAN_CAPABILITY {
namespace {

// --- memory ---

// An uninitialised block of plain numbers, aligned to a cache line; a large one lies in huge pages where the system has them to give, as
// what is read here and there would wait for the addresses of small ones, and each of those has to be asked for.
template <typename N>
class Block {
 public:
  explicit Block(int64_t count) : data_(nullptr) {
    constexpr size_t kHuge = size_t{1} << 21;
    const size_t size = size_t(count > 0 ? count : 1) * sizeof(N);
    if (posix_memalign(reinterpret_cast<void**>(&data_), size >= 2 * kHuge ? kHuge : 64, size) != 0) throw_out_of_memory();
#if defined(MADV_HUGEPAGE)
    if (size >= 2 * kHuge) madvise(data_, size / kHuge * kHuge, MADV_HUGEPAGE);
#endif
  }
  ~Block() { free(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  N* get() const { return data_; }
  N& operator[](int64_t i) const { return data_[i]; }

 private:
  N* data_;
};

// --- threads ---

// body(begin, end) over parts of [0, count), in torch's pool. How the range is cut depends on the number of threads, and who gets
// which part on chance (a thread that finishes takes the next part, so that one held up by others does not keep all waiting): a
// body must give the same result whatever the cut.
template <typename Body>
static void parallel(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  if (threads == 1 || count <= grain) return body(0, count);
  struct Shared {
    const Body& body;
    int64_t count, part, next;
  } shared{body, count, 0, 0};
  const int64_t parts = count / (8 * int64_t(threads));
  shared.part = parts > grain ? parts : grain;
  const auto work = [](int64_t, int64_t, void* context) {
    Shared& s = *static_cast<Shared*>(context);
    for (int64_t begin; (begin = __atomic_fetch_add(&s.next, s.part, __ATOMIC_RELAXED)) < s.count;)
      s.body(begin, begin + s.part < s.count ? begin + s.part : s.count);
  };
  if (torch_parallel_for(0, threads, 1, work, &shared) != 0) throw_failed_thread();
}

// body(b, head) for every head of every batch item, each of which holds `size` numbers and is itself cut by `parallel`. Where there are as
// many as threads, small ones go side by side, a thread each (what is nested runs in the thread it is in): cut inside, threads would
// wait for each other longer than they work.
template <typename Body>
static void each_head(int64_t batch, int heads, int64_t size, const Body& body) {
  constexpr int64_t kSmall = int64_t{1} << 20;
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  const int64_t count = batch * heads;
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i / heads, int(i % heads));
  };
  const bool even = count % threads == 0 || count >= 4 * int64_t(threads);
  size <= kSmall && even ? parallel(count, 1, some) : some(0, count);
}

// --- element types ---

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

static inline float to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename S>
static inline S load(const S* p) {
  return *p;
}
template <typename S>
static inline S load(const BFloat16* p) {
  return to_float(uint32_t(p->bits) << 16);
}
template <typename S>
static inline S load(const Half* p) {
  // Exponent and mantissa move into float's places, and a product with 2^112 mends the bias, subnormals included;
  // infinities and NaN get the largest exponent.
  const uint32_t sign = uint32_t(p->bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(p->bits & 0x7fff) << 13;
  const uint32_t finite = to_bits(to_float(magnitude) * 0x1p112f);
  return to_float(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
}

template <typename S>
static inline void store(S* p, S value) {
  *p = value;
}
template <typename S>
static inline void store(BFloat16* p, S value) {
  const uint32_t bits = to_bits(value);  // to nearest, ties to even
  p->bits = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
template <typename S>
static inline void store(Half* p, S value) {
  const uint32_t bits = to_bits(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  uint16_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    result = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 aligns the mantissa, and rounds to nearest even
    result = uint16_t(to_bits(to_float(magnitude) + 0.5f) - 0x3f000000u);
  } else {
    const uint32_t odd = magnitude >> 13 & 1;
    result = uint16_t((magnitude + 0xc8000fffu + odd) >> 13);
  }
  p->bits = sign | result;
}

// A type of element, and the type S that goes with it.
template <typename E_, typename S_>
struct Types {
  using E = E_;
  using S = S_;
};

// Calls body(Types<E, S>()) for the element type at hand.
template <typename Body>
static inline void with_types(Type type, const Body& body) {
  switch (type) {
    case Type::float32: return body(Types<float, float>());
    case Type::float16: return body(Types<Half, float>());
    case Type::bfloat16: return body(Types<BFloat16, float>());
    case Type::float64: return body(Types<double, double>());
  }
}

static inline int least(int a, int b) { return a < b ? a : b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// A number known to the compiler, where a loop over it then unrolls.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
  constexpr operator int() const { return kValue; }
};

// --- channel-last copies ---

// Frames of one head, channels last: pixel (x, y) of frame f is a run of C numbers. A bilinear sample then reads four runs.
template <typename S>
struct Pixels {
  S* data;
  int height, width, channels;
  int64_t frame_size() const { return int64_t(height) * width * channels; }
  S* frame(int f) const { return data + f * frame_size(); }
};

// rows * width pixels: `planes` points at the first of C planes, `plane` apart; `out` at the first pixel.
template <typename S, typename E>
static void channels_last(const E* planes, int64_t plane, int width, int channels, S* out) {
  constexpr int kTile = 16;  // columns whose output stays in the first-level cache while all channels pass
  for (int x0 = 0; x0 < width; x0 += kTile) {
    const int x1 = least(width, x0 + kTile);
    for (int c = 0; c < channels; ++c) {
      const E* in = planes + c * plane;
      for (int x = x0; x < x1; ++x) out[int64_t(x) * channels + c] = load<S>(in + x);
    }
  }
}

template <typename S, typename E>
static void channels_first(const S* pixels, int width, int channels, E* planes, int64_t plane) {
  constexpr int kTile = 16;
  for (int x0 = 0; x0 < width; x0 += kTile) {
    const int x1 = least(width, x0 + kTile);
    for (int c = 0; c < channels; ++c) {
      E* out = planes + c * plane;
      for (int x = x0; x < x1; ++x) store<S>(out + x, pixels[int64_t(x) * channels + c]);
    }
  }
}

// Where head `head` of frame f of batch item b begins in a (B, T, HD*C, H, W) video.
static inline int64_t head_start(int64_t b, int f, int head, int frames, int heads, int channels, int64_t plane) {
  return ((b * frames + f) * heads + head) * channels * plane;
}

// All frames of one head of one batch item, channels last.
template <typename S, typename E>
static void pack_head(const E* video, int64_t b, int head, int frames, int heads, const Pixels<S>& out) {
  const int64_t plane = int64_t(out.height) * out.width;
  parallel(int64_t(frames) * out.height, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int f = int(row / out.height);
      const int y = int(row % out.height);
      const E* in = video + head_start(b, f, head, frames, heads, out.channels, plane) + int64_t(y) * out.width;
      channels_last<S>(in, plane, out.width, out.channels, out.frame(f) + int64_t(y) * out.width * out.channels);
    }
  });
}

}  // namespace
}  // namespace stan::cpu::STAN_CAPABILITY
