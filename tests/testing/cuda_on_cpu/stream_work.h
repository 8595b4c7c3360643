// Between the stand-in's streams and what it runs on them besides kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace cuda_on_cpu {

// The runtime's: puts `work` on the stream, to be run once in its order by the stream's thread, with access
// to device memory; into the graph, to be run at each launch, where the stream is being captured.
cudaError_t EnqueueWork(cudaStream_t stream, std::function<void()> work);

}  // namespace cuda_on_cpu
