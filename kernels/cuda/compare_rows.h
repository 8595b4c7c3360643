// Whether rows have equal bits, told by the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_queue.h"

namespace millrace::kernels::cuda {

// All in device memory.
struct CompareRowsArgs {
  const float* rows = nullptr;  // [count, columns], row r compared with row r % references of
  size_t count = 0;
  size_t stride = 0;                 // floats from one row to the next
  const float* reference = nullptr;  // [references, columns]
  size_t references = 0;
  size_t reference_stride = 0;
  size_t columns = 0;
  uint32_t* differences = nullptr;  // added to: the number of floats whose bits differ
};

void CompareRows(const CudaQueue& queue, const CompareRowsArgs& args);

}  // namespace millrace::kernels::cuda
