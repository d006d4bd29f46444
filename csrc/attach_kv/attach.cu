#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "attach.cuh"

namespace lcc::attach_kv {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kBusy = 8;  // blocks a multiprocessor; heads are grouped only where there are more

bool aligned(const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Whether every access of kWidth channels starts where such an access may.
template <typename In, typename Out, int kWidth>
bool fits(const Arguments& a) {
  constexpr int kElements = std::is_same_v<In, Int4Pair> ? kWidth / 2 : kWidth;
  bool whole = a.head_dim % kWidth == 0 && a.rotary_dim % (2 * kWidth) == 0;
  for (const Side& side : a.sides) {
    whole = whole && side.memory_channel == 1 && side.cache_channel == 1;
    for (int64_t stride : {side.memory_layer, side.memory_head, side.memory_token}) {
      whole = whole && stride % kElements == 0;
    }
    for (int64_t stride : {side.cache_block, side.cache_head, side.cache_row}) whole = whole && stride % kWidth == 0;
    whole = whole && aligned(side.memory, kElements * sizeof(In));
    for (int layer = 0; layer < a.layers; ++layer) {
      whole = whole && aligned(side.caches[layer], kWidth * sizeof(Out));
    }
  }
  return whole;
}

template <typename In, typename Out, int kWidth>
cudaError_t launch_rows(Arguments a, cudaStream_t stream) {
  int device = 0, processors = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const auto attribute = cudaDevAttrMultiProcessorCount;
  if (cudaError_t error = cudaDeviceGetAttribute(&processors, attribute, device); error != cudaSuccess) return error;
  const int64_t blocks = (int64_t{a.tokens} * items_of<kWidth>(a) + kThreads - 1) / kThreads;
  const int64_t work = blocks * a.layers;
  a.group = static_cast<int>(std::clamp<int64_t>(a.heads * work / (kBusy * processors), 1, a.heads));
  const int64_t groups = (a.heads + a.group - 1) / a.group;
  if (std::max(work * groups, blocks * kThreads) > INT32_MAX) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(work * groups));
  attach_rows<In, Out, kWidth><<<grid, kThreads, 0, stream>>>(a, static_cast<unsigned>(blocks));
  return cudaGetLastError();
}

template <typename In, typename Out>
cudaError_t choose_width(const Arguments& a, cudaStream_t stream) {
  constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(Out));
  if (fits<In, Out, kWidth>(a)) return launch_rows<In, Out, kWidth>(a, stream);
  return launch_rows<In, Out, 1>(a, stream);
}

template <typename In>
cudaError_t choose_cache(const Arguments& a, Dtype cache, cudaStream_t stream) {
  switch (cache) {
    case Dtype::kFloat: return choose_width<In, float>(a, stream);
    case Dtype::kHalf: return choose_width<In, __half>(a, stream);
    case Dtype::kBFloat16: return choose_width<In, __nv_bfloat16>(a, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch(const Arguments& a, Dtype memory, Dtype cache, cudaStream_t stream) {
  switch (memory) {
    case Dtype::kFloat: return choose_cache<float>(a, cache, stream);
    case Dtype::kHalf: return choose_cache<__half>(a, cache, stream);
    case Dtype::kBFloat16: return choose_cache<__nv_bfloat16>(a, cache, stream);
    case Dtype::kInt8: return choose_cache<int8_t>(a, cache, stream);
    case Dtype::kE4M3: return choose_cache<E4M3>(a, cache, stream);
    case Dtype::kInt4: return choose_cache<Int4Pair>(a, cache, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace lcc::attach_kv
