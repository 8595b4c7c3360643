#include "kernels/cuda/compare_rows.h"
#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/launch.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 2) CompareRowsKernel(CompareRowsArgs args) {
  const uint32_t row = blockIdx.x;
  const float* mine = args.rows + row * args.stride;
  const float* other = args.reference + row % static_cast<uint32_t>(args.references) * args.reference_stride;
  uint32_t differences = 0;
  for (size_t i = threadIdx.x; i < args.columns; i += kThreads) {
    differences += __float_as_uint(mine[i]) != __float_as_uint(other[i]);
  }
  if (differences != 0) atomicAdd(args.differences, differences);
}

}  // namespace

void CompareRows(const CudaQueue& queue, const CompareRowsArgs& args) {
  if (args.count == 0) return;
  queue.Check(Launch(CompareRowsKernel, {dim3(static_cast<unsigned>(args.count)), dim3(kThreads)},
                     queue.stream(), args),
              "launch of CompareRows");
}

}  // namespace millrace::kernels::cuda
