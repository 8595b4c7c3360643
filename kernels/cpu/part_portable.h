// Four float lanes without any instruction set: the register type behind Vec<> where nothing better is known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"

namespace millrace::kernels::cpu {

// See Vec for what each operation means. Correctly rounded fma is what makes the bits equal those of the
// other parts.
struct PortablePart {
  static constexpr size_t kLanes = 4;
  static constexpr int kPanelTileRows = 4;
  static constexpr int kDirectRows = 4;
  static constexpr int kAttentionQueries = 4;
  static constexpr int kAttentionVectors = 2;
  float lane[kLanes];

  template <class F>
  MILLRACE_KERNEL_INLINE static PortablePart Make(F f) {
    PortablePart out;
    for (size_t i = 0; i < kLanes; ++i) out.lane[i] = f(i);
    return out;
  }
  MILLRACE_KERNEL_INLINE static PortablePart Set1(float v) {
    return Make([&](size_t) { return v; });
  }
  MILLRACE_KERNEL_INLINE static PortablePart Load(const float* p) {
    return Make([&](size_t i) { return p[i]; });
  }
  MILLRACE_KERNEL_INLINE static PortablePart LoadPartial(const float* p, size_t n) {
    return Make([&](size_t i) { return i < n ? p[i] : 0.0f; });
  }
  MILLRACE_KERNEL_INLINE void Store(float* p) const {
    for (size_t i = 0; i < kLanes; ++i) p[i] = lane[i];
  }
  MILLRACE_KERNEL_INLINE void StorePartial(float* p, size_t n) const {
    for (size_t i = 0; i < n; ++i) p[i] = lane[i];
  }

  static float HalfToFloat(const uint8_t* p);
  MILLRACE_KERNEL_INLINE static PortablePart LoadF16(const uint8_t* p) {
    return Make([&](size_t i) { return HalfToFloat(p + 2 * i); });
  }
  MILLRACE_KERNEL_INLINE static PortablePart LoadBf16(const uint8_t* p) {
    return Make([&](size_t i) { return FromBits(uint32_t{p[2 * i]} << 16 | uint32_t{p[2 * i + 1]} << 24); });
  }
  MILLRACE_KERNEL_INLINE static PortablePart LoadI8(const uint8_t* p) {
    return Make([&](size_t i) { return static_cast<float>(static_cast<int8_t>(p[i])); });
  }
  static void FloatToHalf(float v, uint8_t* p);
  MILLRACE_KERNEL_INLINE void StoreF16(uint8_t* p) const {
    for (size_t i = 0; i < kLanes; ++i) FloatToHalf(lane[i], p + 2 * i);
  }
  MILLRACE_KERNEL_INLINE void StoreLowBytes(uint8_t* p) const {
    for (size_t i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(ToBits(lane[i]));
  }
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static PortablePart LoadQ4_0(const uint8_t* p, float d) {
    return Make([&](size_t i) { return d * static_cast<float>(Nibble<kHigh>(p[i]) - 8); });
  }
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static PortablePart LoadQ4_1(const uint8_t* p, float d, float m) {
    return Make([&](size_t i) { return __builtin_fmaf(d, static_cast<float>(Nibble<kHigh>(p[i])), m); });
  }

  // v * 2^n, where t = n + 1.5 * 2^23; in two steps, as 2^n itself may not be a normal number.
  MILLRACE_KERNEL_INLINE static PortablePart ScaleByPow2(PortablePart v, PortablePart t) {
    return Make([&](size_t i) {
      const int32_t n = static_cast<int32_t>(ToBits(t.lane[i]) - 0x4B400000u);
      const int32_t half = n >> 1;
      return v.lane[i] * FromBits(static_cast<uint32_t>(half + 127) << 23) *
             FromBits(static_cast<uint32_t>(n - half + 127) << 23);
    });
  }

  MILLRACE_KERNEL_INLINE static float ReduceAdd(PortablePart v) {
    return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]);
  }
  MILLRACE_KERNEL_INLINE static float ReduceMax(PortablePart v) {
    float m = v.lane[0];
    for (size_t i = 1; i < kLanes; ++i) m = m > v.lane[i] ? m : v.lane[i];
    return m;
  }
  MILLRACE_KERNEL_INLINE static void ReduceAdd4(PortablePart a, PortablePart b, PortablePart c,
                                                PortablePart d, float* out) {
    out[0] = ReduceAdd(a);
    out[1] = ReduceAdd(b);
    out[2] = ReduceAdd(c);
    out[3] = ReduceAdd(d);
  }

  MILLRACE_KERNEL_INLINE static uint32_t ToBits(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof(bits));
    return bits;
  }
  MILLRACE_KERNEL_INLINE static float FromBits(uint32_t bits) {
    float v;
    std::memcpy(&v, &bits, sizeof(v));
    return v;
  }
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static int Nibble(uint8_t byte) {
    return kHigh ? byte >> 4 : byte & 15;
  }
};

MILLRACE_KERNEL_INLINE PortablePart Add(PortablePart a, PortablePart b) {
  return PortablePart::Make([&](size_t i) { return a.lane[i] + b.lane[i]; });
}
MILLRACE_KERNEL_INLINE PortablePart Sub(PortablePart a, PortablePart b) {
  return PortablePart::Make([&](size_t i) { return a.lane[i] - b.lane[i]; });
}
MILLRACE_KERNEL_INLINE PortablePart Mul(PortablePart a, PortablePart b) {
  return PortablePart::Make([&](size_t i) { return a.lane[i] * b.lane[i]; });
}
MILLRACE_KERNEL_INLINE PortablePart Div(PortablePart a, PortablePart b) {
  return PortablePart::Make([&](size_t i) { return a.lane[i] / b.lane[i]; });
}
MILLRACE_KERNEL_INLINE PortablePart Fma(PortablePart a, PortablePart b, PortablePart c) {
  return PortablePart::Make([&](size_t i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
MILLRACE_KERNEL_INLINE PortablePart Min(PortablePart a, PortablePart b) {
  return PortablePart::Make([&](size_t i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
MILLRACE_KERNEL_INLINE PortablePart Max(PortablePart a, PortablePart b) {
  return PortablePart::Make([&](size_t i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
MILLRACE_KERNEL_INLINE PortablePart KeepFirst(PortablePart v, size_t n, PortablePart other) {
  return PortablePart::Make([&](size_t i) { return i < n ? v.lane[i] : other.lane[i]; });
}

MILLRACE_KERNEL_INLINE float PortablePart::HalfToFloat(const uint8_t* p) {
  const uint32_t half = uint32_t{p[0]} | uint32_t{p[1]} << 8;
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 31u;
  const uint32_t mantissa = half & 1023u;
  if (exponent == 31) return FromBits(sign | 0x7F800000u | mantissa << 13);
  if (exponent != 0) return FromBits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

// Rounds to nearest even.
MILLRACE_KERNEL_INLINE void PortablePart::FloatToHalf(float v, uint8_t* p) {
  const uint32_t bits = ToBits(v);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t half = 0;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u | (magnitude >> 13 & 0x1FFu);
  } else if (magnitude >= 0x477FF000u) {
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {
    // The last digit of 0.5 is that of a subnormal half.
    half = ToBits(FromBits(magnitude) + 0.5f) - ToBits(0.5f);
  } else {
    half = (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
  }
  half |= bits >> 16 & 0x8000u;
  p[0] = static_cast<uint8_t>(half);
  p[1] = static_cast<uint8_t>(half >> 8);
}

}  // namespace millrace::kernels::cpu
