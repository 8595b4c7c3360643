#include <algorithm>

#include "bench/cuda/bench.h"
#include "kernels/cuda/cuda_ops.h"

namespace millrace::kernels::cuda {

void BenchSmallOps(const BenchOptions& options, const CudaQueue& queue) {
  const size_t columns = options.smoke ? 256 : 4096, ffn = options.smoke ? 512 : 14336;
  for (const size_t rows : {size_t{1}, options.smoke ? size_t{3} : size_t{512}}) {
    const DeviceBuffer x(rows * ffn * sizeof(float)), y(rows * ffn * sizeof(float)),
        out(rows * ffn * sizeof(float));
    const DeviceBuffer prepared(std::max<size_t>(1, MatMulInputBytes(rows, ffn)));
    x.Fill(rows * ffn, 1);
    y.Fill(rows * ffn, 2);
    NormAndPrepareArgs norm;
    norm.norm = {x.floats(), y.floats(), out.floats(), rows, columns, 1e-5f};
    norm.prepare = {out.floats(), rows, columns, prepared.data(), InputRounding::kPlain};
    const double norm_seconds = DeviceSeconds(options, queue, [&] { (void)NormAndPrepare(queue, norm); });
    // Read and written as float32, and the 8-bit form with its scales.
    const auto bytes = [&](size_t count, double floats) {
      return static_cast<double>(count) * (4 * floats + 1.125);
    };
    Print(options, {"norm, round", "", 0, columns, rows, bytes(rows * columns, 2), 0, norm_seconds});
    SwiGluAndPrepareArgs swiglu;
    swiglu.swiglu = {x.floats(), y.floats(), out.floats(), rows * ffn};
    swiglu.prepare = {out.floats(), rows, ffn, prepared.data(), InputRounding::kPlain};
    const double swiglu_seconds =
        DeviceSeconds(options, queue, [&] { (void)SwiGluAndPrepare(queue, swiglu); });
    Print(options, {"swiglu, round", "", 0, ffn, rows, bytes(rows * ffn, 3), 0, swiglu_seconds});
  }
}

}  // namespace millrace::kernels::cuda
