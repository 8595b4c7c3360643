// Starts kernels: the only place that does.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/cuda/kernel.cuh"

namespace millrace::kernels::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // of dynamic shared memory
};

// Enqueues `kernel` with arguments converted to its parameters' types.
template <class... Params, class... Args>
cudaError_t Launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args));
#ifdef __CUDACC__
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (shape.shared_bytes > kAlwaysAllowed) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return [&](Params... params) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&params))..., nullptr};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), shape.grid, shape.block, pointers,
                            shape.shared_bytes, stream);
  }(std::forward<Args>(args)...);
#else
  return ::cuda_on_cpu::Launch(kernel, {shape.grid, shape.block, shape.shared_bytes, stream},
                               Params(std::forward<Args>(args))...);
#endif
}

}  // namespace millrace::kernels::cuda
