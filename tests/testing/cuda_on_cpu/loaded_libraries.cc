#include "worker/device/cuda/loaded_libraries.h"

#include <cstdlib>

namespace millrace {

// NCCL's functions are part of the library here. CUDA_ON_CPU_WITHOUT_NCCL lets it be missing.
absl::Status LoadNccl() {
  if (std::getenv("CUDA_ON_CPU_WITHOUT_NCCL") == nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError("several devices need NCCL, which cannot be loaded: left out");
}

}  // namespace millrace
