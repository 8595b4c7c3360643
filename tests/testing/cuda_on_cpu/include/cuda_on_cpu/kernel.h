// What the .cu sources need to compile as C++ and run on the CPU. Included after CUDA's own headers, which
// supply vector types, half and bfloat16 arithmetic and the runtime's declarations.
//
// Semantics: CUDA C++ Programming Guide, "C++ Language Extensions", and PTX ISA 8.5. Every CUDA thread is a
// fiber. The lanes of a warp run one after another in an order drawn from a seed, each until it waits for
// others; so do the warps of a block, and the blocks of a grid. Not modelled: time, occupancy, weak memory
// order, and races other than those that the lane order shows or the race detector finds.
#pragma once

#include <cuda_runtime.h>

#include "cuda_on_cpu/atomic.h"
#include "cuda_on_cpu/intrinsics.h"
#include "cuda_on_cpu/launch.h"
#include "cuda_on_cpu/place.h"
#include "cuda_on_cpu/warp.h"

// host_defines.h leaves __global__, __device__, __host__ and __constant__ empty.
#define __launch_bounds__(...)
// A variable so marked would silently be each thread's own.
#undef __shared__
#define __shared__ static_assert(false, "use shared_memory<T>()");

#define threadIdx (::cuda_on_cpu::current_thread->thread_index)
#define blockIdx (::cuda_on_cpu::current_thread->block->block_index)
#define blockDim (::cuda_on_cpu::current_thread->block->block_dim)
#define gridDim (::cuda_on_cpu::current_thread->block->grid_dim)
