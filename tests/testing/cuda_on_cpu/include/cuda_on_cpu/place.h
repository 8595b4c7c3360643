// Where the running CUDA thread is: its indices, its block, the block's shared memory.
#pragma once

#include <vector_types.h>

#include <cstddef>

namespace cuda_on_cpu {

struct BlockPlace {
  dim3 grid_dim;
  dim3 block_dim;
  uint3 block_index;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
};

struct ThreadPlace {
  uint3 thread_index;
  const BlockPlace* block = nullptr;
};

// Of the CUDA thread that this OS thread runs now; null outside kernels. A CUDA thread stays on one OS
// thread.
extern constinit thread_local ThreadPlace* current_thread __attribute__((tls_model("initial-exec")));

// A place in a source, for reports: the default argument of what kernels call.
struct Site {
  const char* file;
  int line;
  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Ends the process: prints kernel, block, thread, place and `what`. For kernels that break a rule of CUDA.
[[noreturn]] void Fail(const char* what, Site site);

// The block's dynamic shared memory: bytes 0xff at the block's start (float NaN, int -1); what lies behind
// its end is not mapped.
template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(current_thread->block->shared);
}

}  // namespace cuda_on_cpu
