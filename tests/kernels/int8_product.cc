#include "tests/kernels/int8_product.h"

#include <cmath>
#include <cstdint>

#include "kernels/reference/dequantize.h"

namespace millrace::kernels {
namespace {

// 32 weights: value = scale of the half * quant + min.
struct Block {
  double scale[2] = {};
  double min = 0;
  int quant[32] = {};
};

double Half(const uint8_t* h) {
  return static_cast<double>(reference::HalfToFloat(static_cast<uint16_t>(h[0] | h[1] << 8)));
}

// Sub-block s of the 256-element block at p, with 32 bytes of fifth bits or none.
Block ReadSubBlockWithMin(const uint8_t* p, bool five_bits, size_t s) {
  const uint8_t* six = p + 4;
  const int scale = s < 4 ? six[s] % 64 : six[s + 4] % 16 + six[s - 4] / 64 * 16;
  const int min = s < 4 ? six[s + 4] % 64 : six[s + 4] / 16 + six[s] / 64 * 16;
  const uint8_t* nibbles = p + (five_bits ? 48 : 16) + s / 2 * 32;
  Block block;
  block.scale[0] = block.scale[1] = Half(p) * scale;
  block.min = -Half(p + 2) * min;
  for (size_t j = 0; j < 32; ++j) {
    block.quant[j] = s % 2 == 0 ? nibbles[j] % 16 : nibbles[j] / 16;
    if (five_bits) block.quant[j] += (p[16 + j] >> s & 1) * 16;
  }
  return block;
}

Block ReadSubBlockOfQ6_K(const uint8_t* p, size_t s) {
  const uint8_t* nibbles = p + s / 4 * 64 + s % 2 * 32;
  const uint8_t* high = p + 128 + s / 4 * 32;
  Block block;
  for (size_t h = 0; h < 2; ++h) {
    block.scale[h] = Half(p + 208) * static_cast<int8_t>(p[192 + 2 * s + h]);
  }
  for (size_t j = 0; j < 32; ++j) {
    const int low = s % 4 < 2 ? nibbles[j] % 16 : nibbles[j] / 16;
    block.quant[j] = low + 16 * (high[j] >> s % 4 * 2 & 3) - 32;
  }
  return block;
}

Block ReadBlock(const WeightMatrix& w, size_t row, size_t b) {
  const size_t per_block = WeightBlockElements(w.type) / 32;
  const uint8_t* p = w.data + row * w.row_bytes + b / per_block * WeightBlockBytes(w.type);
  if (w.type == WeightType::kQ6_K) return ReadSubBlockOfQ6_K(p, b % per_block);
  if (per_block > 1) return ReadSubBlockWithMin(p, w.type == WeightType::kQ5_K, b % per_block);
  Block block;
  block.scale[0] = block.scale[1] = Half(p);
  if (w.type == WeightType::kQ4_1) block.min = Half(p + 2);
  if (w.type == WeightType::kQ5_0) {
    for (int j = 0; j < 32; ++j) {
      const int nibble = j < 16 ? p[6 + j] & 15 : p[6 + j - 16] >> 4;
      block.quant[j] = nibble + 16 * (p[2 + j / 8] >> j % 8 & 1) - 16;
    }
    return block;
  }
  const uint8_t* q = p + (w.type == WeightType::kQ4_1 ? 4 : 2);
  for (int j = 0; j < 32; ++j) {
    const int nibble = j < 16 ? q[j] & 15 : q[j - 16] >> 4;
    if (w.type == WeightType::kQ8_0) block.quant[j] = static_cast<int8_t>(q[j]);
    if (w.type == WeightType::kQ4_0) block.quant[j] = nibble - 8;
    if (w.type == WeightType::kQ4_1) block.quant[j] = nibble;
  }
  return block;
}

}  // namespace

Expected Multiply(const std::vector<float>& x, size_t rows, const WeightMatrix& w) {
  const size_t blocks = w.columns / 32;
  std::vector<Block> weights;
  for (size_t n = 0; n < w.rows; ++n) {
    for (size_t b = 0; b < blocks; ++b) weights.push_back(ReadBlock(w, n, b));
  }
  Expected expected;
  for (size_t r = 0; r < rows; ++r) {
    std::vector<int> quants(w.columns);
    std::vector<float> scales(blocks);
    for (size_t b = 0; b < blocks; ++b) {
      const float* values = x.data() + r * w.columns + b * 32;
      float max = 0;
      for (size_t i = 0; i < 32; ++i) max = std::fmax(max, std::fabs(values[i]));
      scales[b] = max / 127.0f;
      for (size_t i = 0; i < 32; ++i) {
        quants[b * 32 + i] = static_cast<int>(std::nearbyint(values[i] * (127.0f / max)));
      }
    }
    for (size_t n = 0; n < w.rows; ++n) {
      double sum = 0, magnitude = 0;
      for (size_t b = 0; b < blocks; ++b) {
        const Block& block = weights[n * blocks + b];
        int dot[2] = {}, quant_sum = 0;
        for (size_t i = 0; i < 32; ++i) {
          dot[i / 16] += quants[b * 32 + i] * block.quant[i];
          quant_sum += quants[b * 32 + i];
        }
        const double product =
            (block.scale[0] * dot[0] + block.scale[1] * dot[1]) * static_cast<double>(scales[b]);
        const double minimum = block.min * quant_sum * static_cast<double>(scales[b]);
        sum += product + minimum;
        magnitude += std::fabs(product) + std::fabs(minimum);
      }
      expected.out.push_back(static_cast<float>(sum));
      expected.bounds.push_back(magnitude * static_cast<double>(2 * blocks + 3) * 0x1p-24 + 1e-30);
    }
  }
  return expected;
}

}  // namespace millrace::kernels
