// A weight matrix as the kernels see it: rows of quantised blocks in memory that somebody else owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kernels {

// Block layouts as in GGUF (ggml): 32 elements a block for the quantised ones, little endian.
//   kQ8_0  f16 d, 32 x int8 q                       value = d * q
//   kQ4_0  f16 d, 16 bytes of nibbles q             value = d * (q - 8)
//   kQ4_1  f16 d, f16 m, 16 bytes of nibbles q      value = d * q + m
// Element j < 16 of a block is the low nibble of byte j, element j + 16 the high one.
enum class WeightType { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1 };

// [rows, columns], row-major: row r starts at data + r * row_bytes. `columns` is a multiple of the block
// length; a row may be longer (a slice of the columns of a larger matrix).
struct WeightMatrix {
  const uint8_t* data = nullptr;
  WeightType type = WeightType::kF32;
  size_t rows = 0;
  size_t columns = 0;
  size_t row_bytes = 0;
  // `data` is what Backend::Pack wrote, for the backend that wrote it; row_bytes says nothing. Not for Embed.
  bool packed = false;
};

// Elements of one block (1 for the types that are not quantised), and bytes of one block.
size_t WeightBlockElements(WeightType type);
size_t WeightBlockBytes(WeightType type);

}  // namespace millrace::kernels
