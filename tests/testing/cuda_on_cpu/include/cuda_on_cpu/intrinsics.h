// Scalar functions of device code that the host's headers lack: CUDA Math API. Where CUDA states a function's
// rounding it is that one; where CUDA only bounds the error (__expf), the host's function.
#pragma once

#include <vector_types.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cuda_on_cpu/place.h"

inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
// The quotient of doubles is near enough to the exact value to round to the right float.
inline float __frsqrt_rn(float a) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
}
inline float rsqrtf(float a) {
  return __frsqrt_rn(a);
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __dsqrt_rn(double a) {
  return std::sqrt(a);
}

inline float __expf(float a) {
  return std::exp(a);
}
inline float __logf(float a) {
  return std::log(a);
}
inline float __sinf(float a) {
  return std::sin(a);
}
inline float __cosf(float a) {
  return std::cos(a);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __saturatef(float a) {
  return a > 0 ? std::min(a, 1.0f) : 0.0f;
}

inline int __float_as_int(float a) {
  return std::bit_cast<int>(a);
}
inline unsigned __float_as_uint(float a) {
  return std::bit_cast<unsigned>(a);
}
inline float __int_as_float(int a) {
  return std::bit_cast<float>(a);
}
inline float __uint_as_float(unsigned a) {
  return std::bit_cast<float>(a);
}
inline long long __double_as_longlong(double a) {
  return std::bit_cast<long long>(a);
}
inline double __longlong_as_double(long long a) {
  return std::bit_cast<double>(a);
}

namespace cuda_on_cpu::internal {

// Conversions to integers clamp, and NaN becomes 0 (PTX ISA, cvt).
template <class To, class From>
To ClampTo(From integral) {
  constexpr From kLow = static_cast<From>(std::numeric_limits<To>::min());
  constexpr From kBehind = static_cast<From>(2) * static_cast<From>(std::numeric_limits<To>::max() / 2 + 1);
  if (std::isnan(integral)) return 0;
  if (integral < kLow) return std::numeric_limits<To>::min();
  if (integral >= kBehind) return std::numeric_limits<To>::max();
  return static_cast<To>(integral);
}

}  // namespace cuda_on_cpu::internal

inline int __float2int_rn(float a) {
  return cuda_on_cpu::internal::ClampTo<int>(std::nearbyint(a));
}
inline int __float2int_rz(float a) {
  return cuda_on_cpu::internal::ClampTo<int>(std::trunc(a));
}
inline int __float2int_rd(float a) {
  return cuda_on_cpu::internal::ClampTo<int>(std::floor(a));
}
inline int __float2int_ru(float a) {
  return cuda_on_cpu::internal::ClampTo<int>(std::ceil(a));
}
inline unsigned __float2uint_rn(float a) {
  return cuda_on_cpu::internal::ClampTo<unsigned>(std::nearbyint(a));
}
inline unsigned __float2uint_rz(float a) {
  return cuda_on_cpu::internal::ClampTo<unsigned>(std::trunc(a));
}
inline long long __float2ll_rn(float a) {
  return cuda_on_cpu::internal::ClampTo<long long>(std::nearbyint(a));
}
inline int __double2int_rn(double a) {
  return cuda_on_cpu::internal::ClampTo<int>(std::nearbyint(a));
}
inline long long __double2ll_rn(double a) {
  return cuda_on_cpu::internal::ClampTo<long long>(std::nearbyint(a));
}
inline float __int2float_rn(int a) {
  return static_cast<float>(a);
}
inline float __uint2float_rn(unsigned a) {
  return static_cast<float>(a);
}
inline float __ll2float_rn(long long a) {
  return static_cast<float>(a);
}
inline float __ull2float_rn(unsigned long long a) {
  return static_cast<float>(a);
}
inline double __int2double_rn(int a) {
  return a;
}
inline float __double2float_rn(double a) {
  return static_cast<float>(a);
}

inline int __popc(unsigned a) {
  return std::popcount(a);
}
inline int __popcll(unsigned long long a) {
  return std::popcount(a);
}
inline int __clz(int a) {
  return std::countl_zero(static_cast<unsigned>(a));
}
inline int __clzll(long long a) {
  return std::countl_zero(static_cast<unsigned long long>(a));
}
// 1 for the lowest bit; 0 where none is set.
inline int __ffs(int a) {
  return a == 0 ? 0 : std::countr_zero(static_cast<unsigned>(a)) + 1;
}
inline int __ffsll(long long a) {
  return a == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(a)) + 1;
}
inline unsigned __brev(unsigned a) {
  a = (a >> 1 & 0x55555555u) | (a & 0x55555555u) << 1;
  a = (a >> 2 & 0x33333333u) | (a & 0x33333333u) << 2;
  a = (a >> 4 & 0x0f0f0f0fu) | (a & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(a);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>(static_cast<int64_t>(a) * b >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Wide>(a) * b >> 64);
}
// Byte i of the result is byte (selector nibble i, low 3 bits) of y:x; bit 3 replicates its sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (nibble & 7)) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

namespace cuda_on_cpu::internal {

template <class Byte, class Accumulator>
Accumulator DotOfBytes(unsigned a, unsigned b, Accumulator c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<unsigned>(static_cast<Byte>(a >> i) * static_cast<Byte>(b >> i));
  }
  return static_cast<Accumulator>(sum);
}

template <class Combine>
unsigned OnBytes(unsigned a, unsigned b, Combine combine) {
  unsigned result = 0;
  for (int i = 0; i < 32; i += 8) {
    const int x = static_cast<int8_t>(a >> i), y = static_cast<int8_t>(b >> i);
    result |= static_cast<unsigned>(static_cast<uint8_t>(combine(x, y))) << i;
  }
  return result;
}

}  // namespace cuda_on_cpu::internal

inline int __dp4a(int a, int b, int c) {
  return cuda_on_cpu::internal::DotOfBytes<int8_t>(static_cast<unsigned>(a), static_cast<unsigned>(b), c);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  return cuda_on_cpu::internal::DotOfBytes<uint8_t>(a, b, c);
}
inline unsigned __vadd4(unsigned a, unsigned b) {
  return cuda_on_cpu::internal::OnBytes(a, b, [](int x, int y) { return x + y; });
}
inline unsigned __vsub4(unsigned a, unsigned b) {
  return cuda_on_cpu::internal::OnBytes(a, b, [](int x, int y) { return x - y; });
}
inline unsigned __vaddss4(unsigned a, unsigned b) {
  return cuda_on_cpu::internal::OnBytes(a, b, [](int x, int y) { return std::clamp(x + y, -128, 127); });
}
inline unsigned __vsubss4(unsigned a, unsigned b) {
  return cuda_on_cpu::internal::OnBytes(a, b, [](int x, int y) { return std::clamp(x - y, -128, 127); });
}
inline unsigned __vcmpeq4(unsigned a, unsigned b) {
  return cuda_on_cpu::internal::OnBytes(a, b, [](int x, int y) { return x == y ? 255 : 0; });
}

// Loads and stores with cache hints are plain ones here.
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldca(const T* address) {
  return *address;
}
template <class T>
T __ldcv(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stwt(T* address, T value) {
  *address = value;
}

inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(cuda_on_cpu::Site site = cuda_on_cpu::Site::Here()) {
  cuda_on_cpu::Fail("__trap()", site);
}

inline int min(int a, int b) {
  return a < b ? a : b;
}
inline unsigned min(unsigned a, unsigned b) {
  return a < b ? a : b;
}
inline long min(long a, long b) {
  return a < b ? a : b;
}
inline unsigned long min(unsigned long a, unsigned long b) {
  return a < b ? a : b;
}
inline long long min(long long a, long long b) {
  return a < b ? a : b;
}
inline unsigned long long min(unsigned long long a, unsigned long long b) {
  return a < b ? a : b;
}
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline unsigned max(unsigned a, unsigned b) {
  return a > b ? a : b;
}
inline long max(long a, long b) {
  return a > b ? a : b;
}
inline unsigned long max(unsigned long a, unsigned long b) {
  return a > b ? a : b;
}
inline long long max(long long a, long long b) {
  return a > b ? a : b;
}
inline unsigned long long max(unsigned long long a, unsigned long long b) {
  return a > b ? a : b;
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}
