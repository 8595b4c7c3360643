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
  // The same rounded to 8 bits, block by block, in a layout of the backend that made it: scale = max|x| /
  // 127, quant = x * (127 / max|x|) rounded to nearest even, x is about scale * quant. A block with a NaN or
  // an infinity makes all products of its row NaN; one below 2^-100 is taken for zeros. Null: the backend
  // multiplies float32, or columns is not a multiple of kActivationBlock.
  const void* quantized = nullptr;
};

// How PrepareInput rounds.
enum class InputRounding {
  kPlain,
  // Blocks that are much larger than the others of their row, whose rounding would cost the most, keep what
  // rounding left over, rounded to 8 bits in turn. Needs whole rows: what is large depends on all of a row.
  kRefineLargest,
};

struct PrepareInputArgs {
  const float* x = nullptr;  // [rows, columns]
  size_t rows = 0;
  size_t columns = 0;
  // Backend::MatMulInputBytes(rows, columns) bytes, 64-byte aligned. Null: the input serves only weights that
  // are not packed.
  uint8_t* buffer = nullptr;
  InputRounding rounding = InputRounding::kPlain;
};

}  // namespace millrace::kernels
