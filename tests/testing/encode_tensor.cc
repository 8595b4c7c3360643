#include "tests/testing/encode_tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "common/check.h"
#include "tests/testing/gguf_builder.h"

namespace millrace {
namespace {

constexpr size_t kBlock = 32;
constexpr size_t kSuperBlock = 256;
constexpr size_t kSubBlocks = kSuperBlock / kBlock;

// IEEE half, to nearest even. REQUIRES: finite and in the range of half.
uint16_t ToHalf(float value) {
  const uint32_t sign = (std::bit_cast<uint32_t>(value) >> 16) & 0x8000;
  const float magnitude = std::fabs(value);
  MILLRACE_CHECK(magnitude < 65504.0f);
  // Below the least normal half the spacing is fixed; above it the exponent gives it. nearbyint rounds to
  // even.
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  // A carry out of the mantissa runs into the exponent, as it should.
  const uint32_t bits = magnitude < 0x1p-14f ? steps : (static_cast<uint32_t>(exponent + 14) << 10) + steps;
  return static_cast<uint16_t>(sign | bits);
}

float FromHalf(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                        : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t ToBfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// value = scale * q, q in -127 .. 127.
void EncodeQ8_0(const float* x, std::vector<uint8_t>& out) {
  float largest = 0;
  for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
  const uint16_t half = ToHalf(largest / 127);
  const float scale = FromHalf(half);
  AppendBytes(out, half);
  for (size_t i = 0; i < kBlock; ++i) {
    const float q = scale == 0 ? 0 : std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f);
    AppendBytes(out, static_cast<int8_t>(q));
  }
}

// value / scale to the nearest of 0 .. most.
uint8_t Quant(float value, float scale, float most) {
  return scale == 0 ? 0 : static_cast<uint8_t>(std::clamp(std::nearbyint(value / scale), 0.0f, most));
}

// Byte i of the 16 holds element i in its low half and element i + 16 in its high one.
void AppendNibbles(const float* x, float lowest, float scale, std::vector<uint8_t>& out) {
  for (size_t i = 0; i < kBlock / 2; ++i) {
    const uint8_t low = Quant(x[i] - lowest, scale, 15);
    const uint8_t high = Quant(x[i + kBlock / 2] - lowest, scale, 15);
    out.push_back(static_cast<uint8_t>(low | (high << 4)));
  }
}

// value = scale * (q - 8), q in 0 .. 15.
void EncodeQ4_0(const float* x, std::vector<uint8_t>& out) {
  float largest = 0;
  for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
  const uint16_t half = ToHalf(largest / 8);
  AppendBytes(out, half);
  AppendNibbles(x, -8 * FromHalf(half), FromHalf(half), out);
}

// value = minimum + scale * q, q in 0 .. 15.
void EncodeQ4_1(const float* x, std::vector<uint8_t>& out) {
  const auto [low, high] = std::minmax_element(x, x + kBlock);
  const uint16_t scale = ToHalf((*high - *low) / 15);
  const uint16_t minimum = ToHalf(*low);
  AppendBytes(out, scale);
  AppendBytes(out, minimum);
  AppendNibbles(x, FromHalf(minimum), FromHalf(scale), out);
}

// value = scale * (q - 16), q in 0 .. 31; the fifth bits stand together, before the nibbles.
void EncodeQ5_0(const float* x, std::vector<uint8_t>& out) {
  float largest = 0;
  for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
  const uint16_t half = ToHalf(largest / 16);
  uint8_t q[kBlock];
  uint32_t fifth_bits = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    q[i] = Quant(x[i] + 16 * FromHalf(half), FromHalf(half), 31);
    fifth_bits |= static_cast<uint32_t>(q[i] >> 4) << i;
  }
  AppendBytes(out, half);
  AppendBytes(out, fifth_bits);
  for (size_t i = 0; i < kBlock / 2; ++i) {
    out.push_back(static_cast<uint8_t>((q[i] & 15) | ((q[i + kBlock / 2] & 15) << 4)));
  }
}

// Six-bit scales and minima of eight sub-blocks in twelve bytes: the first four of each fill the low bits of
// eight bytes; the low nibbles of the others follow, and their high bits go where the eight bytes have room.
std::array<uint8_t, 12> PackSixBits(const uint8_t* scales, const uint8_t* minima) {
  std::array<uint8_t, 12> bytes = {};
  for (size_t i = 0; i < 4; ++i) {
    bytes[i] = static_cast<uint8_t>(scales[i] | ((scales[i + 4] >> 4) << 6));
    bytes[i + 4] = static_cast<uint8_t>(minima[i] | ((minima[i + 4] >> 4) << 6));
    bytes[i + 8] = static_cast<uint8_t>((scales[i + 4] & 15) | ((minima[i + 4] & 15) << 4));
  }
  return bytes;
}

// Nibbles of sub-blocks in pairs: the first of a pair is the low half of 32 bytes, the second the high one.
void AppendPairedNibbles(const uint8_t* q, std::vector<uint8_t>& out) {
  for (size_t pair = 0; pair < kSuperBlock; pair += 2 * kBlock) {
    for (size_t i = pair; i < pair + kBlock; ++i) {
      out.push_back(static_cast<uint8_t>((q[i] & 15) | ((q[i + kBlock] & 15) << 4)));
    }
  }
}

// Q4_K and Q5_K: value = d * scale * q - dmin * minimum, q in 0 .. most.
void EncodeWithMinimum(const float* x, uint8_t most, std::vector<uint8_t>& out) {
  float step[kSubBlocks], depth[kSubBlocks];
  for (size_t s = 0; s < kSubBlocks; ++s) {
    const auto [low, high] = std::minmax_element(x + s * kBlock, x + (s + 1) * kBlock);
    depth[s] = std::max(0.0f, -*low);
    step[s] = std::max(0.0f, *high + depth[s]) / most;
  }
  const uint16_t d = ToHalf(*std::max_element(step, step + kSubBlocks) / 63);
  const uint16_t dmin = ToHalf(*std::max_element(depth, depth + kSubBlocks) / 63);
  uint8_t scales[kSubBlocks], minima[kSubBlocks], q[kSuperBlock], fifth_bits[kBlock] = {};
  for (size_t s = 0; s < kSubBlocks; ++s) {
    scales[s] = Quant(step[s], FromHalf(d), 63);
    minima[s] = Quant(depth[s], FromHalf(dmin), 63);
    for (size_t i = 0; i < kBlock; ++i) {
      const float lifted = x[s * kBlock + i] + FromHalf(dmin) * minima[s];
      const uint8_t quant = q[s * kBlock + i] = Quant(lifted, FromHalf(d) * scales[s], most);
      fifth_bits[i] = static_cast<uint8_t>(fifth_bits[i] | ((quant >> 4) << s));
    }
  }
  AppendBytes(out, d);
  AppendBytes(out, dmin);
  AppendBytes(out, PackSixBits(scales, minima));
  if (most > 15) AppendBytes(out, fifth_bits);
  AppendPairedNibbles(q, out);
}

// value = d * scale * (q - 32), q in 0 .. 63, a scale for 16 elements. Each half of the block: 64 bytes of
// low nibbles, of its first 64 elements in the low halves; its high bits, four elements 32 apart in a byte.
void EncodeQ6_K(const float* x, std::vector<uint8_t>& out) {
  constexpr size_t kScales = kSuperBlock / 16;
  float step[kScales] = {};
  for (size_t i = 0; i < kSuperBlock; ++i) step[i / 16] = std::max(step[i / 16], std::fabs(x[i]) / 31);
  const uint16_t d = ToHalf(*std::max_element(step, step + kScales) / 127);
  uint8_t scales[kScales], q[kSuperBlock], high[kSuperBlock / 4];
  for (size_t i = 0; i < kScales; ++i) scales[i] = Quant(step[i], FromHalf(d), 127);
  for (size_t i = 0; i < kSuperBlock; ++i) {
    const float scale = FromHalf(d) * scales[i / 16];
    q[i] = Quant(x[i] + 32 * scale, scale, 63);
  }
  for (size_t half = 0; half < kSuperBlock; half += 128) {
    for (size_t i = half; i < half + 64; ++i) {
      out.push_back(static_cast<uint8_t>((q[i] & 15) | ((q[i + 64] & 15) << 4)));
    }
    for (size_t i = 0; i < 32; ++i) {
      const uint8_t* four = q + half + i;
      high[half / 4 + i] = static_cast<uint8_t>(four[0] >> 4 | (four[32] >> 4) << 2 | (four[64] >> 4) << 4 |
                                                (four[96] >> 4) << 6);
    }
  }
  AppendBytes(out, high);
  AppendBytes(out, scales);
  AppendBytes(out, d);
}

void EncodeBlock(TensorType type, const float* x, std::vector<uint8_t>& out) {
  switch (type) {
    case TensorType::kF32:
      return AppendBytes(out, *x);
    case TensorType::kF16:
      return AppendBytes(out, ToHalf(*x));
    case TensorType::kBF16:
      return AppendBytes(out, ToBfloat16(*x));
    case TensorType::kQ8_0:
      return EncodeQ8_0(x, out);
    case TensorType::kQ4_0:
      return EncodeQ4_0(x, out);
    case TensorType::kQ4_1:
      return EncodeQ4_1(x, out);
    case TensorType::kQ5_0:
      return EncodeQ5_0(x, out);
    case TensorType::kQ4_K:
      return EncodeWithMinimum(x, 15, out);
    case TensorType::kQ5_K:
      return EncodeWithMinimum(x, 31, out);
    case TensorType::kQ6_K:
      return EncodeQ6_K(x, out);
  }
}

}  // namespace

std::vector<uint8_t> EncodeTensor(TensorType type, const std::vector<float>& values) {
  const size_t step = LayoutOf(type).elements;
  MILLRACE_CHECK(values.size() % step == 0);
  std::vector<uint8_t> out;
  out.reserve(values.size() / step * LayoutOf(type).bytes);
  for (size_t i = 0; i < values.size(); i += step) EncodeBlock(type, values.data() + i, out);
  MILLRACE_CHECK(out.size() == values.size() / step * LayoutOf(type).bytes);
  return out;
}

}  // namespace millrace
