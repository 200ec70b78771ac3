// The checked arguments of the ops as plain structs: what every kernel, on the CPU and in CUDA, takes its sizes from.
// No torch and nothing of the standard library with code of its own: this header enters files that are compiled for one
// processor generation only, where an inline function shared with other files would be a trap.
#pragma once

#include <cstdint>

#include "geometry.h"

namespace stan {

enum class Metric { l2, dot };
enum class Select { all, each };
enum class SelfMatch { keep, first, exclude, anchors };

// Sizes of a pair of videos and of the query grid laid over the first.
struct Sizes {
  int64_t batch = 0;
  int frames = 0;                // of the query
  int heads = 0;
  int channels = 0;              // per head
  int height = 0, width = 0;     // of the query (or of the output grid's image)
  int key_frames = 0;            // the query's, but for a search or a gather for some frames only
  int key_height = 0, key_width = 0;
  int stride = 1;
  int query_height = 0, query_width = 0;  // (height - 1) / stride + 1

  STAN_HD int64_t queries() const { return int64_t(query_height) * query_width; }  // of one frame
};

struct Patch {
  int side = 1;
  int dilation = 1;
  STAN_HD int reach() const { return dilation * (side / 2); }
  STAN_HD int offset(int i) const { return dilation * (i - side / 2); }  // of patch pixel i along an axis
};

// The pixels of a patch that fall on the query grid.
struct GridPatch {
  int side = 1, step = 1;  // displacements (i - side / 2) * step, in queries
  int pixels = 1;          // of one query

  STAN_HD int at(int i) const { return (i - side / 2) * step; }
  // How many displacements d keep a - d inside [0, length).
  STAN_HD int count(int a, int length) const {
    int n = 0;
    for (int i = 0; i < side; ++i) n += a - at(i) >= 0 && a - at(i) < length;
    return n;
  }
};

STAN_HD GridPatch grid_patch(const Patch& patch, int stride) {
  const int reach = patch.side / 2;
  int every = 1;  // the fewest patch pixels that make a whole number of queries
  while (every <= reach && int64_t(every) * patch.dilation % stride != 0) ++every;
  GridPatch grid;
  grid.pixels = stride;
  grid.side = 2 * (reach / every) + 1;
  if (grid.side > 1) grid.step = int(int64_t(every) * patch.dilation / stride);
  return grid;
}

// Settings of a search or a refinement: stan.ops.SearchSpec and RefineSpec, each within its bounds (settings.h).
struct Settings {
  int window = 1;
  int topk = 1;
  int heads = 1;
  Patch patch;
  int stride = 1;
  double key_stride = 1;
  Metric metric = Metric::l2;
  bool slide = true;
  // Of a search alone.
  int temporal_window = 0;
  Select select = Select::all;
  SelfMatch self_match = SelfMatch::keep;
  bool causal = false;
  int start = 0;  // the frame of the clip that the query begins with

  STAN_HD int slots() const { return slots_of(temporal_window, causal); }  // searched frames of a query

  // Whether the candidate at the anchor of a slot is taken out of the order of scores; and whether it then leads the slot's matches.
  STAN_HD bool sets_apart(int slot) const { return slot == 0 ? self_match != SelfMatch::keep : self_match == SelfMatch::anchors; }
  STAN_HD bool leads(int slot) const { return sets_apart(slot) && self_match != SelfMatch::exclude; }
};

// A search or a refinement: its settings, and what follows from them and from the tensors.
struct SearchParameters : Settings {
  Sizes sizes;
  int windows = 1;      // of a query: searched frames (slots), or matches to refine
  int matches = 1;      // K of the outputs
  int flow_heads = 0;   // 0: no flow

  // Of a search: the frame of the key that frame t of the query searches in a slot, -1 for none; and the other way round.
  STAN_HD int frame_of(int t, int slot) const { return frame_of_slot(start + t, slot, sizes.key_frames, temporal_window, causal); }
  STAN_HD int slot_of(int t, int f) const { return slot_of_frame(start + t, f, sizes.key_frames, temporal_window, causal); }
};

// A gather. The queries of a block of block x block have their matches in common: weights, offsets and frames are given for each block.
struct GatherParameters {
  Sizes sizes;
  Patch patch;
  int matches = 1;
  int block = 1;
  int block_rows = 0, block_columns = 0;  // of the query grid, the last ones cut by its border

  STAN_HD int64_t blocks() const { return int64_t(block_rows) * block_columns; }  // of one frame
  STAN_HD int64_t block_of(int row, int column) const { return int64_t(row / block) * block_columns + column / block; }
  // The grid of the blocks' first queries.
  STAN_HD Sizes block_sizes() const {
    Sizes s = sizes;
    s.stride *= block;
    s.query_height = block_rows;
    s.query_width = block_columns;
    return s;
  }
};

struct FlowParameters {
  int64_t batch = 0;
  int frames = 0, height = 0, width = 0;
  int stride = 1, query_height = 0, query_width = 0;
  int temporal_window = 0, slots = 1;
  bool causal = false;
};

// The step of a track from frame t to that of `slot`, one frame before it: how many steps from t, in which flow, and looked up where.
struct TrackStep {
  bool forward = false;
  int number = 0;  // 0: there is no such frame
  int from = 0;    // the frame whose flow is looked up
};

STAN_HD TrackStep step_to(const FlowParameters& p, int t, int slot) {
  const int f = frame_of_slot(t, slot, p.frames, p.temporal_window, p.causal);
  TrackStep step;
  if (f < 0) return step;
  step.forward = f > t;
  step.number = f > t ? f - t : t - f;
  step.from = f > t ? f - 1 : f + 1;
  return step;
}

}  // namespace stan
