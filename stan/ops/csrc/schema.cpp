// The ops of namespace `stan`: their schemas, registered once, and what the library knows of its own build.
// README.md beside this file says what each argument means. Kernels are registered beside their code, in cpu/ and cuda/.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <string>

#include "settings.h"

#ifndef STAN_CUDA_ARCHS
#define STAN_CUDA_ARCHS ""  // such as "75 80 90"; set by setup.py, empty in a build without CUDA
#endif
#ifndef STAN_CUDA_VERSION
#define STAN_CUDA_VERSION ""
#endif

namespace {

std::string build_info() {
  const std::string torch = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR) + "." +
                            std::to_string(TORCH_VERSION_PATCH);
  return "{\"torch\": \"" + torch + "\", \"compiler\": \"" __VERSION__ "\", \"cuda\": \"" STAN_CUDA_VERSION
         "\", \"cuda_archs\": \"" STAN_CUDA_ARCHS "\"}";
}

}  // namespace

STABLE_TORCH_LIBRARY(stan, m) {
  m.def("search(Tensor query, Tensor key, Tensor? flow, *, " STAN_SEARCH_SETTINGS ") -> (Tensor scores, Tensor offsets, Tensor frames)");
  m.def(
      "search_backward(Tensor grad_scores, Tensor grad_offsets, Tensor query, Tensor key, Tensor? flow, Tensor offsets, "
      "Tensor frames, bool need_query, bool need_key, bool need_flow, bool deterministic, *, " STAN_SEARCH_SETTINGS ") "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_flow)");
  m.def(
      "refine(Tensor query, Tensor key, Tensor offsets, Tensor frames, *, " STAN_REFINE_SETTINGS ") "
      "-> (Tensor scores, Tensor offsets, Tensor frames, Tensor parents)");
  m.def(
      "refine_backward(Tensor grad_scores, Tensor grad_offsets, Tensor query, Tensor key, Tensor offsets_in, Tensor offsets, "
      "Tensor frames, Tensor parents, bool need_query, bool need_key, bool need_offsets, bool deterministic, *, " STAN_REFINE_SETTINGS
      ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_offsets_in)");
  m.def("search_flow(Tensor forward, Tensor backward, int temporal_window, int stride, bool causal) -> Tensor");
  m.def(
      "search_flow_backward(Tensor grad, Tensor forward, Tensor backward, int temporal_window, int stride, bool causal, "
      "bool deterministic) -> (Tensor grad_forward, Tensor grad_backward)");
  m.def(
      "gather(Tensor value, Tensor weights, Tensor offsets, Tensor frames, int patch, int dilation, int stride, int block, "
      "bool stack) "
      "-> Tensor");
  m.def(
      "gather_backward(Tensor grad, Tensor value, Tensor weights, Tensor offsets, Tensor frames, int patch, int dilation, "
      "int stride, int block, bool stack, bool need_value, bool need_weights, bool need_offsets, bool deterministic) "
      "-> (Tensor grad_value, Tensor grad_weights, Tensor grad_offsets)");
  m.def("convolve(Tensor input, Tensor weight, Tensor? bias, Tensor? add, bool relu) -> Tensor");
  m.def("convolve_backward(Tensor grad, Tensor input) -> Tensor grad_weight");
  m.def("cpu_capability() -> str");
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(stan, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }
