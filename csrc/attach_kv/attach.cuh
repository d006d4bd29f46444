// Dequantise, rotate, scatter: a thread takes the same channels of one token through a group of heads, so that they share
// its rotary factors. Compiles as plain C++ too.
#pragma once

#include <cmath>
#include <cstring>

#include "../vector.cuh"
#include "attach.h"

namespace lcc::attach_kv {

constexpr int kThreads = 256;

struct E4M3 {
  uint8_t bits;

  __host__ __device__ explicit operator float() const {
    const uint32_t magnitude = bits & 0x7Fu;
    if (magnitude == 0x7Fu) return NAN;
    const uint32_t shifted = magnitude << 20 | (bits & 0x80u) << 24;
    float x;
    memcpy(&x, &shifted, sizeof x);
    return x * 0x1p120f;  // the exponents' biases are 120 apart, subnormal numbers included
  }
};

template <typename T, int kWidth>
__device__ void load(const T* from, float (&x)[kWidth]) {
  const auto vector = *reinterpret_cast<const Vector<T, kWidth>*>(from);
  for (int i = 0; i < kWidth; ++i) x[i] = static_cast<float>(vector.values[i]);
}

template <typename T, int kWidth>
__device__ void store(T* to, const float (&x)[kWidth]) {
  Vector<T, kWidth> vector;
  for (int i = 0; i < kWidth; ++i) vector.values[i] = static_cast<T>(x[i]);
  *reinterpret_cast<Vector<T, kWidth>*>(to) = vector;
}

// The pair (a, b) of channels, each by its own entry of the tables.
__device__ inline void rotate(float& a, float& b, float cos_a, float sin_a, float cos_b, float sin_b) {
  const float turned = a * cos_a - b * sin_a;
  b = b * cos_b + a * sin_b;
  a = turned;
}

// Two runs of channels: pairs lie across them, or within each if the pairs are interleaved and the runs long enough.
template <int kWidth>
__device__ void rotate(float (&a)[kWidth], float (&b)[kWidth], const float (&cos)[2][kWidth],
                       const float (&sin)[2][kWidth], bool interleaved) {
  if constexpr (kWidth > 1) {
    if (interleaved) {
      for (int i = 0; i < kWidth; i += 2) {
        rotate(a[i], a[i + 1], cos[0][i], sin[0][i], cos[0][i + 1], sin[0][i + 1]);
        rotate(b[i], b[i + 1], cos[1][i], sin[1][i], cos[1][i + 1], sin[1][i + 1]);
      }
      return;
    }
  }
  for (int i = 0; i < kWidth; ++i) rotate(a[i], b[i], cos[0][i], sin[0][i], cos[1][i], sin[1][i]);
}

template <typename In, int kWidth>
__device__ void load_scaled(const In* row, const float* scale, int64_t scale_channel, int channel, float (&x)[kWidth]) {
  load(row + channel, x);
  if (scale == nullptr) return;
  for (int i = 0; i < kWidth; ++i) x[i] *= scale[(channel + i) * scale_channel];
}

// Blocks are ordered (layer, side, group of heads, run of tokens).
template <typename In, typename Out, int kWidth>
__global__ void __launch_bounds__(kThreads) attach_rows(const __grid_constant__ Arguments a, int64_t blocks_per_group) {
  const int64_t group = blockIdx.x / blocks_per_group;
  const int groups = (a.heads + a.group - 1) / a.group;
  const int layer = static_cast<int>(group / groups / 2);
  const Side& side = a.sides[group / groups % 2];
  const int pairs = side.rotary_dim / (2 * kWidth);
  const int items = pairs + (a.head_dim - side.rotary_dim) / kWidth;
  const int64_t index = blockIdx.x % blocks_per_group * kThreads + threadIdx.x;
  const int64_t token = index / items;
  if (token >= a.tokens) return;
  const int64_t slot = a.slots[token];
  if (slot < 0 || slot >= a.capacity) return;

  const int item = static_cast<int>(index % items);
  const bool rotated = item < pairs;
  int first = side.rotary_dim + (item - pairs) * kWidth, second = first;
  float cos[2][kWidth], sin[2][kWidth];
  if (rotated) {
    first = item * kWidth * (a.interleaved ? 2 : 1);
    second = first + (a.interleaved ? kWidth : side.rotary_dim / 2);
    const int64_t row = token * side.rotary_dim;
    load(a.cos + row + first, cos[0]);
    load(a.cos + row + second, cos[1]);
    load(a.sin + row + first, sin[0]);
    load(a.sin + row + second, sin[1]);
  }
  Out* const rows = static_cast<Out*>(side.caches[layer]) + slot / a.block_size * side.cache_block +
                    slot % a.block_size * side.cache_row;
  const In* const memory = static_cast<const In*>(side.memory) + layer * side.memory_layer + token * side.memory_token;
  const int begin = static_cast<int>(group % groups) * a.group;
  const int end = begin + a.group < a.heads ? begin + a.group : a.heads;
  for (int head = begin; head < end; ++head) {
    const In* const from = memory + head * side.memory_head;
    const float* scale = side.scale;
    if (scale != nullptr) {
      scale += (static_cast<int64_t>(layer) * a.heads + head) * side.scale_head + token * side.scale_token;
    }
    float x[kWidth], y[kWidth];
    load_scaled(from, scale, side.scale_channel, first, x);
    if (rotated) {
      load_scaled(from, scale, side.scale_channel, second, y);
      rotate(x, y, cos, sin, a.interleaved);
    }
    for (int copy = 0; copy < a.copies; ++copy) {
      Out* const to = rows + copy * side.cache_block + head * side.cache_head;
      store(to + first * side.cache_channel, x);
      if (rotated) store(to + second * side.cache_channel, y);
    }
  }
}

}  // namespace lcc::attach_kv
