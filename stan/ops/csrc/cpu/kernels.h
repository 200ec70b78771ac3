// The boundary between the CPU entry points (ops.cpp, which knows torch) and the kernels (kernels.cpp, which do not).
//
// The kernels are compiled once per processor generation from the same sources, each time in a namespace of its own; `kernels()` picks
// the best table for the processor at hand. All tensors are contiguous here and have the shapes of ../README.md.
#pragma once

#include <cstdint>

#include "../shapes.h"

namespace stan::cpu {

// Element type of query, key, value and of their gradients. S, the type of all other floating-point tensors, follows from it.
enum class Type { float32, float16, bfloat16, float64 };

struct SearchArguments {
  SearchParameters p;
  Type type;
  const void* query;
  const void* key;
  const void* flow;  // null: zero flow
  // Refine: the windows lie around these matches.
  const void* offsets_in;
  const int32_t* frames_in;  // null: a search
  void* scores;
  void* offsets;
  int32_t* frames;
  int32_t* parents;  // null: a search
};

// Backward of search and refine alike: gradients of the scores at given matches, and of their positions. A null gradient is not
// computed.
struct MatchBackwardArguments {
  SearchParameters p;
  Type type;
  const void* query;
  const void* key;
  const void* offsets;
  const int32_t* frames;
  const void* grad_scores;
  const void* grad_offsets;
  void* grad_query;
  void* grad_key;
  // What shifted the anchors, and its gradient. Search: flow (null for zero flow), (B, HF, T, W-1, 2, Hq, Wq).
  const void* flow;
  void* grad_flow;
  // Refine: the incoming offsets, (B, HD, T, Hq, Wq, W, 2), and which of them each match came from.
  const void* offsets_in;
  void* grad_offsets_in;
  const int32_t* parents;
};

struct FlowArguments {
  FlowParameters p;
  Type type;  // float32 or float64
  const void* forward;
  const void* backward;
  void* displacements;  // written by the forward pass
};

struct FlowBackwardArguments {
  FlowParameters p;
  Type type;
  const void* grad;
  const void* forward;
  const void* backward;
  void* grad_forward;
  void* grad_backward;
};

struct GatherArguments {
  GatherParameters p;
  bool stack;  // gather_stack: one output a match
  Type type;
  const void* value;
  const void* weights;
  const void* offsets;
  const int32_t* frames;
  void* output;
};

struct GatherBackwardArguments {
  GatherParameters p;
  bool stack;
  Type type;
  const void* grad;
  const void* value;
  const void* weights;
  const void* offsets;
  const int32_t* frames;
  void* grad_value;  // null where not needed, as the two below
  void* grad_weights;
  void* grad_offsets;
};

// A 3x3 convolution in float32, of stride 1, with a border of zeros. Pictures are channels last.
struct ConvolveArguments {
  int64_t batch;
  int height, width, inputs, outputs;
  const float* input;   // (N, H, W, inputs)
  const float* weight;  // (outputs, inputs, 3, 3)
  const float* bias;    // (outputs), null for none
  const float* add;     // (N, H, W, outputs), null for none: what is added to the result
  bool relu;            // the last step
  float* output;        // (N, H, W, outputs)
};

// The gradient of the weights of such a convolution.
struct ConvolveBackwardArguments {
  ConvolveArguments forward;  // of which the sizes and the input count
  const float* grad;          // (N, H, W, outputs)
  float* grad_weight;         // (outputs, inputs, 3, 3)
};

struct Kernels {
  const char* capability;
  void (*search)(const SearchArguments&);  // refine too
  void (*match_backward)(const MatchBackwardArguments&);
  void (*search_flow)(const FlowArguments&);
  void (*search_flow_backward)(const FlowBackwardArguments&);
  void (*gather)(const GatherArguments&);
  void (*gather_backward)(const GatherBackwardArguments&);
  void (*convolve)(const ConvolveArguments&);
  void (*convolve_backward)(const ConvolveBackwardArguments&);
};

// The kernels this processor runs with. The environment variable STAN_CPU_CAPABILITY (generic, avx2, avx512), read at the first
// call, lowers the choice; it never raises it above what the processor has.
const Kernels& kernels();

}  // namespace stan::cpu
