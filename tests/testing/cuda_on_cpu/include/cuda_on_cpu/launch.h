// Starting kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>

namespace cuda_on_cpu {

struct KernelLaunch {
  const void* function = nullptr;  // the kernel; KernelName() says its name
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  std::function<void()> thread_body;  // what each CUDA thread runs: the kernel on its arguments
};

// Checks the launch against CUDA's limits and gives it to the stream (EnqueueKernel).
cudaError_t StartKernel(cudaStream_t stream, KernelLaunch launch);

// Orders of lanes, warps and blocks follow from this, the kernel and the block's index. Thread: any, while no
// kernel runs. The default is 1.
void SetSeed(uint64_t seed);

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Params>
KernelLaunch MakeLaunch(void (*kernel)(Params...), const LaunchShape& shape,
                        std::type_identity_t<Params>... args) {
  static_assert((std::is_trivially_copyable_v<Params> && ...), "parameters are copied byte by byte");
  static_assert((sizeof(Params) + ... + 0) <= 4096, "CUDA allows 4096 bytes of parameters");
  return {reinterpret_cast<const void*>(kernel), shape.grid, shape.block, shape.shared_bytes,
          [kernel, args...] { kernel(args...); }};
}

template <class... Params>
cudaError_t Launch(void (*kernel)(Params...), const LaunchShape& shape,
                   std::type_identity_t<Params>... args) {
  return StartKernel(shape.stream, MakeLaunch(kernel, shape, args...));
}

}  // namespace cuda_on_cpu
