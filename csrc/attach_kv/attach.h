// Launches the attach kernel; framework-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lcc::attach_kv {

enum class Dtype { kFloat, kHalf, kBFloat16, kInt8, kE4M3 };

constexpr int kMaxLayers = 128;  // of one launch: their addresses are kernel arguments, of which there are 4 KiB

// Keys or values: a memory and the caches that it goes to. Strides are in elements.
struct Side {
  const void* memory;  // (layers, heads, tokens, head_dim), channels side by side
  int64_t memory_layer;
  int64_t memory_head;
  int64_t memory_token;
  const float* scale;  // null for memories that are not quantised
  int64_t scale_head;  // between heads, layers being heads of a longer list
  int64_t scale_token;
  int64_t scale_channel;
  void* caches[kMaxLayers];  // (blocks, heads, block_size, head_dim) each
  int64_t cache_block;
  int64_t cache_head;
  int64_t cache_row;
  int64_t cache_channel;
  int rotary_dim;  // channels that are rotated
};

struct Arguments {
  Side sides[2];         // keys, values
  const int64_t* slots;  // (tokens,); those outside 0 ... capacity - 1 are skipped
  const float* cos;      // (tokens, rotary_dim)
  const float* sin;      // (tokens, rotary_dim)
  int64_t block_size;    // slot s is row s % block_size of block s / block_size
  int64_t capacity;
  int layers;
  int heads;
  int tokens;
  int head_dim;
  int copies;  // blocks that get each token, one after the other
  int group;   // heads of a thread; launch() sets it
  bool interleaved;
};

cudaError_t launch(const Arguments& arguments, Dtype memory, Dtype cache, cudaStream_t stream);

}  // namespace lcc::attach_kv
