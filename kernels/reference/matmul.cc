#include "kernels/matmul.h"

#include "kernels/reference/dequantize.h"
#include "kernels/reference/ops.h"

namespace millrace::kernels::reference {
namespace {

float SegmentSum(const MatMulArgs& args, size_t row, size_t n, size_t begin, size_t end) {
  float sum = 0;
  for (size_t i = begin; i < end; ++i)
    sum += args.x.x[row * args.x.columns + i] * WeightAt(args.weights, n, i);
  return sum;
}

void MultiplyOne(const MatMulArgs& args, size_t row, size_t n) {
  const size_t stride = args.out_stride == 0 ? args.weights.rows : args.out_stride;
  float* out = args.out + row * stride + n;
  const size_t segments = args.segment_ends.empty() ? 1 : args.segment_ends.size();
  size_t begin = 0;
  for (size_t i = 0; i < segments; ++i) {
    const size_t end = args.segment_ends.empty() ? args.weights.columns : args.segment_ends[i];
    const float sum = SegmentSum(args, row, n, begin, end);
    if (args.store == MatMulStore::kPartials) {
      out[i * args.partial_stride] = sum;
    } else {
      *out = args.store == MatMulStore::kReplace && i == 0 ? sum : *out + sum;
    }
    begin = end;
  }
}

}  // namespace

void MatMul(const MatMulArgs& args) {
  for (size_t r = 0; r < args.x.rows; ++r) {
    for (size_t n = 0; n < args.weights.rows; ++n) MultiplyOne(args, r, n);
  }
}

}  // namespace millrace::kernels::reference
