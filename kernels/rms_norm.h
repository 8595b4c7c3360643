// Root mean square normalisation: out = x / sqrt(mean(x^2) + epsilon) * weight. Zhang and Sennrich, arXiv
// 1910.07467.
#pragma once

#include <cstddef>

namespace millrace::kernels {

struct RmsNormArgs {
  const float* x = nullptr;       // [rows, columns]
  const float* weight = nullptr;  // [columns]
  float* out = nullptr;           // [rows, columns]; may be x
  size_t rows = 0;
  size_t columns = 0;
  float epsilon = 0;
};

}  // namespace millrace::kernels
