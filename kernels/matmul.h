// out = x * weights^T: every linear layer of the model. Weights stay quantised in memory.
//
// Sums over the columns are taken segment by segment, and the segments added in rising order, so that shards
// that each hold some of the segments can give the bits that one that holds them all gives.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/matmul_input.h"
#include "kernels/weights.h"

namespace millrace::kernels {

enum class MatMulStore {
  kReplace,   // out[r][n] = s0 + s1 + ..., s being the sums of the segments, added from left to right
  kAdd,       // out[r][n] = out[r][n] + s0 + s1 + ..., added from left to right
  kPartials,  // out[i * partial_stride + r * out_stride + n] = si, for AddPartials
};

struct MatMulArgs {
  MatMulInput x;          // of the matrix's columns
  WeightMatrix weights;   // [n, k]; as the backend packed it (x must be quantised then), or unpacked
  float* out = nullptr;   // [x.rows, n]
  size_t out_stride = 0;  // floats from one row to the next; 0: n
  MatMulStore store = MatMulStore::kReplace;
  // Where segments end, rising, the last is k; each a multiple of the weights' block length. Empty: one
  // segment.
  absl::Span<const uint32_t> segment_ends;
  size_t partial_stride = 0;  // floats from one segment's sums to the next's
  float* scratch = nullptr;   // Backend::MatMulScratchFloats() floats, 64-byte aligned
};

// out[r][n] = out[r][n] + partials of segment 0 + of segment 1 + ..., for n in [begin, end): what kAdd does,
// after kPartials.
struct AddPartialsArgs {
  absl::Span<const float* const> partials;  // by segment: [rows, columns], row stride `columns`
  float* out = nullptr;                     // [rows, columns]
  size_t rows = 0;
  size_t columns = 0;
  size_t begin = 0;
  size_t end = 0;
};

}  // namespace millrace::kernels
