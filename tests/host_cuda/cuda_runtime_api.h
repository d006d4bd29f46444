// As much of CUDA as a kernel needs to run on the CPU: the threads of a block are coroutines that take turns at barriers.
#pragma once

#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static

using cudaError_t = int;
using cudaStream_t = void*;

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx;

class Block {
 public:
  // Runs body on every thread of one block.
  static void run(unsigned block, unsigned threads, const std::function<void()>& body) {
    blockIdx.x = block;
    body_ = &body;
    std::vector<std::vector<char>> stacks(threads, std::vector<char>(1 << 15));
    contexts_.assign(threads, {});
    finished_.assign(threads, false);
    for (unsigned thread = 0; thread < threads; ++thread) {
      getcontext(&contexts_[thread]);
      contexts_[thread].uc_stack.ss_sp = stacks[thread].data();
      contexts_[thread].uc_stack.ss_size = stacks[thread].size();
      contexts_[thread].uc_link = &scheduler_;
      makecontext(&contexts_[thread], &Block::enter, 0);
    }
    for (unsigned running = threads; running > 0;) {
      for (unsigned thread = 0; thread < threads; ++thread) {
        if (finished_[thread]) continue;
        threadIdx.x = thread;
        swapcontext(&scheduler_, &contexts_[thread]);
        running -= finished_[thread];
      }
    }
  }

  // Lets all other threads come here too.
  static void wait() {
    const unsigned thread = threadIdx.x;
    swapcontext(&contexts_[thread], &scheduler_);
  }

 private:
  static void enter() {
    const unsigned thread = threadIdx.x;
    (*body_)();
    finished_[thread] = true;
  }

  inline static ucontext_t scheduler_;
  inline static std::vector<ucontext_t> contexts_;
  inline static std::vector<bool> finished_;
  inline static const std::function<void()>* body_;
};

inline void __syncthreads() { Block::wait(); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  static float values[1024];
  values[threadIdx.x] = value;
  Block::wait();
  const float other = values[threadIdx.x ^ mask];
  Block::wait();
  return other;
}
