#include "kernels/cpu/pack.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/packed_layout.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul_float.h"
#include "kernels/cuda/matmul_int8.h"

namespace millrace::kernels::cuda {
namespace {

constexpr size_t kChunkBytes = size_t{8} << 20;

}  // namespace

size_t PackedBytesInt8(const WeightMatrix& weights) {
  return cpu::PackedBlockBytes(weights.type) == 0 ? 0 : cpu::PackedMatrixBytes(weights);
}

WeightMatrix PackInt8(const CudaQueue& queue, const WeightMatrix& weights, uint8_t* to) {
  const size_t groups = (weights.rows + cpu::kGroupRows - 1) / cpu::kGroupRows;
  const size_t group_bytes = PackedBytesInt8(weights) / groups;
  const size_t chunk = std::clamp<size_t>(kChunkBytes / group_bytes, 1, groups);
  std::vector<uint8_t> staging(chunk * group_bytes);
  for (size_t group = 0; group < groups; group += chunk) {
    WeightMatrix part = weights;
    part.data = weights.data + group * cpu::kGroupRows * weights.row_bytes;
    part.rows = std::min(chunk * cpu::kGroupRows, weights.rows - group * cpu::kGroupRows);
    cpu::PackMatrix({part, staging.data()}, {});
    queue.Check(cudaMemcpyAsync(to + group * group_bytes, staging.data(), PackedBytesInt8(part),
                                cudaMemcpyHostToDevice, queue.stream()),
                "copy of weights");
    queue.Check(cudaStreamSynchronize(queue.stream()), "copy of weights");
  }
  WeightMatrix packed = weights;
  packed.data = to;
  packed.row_bytes = 0;
  packed.packed = true;
  return packed;
}

size_t PackedBytes(const WeightMatrix& weights) {
  const size_t bytes = PackedBytesInt8(weights);
  return bytes != 0 ? bytes : PackedBytesFloat(weights);
}

WeightMatrix Pack(const CudaQueue& queue, const WeightMatrix& weights, uint8_t* to) {
  return PackedBytesInt8(weights) != 0 ? PackInt8(queue, weights, to) : PackFloat(queue, weights, to);
}

}  // namespace millrace::kernels::cuda
