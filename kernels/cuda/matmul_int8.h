// Products of quantised weights with activations rounded to 8 bits, on tensor cores (mma.sync m16n8k32,
// weights the operand of 16 rows, input rows that of 8 columns).
//
// Weights and inputs lie as those of the CPU backend do (kernels/cpu/packed_layout.h): a group of 16 weight
// rows is what one mma takes, and the four bytes of one row and step are one register of its fragment. The
// dot products of a block are exact integers, and each output is the one chain of float32 operations given
// there, segment by segment: the bits are those that the CPU backends give for the same segments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/cuda/cuda_queue.h"
#include "kernels/matmul.h"

namespace millrace::kernels::cuda {

inline constexpr size_t kMostSegments = 16;

// Where the sums over `columns` columns are cut if the caller does not say: what warps of a block share.
// Depends on nothing else.
struct ColumnCut {
  uint32_t ends[kMostSegments];
  size_t count;
};
ColumnCut CutColumns(size_t columns);

size_t PackedBytesInt8(const WeightMatrix& weights);  // 0: not of a type that is multiplied here
// Packs on the host and copies; done when it returns.
WeightMatrix PackInt8(const CudaQueue& queue, const WeightMatrix& weights, uint8_t* to);

// Products of one input, quantised, with packed weights.
void MatMulInt8(const CudaQueue& queue, absl::Span<const MatMulArgs> products);

}  // namespace millrace::kernels::cuda
