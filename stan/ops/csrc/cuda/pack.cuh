// Videos to channel-last records and back. Everything else reads whole records, 16 bytes at a time.
#pragma once

#include "device.cuh"

namespace stan::cuda {

// A (B, T, HD*C, H, W) video of any strides.
template <typename E>
struct Video {
  E* data;
  int64_t stride_b, stride_t, stride_c, stride_y, stride_x;
  int frames, heads, channels;  // channels of one head
  int height, width;

  __device__ int64_t start(int64_t image) const {
    const int64_t t = image % frames, head = image / frames % heads, b = image / frames / heads;
    return b * stride_b + t * stride_t + head * channels * stride_c;
  }
};

constexpr int kPackPixels = 32;
constexpr int kPackThreads = 256;

STAN_HD int64_t pack_blocks(int64_t images, int height, int width) {
  return images * ((int64_t(height) * width + kPackPixels - 1) / kPackPixels);
}

// Copies 32 neighbouring pixels of one image through shared memory, so that both sides are read and written in runs.
// Numbers of a record past the channels, up to `pixels.channels`, become zero.
template <typename S, typename E>
__global__ void __launch_bounds__(kPackThreads) pack_kernel(Video<const E> video, Pixels<S> pixels) {
  constexpr int kChannels = 32;
  __shared__ S tile[kChannels][kPackPixels + 1];
  const int64_t area = int64_t(pixels.height) * pixels.width;
  const int64_t blocks = (area + kPackPixels - 1) / kPackPixels;
  const int64_t image = int64_t(blockIdx.x) / blocks, first = (int64_t(blockIdx.x) - image * blocks) * kPackPixels;
  const int count = int(area - first < kPackPixels ? area - first : kPackPixels);
  const int thread = int(threadIdx.x), column = thread % kPackPixels;
  const int64_t pixel = first + column;
  const int64_t source = video.start(image) + pixel / pixels.width * video.stride_y + pixel % pixels.width * video.stride_x;
  S* const out = pixels.data + (image * area + first) * pixels.pitch;

  for (int c0 = 0; c0 < pixels.channels; c0 += kChannels) {
    const int run = pixels.channels - c0 < kChannels ? pixels.channels - c0 : kChannels;
    for (int c = thread / kPackPixels; c < run; c += kPackThreads / kPackPixels) {
      const bool there = column < count && c0 + c < video.channels;
      tile[c][column] = there ? S(video.data[source + (c0 + c) * video.stride_c]) : S(0);
    }
    __syncthreads();
    for (int i = thread; i < count * run; i += kPackThreads) out[int64_t(i / run) * pixels.pitch + c0 + i % run] = tile[i % run][i / run];
    __syncthreads();
  }
}

// The way back: `read(index)` gives the number at an index into the records.
template <typename S, typename E, typename Read>
__global__ void __launch_bounds__(kPackThreads) unpack_kernel(Read read, Pixels<S> pixels, Video<E> video) {
  constexpr int kChannels = 32;
  __shared__ S tile[kChannels][kPackPixels + 1];
  const int64_t area = int64_t(pixels.height) * pixels.width;
  const int64_t blocks = (area + kPackPixels - 1) / kPackPixels;
  const int64_t image = int64_t(blockIdx.x) / blocks, first = (int64_t(blockIdx.x) - image * blocks) * kPackPixels;
  const int count = int(area - first < kPackPixels ? area - first : kPackPixels);
  const int thread = int(threadIdx.x), column = thread % kPackPixels;
  const int64_t pixel = first + column;
  const int64_t target = video.start(image) + pixel / pixels.width * video.stride_y + pixel % pixels.width * video.stride_x;
  const int64_t in = (image * area + first) * pixels.pitch;

  for (int c0 = 0; c0 < video.channels; c0 += kChannels) {
    const int run = video.channels - c0 < kChannels ? video.channels - c0 : kChannels;
    for (int i = thread; i < count * run; i += kPackThreads) tile[i % run][i / run] = read(in + int64_t(i / run) * pixels.pitch + c0 + i % run);
    __syncthreads();
    if (column < count) {
      for (int c = thread / kPackPixels; c < run; c += kPackThreads / kPackPixels) {
        video.data[target + (c0 + c) * video.stride_c] = static_cast<E>(tile[c][column]);
      }
    }
    __syncthreads();
  }
}

}  // namespace stan::cuda
