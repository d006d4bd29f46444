// Runs csrc's attach kernel on the CPU, to float32 caches, channels taken four at a time or singly.
#include "attach_kv/attach.cuh"

using namespace lcc::attach_kv;

namespace {

template <typename In>
void run(const Arguments& arguments, bool wide) {
  const int items = wide ? items_of<4>(arguments) : items_of<1>(arguments);
  const unsigned blocks = (arguments.tokens * items + kThreads - 1) / kThreads;
  const int groups = (arguments.heads + arguments.group - 1) / arguments.group;
  for (unsigned block = 0; block < arguments.layers * groups * blocks; ++block) {
    HostCluster::run(block, 1, kThreads, [&] {
      if (wide) {
        attach_rows<In, float, 4>(arguments, blocks);
      } else {
        attach_rows<In, float, 1>(arguments, blocks);
      }
    });
  }
}

}  // namespace

Factors factors_of(void* const*& pointers, const int64_t*& numbers) {
  Factors f{};
  f.numbers = *pointers++;
  f.dtype = static_cast<Dtype>(*numbers++);
  for (int64_t* member : {&f.layer, &f.head, &f.token, &f.channel}) *member = *numbers++;
  f.token_run = static_cast<int>(*numbers++);
  f.channel_run = static_cast<int>(*numbers++);
  return f;
}

// pointers: slots, cos, sin, then of keys and of values the memory, the scale and a cache a layer.
// numbers: slot_step, narrow, block_size, capacity, layers, heads, tokens, head_dim, rotary_dim, copies, group,
// interleaved, then of each pointer in turn what its struct has.
extern "C" void run_attach(void* const* pointers, const int64_t* numbers, int memory, bool wide) {
  Arguments a{};
  a.slots = *pointers++;
  a.slot_step = *numbers++;
  a.narrow = *numbers++ != 0;
  for (int* member : {&a.block_size, &a.capacity, &a.layers, &a.heads, &a.tokens, &a.head_dim, &a.rotary_dim,
                      &a.copies, &a.group}) {
    *member = static_cast<int>(*numbers++);
  }
  a.interleaved = *numbers++ != 0;
  a.cos = factors_of(pointers, numbers);
  a.sin = factors_of(pointers, numbers);
  for (Side& side : a.sides) {
    side.memory = *pointers++;
    for (int64_t* member : {&side.memory_layer, &side.memory_head, &side.memory_token, &side.memory_channel}) {
      *member = *numbers++;
    }
    side.scale = factors_of(pointers, numbers);
    for (int layer = 0; layer < a.layers; ++layer) side.caches[layer] = *pointers++;
    for (int64_t* member : {&side.cache_block, &side.cache_head, &side.cache_row, &side.cache_channel}) {
      *member = *numbers++;
    }
  }
  switch (static_cast<Dtype>(memory)) {
    case Dtype::kInt8: return run<int8_t>(a, wide);
    case Dtype::kE4M3: return run<E4M3>(a, wide);
    case Dtype::kInt4: return run<Int4Pair>(a, wide);
    default: return run<float>(a, wide);
  }
}
