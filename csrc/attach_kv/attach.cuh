// Dequantise, rotate, scatter: a thread takes the same channels of one token's keys and values through a group of heads,
// which share its rotary factors. Compiles as plain C++ too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

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

// Two neighbouring channels, the even one in the low half.
struct Int4Pair {
  uint8_t bits;

  __host__ __device__ float channel(int odd) const {
    return static_cast<float>(static_cast<int8_t>(odd ? bits & 0xF0u : bits << 4) >> 4);
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

// kWidth channels of a memory's row; neighbours in memory if there are several.
template <typename In, int kWidth>
__device__ void load_channels(const In* row, int64_t step, int channel, float (&x)[kWidth]) {
  if constexpr (kWidth > 1) {
    load(row + channel, x);
  } else {
    x[0] = static_cast<float>(row[channel * step]);
  }
}

template <int kWidth>
__device__ void load_channels(const Int4Pair* row, int64_t step, int channel, float (&x)[kWidth]) {
  if constexpr (kWidth > 1) {
    const auto pairs = *reinterpret_cast<const Vector<Int4Pair, kWidth / 2>*>(row + channel / 2);
    for (int i = 0; i < kWidth; ++i) x[i] = pairs.values[i / 2].channel(i % 2);
  } else {
    x[0] = row[channel / 2 * step].channel(channel % 2);
  }
}

// Numbers at distances of step, in one access where they lie side by side.
template <typename T, int kWidth>
__device__ void gather(const T* from, int64_t step, float (&x)[kWidth]) {
  if (step == 1 && reinterpret_cast<uintptr_t>(from) % sizeof(Vector<T, kWidth>) == 0) {
    load(from, x);
  } else {
    for (int i = 0; i < kWidth; ++i) x[i] = static_cast<float>(from[i * step]);
  }
}

template <typename T, int kWidth>
__device__ void load_factors(const Factors& f, int64_t row, int channel, int step, float (&x)[kWidth]) {
  const T* const from = static_cast<const T*>(f.numbers) + row;
  if (f.channel_run == 1) return gather(from + channel * f.channel, step * f.channel, x);
  const int first = channel / f.channel_run;
  for (int i = 0; i < kWidth; ++i) x[i] = static_cast<float>(from[first * f.channel]);
  if ((channel + (kWidth - 1) * step) / f.channel_run == first) return;
  for (int i = 1; i < kWidth; ++i) x[i] = static_cast<float>(from[(channel + i * step) / f.channel_run * f.channel]);
}

// The factors of channels channel, channel + step, ...
template <int kWidth>
__device__ void load_factors(const Factors& f, int layer, int head, int64_t token, int channel, int step,
                             float (&x)[kWidth]) {
  const int64_t row = layer * f.layer + head * f.head + static_cast<int>(token) / f.token_run * f.token;
  switch (f.dtype) {
    case Dtype::kHalf: return load_factors<__half>(f, row, channel, step, x);
    case Dtype::kBFloat16: return load_factors<__nv_bfloat16>(f, row, channel, step, x);
    case Dtype::kDouble: return load_factors<double>(f, row, channel, step, x);
    default: return load_factors<float>(f, row, channel, step, x);
  }
}

// kWidth channels of a memory, times their scales.
template <typename In, int kWidth>
__device__ void read(const Side& side, int layer, int head, int64_t token, int channel, float (&x)[kWidth]) {
  const In* const row = static_cast<const In*>(side.memory) + layer * side.memory_layer + head * side.memory_head +
                        token * side.memory_token;
  load_channels(row, side.memory_channel, channel, x);
  if (side.scale.numbers == nullptr) return;
  float factors[kWidth];
  load_factors(side.scale, layer, head, token, channel, 1, factors);
  for (int i = 0; i < kWidth; ++i) x[i] *= factors[i];
}

// To every copy of a row of the layer.
template <typename Out, int kWidth>
__device__ void write(const Side& side, int layer, int64_t row, int copies, int channel, const float (&x)[kWidth]) {
  Out* to = static_cast<Out*>(side.caches[layer]) + row + channel * side.cache_channel;
  for (int copy = 0; copy < copies; ++copy, to += side.cache_block) store(to, x);
}

__device__ inline void rotate(float& a, float& b, float cos, float sin) {
  const float turned = a * cos - b * sin;
  b = b * cos + a * sin;
  a = turned;
}

// Two runs of channels: pairs lie across them, or within each if the pairs are interleaved and the runs long enough.
template <int kWidth>
__device__ void rotate(float (&a)[kWidth], float (&b)[kWidth], const float (&cos)[kWidth], const float (&sin)[kWidth],
                       bool interleaved) {
  if constexpr (kWidth > 1) {
    if (interleaved) {
      for (int i = 0; i < kWidth / 2; ++i) {
        rotate(a[2 * i], a[2 * i + 1], cos[i], sin[i]);
        rotate(b[2 * i], b[2 * i + 1], cos[kWidth / 2 + i], sin[kWidth / 2 + i]);
      }
      return;
    }
  }
  for (int i = 0; i < kWidth; ++i) rotate(a[i], b[i], cos[i], sin[i]);
}

// What the threads share out of a token: two runs of rotated channels each, or one of the others.
template <int kWidth>
__host__ __device__ int items_of(const Arguments& a) {
  return a.rotary_dim / (2 * kWidth) + (a.head_dim - a.rotary_dim) / kWidth;
}

// Blocks are ordered (layer, group of heads, run of tokens).
template <typename In, typename Out, int kWidth>
__global__ void __launch_bounds__(kThreads) attach_rows(const __grid_constant__ Arguments a, unsigned blocks_per_group) {
  const int group = static_cast<int>(blockIdx.x / blocks_per_group);
  const int groups = (a.heads + a.group - 1) / a.group;
  const int layer = group / groups;
  const int items = items_of<kWidth>(a), pairs = a.rotary_dim / (2 * kWidth);
  const int index = static_cast<int>(blockIdx.x % blocks_per_group * kThreads + threadIdx.x);
  const int64_t token = index / items;
  if (token >= a.tokens) return;
  const int64_t place = token * a.slot_step;
  const int64_t slot = a.narrow ? static_cast<const int32_t*>(a.slots)[place] : static_cast<const int64_t*>(a.slots)[place];
  if (slot < 0 || slot >= a.capacity) return;

  const int item = index % items;
  const bool rotated = item < pairs;
  int first = a.rotary_dim + (item - pairs) * kWidth, second = first;
  float cos[kWidth], sin[kWidth];
  if (rotated) {
    first = item * kWidth * (a.interleaved ? 2 : 1);
    second = first + (a.interleaved ? kWidth : a.rotary_dim / 2);
    load_factors(a.cos, 0, 0, token, first, a.interleaved ? 2 : 1, cos);
    load_factors(a.sin, 0, 0, token, first, a.interleaved ? 2 : 1, sin);
  }
  const Side &keys = a.sides[0], &values = a.sides[1];
  const int64_t block = static_cast<int>(slot) / a.block_size, row = static_cast<int>(slot) % a.block_size;
  const int64_t key_row = block * keys.cache_block + row * keys.cache_row;
  const int64_t value_row = block * values.cache_block + row * values.cache_row;
  const int begin = group % groups * a.group;
  const int end = begin + a.group < a.heads ? begin + a.group : a.heads;
  for (int head = begin; head < end; ++head) {
    // All of a head is read before any of it is written: the caches might be the memory, for all the compiler knows.
    float key[2][kWidth], value[2][kWidth];
    read<In>(keys, layer, head, token, first, key[0]);
    if (rotated) read<In>(keys, layer, head, token, second, key[1]);
    read<In>(values, layer, head, token, first, value[0]);
    if (rotated) read<In>(values, layer, head, token, second, value[1]);
    if (rotated) rotate(key[0], key[1], cos, sin, a.interleaved);
    write<Out>(keys, layer, key_row + head * keys.cache_head, a.copies, first, key[0]);
    if (rotated) write<Out>(keys, layer, key_row + head * keys.cache_head, a.copies, second, key[1]);
    write<Out>(values, layer, value_row + head * values.cache_head, a.copies, first, value[0]);
    if (rotated) write<Out>(values, layer, value_row + head * values.cache_head, a.copies, second, value[1]);
  }
}

}  // namespace lcc::attach_kv
