// The int8 dot products with AVX-512 VNNI, which adds four products of unsigned and signed bytes to each
// 32-bit lane. Only for a file compiled for it.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/int8_avx512.h"
#include "kernels/cpu/packed_layout.h"

namespace millrace::kernels::cpu {

struct Int8Avx512Vnni : Int8Avx512Bytes {
  // Two groups: each broadcast of inputs is used twice, as a core loads one register a cycle and multiplies
  // one.
  static constexpr int kGroups = 2;

  template <class Format, int kRows, int kCount, Half half>
  MILLRACE_KERNEL_INLINE static void Dot(const uint8_t* const* quants, const InputBlock& x,
                                         Part (*out)[kRows]) {
    __m512i sums[kCount][kRows];
    for (int r = 0; r < kRows; ++r) {
      const __m512i start = Format::kZeroBits < 0
                                ? _mm512_setzero_si512()
                                : _mm512_slli_epi32(_mm512_set1_epi32(MinusSum<Int8Avx512Vnni, half>(x, r)),
                                                    Format::kZeroBits & 31);
      for (int g = 0; g < kCount; ++g) sums[g][r] = start;
    }
#pragma GCC unroll 8
    for (size_t step = kFirstStep<half>; step < kEndStep<half>; ++step) {
      __m512i w[kCount];
      for (int g = 0; g < kCount; ++g) w[g] = Format::Step(quants[g], step);
      for (int r = 0; r < kRows; ++r) {
        const __m512i in = Input<kCount>(x.quants[r] + step * kStepElements);
        for (int g = 0; g < kCount; ++g) sums[g][r] = _mm512_dpbusd_epi32(sums[g][r], w[g], in);
      }
    }
    for (int g = 0; g < kCount; ++g) {
      for (int r = 0; r < kRows; ++r) out[g][r] = {_mm512_cvtepi32_ps(sums[g][r])};
    }
  }

 private:
  template <int kUses>
  MILLRACE_KERNEL_INLINE static __m512i Input(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, sizeof(four));
    __m512i all = _mm512_set1_epi32(four);
    // Left alone, the compiler loads it again for each use.
    if constexpr (kUses > 1) asm("" : "+v"(all));
    return all;
  }
};

}  // namespace millrace::kernels::cpu
