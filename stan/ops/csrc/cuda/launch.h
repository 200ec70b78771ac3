// Host side of the kernels: device, stream, scratch memory, element types, launches.
//
// Nothing here waits for the device, and all memory comes from torch's allocator: every op can be captured in a CUDA graph.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "device.cuh"
#include "pack.cuh"
#include "sink.cuh"

#ifndef STAN_EMULATE
#include <dlfcn.h>
#define STAN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(stan, CUDA, m)
#endif

namespace stan::cuda {

#ifdef STAN_EMULATE

struct Device {
  explicit Device(const Tensor&) {}
  int shared_per_block() const { return emulation::shared_limit(); }
  int shared_per_processor() const { return 2 * emulation::shared_limit(); }
};

template <typename... Parameters, typename... Arguments>
inline void launch(const char*, const Device&, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
                   const Arguments&... arguments) {
  emulation::run(blocks, threads, shared, [&] { kernel(arguments...); });
}

#else

inline void check_cuda(const char* op, cudaError_t error) {
  STAN_CHECK(error == cudaSuccess, op, "CUDA: ", cudaGetErrorString(error));
}

// The device of a tensor, made current for as long as this lives, and its current stream.
class Device {
 public:
  explicit Device(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
    // Found at run time, so that a library with CUDA kernels also loads beside a torch without CUDA.
    using Function = AOTITorchError (*)(int32_t, void**);
    static const Function current_stream = [] {
      void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return reinterpret_cast<Function>(dlsym(torch_cuda != nullptr ? torch_cuda : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    }();
    void* stream = nullptr;
    STAN_CHECK(current_stream != nullptr && current_stream(index_, &stream) == 0, "device", "torch gives no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  // Shared memory that a block can have at most, and that a multiprocessor has.
  int shared_per_block() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }
  int shared_per_processor() const { return attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor); }

 private:
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check_cuda("device", cudaDeviceGetAttribute(&value, which, index_));
    return value;
  }
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

template <typename... Parameters, typename... Arguments>
inline void launch(const char* op, const Device& device, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
                   const Arguments&... arguments) {
  if (blocks == 0) return;
  STAN_CHECK(blocks < (int64_t{1} << 31), op, "the input is too large for one launch: ", blocks, " blocks");
  if (shared > 48 * 1024) {  // the amount that needs no leave
    check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  }
  kernel<<<unsigned(blocks), unsigned(threads), shared, device.stream()>>>(Parameters(arguments)...);
  check_cuda(op, cudaGetLastError());
}

#endif

// ------------------------------------------------------------------------------------------------------------ tensors

inline Tensor uninitialised(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

inline Tensor zeros(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_zeros(like, shape, type);
}

// A gradient nobody asked for.
inline Tensor nothing(const Tensor& like) { return uninitialised(like, {0}, like.scalar_type()); }

template <typename N>
inline N* data(const Tensor& tensor) {
  return static_cast<N*>(tensor.mutable_data_ptr());
}

template <typename N>
inline const N* input(const Tensor& tensor) {
  return static_cast<const N*>(tensor.const_data_ptr());
}

inline Tensor dense(const Tensor& tensor) { return torch::stable::contiguous(tensor); }

// body(E(), S()) with the element type and the arithmetic type.
template <typename Body>
inline void with_types(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Half: return body(torch::headeronly::Half(), float());
    case ScalarType::BFloat16: return body(torch::headeronly::BFloat16(), float());
    case ScalarType::Double: return body(double(), double());
    default: return body(float(), float());
  }
}

// body(E()) with the element type, one of those that are computed in S.
template <typename S, typename Body>
inline void with_elements(ScalarType type, const Body& body) {
  with_types(type, [&](auto element, auto arithmetic) {
    if constexpr (std::is_same_v<decltype(arithmetic), S>) body(element);
  });
}

// body(S()) with the arithmetic type alone.
template <typename Body>
inline void with_arithmetic(ScalarType type, const Body& body) {
  if (type == ScalarType::Double) return body(double());
  return body(float());
}

template <typename E, typename Data>
inline Video<E> view_of(const Tensor& video, int heads, Data* data) {
  return {static_cast<E*>(data), video.stride(0), video.stride(1), video.stride(2), video.stride(3), video.stride(4), int(video.size(1)),
          heads, int(video.size(2) / heads), int(video.size(3)), int(video.size(4))};
}

inline int64_t images_of(const Tensor& video, int heads) { return video.size(0) * video.size(1) * heads; }

// ------------------------------------------------------------------------------------------------------------ records

// Channel-last records in scratch memory.
template <typename S>
struct Records {
  Tensor memory;
  Pixels<S> pixels;
};

// The records that a video would have, without memory; `extra` numbers follow the channels of each.
template <typename S>
inline Pixels<S> pixels_of(const Tensor& video, int heads, int extra = 0) {
  const int channels = padded(int(video.size(2) / heads));
  return {nullptr, int(video.size(3)), int(video.size(4)), channels, channels + extra};
}

// A video's records. The extra numbers are left as they are.
template <typename S>
inline Records<S> packed(const char* op, const Device& device, const Tensor& video, int heads, int extra = 0) {
  Pixels<S> pixels = pixels_of<S>(video, heads, extra);
  const Tensor memory = uninitialised(video, {images_of(video, heads) * pixels.image_size()}, arithmetic_type(video.scalar_type()));
  pixels.data = data<S>(memory);
  with_elements<S>(video.scalar_type(), [&](auto element) {
    using E = decltype(element);
    launch(op, device, pack_kernel<S, E>, pack_blocks(images_of(video, heads), pixels.height, pixels.width), kPackThreads, 0,
           view_of<const E>(video, heads, input<E>(video)), pixels);
  });
  return {memory, pixels};
}

// A contiguous (B, T, HD*C, H, W) tensor like `video` from what `read` finds under the records' indices.
template <typename S, typename Read>
inline Tensor unpacked(const char* op, const Device& device, const Read& read, const Pixels<S>& pixels, const Tensor& video, int heads) {
  Tensor out = uninitialised(video, {video.size(0), video.size(1), video.size(2), video.size(3), video.size(4)}, video.scalar_type());
  with_elements<S>(video.scalar_type(), [&](auto element) {
    using E = decltype(element);
    launch(op, device, unpack_kernel<S, E, Read>, pack_blocks(images_of(video, heads), pixels.height, pixels.width), kPackThreads, 0, read,
           pixels, view_of<E>(out, heads, data<E>(out)));
  });
  return out;
}

// ---------------------------------------------------------------------------------------------------------------- sinks

// Numbers that many threads add to, as FloatSink or as FixedSink.
template <typename S>
class Sum {
 public:
  // Every arrival is at most factor * a, factor * a * b or factor * a * (b + c), where one to three (contiguous) tensors stand for
  // their largest magnitudes; no more than `meeting` arrivals meet in one number.
  Sum(const char* op, const Device& device, const Tensor& like, int64_t count, bool deterministic, double factor,
      const std::vector<Tensor>& magnitudes, double meeting)
      : deterministic_(deterministic) {
    if (!deterministic) {
      numbers_ = zeros(like, {count}, arithmetic_type(like.scalar_type()));
      return;
    }
    numbers_ = zeros(like, {count}, ScalarType::Long);
    spoilt_ = zeros(like, {count}, ScalarType::Byte);
    scale_ = zeros(like, {4}, ScalarType::Double);  // the scale, then the three magnitudes
    auto* const largest = reinterpret_cast<unsigned long long*>(data<double>(scale_) + 1);
    for (size_t i = 0; i < magnitudes.size(); ++i) {
      const int64_t size = magnitudes[i].numel();
      const int64_t blocks = size == 0 ? 0 : size < 256 * 1024 ? (size + 255) / 256 : 1024;
      with_types(magnitudes[i].scalar_type(), [&](auto element, auto) {
        using E = decltype(element);
        launch(op, device, largest_kernel<E>, blocks, 256, 0, input<E>(magnitudes[i]), size, largest + i);
      });
    }
    int bits = 0;
    while (bits < 60 && meeting > double(int64_t{1} << bits)) ++bits;
    launch(op, device, scale_kernel<double>, 1, 1, 0, largest, int(magnitudes.size()), factor, bits, data<double>(scale_));
  }

  // body(sink) with the sink of the kind in use; and body(sink, other sink) of two sums of one kind.
  template <typename Body>
  void with(const Body& body) const {
    deterministic_ ? body(fixed()) : body(floating());
  }
  template <typename Body>
  void with(const Sum& other, const Body& body) const {
    deterministic_ ? body(fixed(), other.fixed()) : body(floating(), other.floating());
  }

 private:
  FloatSink<S> floating() const { return {data<S>(numbers_)}; }
  FixedSink<S> fixed() const {
    return {data<unsigned long long>(numbers_), data<unsigned char>(spoilt_), data<double>(scale_)};
  }

  bool deterministic_;
  Tensor numbers_, spoilt_, scale_;
};

}  // namespace stan::cuda
