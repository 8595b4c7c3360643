// Rows of activations, made ready once for every matrix product that reads them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kernels {

// Elements of one row that share a scale when activations are quantised.
inline constexpr size_t kActivationBlock = 32;

struct MatMulInput {
  const float* x = nullptr;  // [rows, columns]
  size_t rows = 0;
  size_t columns = 0;
  // The same rounded to 8 bits, block by block: scale = max|x| / 127, quant = x / scale rounded to nearest
  // even, x is about scale * quant. Null: the backend multiplies float32, or columns is not a multiple of
  // kActivationBlock.
  const int8_t* quants = nullptr;  // [rows, columns], each -127 .. 127
  const float* scales = nullptr;   // [rows, columns / kActivationBlock]
  const int32_t* sums = nullptr;   // [rows, columns / kActivationBlock], of the quants of a block
};

struct PrepareInputArgs {
  const float* x = nullptr;  // [rows, columns]
  size_t rows = 0;
  size_t columns = 0;
  uint8_t* buffer =
      nullptr;  // Backend::MatMulInputBytes(rows, columns) bytes, 64-byte aligned; may be null if that is 0
};

}  // namespace millrace::kernels
