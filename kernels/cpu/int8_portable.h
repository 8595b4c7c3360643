// What the int8 kernels are made of, without any instruction set: four weight rows at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/part_portable.h"

namespace millrace::kernels::cpu {

// An engine of the int8 kernels:
//   Part            its float lanes; lane l belongs to weight row l of the Part::kLanes rows worked on
//   kGroups         groups of weight rows worked on together, at most
//   Bytes           four unsigned quants of each of those rows, as they lie in a record
//   OrHigh<f, b>    bits f .. f + b - 1 of each byte of `high`, moved to bits 4 and up, or-ed to `low`
//   Dot<...>        the dot products of one block or half of one, kRows input rows by kCount groups, as
//   floats QuantizeBlock   one block of one row
struct Int8Portable {
  using Part = PortablePart;
  static constexpr int kGroups = 1;
  struct Bytes {
    uint8_t byte[Part::kLanes * kStepElements];
  };

  template <class F>
  MILLRACE_KERNEL_INLINE static Bytes Make(F f) {
    Bytes out;
    for (size_t i = 0; i < sizeof(out.byte); ++i) out.byte[i] = static_cast<uint8_t>(f(i));
    return out;
  }
  MILLRACE_KERNEL_INLINE static Bytes LoadBytes(const uint8_t* p) {
    return Make([&](size_t i) { return p[i]; });
  }
  MILLRACE_KERNEL_INLINE static Bytes LowNibbles(Bytes v) {
    return Make([&](size_t i) { return v.byte[i] & 15; });
  }
  MILLRACE_KERNEL_INLINE static Bytes HighNibbles(Bytes v) {
    return Make([&](size_t i) { return v.byte[i] >> 4; });
  }
  template <int kFrom, int kBits>
  MILLRACE_KERNEL_INLINE static Bytes OrHigh(Bytes low, Bytes high) {
    constexpr int kMask = (1 << kBits) - 1;
    return Make([&](size_t i) { return low.byte[i] | (high.byte[i] >> kFrom & kMask) << 4; });
  }

  template <class Format, int kRows, int kCount, Half half>
  MILLRACE_KERNEL_INLINE static void Dot(const uint8_t* const* quants, const InputBlock& x,
                                         Part (*out)[kRows]) {
    for (int g = 0; g < kCount; ++g) {
      int32_t dots[kRows][Part::kLanes] = {};
      for (size_t step = kFirstStep<half>; step < kEndStep<half>; ++step) {
        const Bytes w = Format::Step(quants[g], step);
        for (int r = 0; r < kRows; ++r) {
          const int8_t* q = x.quants[r] + step * kStepElements;
          for (size_t l = 0; l < Part::kLanes; ++l) {
            for (size_t i = 0; i < kStepElements; ++i) dots[r][l] += q[i] * w.byte[l * kStepElements + i];
          }
        }
      }
      for (int r = 0; r < kRows; ++r) {
        const int32_t start =
            Format::kZeroBits < 0 ? 0 : MinusSum<Int8Portable, half>(x, r) * (1 << (Format::kZeroBits & 31));
        out[g][r] = Part::Make([&](size_t l) { return static_cast<float>(dots[r][l] + start); });
      }
    }
  }

  // The bits of the largest magnitude, which order as the magnitudes do; NaN is above infinity.
  MILLRACE_KERNEL_INLINE static uint32_t MaxMagnitudeBits(const float* x) {
    uint32_t most = 0;
    for (size_t i = 0; i < kActivationBlock; ++i) {
      const uint32_t bits = Part::ToBits(x[i]) & 0x7FFFFFFFu;
      most = most < bits ? bits : most;
    }
    return most;
  }
  // q[i] = x[i] * inverse rounded to nearest even, which REQUIRES all of these to be in -127 .. 127. Gives
  // their sum.
  MILLRACE_KERNEL_INLINE static int32_t Round(const float* x, float inverse, int8_t* q) {
    int32_t sum = 0;
    for (size_t i = 0; i < kActivationBlock; ++i) {
      const float shifted = x[i] * inverse + 0x1.8p23f;  // where floats are 1 apart
      const int32_t quant = static_cast<int32_t>(Part::ToBits(shifted) - 0x4B400000u);
      q[i] = static_cast<int8_t>(quant);
      sum += quant;
    }
    return sum;
  }
};

}  // namespace millrace::kernels::cpu
