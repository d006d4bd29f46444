// Loss and logit gradient of a row, in place, by a cluster of blocks (one block before sm_90). Logits are read twice
// (kJsd three times, kMse once). A cluster keeps few rows in flight and the last sweep runs backwards: both so that it
// finds its logits in L2.
#pragma once

#include <cooperative_groups.h>

#include <type_traits>

#include "../vector.cuh"
#include "rows.h"

namespace lcc::linear_kl {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

template <int kWidth>
using Width = std::integral_constant<int, kWidth>;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
struct Cluster {
  cooperative_groups::cluster_group group = cooperative_groups::this_cluster();
  __device__ int size() const { return group.num_blocks(); }
  __device__ int rank() const { return group.block_rank(); }
  __device__ void sync() const { group.sync(); }
  template <typename V>
  __device__ V read(V* shared, int block) const {
    return *group.map_shared_rank(shared, block);
  }
};
#else
struct Cluster {
  __device__ int size() const { return 1; }
  __device__ int rank() const { return 0; }
  __device__ void sync() const { __syncthreads(); }
  template <typename V>
  __device__ V read(V* shared, int) const {
    return *shared;
  }
};
#endif

template <typename V>
__device__ V shuffle_xor(const V& value, int mask) {
  static_assert(sizeof(V) % sizeof(float) == 0);
  V other;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(float)); ++i) {
    reinterpret_cast<float*>(&other)[i] = __shfl_xor_sync(~0u, reinterpret_cast<const float*>(&value)[i], mask);
  }
  return other;
}

// Merges the values of all threads of the cluster; every thread gets the same result.
template <typename V>
__device__ V merge_all(V value, const Cluster& cluster) {
  __shared__ V warps[kWarps];
  __shared__ V block;
  for (int mask = 16; mask > 0; mask /= 2) value.merge(shuffle_xor(value, mask));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) value.merge(warps[warp]);
    block = value;
  }
  cluster.sync();
  V total = cluster.read(&block, 0);
  for (int other = 1; other < cluster.size(); ++other) total.merge(cluster.read(&block, other));
  cluster.sync();  // no block leaves, or writes again, while another reads
  return total;
}

// Columns of a row for one thread: whole vectors first, and at the end a column that is left over by those.
struct Columns {
  int first;
  int step;
  int vectors_end;  // behind the last whole vector of the row
  int leftover;     // may lie beyond the vocabulary
  int vocab;

  template <int kWidth>
  static __device__ Columns of(const Cluster& cluster, int vocab) {
    const int thread = cluster.rank() * kThreads + static_cast<int>(threadIdx.x);
    const int vectors_end = vocab / kWidth * kWidth;
    return {thread * kWidth, cluster.size() * kThreads * kWidth, vectors_end, vectors_end + thread, vocab};
  }

  // body(column, width) for each, forwards.
  template <int kWidth, typename Body>
  __device__ void sweep(Body body) const {
    for (int column = first; column < vectors_end; column += step) body(column, Width<kWidth>());
    if (leftover < vocab) body(leftover, Width<1>());
  }

  template <int kWidth, typename Body>
  __device__ void sweep_backwards(Body body) const {
    if (leftover < vocab) body(leftover, Width<1>());
    if (first >= vectors_end) return;
    for (int column = first + (vectors_end - 1 - first) / step * step; column >= first; column -= step) {
      body(column, Width<kWidth>());
    }
  }
};

template <typename T>
struct Floats {
  template <int kWidth>
  static __device__ void of(const Vector<T, kWidth>& vector, float (&x)[kWidth]) {
    for (int i = 0; i < kWidth; ++i) x[i] = static_cast<float>(vector.values[i]);
  }
};

template <Shape shape, typename T, int kWidth>
__device__ void load(const T* row, int column, const Transform& transform, float (&x)[kWidth]) {
  const auto vector = *reinterpret_cast<const Vector<T, kWidth>*>(row + column);
  Floats<T>::of(vector, x);
  for (int i = 0; i < kWidth; ++i) x[i] = transform.apply<shape>(x[i]);
}

