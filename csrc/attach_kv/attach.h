// Launches the attach kernel; framework-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lcc::attach_kv {

enum class Dtype { kFloat, kHalf, kBFloat16, kDouble, kInt8, kE4M3, kInt4 };

constexpr int kMaxLayers = 128;  // of one launch: their addresses are kernel arguments, of which there are 4 KiB

// A factor of every number of a memory; neighbours may share it. Strides are in elements.
struct Factors {
  const void* numbers;  // null: none
  Dtype dtype;          // kFloat, kHalf, kBFloat16 or kDouble
  int64_t layer;
  int64_t head;
  int64_t token;    // from a run of tokens to the next
  int64_t channel;  // from a run of channels to the next
  int token_run;
  int channel_run;
};

// Keys or values: a memory and the caches that it goes to. Strides are in elements.
struct Side {
  const void* memory;  // (layers, heads, tokens, head_dim); kInt4: (layers, heads, tokens, head_dim / 2) bytes
  int64_t memory_layer;
  int64_t memory_head;
  int64_t memory_token;
  int64_t memory_channel;
  Factors scale;
  void* caches[kMaxLayers];  // (blocks, heads, block_size, head_dim) each
  int64_t cache_block;
  int64_t cache_head;
  int64_t cache_row;
  int64_t cache_channel;
};

struct Arguments {
  Side sides[2];      // keys, values
  Factors cos, sin;   // (tokens, rotary_dim); the first entry of every pair is read
  const void* slots;  // (tokens,), int32 if narrow and else int64; those outside 0 ... capacity - 1 are skipped
  int64_t slot_step;
  int block_size;  // slot s is row s % block_size of block s / block_size
  int capacity;
  int layers;
  int heads;
  int tokens;
  int head_dim;
  int rotary_dim;  // channels that are rotated
  int copies;  // blocks that get each token, one after the other
  int group;   // heads of a thread; launch() sets it
  bool interleaved;
  bool narrow;
};

cudaError_t launch(const Arguments& arguments, Dtype memory, Dtype cache, cudaStream_t stream);

}  // namespace lcc::attach_kv
