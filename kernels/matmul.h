// out = x * weights^T (+ out): every linear layer of the model. Weights stay quantised in memory and are
// dequantised tile by tile; products and sums are float32.
#pragma once

#include <cstddef>

#include "kernels/weights.h"

namespace millrace::kernels {

struct MatMulArgs {
  const float* x = nullptr;  // [rows, weights.columns]
  size_t rows = 0;
  WeightMatrix weights;      // [n, k]
  float* out = nullptr;      // [rows, n], row stride n
  bool accumulate = false;   // add to out (the residual) instead of replacing it
  float* scratch = nullptr;  // MatMulScratchFloats() floats, 64-byte aligned
};

// Scratch that any call with at most `max_columns` weight columns and `max_rows` rows needs.
size_t MatMulScratchFloats(size_t max_rows, size_t max_columns);

}  // namespace millrace::kernels
