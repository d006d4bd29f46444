#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "rows.cuh"

namespace lcc::linear_kl {

// A bfloat16 is the upper half of a float. Taken two at a time, each costs one instruction; an odd one alone costs two.
template <>
struct Floats<__nv_bfloat16> {
  template <int kWidth>
  static __device__ void of(const Vector<__nv_bfloat16, kWidth>& vector, float (&x)[kWidth]) {
    if constexpr (kWidth == 1) {
      x[0] = static_cast<float>(vector.values[0]);
    } else {
      const auto* words = reinterpret_cast<const uint32_t*>(vector.values);
      for (int i = 0; i < kWidth / 2; ++i) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      }
    }
  }
};

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

template <typename T, Kind kind, Shape shape, int kWidth>
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
  return cudaLaunchKernelEx(&config, divergence_rows<T, kind, shape, kWidth>, a);
}

template <typename T, Kind kind, Shape shape>
cudaError_t choose_width(const Arguments& a, cudaStream_t stream) {
  if (aligned(a.student, a.student_stride, sizeof(T)) && aligned(a.teacher, a.teacher_stride, sizeof(T))) {
    return launch_rows<T, kind, shape, kVectorBytes / static_cast<int>(sizeof(T))>(a, stream);
  }
  return launch_rows<T, kind, shape, 1>(a, stream);
}

template <typename T, Kind kind>
cudaError_t choose_shape(const Arguments& a, Shape shape, cudaStream_t stream) {
  switch (shape) {
    case Shape::kPlain: return choose_width<T, kind, Shape::kPlain>(a, stream);
    case Shape::kNegated: return choose_width<T, kind, Shape::kNegated>(a, stream);
    case Shape::kCapped: return choose_width<T, kind, Shape::kCapped>(a, stream);
  }
  return cudaErrorInvalidValue;
}

template <typename T>
cudaError_t choose_kind(const Arguments& a, Kind kind, Shape shape, cudaStream_t stream) {
  switch (kind) {
    case Kind::kForward: return choose_shape<T, Kind::kForward>(a, shape, stream);
    case Kind::kReverse: return choose_shape<T, Kind::kReverse>(a, shape, stream);
    case Kind::kJsd: return choose_shape<T, Kind::kJsd>(a, shape, stream);
    case Kind::kMse: return choose_shape<T, Kind::kMse>(a, shape, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch(const Arguments& a, Kind kind, Shape shape, Dtype dtype, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  switch (dtype) {
    case Dtype::kFloat: return choose_kind<float>(a, kind, shape, stream);
    case Dtype::kHalf: return choose_kind<__half>(a, kind, shape, stream);
    case Dtype::kBFloat16: return choose_kind<__nv_bfloat16>(a, kind, shape, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace lcc::linear_kl
