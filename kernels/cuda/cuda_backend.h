// The op table of one CUDA device (compute capability 8.0 and up).
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_queue.h"

namespace millrace::kernels::cuda {

// Quantised weights multiply activations rounded to 8 bits (ActivationType::kInt8), F16 and BF16 ones
// activations rounded to their own type, F32 ones float32. KV types kF16 and kI8. Numeric class
// "cuda/sm_90/cublas-130200/int8": one for each compute capability
// and version of cuBLASLt; without that library "cuda/sm_90/int8".
class CudaBackend : public Backend {
 public:
  // The first error of any op since the backend was made.
  virtual absl::Status status() const = 0;
  virtual const CudaQueue& queue() const = 0;
  // Lines for people on what cuBLASLt does and why, or why not; grows as matrices are packed.
  virtual const std::vector<std::string>& report() const = 0;
};

// Ops are enqueued on `stream`, of the device of `traits`, which outlives the backend.
std::unique_ptr<CudaBackend> MakeCudaBackend(cudaStream_t stream, const DeviceTraits& traits);

}  // namespace millrace::kernels::cuda
