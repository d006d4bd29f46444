// Launches the row kernel; framework-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "divergence.cuh"

namespace lcc::linear_kl {

enum class Dtype { kFloat, kHalf, kBFloat16 };

struct Arguments {
  void* student;            // (rows, vocab) raw logits, replaced by their gradient if with_grad
  const void* teacher;      // (rows, vocab) raw logits
  float* loss;              // (rows,)
  const float* row_weight;  // (rows,) or null; rows of weight 0 are left alone
  int64_t student_stride;   // between rows, in elements
  int64_t teacher_stride;
  int rows;
  int vocab;
  Transform transform;
  float beta;
  bool with_grad;
};

cudaError_t launch(const Arguments& arguments, Kind kind, Shape shape, Dtype dtype, cudaStream_t stream);

}  // namespace lcc::linear_kl
