// Loss and logit gradient of a row, in place, by a cluster of blocks (one block before sm_90). Logits are read twice
// (kJsd three times, kMse once). A cluster keeps few rows in flight and the last sweep runs backwards: both so that it
// finds its logits in L2.
#pragma once

#include <cooperative_groups.h>

#include "../vector.cuh"
#include "rows.h"

namespace lcc::linear_kl {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

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

template <typename T, int kWidth>
__device__ void load(const T* row, int column, int vocab, const Transform& transform, float (&z)[kWidth]) {
  if (column + kWidth <= vocab) {
    const auto vector = *reinterpret_cast<const Vector<T, kWidth>*>(row + column);
    for (int i = 0; i < kWidth; ++i) z[i] = transform(static_cast<float>(vector.values[i]));
  } else {
    for (int i = 0; i < kWidth; ++i) {
      z[i] = column + i < vocab ? transform(static_cast<float>(row[column + i])) : kLowest;
    }
  }
}

template <typename T, int kWidth>
__device__ void store(T* row, int column, int vocab, const float (&gradient)[kWidth]) {
  if (column + kWidth <= vocab) {
    Vector<T, kWidth> vector;
    for (int i = 0; i < kWidth; ++i) vector.values[i] = static_cast<T>(gradient[i]);
    *reinterpret_cast<Vector<T, kWidth>*>(row + column) = vector;
  } else {
    for (int i = 0; i < kWidth && column + i < vocab; ++i) row[column + i] = static_cast<T>(gradient[i]);
  }
}

template <typename T, Kind kind, int kWidth>
__global__ void __launch_bounds__(kThreads) divergence_rows(Arguments a) {
  const Cluster cluster;
  const int row = blockIdx.x / cluster.size();
  if (a.row_weight != nullptr && a.row_weight[row] == 0.0f) return;
  T* const student = static_cast<T*>(a.student) + row * a.student_stride;
  const T* const teacher = static_cast<const T*>(a.teacher) + row * a.teacher_stride;
  const Transform transform = a.transform;
  const int vocab = a.vocab;
  const int first = (cluster.rank() * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
  const int step = cluster.size() * kThreads * kWidth;
  const bool writes_loss = cluster.rank() == 0 && threadIdx.x == 0;
  float s[kWidth], t[kWidth];

  if constexpr (kind == Kind::kMse) {
    Sums squares;
    const float mean = 1.0f / vocab;
    for (int column = first; column < vocab; column += step) {
      load(student, column, vocab, transform, s);
      load(teacher, column, vocab, transform, t);
      for (int i = 0; i < kWidth; ++i) {
        const float difference = s[i] - t[i];
        squares.first += difference * difference;
        s[i] = 2.0f * mean * difference * transform.slope(s[i]);
      }
      if (a.with_grad) store(student, column, vocab, s);
    }
    const float total = merge_all(squares, cluster).first;
    if (writes_loss) a.loss[row] = total * mean;
    return;
  }

  Moments moments;
  for (int column = first; column < vocab; column += step) {
    load(student, column, vocab, transform, s);
    load(teacher, column, vocab, transform, t);
    if constexpr (kind == Kind::kReverse) {
      moments.add(s, t);
    } else {
      moments.add(t, s);
    }
  }
  moments = merge_all(moments, cluster);
  const Normalizer normalizer(moments, kind);
  float loss = moments.divergence(), centre = loss;

  if constexpr (kind == Kind::kJsd) {
    Sums sums;
    for (int column = first; column < vocab; column += step) {
      load(student, column, vocab, transform, s);
      load(teacher, column, vocab, transform, t);
      for (int i = 0; i < kWidth; ++i) {
        sums.merge(mixture_terms(normalizer.log_p(s[i]), normalizer.log_q(t[i]), a.beta));
      }
    }
    sums = merge_all(sums, cluster);
    centre = sums.first;
    loss = a.beta * sums.second + (1.0f - a.beta) * sums.first;
  }
  if (writes_loss) a.loss[row] = loss < 0.0f ? 0.0f : loss;  // not fmaxf, which takes 0 for a NaN
  if (!a.with_grad || first >= vocab) return;

  for (int column = first + (vocab - 1 - first) / step * step; column >= first; column -= step) {
    load(student, column, vocab, transform, s);
    load(teacher, column, vocab, transform, t);
    for (int i = 0; i < kWidth; ++i) {
      const float g = gradient(kind, normalizer.log_p(s[i]), normalizer.log_q(t[i]), centre, a.beta);
      s[i] = g * transform.slope(s[i]);
    }
    store(student, column, vocab, s);
  }
}

}  // namespace lcc::linear_kl
