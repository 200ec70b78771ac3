// CUDA's execution model on the CPU, small and strict, so that the very kernels of stan/ops/csrc/cuda run in a test.
//
// Every thread of a block is a fibre with its own stack; fibres switch only where CUDA threads may wait for each other: at
// barriers of the block and at collectives of a warp. Blocks run one after the other. This checks index arithmetic, boundaries,
// selection, launch configurations and missing synchronisation (fibres run in order or, with STAN_EMULATION_ORDER=reverse, in
// reverse; a kernel that leans on either gives another result). It says nothing about speed.
//
// Stricter than a GPU: shared memory holds NaN before a block writes to it, writing past its end is an error, and so is waiting
// for a thread that has returned.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define STAN_DYNAMIC_SHARED(name) unsigned char* const name = emulation::shared()
#define STAN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(stan_emulated, CPU, m)

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulation {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 * 1024;
constexpr size_t kGuard = 4096;  // bytes behind the dynamic shared memory that nobody may touch

inline int shared_limit() {
  const char* text = std::getenv("STAN_EMULATION_SHARED");  // as if of a GPU with this much, in bytes
  return text != nullptr ? std::atoi(text) : 96 * 1024;
}

// A meeting of threads: those that arrive wait until `expected` have. Values handed in are kept for two rounds, because a quick
// thread may enter the next round before a slow one has read this one's.
struct Meeting {
  int arrived = 0;
  uint64_t round = 0;
  uint64_t values[2][kLanes] = {};
};

struct Fibre {
  ucontext_t start;
  jmp_buf resume;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false, done = false;
};

class Block {
 public:
  static Block& the() {
    static Block block;
    return block;
  }

  void run(unsigned index, int threads, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    threads_ = alive_ = threads;
    while (int(fibres_.size()) < threads) fibres_.push_back(std::make_unique<Fibre>());
    for (int i = 0; i < threads; ++i) fibres_[i]->started = fibres_[i]->done = false;
    block_ = Meeting();
    warps_.assign((threads + kLanes - 1) / kLanes, Meeting());
    blockIdx.x = index;
    const char* order = std::getenv("STAN_EMULATION_ORDER");
    const bool reverse = order != nullptr && std::string(order) == "reverse";
    while (alive_ > 0) {
      progress_ = false;
      for (int i = 0; i < threads; ++i) {
        const int thread = reverse ? threads - 1 - i : i;
        if (!fibres_[thread]->done) enter(thread);
      }
      if (!progress_) fail("the threads of a block wait for each other for ever");
    }
  }

  // Waits until all threads of the block have come; gives whether any of them brought `true`.
  bool barrier(bool value = false) {
    progress_ = true;
    if (alive_ != threads_) fail("a barrier of the block is reached after a thread has returned");
    const uint64_t round = block_.round;
    uint64_t& any = block_.values[round % 2][0];
    if (block_.arrived == 0) any = 0;
    any |= value;
    if (++block_.arrived == threads_) {
      block_.arrived = 0;
      ++block_.round;
    }
    while (block_.round == round) leave();
    return any != 0;
  }

  // Hands in a value, waits for all lanes of the mask, and gives a view of all their values.
  const uint64_t* exchange(unsigned mask, uint64_t value) {
    progress_ = true;
    const int lane = current_ % kLanes, warp = current_ / kLanes;
    if (!(mask >> lane & 1)) fail("a lane takes part in a collective whose mask leaves it out");
    for (int i = 0; i < kLanes; ++i) {
      const int thread = warp * kLanes + i;
      if ((mask >> i & 1) && (thread >= threads_ || fibres_[thread]->done)) fail("a collective waits for a lane that has returned");
    }
    Meeting& m = warps_[warp];
    const uint64_t round = m.round;
    uint64_t* const values = m.values[round % 2];
    values[lane] = value;
    if (++m.arrived == __builtin_popcount(mask)) {
      m.arrived = 0;
      ++m.round;
    }
    while (m.round == round) leave();
    return values;
  }

  int lane() const { return current_ % kLanes; }

 private:
  [[noreturn]] static void fail(const std::string& what) {
    fprintf(stderr, "CUDA emulation: %s\n", what.c_str());
    abort();  // exceptions cannot leave a fibre
  }

  void enter(int thread) {
    current_ = thread;
    threadIdx.x = unsigned(thread);
    Fibre& f = *fibres_[thread];
    if (_setjmp(scheduler_) != 0) return;
    if (f.started) _longjmp(f.resume, 1);
    f.started = true;
    progress_ = true;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = kStack;
    f.start.uc_link = nullptr;
    makecontext(&f.start, [] {
      Block& b = the();
      (*b.kernel_)();
      b.fibres_[b.current_]->done = true;
      --b.alive_;
      b.progress_ = true;
      _longjmp(b.scheduler_, 1);
    }, 0);
    setcontext(&f.start);
  }

  // Back to the scheduler; returns when this fibre's turn comes again.
  void leave() {
    const int thread = current_;
    if (_setjmp(fibres_[thread]->resume) == 0) _longjmp(scheduler_, 1);
    progress_ = true;
  }

  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<Meeting> warps_;
  Meeting block_;
  jmp_buf scheduler_;
  int threads_ = 0, alive_ = 0, current_ = 0;
  bool progress_ = false;
};

inline std::vector<unsigned char>& shared_memory() {
  static std::vector<unsigned char> memory;
  return memory;
}

inline unsigned char* shared() {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared_memory().data()) + 63) / 64 * 64);
}

inline void run(int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (shared_bytes > size_t(shared_limit())) throw std::runtime_error("CUDA emulation: more shared memory asked for than there is");
  gridDim.x = unsigned(blocks);
  blockDim.x = unsigned(threads);
  shared_memory().assign(shared_bytes + kGuard + 64, 0xff);  // NaN, as float and as double
  for (int64_t i = 0; i < blocks; ++i) {
    std::memset(shared(), 0xff, shared_bytes);
    Block::the().run(unsigned(i), threads, kernel);
    for (size_t at = shared_bytes; at < shared_bytes + kGuard - 64; ++at) {
      if (shared()[at] != 0xff) throw std::runtime_error("CUDA emulation: a write past the end of shared memory");
    }
  }
}

template <typename T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <typename T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::Block::the().barrier(); }
inline bool __syncthreads_or(bool predicate) { return emulation::Block::the().barrier(predicate); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::Block::the().exchange(mask, 0); }

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane) {
  return emulation::from_word<T>(emulation::Block::the().exchange(mask, emulation::to_word(value))[lane % 32]);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, emulation::Block::the().lane() ^ bits);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* values = emulation::Block::the().exchange(mask, predicate);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (mask >> i & 1) && values[i] ? 1u << i : 0u;
  return result;
}
inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline bool __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == mask; }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline long long __double_as_longlong(double v) { return emulation::from_word<long long>(emulation::to_word(v)); }
inline double __longlong_as_double(long long v) { return emulation::from_word<double>(emulation::to_word(v)); }

template <typename T>
inline T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
inline void atomicAdd(float4* at, float4 value) {
  at->x += value.x;
  at->y += value.y;
  at->z += value.z;
  at->w += value.w;
}
template <typename T>
inline T atomicMax(T* at, T value) {
  const T before = *at;
  *at = std::max(before, value);
  return before;
}
