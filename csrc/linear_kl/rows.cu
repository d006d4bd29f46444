#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "rows.cuh"

namespace lcc::linear_kl {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kLongRow = 32768;  // from here on a row is worth a cluster
constexpr int kClusterBlocks = 8;

bool aligned(const void* pointer, int64_t stride, int itemsize) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0 && stride * itemsize % kVectorBytes == 0;
}

cudaError_t cluster_blocks(int vocab, unsigned* blocks) {
  int device = 0, major = 0;
  *blocks = 1;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const auto attribute = cudaDevAttrComputeCapabilityMajor;
  if (cudaError_t error = cudaDeviceGetAttribute(&major, attribute, device); error != cudaSuccess) return error;
  if (major >= 9 && vocab >= kLongRow) *blocks = kClusterBlocks;
  return cudaSuccess;
}

template <typename T, Kind kind, int kWidth>
cudaError_t launch_rows(const Arguments& a, cudaStream_t stream) {
  unsigned blocks;
  if (cudaError_t error = cluster_blocks(a.vocab, &blocks); error != cudaSuccess) return error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(a.rows * blocks);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = blocks > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, divergence_rows<T, kind, kWidth>, a);
}

template <typename T, Kind kind>
cudaError_t choose_width(const Arguments& a, cudaStream_t stream) {
  if (aligned(a.student, a.student_stride, sizeof(T)) && aligned(a.teacher, a.teacher_stride, sizeof(T))) {
    return launch_rows<T, kind, kVectorBytes / static_cast<int>(sizeof(T))>(a, stream);
  }
  return launch_rows<T, kind, 1>(a, stream);
}

template <typename T>
cudaError_t choose_kind(const Arguments& a, Kind kind, cudaStream_t stream) {
  switch (kind) {
    case Kind::kForward: return choose_width<T, Kind::kForward>(a, stream);
    case Kind::kReverse: return choose_width<T, Kind::kReverse>(a, stream);
    case Kind::kJsd: return choose_width<T, Kind::kJsd>(a, stream);
    case Kind::kMse: return choose_width<T, Kind::kMse>(a, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch(const Arguments& a, Kind kind, Dtype dtype, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  switch (dtype) {
    case Dtype::kFloat: return choose_kind<float>(a, kind, stream);
    case Dtype::kHalf: return choose_kind<__half>(a, kind, stream);
    case Dtype::kBFloat16: return choose_kind<__nv_bfloat16>(a, kind, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace lcc::linear_kl
