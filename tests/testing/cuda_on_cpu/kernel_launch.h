// Between the stand-in's runtime (streams, memory) and its execution of kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "cuda_on_cpu/launch.h"

namespace cuda_on_cpu {

// The runtime's: puts the launch on the stream; whatever runs the stream calls RunKernel.
cudaError_t EnqueueKernel(cudaStream_t stream, KernelLaunch launch);

// The runtime's: cudaDevAttrMaxSharedMemoryPerBlockOptin of the calling thread's device.
size_t MaxSharedBytesPerBlock();

// Runs all blocks and returns. Thread: any; several launches may run at once, each on its caller's thread.
void RunKernel(const KernelLaunch& launch);

// Its demangled name, from the symbol table of the file that holds it; its address where that has none.
std::string KernelName(const void* function);

// "kernel f, block (0, 0, 0), thread (5, 0, 0)", for reports; "" outside kernels.
std::string DescribePlace();

}  // namespace cuda_on_cpu
