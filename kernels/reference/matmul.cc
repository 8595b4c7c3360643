#include "kernels/matmul.h"

#include "kernels/reference/dequantize.h"
#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {

void MatMul(const MatMulArgs& args) {
  const size_t n = args.weights.rows;
  const size_t k = args.weights.columns;
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t c = 0; c < n; ++c) {
      float sum = 0;
      for (size_t i = 0; i < k; ++i) sum += args.x[r * k + i] * WeightAt(args.weights, c, i);
      float& out = args.out[r * n + c];
      out = args.accumulate ? out + sum : sum;
    }
  }
}

}  // namespace millrace::kernels::reference
