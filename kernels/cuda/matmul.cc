#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul_float.h"
#include "kernels/cuda/matmul_int8.h"

namespace millrace::kernels::cuda {

size_t MatMulScratchFloats(size_t max_rows, size_t max_columns) {
  return MatMulFloatScratchFloats(max_rows, max_columns);
}

void MatMulAll(const CudaQueue& queue, absl::Span<const MatMulArgs> products) {
  for (size_t begin = 0; begin < products.size();) {
    if (IsFloatType(products[begin].weights.type)) {
      MatMulFloat(queue, products[begin++]);
      continue;
    }
    if (products[begin].x.quantized == nullptr) {
      return queue.Check(cudaErrorInvalidValue, "product of weights and activations that are not rounded");
    }
    size_t end = begin + 1;
    while (end < products.size() && !IsFloatType(products[end].weights.type)) ++end;
    MatMulInt8(queue, products.subspan(begin, end - begin));
    begin = end;
  }
}

}  // namespace millrace::kernels::cuda
