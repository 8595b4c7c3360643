// What the int8 kernels are made of, with AVX2: eight weight rows at a time. See int8_portable.h for what an
// engine is, int8_widening.h for how it multiplies.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/int8_widening.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/part_avx2.h"

namespace millrace::kernels::cpu {

struct Int8Avx2 {
  using Part = Avx2Part;
  static constexpr int kGroups = 1;
  using Bytes = __m256i;
  using Words = __m256i;

  MILLRACE_KERNEL_INLINE static Bytes LoadBytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  MILLRACE_KERNEL_INLINE static Bytes LowNibbles(Bytes v) {
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
  }
  MILLRACE_KERNEL_INLINE static Bytes HighNibbles(Bytes v) { return LowNibbles(_mm256_srli_epi16(v, 4)); }
  template <int kFrom, int kBits>
  MILLRACE_KERNEL_INLINE static Bytes OrHigh(Bytes low, Bytes high) {
    // Bytes have no shifts of their own; what comes over from neighbours is masked away.
    const Bytes there = kFrom <= 4 ? _mm256_slli_epi16(high, kFrom <= 4 ? 4 - kFrom : 0)
                                   : _mm256_srli_epi16(high, kFrom > 4 ? kFrom - 4 : 0);
    return _mm256_or_si256(low, _mm256_and_si256(there, _mm256_set1_epi8(((1 << kBits) - 1) << 4)));
  }

  MILLRACE_KERNEL_INLINE static Words Set1(int32_t v) { return _mm256_set1_epi32(v); }
  MILLRACE_KERNEL_INLINE static Words Set1Word(int16_t v) { return _mm256_set1_epi16(v); }
  MILLRACE_KERNEL_INLINE static Words MulBytes(Bytes w, Words x) { return _mm256_maddubs_epi16(w, x); }
  MILLRACE_KERNEL_INLINE static Words MulWords(Words a, Words b) { return _mm256_madd_epi16(a, b); }
  MILLRACE_KERNEL_INLINE static Words AddWords(Words a, Words b) {
    Words sum = _mm256_add_epi16(a, b);
    // Compilers rather add in trees, for which all products wait in memory.
    asm("" : "+x"(sum));
    return sum;
  }
  MILLRACE_KERNEL_INLINE static Words Add32(Words a, Words b) { return _mm256_add_epi32(a, b); }
  MILLRACE_KERNEL_INLINE static Part ToFloat(Words v) { return {_mm256_cvtepi32_ps(v)}; }

  template <class Format, int kRows, int kCount, Half half>
  MILLRACE_KERNEL_INLINE static void Dot(const uint8_t* const* quants, const InputBlock& x,
                                         Part (*out)[kRows]) {
    Widening<Int8Avx2>::Dot<Format, kRows, kCount, half>(quants, x, out);
  }

  MILLRACE_KERNEL_INLINE static uint32_t MaxMagnitudeBits(const float* x) {
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i most = _mm256_setzero_si256();
    for (size_t i = 0; i < kActivationBlock; i += Part::kLanes) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
      most = _mm256_max_epi32(most, _mm256_and_si256(bits, magnitude));
    }
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xB1))));
  }
  MILLRACE_KERNEL_INLINE static int32_t Round(const float* x, float inverse, int8_t* q) {
    const __m256 factor = _mm256_set1_ps(inverse);
    __m256i v[4];
    for (size_t i = 0; i < 4; ++i) {
      v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * Part::kLanes), factor));
    }
    const __m256i sums = Add32(Add32(v[0], v[1]), Add32(v[2], v[3]));
    // Packing works on each half of the register by itself.
    const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(mixed, order));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
  }
};

}  // namespace millrace::kernels::cpu
