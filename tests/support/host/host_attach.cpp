// Runs csrc's attach kernel on the CPU, to float32 caches, channels taken four at a time or singly.
#include "attach_kv/attach.cuh"

using namespace lcc::attach_kv;

namespace {

template <typename In>
void run(const Arguments& arguments, bool wide) {
  const int64_t items = arguments.head_dim / (wide ? 4 : 1);
  const int64_t blocks = (arguments.tokens * items + kThreads - 1) / kThreads;
  const int groups = (arguments.heads + arguments.group - 1) / arguments.group;
  for (int64_t block = 0; block < 2 * arguments.layers * groups * blocks; ++block) {
    HostCluster::run(static_cast<unsigned>(block), 1, kThreads, [&] {
      if (wide) {
        attach_rows<In, float, 4>(arguments, blocks);
      } else {
        attach_rows<In, float, 1>(arguments, blocks);
      }
    });
  }
}

}  // namespace

// pointers: slots, cos, sin, then of keys and of values the memory, the scale and a cache a layer.
// numbers: block_size, capacity, layers, heads, tokens, head_dim, copies, group, interleaved, rotary_dim, then of keys
// and of values the strides of the memory (3), of the scale (3) and of the caches (4).
extern "C" void run_attach(void* const* pointers, const int64_t* numbers, int memory, bool wide) {
  Arguments a{};
  a.slots = static_cast<const int64_t*>(*pointers++);
  a.cos = static_cast<const float*>(*pointers++);
  a.sin = static_cast<const float*>(*pointers++);
  a.block_size = *numbers++;
  a.capacity = *numbers++;
  for (int* member : {&a.layers, &a.heads, &a.tokens, &a.head_dim, &a.copies, &a.group}) {
    *member = static_cast<int>(*numbers++);
  }
  a.interleaved = *numbers++ != 0;
  a.sides[0].rotary_dim = static_cast<int>(*numbers++);
  for (Side& side : a.sides) {
    side.memory = *pointers++;
    side.scale = static_cast<const float*>(*pointers++);
    for (int layer = 0; layer < a.layers; ++layer) side.caches[layer] = *pointers++;
    for (int64_t* member : {&side.memory_layer, &side.memory_head, &side.memory_token, &side.scale_head,
                            &side.scale_token, &side.scale_channel, &side.cache_block, &side.cache_head,
                            &side.cache_row, &side.cache_channel}) {
      *member = *numbers++;
    }
  }
  switch (static_cast<Dtype>(memory)) {
    case Dtype::kInt8: return run<int8_t>(a, wide);
    case Dtype::kE4M3: return run<E4M3>(a, wide);
    default: return run<float>(a, wide);
  }
}
