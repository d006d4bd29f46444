// The ops of csrc/ on torch's stable ABI: one library serves every torch from TORCH_TARGET_VERSION on.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "attach_kv/attach.h"
#include "linear_kl/rows.h"

namespace {

namespace attach = lcc::attach_kv;
namespace linear_kl = lcc::linear_kl;

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAbi = 4;  // as in lcc_kernels/library.py; both rise when an op's signature changes

int64_t abi() { return kAbi; }

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

bool beside(const Tensor& tensor, const Tensor& other) {
  return tensor.is_cuda() && tensor.get_device_index() == other.get_device_index();
}

linear_kl::Dtype kl_dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return linear_kl::Dtype::kFloat;
    case ScalarType::Half: return linear_kl::Dtype::kHalf;
    case ScalarType::BFloat16: return linear_kl::Dtype::kBFloat16;
    default: STD_TORCH_CHECK(false, "logits must be float32, float16 or bfloat16"); return {};
  }
}

void kl_rows(Tensor student, Tensor teacher, Tensor loss, std::optional<Tensor> row_weight, int64_t kind, int64_t shape,
             double inner, double scale, double factor, double beta, bool with_grad) {
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == teacher.size(0) &&
                      student.size(1) == teacher.size(1) && loss.numel() == student.size(0),
                  "logits must both be (rows, vocab) and loss (rows,)");
  STD_TORCH_CHECK(student.stride(1) == 1 && teacher.stride(1) == 1 && loss.is_contiguous(), "rows must be contiguous");
  STD_TORCH_CHECK(student.scalar_type() == teacher.scalar_type() && loss.scalar_type() == ScalarType::Float,
                  "logits must share a dtype, and loss must be float32");
  STD_TORCH_CHECK(student.is_cuda() && beside(teacher, student) && beside(loss, student),
                  "all tensors must be on one GPU");
  constexpr int64_t kLimit = std::numeric_limits<int>::max() / 16;
  STD_TORCH_CHECK(student.size(0) <= kLimit && student.size(1) <= kLimit, "too many rows or columns for one launch");
  if (row_weight.has_value()) {
    STD_TORCH_CHECK(beside(*row_weight, student) && row_weight->is_contiguous() &&
                        row_weight->scalar_type() == ScalarType::Float && row_weight->numel() == student.size(0),
                    "row_weight must be contiguous float32 (rows,) on the GPU of the logits");
  }
  const linear_kl::Arguments arguments{
      student.mutable_data_ptr(),
      teacher.const_data_ptr(),
      static_cast<float*>(loss.mutable_data_ptr()),
      row_weight.has_value() ? static_cast<const float*>(row_weight->const_data_ptr()) : nullptr,
      student.stride(0),
      teacher.stride(0),
      static_cast<int>(student.size(0)),
      static_cast<int>(student.size(1)),
      {static_cast<float>(inner), static_cast<float>(scale), static_cast<float>(factor)},
      static_cast<float>(beta),
      with_grad,
  };
  const torch::stable::accelerator::DeviceGuard guard(student.get_device_index());
  const cudaError_t error =
      linear_kl::launch(arguments, static_cast<linear_kl::Kind>(kind), static_cast<linear_kl::Shape>(shape),
                        kl_dtype_of(student), current_stream(student));
  STD_TORCH_CHECK(error == cudaSuccess, "kl_rows failed: ", cudaGetErrorString(error));
}

attach::Dtype attach_dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return attach::Dtype::kFloat;
    case ScalarType::Half: return attach::Dtype::kHalf;
    case ScalarType::BFloat16: return attach::Dtype::kBFloat16;
    case ScalarType::Char: return attach::Dtype::kInt8;
    case ScalarType::Float8_e4m3fn: return attach::Dtype::kE4M3;
    case ScalarType::Byte: return attach::Dtype::kInt4;
    default: STD_TORCH_CHECK(false, "memories must be float32, float16, bfloat16, int8, float8_e4m3fn or uint8"); return {};
  }
}

