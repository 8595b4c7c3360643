// Eight float lanes in one AVX2 register. Only for files compiled with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"

namespace millrace::kernels::cpu {

// See Vec for what each operation means.
struct Avx2Part {
  static constexpr size_t kLanes = 8;
  static constexpr int kPanelTileRows = 3;
  static constexpr int kDirectRows = 2;
  static constexpr int kAttentionQueries = 3;
  static constexpr int kAttentionVectors = 2;
  __m256 v;

  MILLRACE_KERNEL_INLINE static Avx2Part Set1(float f) { return {_mm256_set1_ps(f)}; }
  MILLRACE_KERNEL_INLINE static Avx2Part Load(const float* p) { return {_mm256_loadu_ps(p)}; }
  MILLRACE_KERNEL_INLINE static Avx2Part LoadPartial(const float* p, size_t n) {
    return {_mm256_maskload_ps(p, FirstLanes(n))};
  }
  MILLRACE_KERNEL_INLINE void Store(float* p) const { _mm256_storeu_ps(p, v); }
  MILLRACE_KERNEL_INLINE void StorePartial(float* p, size_t n) const {
    _mm256_maskstore_ps(p, FirstLanes(n), v);
  }

  MILLRACE_KERNEL_INLINE static float HalfToFloat(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, sizeof(half));
    return _cvtsh_ss(half);
  }
  MILLRACE_KERNEL_INLINE static Avx2Part LoadF16(const uint8_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  MILLRACE_KERNEL_INLINE static Avx2Part LoadBf16(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  MILLRACE_KERNEL_INLINE static Avx2Part LoadI8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
  MILLRACE_KERNEL_INLINE void StoreF16(uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  MILLRACE_KERNEL_INLINE void StoreLowBytes(uint8_t* p) const {
    const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4,
                                           8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_castps_si256(v), first);
    const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(low, high));
  }
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static Avx2Part LoadQ4_0(const uint8_t* p, float d) {
    const __m256i centred = _mm256_sub_epi32(Nibbles<kHigh>(p), _mm256_set1_epi32(8));
    return {_mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(centred))};
  }
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static Avx2Part LoadQ4_1(const uint8_t* p, float d, float m) {
    return {_mm256_fmadd_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(Nibbles<kHigh>(p)), _mm256_set1_ps(m))};
  }

  MILLRACE_KERNEL_INLINE static Avx2Part ScaleByPow2(Avx2Part x, Avx2Part t) {
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t.v), _mm256_set1_epi32(0x4B400000));
    const __m256i half = _mm256_srai_epi32(n, 1);
    const __m256 first = PowerOfTwo(half);
    const __m256 second = PowerOfTwo(_mm256_sub_epi32(n, half));
    return {_mm256_mul_ps(_mm256_mul_ps(x.v, first), second)};
  }

  MILLRACE_KERNEL_INLINE static float ReduceAdd(Avx2Part x) {
    const __m128 four = Fold(x.v);
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  MILLRACE_KERNEL_INLINE static float ReduceMax(Avx2Part x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  MILLRACE_KERNEL_INLINE static void ReduceAdd4(Avx2Part a, Avx2Part b, Avx2Part c, Avx2Part d, float* out) {
    const __m128 fa = Fold(a.v), fb = Fold(b.v), fc = Fold(c.v), fd = Fold(d.v);
    const __m128 ab = _mm_add_ps(_mm_movelh_ps(fa, fb), _mm_movehl_ps(fb, fa));
    const __m128 cd = _mm_add_ps(_mm_movelh_ps(fc, fd), _mm_movehl_ps(fd, fc));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD)));
  }

  MILLRACE_KERNEL_INLINE static __m256i FirstLanes(size_t n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), index);
  }

 private:
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static __m256i Nibbles(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return kHigh ? _mm256_srli_epi32(wide, 4) : _mm256_and_si256(wide, _mm256_set1_epi32(15));
  }
  MILLRACE_KERNEL_INLINE static __m256 PowerOfTwo(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  MILLRACE_KERNEL_INLINE static __m128 Fold(__m256 x) {
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  }
};

MILLRACE_KERNEL_INLINE Avx2Part Add(Avx2Part a, Avx2Part b) {
  return {_mm256_add_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx2Part Sub(Avx2Part a, Avx2Part b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx2Part Mul(Avx2Part a, Avx2Part b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx2Part Div(Avx2Part a, Avx2Part b) {
  return {_mm256_div_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx2Part Fma(Avx2Part a, Avx2Part b, Avx2Part c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
MILLRACE_KERNEL_INLINE Avx2Part Min(Avx2Part a, Avx2Part b) {
  return {_mm256_min_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx2Part Max(Avx2Part a, Avx2Part b) {
  return {_mm256_max_ps(a.v, b.v)};
}
MILLRACE_KERNEL_INLINE Avx2Part KeepFirst(Avx2Part x, size_t n, Avx2Part other) {
  return {_mm256_blendv_ps(other.v, x.v, _mm256_castsi256_ps(Avx2Part::FirstLanes(n)))};
}

}  // namespace millrace::kernels::cpu
