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

struct ScaleAndMin {
  int scale, min;
};

// Of sub-block `s`, from the 12 bytes at `b`.
ScaleAndMin SixBitScales(const uint8_t* b, size_t s) {
  if (s < 4) return {b[s] & 63, b[s + 4] & 63};
  return {(b[s + 4] & 15) | (b[s - 4] >> 6) << 4, b[s + 4] >> 4 | (b[s] >> 6) << 4};
}

// Element j of a block of kQ4_K (h null) or kQ5_K: `nibbles` and `h` within it. Only the subtraction rounds:
// a product of d, scale and q has at most 22 significant bits.
float WithMinimum(const uint8_t* block, const uint8_t* nibbles, const uint8_t* h, size_t j) {
  const size_t s = j / kBlockElements;
  const size_t t = j % kBlockElements;
  const int byte = nibbles[s / 2 * kBlockElements + t];
  int q = s % 2 == 0 ? byte & 15 : byte >> 4;
  if (h != nullptr) q += (h[t] >> s & 1) * 16;
  const ScaleAndMin six = SixBitScales(block + 2 * kHalfBytes, s);
  const float scale = HalfToFloat(ReadU16(block)) * static_cast<float>(six.scale);
  const float minimum = HalfToFloat(ReadU16(block + kHalfBytes)) * static_cast<float>(six.min);
  return scale * static_cast<float>(q) - minimum;
}

float Q6_KAt(const uint8_t* block, size_t j) {
  const size_t s = j / kBlockElements;
  const size_t t = j % kBlockElements;
  const int byte = block[s / 4 * 64 + s % 2 * 32 + t];
  const int nibble = s % 4 < 2 ? byte & 15 : byte >> 4;
  const uint8_t* h = block + kSuperNibbleBytes;
  const int high = h[s / 4 * 32 + t] >> (s % 4 * 2) & 3;
  const uint8_t* scales = h + kSuperBlockElements / 4;
  const float scale = static_cast<float>(static_cast<int8_t>(scales[j / 16]));
  const float d = HalfToFloat(ReadU16(scales + kQ6_KScales));
  return d * scale * static_cast<float>(nibble + high * 16 - 32);
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
    case WeightType::kQ5_0: {
      const int high = block[kHalfBytes + j / 8] >> (j % 8) & 1;
      const int nibble = NibbleAt(block + kHalfBytes + kBlockElements / 8, j);
      return HalfToFloat(ReadU16(block)) * static_cast<float>(nibble + high * 16 - 16);
    }
    case WeightType::kQ4_K:
      return WithMinimum(block, block + kQ4_KBytes - kSuperNibbleBytes, nullptr, j);
    case WeightType::kQ5_K:
      return WithMinimum(block, block + kQ5_KBytes - kSuperNibbleBytes,
                         block + 2 * kHalfBytes + kPackedScaleBytes, j);
    case WeightType::kQ6_K:
      return Q6_KAt(block, j);
  }
  return NAN;
}

}  // namespace millrace::kernels::reference
