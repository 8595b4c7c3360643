// What every CUDA source includes first: CUDA's own headers, and what differs between nvcc and the build that
// runs the same sources on a CPU (tests/testing/cuda_on_cpu).
//
// Rules that let a source run in both: shared memory only through shared_memory(); launches only through
// Launch (launch.h); PTX only in mma.cuh; no cooperative groups, CUB, wmma.h or cuda_pipeline.h; contraction
// of a * b + c is off (-fmad=false): write __fmaf_rn where one rounding is meant.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifndef __CUDACC__
#include "cuda_on_cpu/kernel.h"
#endif

namespace millrace::kernels::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

#ifdef __CUDACC__
// The block's dynamic shared memory, of LaunchShape.shared_bytes, 16-byte aligned; unspecified at first.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char millrace_shared_memory[];
  return reinterpret_cast<T*>(millrace_shared_memory);
}
#else
using ::cuda_on_cpu::shared_memory;
#endif

}  // namespace millrace::kernels::cuda
