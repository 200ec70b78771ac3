// The checked arguments of the ops as plain structs: what every kernel, on the CPU and in CUDA, takes its sizes from.
// No torch and nothing of the standard library with code of its own: this header enters files that are compiled for one
// processor generation only, where an inline function shared with other files would be a trap.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace stan {

enum class Metric { l2, dot };
enum class Select { all, each };
enum class SelfMatch { keep, first, exclude };

// Sizes of a pair of videos and of the query grid laid over the first.
struct Sizes {
  int64_t batch = 0;
  int frames = 0;
  int heads = 0;
  int channels = 0;              // per head
  int height = 0, width = 0;     // of the query (or of the output grid's image)
  int key_height = 0, key_width = 0;
  int stride = 1;
  int query_height = 0, query_width = 0;  // (height - 1) / stride + 1

  int64_t queries() const { return int64_t(query_height) * query_width; }  // of one frame
};

struct Patch {
  int side = 1;
  int dilation = 1;
  STAN_HD int offset(int i) const { return dilation * (i - side / 2); }  // of patch pixel i along an axis
};

struct SearchParameters {
  Sizes sizes;
  Patch patch;
  int window = 1;
  int temporal_window = 0;
  int slots = 1;
  int topk = 1;
  int matches = 1;      // K of the outputs
  int flow_heads = 0;   // 0: no flow
  double key_stride = 1;
  Metric metric = Metric::l2;
  Select select = Select::all;
  SelfMatch self_match = SelfMatch::keep;
  bool slide = true;
  bool causal = false;
};

struct RefineParameters {
  Sizes sizes;
  Patch patch;
  int window = 1;
  int incoming = 1;     // matches to refine
  int matches = 1;      // K of the outputs
  double key_stride = 1;
  Metric metric = Metric::l2;
  bool slide = true;
};

struct GatherParameters {
  Sizes sizes;
  Patch patch;
  int matches = 1;
};

struct FlowParameters {
  int64_t batch = 0;
  int frames = 0, height = 0, width = 0;
  int stride = 1, query_height = 0, query_width = 0;
  int temporal_window = 0, slots = 1;
  bool causal = false;
};

}  // namespace stan
