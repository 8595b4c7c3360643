// NVIDIA's libraries that are loaded when they are first needed, so that libmillrace_cuda.so itself loads
// without them: their functions are ours, which call theirs (nccl_functions.cc,
// kernels/cuda/cublas_functions.cc).
#pragma once

#include "absl/status/status.h"

namespace millrace {

// FAILED_PRECONDITION, one line: it is not there, or lacks a function. Thread: any.
absl::Status LoadNccl();

}  // namespace millrace
