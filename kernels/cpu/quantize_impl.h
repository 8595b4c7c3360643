// Rows of activations rounded to 8 bits (packed_layout.h): scale = max|x| / 127 of a block, quant = x * (127
// / max|x|) rounded to nearest even.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/work_share.h"

namespace millrace::kernels::cpu {

template <class Int8>
inline void QuantizeBlock(const float* x, size_t row, InputBlock* out) {
  constexpr uint32_t kInfinityBits = 0x7F800000;
  constexpr float kMaxQuant = 127;
  // 127 / max would not be finite from about 2^-121 down; nothing of that size can be seen in a sum of floats
  // of any use.
  constexpr float kLeast = 0x1p-100f;
  const uint32_t bits = Int8::MaxMagnitudeBits(x);
  float max;
  std::memcpy(&max, &bits, sizeof(max));
  int32_t sum = 0;
  if (bits >= kInfinityBits || max < kLeast) {
    // An infinity has no quant: every product of the row becomes NaN, as it does of a NaN.
    out->scale[row] = bits >= kInfinityBits ? __builtin_nanf("") : 0.0f;
    std::memset(out->quants[row], 0, kActivationBlock);
  } else {
    out->scale[row] = max / kMaxQuant;
    sum = Int8::Round(x, kMaxQuant / max, out->quants[row]);
  }
  out->scaled_sum[row] = out->scale[row] * static_cast<float>(sum);
  out->minus_sum[row] = -sum;
  int32_t first_sum = 0;
  for (size_t i = 0; i < kActivationBlock / 2; ++i) first_sum += out->quants[row][i];
  out->minus_first_sum[row] = static_cast<int16_t>(-first_sum);
}

// Refines the largest blocks of a row that QuantizeBlock has rounded.
template <class Int8>
inline void RefineRow(const QuantizeArgs& args, size_t row, InputBlock* rounded, InputBlock* refinements) {
  const size_t blocks = args.columns / kActivationBlock, lane = row % kInputRows;
  float squares = 0;
  for (size_t b = 0; b < blocks; ++b) squares += rounded[b].scale[lane] * rounded[b].scale[lane];
  const float least = kRefineAbove * squares / static_cast<float>(blocks);
  for (size_t b = 0; b < blocks; ++b) {
    const float scale = rounded[b].scale[lane];
    if (!(scale * scale > least)) continue;
    if (!rounded[b].refined) std::memset(refinements + b, 0, sizeof(InputBlock));
    rounded[b].refined = true;
    const float* x = args.x + row * args.columns + b * kActivationBlock;
    float rest[kActivationBlock];
    for (size_t i = 0; i < kActivationBlock; ++i) {
      rest[i] = x[i] - scale * static_cast<float>(rounded[b].quants[lane][i]);
    }
    QuantizeBlock<Int8>(rest, lane, refinements + b);
  }
}

template <class Int8>
void Quantize(const QuantizeArgs& args, WorkShare share) {
  const size_t blocks = args.columns / kActivationBlock;
  const WorkShare::Range rows = share.Of(args.rows, kInputRows);
  for (size_t r = rows.begin; r < rows.end; ++r) {
    InputBlock* out = args.out + r / kInputRows * blocks;
    const float* x = args.x + r * args.columns;
    for (size_t b = 0; b < blocks; ++b) {
      if (r % kInputRows == 0) out[b].refined = false;
      QuantizeBlock<Int8>(x + b * kActivationBlock, r % kInputRows, out + b);
    }
    if (args.rounding == InputRounding::kRefineLargest) {
      RefineRow<Int8>(args, r, out, out + InputBlocks(args.rows, args.columns));
    }
  }
}

}  // namespace millrace::kernels::cpu