attach::Factors factors_of(const Tensor& tensor, const Tensor& memory) {
  STD_TORCH_CHECK(beside(tensor, memory), "cos, sin and scales must be on the GPU of the memory");
  attach::Factors factors{};
  factors.numbers = tensor.const_data_ptr();
  factors.dtype = tensor.scalar_type() == ScalarType::Double ? attach::Dtype::kDouble : attach_dtype_of(tensor);
  STD_TORCH_CHECK(factors.dtype <= attach::Dtype::kDouble, "cos, sin and scales must be floating-point");
  factors.token_run = factors.channel_run = 1;
  return factors;
}

// cos or sin, (tokens, rotary_dim).
attach::Factors rotary_of(const Tensor& table, const Tensor& memory) {
  attach::Factors factors = factors_of(table, memory);
  factors.token = table.stride(0);
  factors.channel = table.stride(1);
  return factors;
}

// Scales, (layers, heads, runs of tokens, runs of channels), from layer first on.
attach::Factors scale_of(const Tensor& scale, const Tensor& memory, int64_t first, int64_t token_run, int64_t channels) {
  const int64_t runs = (memory.size(2) + token_run - 1) / token_run;
  STD_TORCH_CHECK(scale.dim() == 4 && scale.size(0) == memory.size(0) && scale.size(1) == memory.size(1) &&
                      scale.size(2) == runs && scale.size(3) > 0 && channels % scale.size(3) == 0,
                  "scales must be (layers, heads, runs of tokens, runs of channels)");
  attach::Factors factors = factors_of(scale, memory);
  factors.numbers = static_cast<const char*>(factors.numbers) + first * scale.stride(0) * scale.element_size();
  factors.layer = scale.stride(0);
  factors.head = scale.stride(1);
  factors.token = scale.stride(2);
  factors.channel = scale.stride(3);
  factors.token_run = static_cast<int>(token_run);
  factors.channel_run = static_cast<int>(channels / scale.size(3));
  return factors;
}

// One side of layers first ... first + layers.
attach::Side side_of(const Tensor& memory, const std::vector<Tensor>& caches, int64_t first, int64_t layers) {
  const Tensor& like = caches[0];
  attach::Side side{};
  side.memory = static_cast<const char*>(memory.const_data_ptr()) + first * memory.stride(0) * memory.element_size();
  side.memory_layer = memory.stride(0);
  side.memory_head = memory.stride(1);
  side.memory_token = memory.stride(2);
  side.memory_channel = memory.stride(3);
  side.cache_block = like.stride(0);
  side.cache_head = like.stride(1);
  side.cache_row = like.stride(2);
  side.cache_channel = like.stride(3);
  for (int64_t layer = 0; layer < layers; ++layer) side.caches[layer] = caches[first + layer].mutable_data_ptr();
  return side;
}

void check_caches(const Tensor& memory, const std::vector<Tensor>& caches, const Tensor& like) {
  STD_TORCH_CHECK(beside(memory, like) && memory.dim() == 4, "a memory must be 4-D on the GPU of its caches");
  STD_TORCH_CHECK(static_cast<int64_t>(caches.size()) == memory.size(0), "there must be a cache a layer");
  const int64_t head_dim = memory.size(3) * (memory.scalar_type() == ScalarType::Byte ? 2 : 1);
  for (const Tensor& cache : caches) {
    STD_TORCH_CHECK(beside(cache, like) && cache.dim() == 4 && cache.scalar_type() == like.scalar_type() &&
                        cache.size(0) == like.size(0) && cache.size(1) == memory.size(1) &&
                        cache.size(2) == like.size(2) && cache.size(3) == head_dim,
                    "caches must be (blocks, kv_heads, block_size, head_dim) of one shape and dtype on one GPU");
  }
}

