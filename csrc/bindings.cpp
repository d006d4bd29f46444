// The ops of csrc/ on torch's stable ABI: one library serves every torch from TORCH_TARGET_VERSION on.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <optional>

#include "kl/rows.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAbi = 1;  // as in lcc_kernels/library.py; both rise when an op's signature changes

int64_t abi() { return kAbi; }

lcc::kl::Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return lcc::kl::Dtype::kFloat;
    case ScalarType::Half: return lcc::kl::Dtype::kHalf;
    case ScalarType::BFloat16: return lcc::kl::Dtype::kBFloat16;
    default: STD_TORCH_CHECK(false, "logits must be float32, float16 or bfloat16"); return {};
  }
}

void kl_rows(Tensor student, Tensor teacher, Tensor loss, std::optional<Tensor> row_weight, int64_t kind, double inner,
             double outer, bool capped, double beta, bool with_grad) {
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == teacher.size(0) &&
                      student.size(1) == teacher.size(1) && loss.numel() == student.size(0),
                  "logits must both be (rows, vocab) and loss (rows,)");
  STD_TORCH_CHECK(student.stride(1) == 1 && teacher.stride(1) == 1 && loss.is_contiguous(), "rows must be contiguous");
  STD_TORCH_CHECK(student.scalar_type() == teacher.scalar_type() && loss.scalar_type() == ScalarType::Float,
                  "logits must share a dtype, and loss must be float32");
  STD_TORCH_CHECK(student.is_cuda() && teacher.is_cuda() && loss.is_cuda(), "all tensors must be on the GPU");
  constexpr int64_t kLimit = std::numeric_limits<int>::max() / 16;
  STD_TORCH_CHECK(student.size(0) <= kLimit && student.size(1) <= kLimit, "too many rows or columns for one launch");
  if (row_weight.has_value()) {
    STD_TORCH_CHECK(row_weight->is_cuda() && row_weight->is_contiguous() &&
                        row_weight->scalar_type() == ScalarType::Float && row_weight->numel() == student.size(0),
                    "row_weight must be contiguous float32 (rows,) on the GPU");
  }
  const lcc::kl::Arguments arguments{
      student.mutable_data_ptr(),
      teacher.const_data_ptr(),
      static_cast<float*>(loss.mutable_data_ptr()),
      row_weight.has_value() ? static_cast<const float*>(row_weight->const_data_ptr()) : nullptr,
      student.stride(0),
      teacher.stride(0),
      static_cast<int>(student.size(0)),
      static_cast<int>(student.size(1)),
      {static_cast<float>(inner), static_cast<float>(outer), capped},
      static_cast<float>(beta),
      with_grad,
  };
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(student.get_device_index(), &stream));
  const cudaError_t error = lcc::kl::launch(arguments, static_cast<lcc::kl::Kind>(kind), dtype_of(student),
                                            static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(error == cudaSuccess, "kl_rows failed: ", cudaGetErrorString(error));
}

}  // namespace

STABLE_TORCH_LIBRARY(lcc_kernels_cuda, library) {
  library.def("abi() -> int");
  library.def(
      "kl_rows(Tensor(a!) student, Tensor teacher, Tensor(b!) loss, Tensor? row_weight, int kind, float inner, "
      "float outer, bool capped, float beta, bool with_grad) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lcc_kernels_cuda, CompositeExplicitAutograd, library) {
  library.impl("abi", TORCH_BOX(&abi));
}

STABLE_TORCH_LIBRARY_IMPL(lcc_kernels_cuda, CUDA, library) {
  library.impl("kl_rows", TORCH_BOX(&kl_rows));
}
