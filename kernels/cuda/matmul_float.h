// Products with F16, BF16 and F32 weights.
//
// F16 and BF16: activations are rounded to the weights' type (nearest even; those beyond its range become
// infinite), multiplied by mma m16n8k16 and summed in float32. Each segment of columns (kernels/matmul.h) is
// cut into chunks of kFloatChunk columns from its begin; a chunk's sum goes through steps of 32 columns in
// rising order, two mma each, starting at 0; the chunks' sums are added in rising order. Neither the number
// of rows nor the shape of tiles enters, so few rows and many give the same bits.
//
// F32: the canonical order of kernels/cpu/matmul_impl.h, and the bits of the CPU backend.
//
// Packed F16 and BF16 matrices whose sums are not cut go through cuBLASLt where CudaQueue has it and it
// passed its test (cublas_lt.h), whatever the number of rows.
//
// Weights that are not packed are at addresses, and row_bytes apart, that are multiples of their type's size.
// Packed: rows as in the file, each begun at a multiple of 16 bytes, what lies between them zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_queue.h"
#include "kernels/matmul.h"
#include "kernels/weights.h"

namespace millrace::kernels::cuda {

inline constexpr uint32_t kFloatChunk = 512;

// Rows of activations up to which blocks share 16 rows of weights and split the columns, rather than a block
// having a tile of both.
inline constexpr size_t kFewFloatRows = 32;

// kF32, kF16, kBF16: the types of this file.
bool IsFloatType(WeightType type);

size_t PackedBytesFloat(const WeightMatrix& weights);
// `to` is device memory of that many bytes; `weights` are in host memory and done with on return.
WeightMatrix PackFloat(const CudaQueue& queue, const WeightMatrix& weights, uint8_t* to);

// Floats of MatMulArgs.scratch: the rounded activations.
size_t MatMulFloatScratchFloats(size_t max_rows, size_t max_columns);

// REQUIRES: weights of a float type, in device memory, packed or not; args.x.x is written.
void MatMulFloat(const CudaQueue& queue, const MatMulArgs& args);

}  // namespace millrace::kernels::cuda