// What all layers share.
attach::Arguments arguments_of(const Tensor& keys, const Tensor& like, const Tensor& slots, const Tensor& cos,
                               const Tensor& sin, bool interleaved, bool paged) {
  const int64_t tokens = keys.size(2), head_dim = like.size(3), block_size = like.size(2), blocks = like.size(0);
  STD_TORCH_CHECK(cos.dim() == 2 && sin.dim() == 2 && cos.size(0) == tokens && sin.size(0) == tokens &&
                      cos.size(1) == sin.size(1) && cos.size(1) % 2 == 0 && cos.size(1) <= head_dim,
                  "cos and sin must be (tokens, rotary_dim), rotary_dim even and at most head_dim");
  const int64_t capacity = block_size * (paged ? blocks : 1);
  STD_TORCH_CHECK(std::max({keys.size(1) * head_dim, tokens, capacity, blocks}) <= std::numeric_limits<int>::max(),
                  "too much for one launch");
  attach::Arguments a{};
  a.narrow = slots.scalar_type() == ScalarType::Int;
  STD_TORCH_CHECK(beside(slots, keys) && slots.dim() == 1 && slots.size(0) == tokens &&
                      (a.narrow || slots.scalar_type() == ScalarType::Long),
                  "slots must be (tokens,) int32 or int64 on the GPU of the memory");
  a.slots = slots.const_data_ptr();
  a.slot_step = slots.stride(0);
  a.cos = rotary_of(cos, keys);
  a.sin = rotary_of(sin, keys);
  a.block_size = static_cast<int>(block_size);
  a.capacity = static_cast<int>(capacity);
  a.heads = static_cast<int>(keys.size(1));
  a.tokens = static_cast<int>(tokens);
  a.head_dim = static_cast<int>(head_dim);
  a.rotary_dim = static_cast<int>(cos.size(1));
  a.copies = static_cast<int>(paged ? 1 : blocks);
  a.interleaved = interleaved;
  return a;
}

void attach_kv(Tensor keys, Tensor values, std::vector<Tensor> key_caches, std::vector<Tensor> value_caches,
               Tensor slots, Tensor cos, Tensor sin, std::optional<Tensor> key_scale,
               std::optional<Tensor> value_scale, bool interleaved, bool paged, std::optional<int64_t> key_group) {
  STD_TORCH_CHECK(!key_caches.empty() && keys.scalar_type() == values.scalar_type() &&
                      key_scale.has_value() == value_scale.has_value(),
                  "there must be a layer, and keys and values must be of one kind");
  check_caches(keys, key_caches, key_caches[0]);
  check_caches(values, value_caches, key_caches[0]);
  for (int i = 0; i < 4; ++i) STD_TORCH_CHECK(values.size(i) == keys.size(i), "keys and values must be of one shape");
  if (keys.numel() == 0) return;
  const int64_t layers = keys.size(0), tokens = keys.size(2), head_dim = key_caches[0].size(3);
  const int64_t run = std::min(key_group.value_or(tokens), tokens);
  STD_TORCH_CHECK(run > 0, "key_group must be at least 1");
  attach::Arguments a = arguments_of(keys, key_caches[0], slots, cos, sin, interleaved, paged);
  const torch::stable::accelerator::DeviceGuard guard(keys.get_device_index());
  for (int64_t first = 0; first < layers; first += attach::kMaxLayers) {
    a.layers = static_cast<int>(std::min<int64_t>(layers - first, attach::kMaxLayers));
    a.sides[0] = side_of(keys, key_caches, first, a.layers);
    a.sides[1] = side_of(values, value_caches, first, a.layers);
    if (key_scale.has_value()) {
      a.sides[0].scale = scale_of(*key_scale, keys, first, run, head_dim);
      a.sides[1].scale = scale_of(*value_scale, keys, first, 1, head_dim);
    }
    const cudaError_t error =
        attach::launch(a, attach_dtype_of(keys), attach_dtype_of(key_caches[0]), current_stream(keys));
    STD_TORCH_CHECK(error == cudaSuccess, "attach_kv failed: ", cudaGetErrorString(error));
  }
}

}  // namespace

STABLE_TORCH_LIBRARY(lcc_kernels_cuda, library) {
  library.def("abi() -> int");
  library.def(
      "kl_rows(Tensor(a!) student, Tensor teacher, Tensor(b!) loss, Tensor? row_weight, int kind, int shape, "
      "float inner, float scale, float factor, float beta, bool with_grad) -> ()");
  library.def(
      "attach_kv(Tensor keys, Tensor values, Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor slots, "
      "Tensor cos, Tensor sin, Tensor? key_scale, Tensor? value_scale, bool interleaved, bool paged, int? key_group) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lcc_kernels_cuda, CompositeExplicitAutograd, library) {
  library.impl("abi", TORCH_BOX(&abi));
}

STABLE_TORCH_LIBRARY_IMPL(lcc_kernels_cuda, CUDA, library) {
  library.impl("kl_rows", TORCH_BOX(&kl_rows));
  library.impl("attach_kv", TORCH_BOX(&attach_kv));
}
