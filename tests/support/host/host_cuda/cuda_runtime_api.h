// As much of CUDA as a kernel needs to run on the CPU. A block is a system thread, its shared memory thread-local; the
// block's threads are coroutines that take turns at barriers.
#pragma once

#include <pthread.h>
#include <ucontext.h>

#include <functional>
#include <thread>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __grid_constant__
#define __shared__ static thread_local

using cudaError_t = int;
using cudaStream_t = void*;

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx;

class Block {
 public:
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

  // Lets all other threads of the block come here too; thread 0 is the first to go on.
  static void wait() { swapcontext(&contexts_[threadIdx.x], &scheduler_); }

 private:
  static void enter() {
    const unsigned thread = threadIdx.x;
    (*body_)();
    finished_[thread] = true;
  }

  inline static thread_local ucontext_t scheduler_;
  inline static thread_local std::vector<ucontext_t> contexts_;
  inline static thread_local std::vector<bool> finished_;
  inline static thread_local const std::function<void()>* body_;
};

// The cluster that is running; one at a time.
class HostCluster {
 public:
  static void run(unsigned index, unsigned blocks, unsigned threads, const std::function<void()>& body) {
    anchors_.assign(blocks, nullptr);
    pthread_barrier_init(&barrier_, nullptr, blocks);
    std::vector<std::thread> workers;
    for (unsigned block = 0; block < blocks; ++block) {
      workers.emplace_back([=, &body] {
        rank_ = block;
        anchors_[block] = &anchor_;
        pthread_barrier_wait(&barrier_);
        Block::run(index * blocks + block, threads, body);
      });
    }
    for (auto& worker : workers) worker.join();
    pthread_barrier_destroy(&barrier_);
  }

  static unsigned size() { return anchors_.size(); }
  static unsigned rank() { return rank_; }

  static void wait() {
    Block::wait();
    if (threadIdx.x == 0) pthread_barrier_wait(&barrier_);
  }

  // A variable lies as far from the anchor in one block as in another.
  template <typename V>
  static V* in_block(V* shared, unsigned block) {
    return reinterpret_cast<V*>(anchors_[block] + (reinterpret_cast<char*>(shared) - &anchor_));
  }

 private:
  inline static pthread_barrier_t barrier_;
  inline static std::vector<char*> anchors_;
  inline static thread_local char anchor_;
  inline static thread_local unsigned rank_;
};

inline void __syncthreads() { Block::wait(); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  static thread_local float values[1024];
  values[threadIdx.x] = value;
  Block::wait();
  const float other = values[threadIdx.x ^ mask];
  Block::wait();
  return other;
}
