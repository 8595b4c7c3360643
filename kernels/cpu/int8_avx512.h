// What the int8 kernels are made of, with AVX-512: sixteen weight rows at a time. See int8_portable.h for
// what an engine is, int8_widening.h for how it multiplies.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/int8_widening.h"
#include "kernels/cpu/packed_layout.h"
#include "kernels/cpu/part_avx512.h"

namespace millrace::kernels::cpu {

// What the engines with and without VNNI share.
struct Int8Avx512Bytes {
  using Part = Avx512Part;
  using Bytes = __m512i;
  using Words = __m512i;

  MILLRACE_KERNEL_INLINE static Bytes LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  MILLRACE_KERNEL_INLINE static Bytes LowNibbles(Bytes v) {
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
  }
  MILLRACE_KERNEL_INLINE static Bytes HighNibbles(Bytes v) { return LowNibbles(_mm512_srli_epi16(v, 4)); }
  template <int kFrom, int kBits>
  MILLRACE_KERNEL_INLINE static Bytes OrHigh(Bytes low, Bytes high) {
    // Bytes have no shifts of their own; what comes over from neighbours is masked away.
    const Bytes there = kFrom <= 4 ? _mm512_slli_epi16(high, kFrom <= 4 ? 4 - kFrom : 0)
                                   : _mm512_srli_epi16(high, kFrom > 4 ? kFrom - 4 : 0);
    constexpr int kOrOfAnd = 0xF8;  // a | (b & c)
    return _mm512_ternarylogic_epi32(low, there, _mm512_set1_epi8(((1 << kBits) - 1) << 4), kOrOfAnd);
  }
};

struct Int8Avx512 : Int8Avx512Bytes {
  static constexpr int kGroups = 1;

  MILLRACE_KERNEL_INLINE static Words Set1(int32_t v) { return _mm512_set1_epi32(v); }
  MILLRACE_KERNEL_INLINE static Words Set1Word(int16_t v) { return _mm512_set1_epi16(v); }
  MILLRACE_KERNEL_INLINE static Words MulBytes(Bytes w, Words x) { return _mm512_maddubs_epi16(w, x); }
  MILLRACE_KERNEL_INLINE static Words MulWords(Words a, Words b) { return _mm512_madd_epi16(a, b); }
  MILLRACE_KERNEL_INLINE static Words AddWords(Words a, Words b) {
    Words sum = _mm512_add_epi16(a, b);
    // Compilers rather add in trees, for which all products wait in memory.
    asm("" : "+v"(sum));
    return sum;
  }
  MILLRACE_KERNEL_INLINE static Words Add32(Words a, Words b) { return _mm512_add_epi32(a, b); }
  MILLRACE_KERNEL_INLINE static Part ToFloat(Words v) { return {_mm512_cvtepi32_ps(v)}; }

  template <class Format, int kRows, int kCount, Half half>
  MILLRACE_KERNEL_INLINE static void Dot(const uint8_t* const* quants, const InputBlock& x,
                                         Part (*out)[kRows]) {
    Widening<Int8Avx512>::Dot<Format, kRows, kCount, half>(quants, x, out);
  }

  MILLRACE_KERNEL_INLINE static uint32_t MaxMagnitudeBits(const float* x) {
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    const __m512i a = _mm512_and_si512(_mm512_loadu_si512(x), magnitude);
    const __m512i b = _mm512_and_si512(_mm512_loadu_si512(x + Part::kLanes), magnitude);
    return static_cast<uint32_t>(_mm512_reduce_max_epi32(_mm512_max_epi32(a, b)));
  }
  MILLRACE_KERNEL_INLINE static int32_t Round(const float* x, float inverse, int8_t* q) {
    const __m512 factor = _mm512_set1_ps(inverse);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), factor));
    const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + Part::kLanes), factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + Part::kLanes), _mm512_cvtepi32_epi8(b));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
  }
};

}  // namespace millrace::kernels::cpu
