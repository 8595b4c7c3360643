// Sixteen float lanes in one AVX-512 register. Only for files compiled with AVX-512 F, BW, VL, DQ.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"

namespace millrace::kernels::cpu {

// See Vec for what each operation means.
struct Avx512Part {
  static constexpr size_t kLanes = 16;
  static constexpr int kPanelTileRows = 6;
  static constexpr int kDirectRows = 4;
  static constexpr int kAttentionQueries = 4;
  static constexpr int kAttentionVectors = 4;
  __m512 v;

  MILLRACE_KERNEL_INLINE static Avx512Part Set1(float f) { return {_mm512_set1_ps(f)}; }
  MILLRACE_KERNEL_INLINE static Avx512Part Load(const float* p) { return {_mm512_loadu_ps(p)}; }
  MILLRACE_KERNEL_INLINE static Avx512Part LoadPartial(const float* p, size_t n) {
    return {_mm512_maskz_loadu_ps(FirstLanes(n), p)};
  }
  MILLRACE_KERNEL_INLINE void Store(float* p) const { _mm512_storeu_ps(p, v); }
  MILLRACE_KERNEL_INLINE void StorePartial(float* p, size_t n) const {
    _mm512_mask_storeu_ps(p, FirstLanes(n), v);
  }

  MILLRACE_KERNEL_INLINE static float HalfToFloat(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, sizeof(half));
    return _cvtsh_ss(half);
  }
  MILLRACE_KERNEL_INLINE static Avx512Part LoadF16(const uint8_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  MILLRACE_KERNEL_INLINE static Avx512Part LoadBf16(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  MILLRACE_KERNEL_INLINE static Avx512Part LoadI8(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  MILLRACE_KERNEL_INLINE void StoreF16(uint8_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  MILLRACE_KERNEL_INLINE void StoreLowBytes(uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(v)));
  }
  // The sixteen values a nibble can stand for fit one register, so a permute looks all lanes up at once.
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static Avx512Part LoadQ4_0(const uint8_t* p, float d) {
    const __m512 centred = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm512_permutexvar_ps(NibbleIndex<kHigh>(p), _mm512_mul_ps(_mm512_set1_ps(d), centred))};
  }
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static Avx512Part LoadQ4_1(const uint8_t* p, float d, float m) {
    const __m512 nibbles = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 table = _mm512_fmadd_ps(_mm512_set1_ps(d), nibbles, _mm512_set1_ps(m));
    return {_mm512_permutexvar_ps(NibbleIndex<kHigh>(p), table)};
  }

  MILLRACE_KERNEL_INLINE static Avx512Part ScaleByPow2(Avx512Part x, Avx512Part t) {
    const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t.v), _mm512_set1_epi32(0x4B400000));
    const __m512i half = _mm512_srai_epi32(n, 1);
    const __m512 first = PowerOfTwo(half);
    const __m512 second = PowerOfTwo(_mm512_sub_epi32(n, half));
    return {_mm512_mul_ps(_mm512_mul_ps(x.v, first), second)};
  }

  MILLRACE_KERNEL_INLINE static float ReduceAdd(Avx512Part x) {
    const __m128 four = Fold(x.v);
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  MILLRACE_KERNEL_INLINE static float ReduceMax(Avx512Part x) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  MILLRACE_KERNEL_INLINE static void ReduceAdd4(Avx512Part a, Avx512Part b, Avx512Part c, Avx512Part d,
                                                float* out) {
    const __m128 fa = Fold(a.v), fb = Fold(b.v), fc = Fold(c.v), fd = Fold(d.v);
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(fa, fb), _mm_movehl_ps(fb, fa));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(fc, fd), _mm_movehl_ps(fd, fc));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD)));
  }

  MILLRACE_KERNEL_INLINE static __mmask16 FirstLanes(size_t n) {
    return static_cast<__mmask16>(n >= kLanes ? 0xFFFFu : (1u << n) - 1u);
  }

 private:
  // The permute reads the low four bits of an index only: no masking.
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static __m512i NibbleIndex(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return kHigh ? _mm512_srli_epi32(wide, 4) : wide;
  }
  MILLRACE_KERNEL_INLINE static __m512 PowerOfTwo(__m512i n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }
  MILLRACE_KERNEL_INLINE static __m128 Fold(__m512 x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  }
};

MILLRACE_KERNEL_INLINE Avx512Part Add(Avx512Part a, Avx512Part b) {
  return {_mm512_add_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx512Part Sub(Avx512Part a, Avx512Part b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx512Part Mul(Avx512Part a, Avx512Part b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx512Part Div(Avx512Part a, Avx512Part b) {
  return {_mm512_div_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx512Part Fma(Avx512Part a, Avx512Part b, Avx512Part c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
MILLRACE_KERNEL_INLINE Avx512Part Min(Avx512Part a, Avx512Part b) {
  return {_mm512_min_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx512Part Max(Avx512Part a, Avx512Part b) {
  return {_mm512_max_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx512Part KeepFirst(Avx512Part x, size_t n, Avx512Part other) {
  return {_mm512_mask_mov_ps(other.v, Avx512Part::FirstLanes(n), x.v)};
}

}  // namespace millrace::kernels::cpu
