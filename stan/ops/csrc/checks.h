// Argument checks of the ops: each failure is one line that names the op, the argument, its value and what was expected.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "geometry.h"

namespace stan {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] inline void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "stan::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

#define STAN_CHECK(condition, ...) \
  do {                             \
    if (!(condition)) ::stan::fail(__VA_ARGS__); \
  } while (false)

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::ostringstream text;
  text << "(";
  for (size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
  text << ")";
  return text.str();
}

inline std::string shape_text(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < tensor.dim(); ++i) shape.push_back(tensor.size(i));
  return shape_text(shape);
}

inline const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "an unsupported type";
  }
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  std::ostringstream text;
  text << (tensor.is_cuda() ? "cuda:" : "device ") << tensor.get_device_index();
  return text.str();
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// The type in which an input of type `type` is computed and scored.
inline ScalarType arithmetic_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_rank(const char* op, const char* name, const Tensor& tensor, int64_t rank, const char* shape) {
  STAN_CHECK(tensor.dim() == rank, op, name, ": expected ", rank, " dimensions ", shape, ", got shape ", shape_text(tensor));
}

inline void check_features(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STAN_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Double,
             op, name, ": expected float32, float16, bfloat16 or float64, got ", type_name(type));
}

inline void check_type(const char* op, const char* name, const Tensor& tensor, ScalarType expected) {
  STAN_CHECK(tensor.scalar_type() == expected, op, name, ": expected ", type_name(expected), ", got ", type_name(tensor.scalar_type()));
}

inline void check_device(const char* op, const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  STAN_CHECK(same_device(tensor, other), op, name, ": expected the device of ", other_name, " (", device_name(other), "), got ",
             device_name(tensor));
}

inline void check_size(const char* op, const char* name, const Tensor& tensor, int64_t dim, int64_t expected, const char* what) {
  STAN_CHECK(tensor.size(dim) == expected, op, name, ": expected ", what, " ", expected, " in dimension ", dim, ", got shape ",
             shape_text(tensor));
}

inline int check_number(const char* op, const char* name, int64_t value, int64_t low, int64_t high) {
  STAN_CHECK(value >= low && value <= high, op, name, ": expected a whole number from ", low, " to ", high, ", got ", value);
  return int(value);
}

// A tensor of matches: (B, HD, T, Hq, Wq, K) and, where `vector` is set, one more axis of 2; on the device of `video`.
inline void check_matches(const char* op, const char* name, const Tensor& tensor, std::vector<int64_t> shape, bool vector,
                          ScalarType type, const Tensor& video) {
  check_type(op, name, tensor, type);
  check_device(op, name, tensor, "the video", video);
  if (vector) shape.push_back(2);
  bool same = tensor.dim() == int64_t(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = tensor.size(int64_t(i)) == shape[i];
  STAN_CHECK(same, op, name, ": expected shape ", shape_text(shape), ", got ", shape_text(tensor));
}

}  // namespace stan
