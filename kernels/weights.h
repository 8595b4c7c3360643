// A weight matrix as the kernels see it: rows of quantised blocks in memory that somebody else owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kernels {

// Block layouts as in GGUF (ggml): 32 elements a block for the quantised ones.
enum class WeightType { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1 };

// [rows, columns], row-major: row r starts at data + r * row_bytes. `columns` is a multiple of the block length.
struct WeightMatrix {
  const uint8_t* data = nullptr;
  WeightType type = WeightType::kF32;
  size_t rows = 0;
  size_t columns = 0;
  size_t row_bytes = 0;
};

}  // namespace millrace::kernels
