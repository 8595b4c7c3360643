// Int8 dot products by instructions that multiply unsigned by signed bytes and add neighbours as 16-bit
// words.
//
// A word holds so many sums of two products as fit 16 bits, whatever the quants are; 8-bit quants, of which
// one does not fit, are multiplied nibble by nibble.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/packed_layout.h"

namespace millrace::kernels::cpu {

// E: an engine with the instructions.
template <class E>
struct Widening {
  using Part = typename E::Part;
  using Words = typename E::Words;
  static constexpr int kMaxInput = 127;

  // Steps whose sums fit a word, a divisor of kSteps; 0: not one.
  static constexpr size_t StepsPerWord(int max_quant) {
    for (size_t steps = kSteps; steps > 0; steps /= 2) {
      if (static_cast<int>(2 * steps) * kMaxInput * max_quant <= INT16_MAX) return steps;
    }
    return 0;
  }

  template <class Format, int kRows, int kCount, Half half>
  MILLRACE_KERNEL_INLINE static void Dot(const uint8_t* const* quants, const InputBlock& x,
                                         Part (*out)[kRows]) {
    for (int g = 0; g < kCount; ++g) {
      Words sums[kRows];
      for (int r = 0; r < kRows; ++r) {
        sums[r] =
            E::Set1(Format::kZeroBits < 0 ? 0 : MinusSum<E, half>(x, r) * (1 << (Format::kZeroBits & 31)));
      }
      if constexpr (StepsPerWord(Format::kMaxQuant) == 0) {
        static_assert(half == Half::kBoth);
        AddByNibbles<Format, kRows>(quants[g], x, sums);
      } else {
        AddWhole<Format, kRows, half>(quants[g], x, sums);
      }
      for (int r = 0; r < kRows; ++r) out[g][r] = E::ToFloat(sums[r]);
    }
  }

 private:
  MILLRACE_KERNEL_INLINE static Words Input(const InputBlock& x, int row, size_t step) {
    int32_t four;
    std::memcpy(&four, x.quants[row] + step * kStepElements, sizeof(four));
    return E::Set1(four);
  }

  template <class Format, int kRows, Half half>
  MILLRACE_KERNEL_INLINE static void AddWhole(const uint8_t* quants, const InputBlock& x, Words* sums) {
    constexpr size_t kRun = StepsPerWord(Format::kMaxQuant);
    Words words[kRows];
    for (int r = 0; r < kRows; ++r) words[r] = E::Set1(0);
#pragma GCC unroll 8
    for (size_t step = kFirstStep<half>; step < kEndStep<half>; ++step) {
      const auto w = Format::Step(quants, step);
      for (int r = 0; r < kRows; ++r) words[r] = E::AddWords(words[r], E::MulBytes(w, Input(x, r, step)));
      if ((step + 1) % kRun != 0) continue;
      for (int r = 0; r < kRows; ++r) {
        sums[r] = E::Add32(sums[r], E::MulWords(words[r], E::Set1Word(1)));
        words[r] = E::Set1(0);
      }
    }
  }

  template <class Format, int kRows>
  MILLRACE_KERNEL_INLINE static void AddByNibbles(const uint8_t* quants, const InputBlock& x, Words* sums) {
    constexpr int kMaxNibble = 15;
    static_assert(StepsPerWord(kMaxNibble) == kSteps);
    Words low[kRows], high[kRows];
    for (int r = 0; r < kRows; ++r) low[r] = high[r] = E::Set1(0);
#pragma GCC unroll 8
    for (size_t step = 0; step < kSteps; ++step) {
      const auto w = Format::Step(quants, step);
      const auto w_low = E::LowNibbles(w), w_high = E::HighNibbles(w);
      for (int r = 0; r < kRows; ++r) {
        const Words in = Input(x, r, step);
        low[r] = E::AddWords(low[r], E::MulBytes(w_low, in));
        high[r] = E::AddWords(high[r], E::MulBytes(w_high, in));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const Words sum = E::Add32(E::MulWords(low[r], E::Set1Word(1)), E::MulWords(high[r], E::Set1Word(16)));
      sums[r] = E::Add32(sums[r], sum);
    }
  }
};

}  // namespace millrace::kernels::cpu
