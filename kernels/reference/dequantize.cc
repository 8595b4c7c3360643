#include "kernels/reference/dequantize.h"

#include <cmath>
#include <cstring>

#include "kernels/block_layout.h"

namespace millrace::kernels::reference {
namespace {

uint16_t ReadU16(const uint8_t* p) {
  return static_cast<uint16_t>(p[0] | p[1] << 8);
}

int NibbleAt(const uint8_t* nibbles, size_t j) {
  return j < kBlockElements / 2 ? nibbles[j] & 15 : nibbles[j - kBlockElements / 2] >> 4;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

float HalfToFloat(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const float mantissa = static_cast<float>(half & 1023);
  const float sign = (half & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(mantissa + 1024.0f, exponent - 25);
}

float WeightAt(const WeightMatrix& weights, size_t row, size_t column) {
  const uint8_t* data = weights.data + row * weights.row_bytes;
  const size_t elements = WeightBlockElements(weights.type);
  const uint8_t* block = data + column / elements * WeightBlockBytes(weights.type);
  const size_t j = column % elements;
  switch (weights.type) {
    case WeightType::kF32: {
      float value;
      std::memcpy(&value, block, sizeof(value));
      return value;
    }
    case WeightType::kF16:
      return HalfToFloat(ReadU16(block));
    case WeightType::kBF16:
      return FromBits(uint32_t{ReadU16(block)} << 16);
    case WeightType::kQ8_0:
      return HalfToFloat(ReadU16(block)) * static_cast<float>(static_cast<int8_t>(block[kHalfBytes + j]));
    case WeightType::kQ4_0:
      return HalfToFloat(ReadU16(block)) * static_cast<float>(NibbleAt(block + kHalfBytes, j) - 8);
    case WeightType::kQ4_1: {
      const float product =
          HalfToFloat(ReadU16(block)) * static_cast<float>(NibbleAt(block + 2 * kHalfBytes, j));
      return product + HalfToFloat(ReadU16(block + kHalfBytes));
    }
  }
  return NAN;
}

}  // namespace millrace::kernels::reference
