#include "kernels/reference/kv_elements.h"

#include <cfloat>
#include <cmath>
#include <cstring>

#include "kernels/reference/dequantize.h"

namespace millrace::kernels::reference {
namespace {

// Rounds to a multiple of the half's last digit in double, where nothing else is lost.
uint16_t ToHalf(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 65520) return static_cast<uint16_t>(sign | 0x7C00);
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude in [0.5, 1) * 2^exponent
  if (magnitude < 0x1p-14) exponent = -13;
  const double digits = std::nearbyint(std::ldexp(magnitude, 11 - exponent));
  // 1024 .. 2048 digits of a normal number; 2048 is the next exponent's 1024, which the sum makes of it.
  return static_cast<uint16_t>(sign + static_cast<int>(digits) + ((exponent + 13) << 10));
}

}  // namespace

float LoadKvElement(KvType type, const uint8_t* blocks, size_t at) {
  if (type == KvType::kI8) return static_cast<float>(static_cast<int8_t>(blocks[at]));
  if (type == KvType::kF16) {
    uint16_t half;
    std::memcpy(&half, blocks + sizeof(half) * at, sizeof(half));
    return HalfToFloat(half);
  }
  float value;
  std::memcpy(&value, blocks + sizeof(value) * at, sizeof(value));
  return value;
}

void StoreKvElement(KvType type, uint8_t* blocks, size_t at, float value, float scale) {
  if (type == KvType::kI8) {
    const bool none = std::isnan(scale) || scale == 0;
    const float quant = none ? 0.0f : std::nearbyint(value * (1.0f / scale));
    blocks[at] = static_cast<uint8_t>(static_cast<int8_t>(quant));
  } else if (type == KvType::kF16) {
    const uint16_t half = ToHalf(value);
    std::memcpy(blocks + sizeof(half) * at, &half, sizeof(half));
  } else {
    std::memcpy(blocks + sizeof(value) * at, &value, sizeof(value));
  }
}

float RoundingScale(const float* x, size_t count) {
  float most = 0;
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return std::nanf("");
    most = std::fmax(most, std::fabs(x[i]));
  }
  const float scale = most / 127.0f;
  return scale < FLT_MIN ? 0.0f : scale;
}

}  // namespace millrace::kernels::reference