template <typename T, int kWidth>
__device__ void store(T* row, int column, const float (&gradient)[kWidth]) {
  Vector<T, kWidth> vector;
  for (int i = 0; i < kWidth; ++i) vector.values[i] = static_cast<T>(gradient[i]);
  *reinterpret_cast<Vector<T, kWidth>*>(row + column) = vector;
}

template <Shape shape, typename T, int kWidth>
__device__ float mean_square(T* student, const T* teacher, const Arguments& a, const Cluster& cluster) {
  const Transform transform = a.transform;
  const float mean = 1.0f / a.vocab, factor = 2.0f * mean * transform.factor;
  Sums squares;
  Columns::of<kWidth>(cluster, a.vocab).template sweep<kWidth>([&](int column, auto width) {
    float s[width.value], t[width.value];
    load<shape>(student, column, transform, s);
    load<shape>(teacher, column, transform, t);
    for (int i = 0; i < width.value; ++i) {
      const float difference = s[i] == t[i] ? 0.0f : transform.scale * (s[i] - t[i]);
      squares.first += difference * difference;
      s[i] = factor * difference * Transform::slope<shape>(s[i]);
    }
    if (a.with_grad) store(student, column, s);
  });
  return merge_all(squares, cluster).first * mean;
}

template <Kind kind, Shape shape, typename T, int kWidth>
__device__ float divergence(T* student, const T* teacher, const Arguments& a, const Cluster& cluster) {
  const Transform transform = a.transform;
  const Columns columns = Columns::of<kWidth>(cluster, a.vocab);
  const float scale = transform.scale * kLog2E;
  Moments moments;
  columns.template sweep<kWidth>([&](int column, auto width) {
    float s[width.value], t[width.value];
    load<shape>(student, column, transform, s);
    load<shape>(teacher, column, transform, t);
    if constexpr (kind == Kind::kReverse) {
      moments.add(s, t, scale);
    } else {
      moments.add(t, s, scale);
    }
  });
  moments = merge_all(moments, cluster);
  Row<kind> row(moments, transform, a.beta);
  float loss = moments.divergence();

  if constexpr (kind == Kind::kJsd) {
    Sums sums;
    columns.template sweep<kWidth>([&](int column, auto width) {
      float s[width.value], t[width.value];
      load<shape>(student, column, transform, s);
      load<shape>(teacher, column, transform, t);
      for (int i = 0; i < width.value; ++i) sums.merge(row.mixture_terms(s[i], t[i]));
    });
    sums = merge_all(sums, cluster);
    row.centre = sums.first;
    loss = a.beta * sums.second + (1.0f - a.beta) * sums.first;
  }
  if (a.with_grad) {
    columns.template sweep_backwards<kWidth>([&](int column, auto width) {
      float s[width.value], t[width.value];
      load<shape>(student, column, transform, s);
      load<shape>(teacher, column, transform, t);
      for (int i = 0; i < width.value; ++i) s[i] = row.gradient(s[i], t[i]) * Transform::slope<shape>(s[i]);
      store(student, column, s);
    });
  }
  return loss < 0.0f ? 0.0f : loss * kLn2;  // not fmaxf, which takes 0 for a NaN
}

template <typename T, Kind kind, Shape shape, int kWidth>
__global__ void __launch_bounds__(kThreads) divergence_rows(Arguments a) {
  const Cluster cluster;
  const int row = blockIdx.x / cluster.size();
  if (a.row_weight != nullptr && a.row_weight[row] == 0.0f) return;
  T* const student = static_cast<T*>(a.student) + row * a.student_stride;
  const T* const teacher = static_cast<const T*>(a.teacher) + row * a.teacher_stride;
  float loss;
  if constexpr (kind == Kind::kMse) {
    loss = mean_square<shape, T, kWidth>(student, teacher, a, cluster);
  } else {
    loss = divergence<kind, shape, T, kWidth>(student, teacher, a, cluster);
  }
  if (cluster.rank() == 0 && threadIdx.x == 0) a.loss[row] = loss;
}

}  // namespace lcc::linear_kl
