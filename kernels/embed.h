// Looks up rows of the token embedding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/weights.h"

namespace millrace::kernels {

struct EmbedArgs {
  const uint32_t* ids = nullptr;  // [rows], each < table.rows (checked by the caller)
  size_t rows = 0;
  WeightMatrix table;    // [vocabulary, hidden]
  float* out = nullptr;  // [rows, hidden], dequantised
};

}  // namespace millrace::kernels
