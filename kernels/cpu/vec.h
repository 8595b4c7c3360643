// Sixteen float lanes: the unit in which every CPU kernel is written, made of as many registers as it takes.
//
// Same bits on every instruction set: each operation is correctly rounded (Fma once), and ReduceAdd adds
// lanes in one order (l and l + 8, then l + 4, l + 2, l + 1). A kernel that uses nothing else gives equal
// bits everywhere.
//
// Files of instruction-set flags instantiate this with their own part, and must not use inline functions that
// other files have too (std::min and the like): the linker keeps one copy, and it may be the one this machine
// cannot run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/inline.h"

namespace millrace::kernels::cpu {

inline constexpr size_t kVecLanes = 16;

// P: a register of P::kLanes floats (part_*.h).
template <class P>
struct Vec {
  using Part = P;
  static constexpr size_t kParts = kVecLanes / P::kLanes;
  P part[kParts];

  template <class F>
  MILLRACE_KERNEL_INLINE static Vec Make(F f) {
    Vec out;
    for (size_t i = 0; i < kParts; ++i) out.part[i] = f(i);
    return out;
  }
  // Of n lanes in all, how many fall into part i.
  MILLRACE_KERNEL_INLINE static size_t LanesOf(size_t i, size_t n) {
    const size_t begin = i * P::kLanes;
    if (n <= begin) return 0;
    return n - begin < P::kLanes ? n - begin : P::kLanes;
  }

  MILLRACE_KERNEL_INLINE static Vec Set1(float v) {
    return Make([&](size_t) { return P::Set1(v); });
  }
  MILLRACE_KERNEL_INLINE static Vec Load(const float* p) {
    return Make([&](size_t i) { return P::Load(p + i * P::kLanes); });
  }
  // The first n lanes from memory, the others 0.
  MILLRACE_KERNEL_INLINE static Vec LoadPartial(const float* p, size_t n) {
    return Make([&](size_t i) { return P::LoadPartial(p + i * P::kLanes, LanesOf(i, n)); });
  }
  MILLRACE_KERNEL_INLINE void Store(float* p) const {
    for (size_t i = 0; i < kParts; ++i) part[i].Store(p + i * P::kLanes);
  }
  MILLRACE_KERNEL_INLINE void StorePartial(float* p, size_t n) const {
    for (size_t i = 0; i < kParts; ++i) part[i].StorePartial(p + i * P::kLanes, LanesOf(i, n));
  }

  // Sixteen stored elements as floats, exactly.
  MILLRACE_KERNEL_INLINE static Vec LoadF16(const uint8_t* p) {
    return Make([&](size_t i) { return P::LoadF16(p + 2 * i * P::kLanes); });
  }
  MILLRACE_KERNEL_INLINE static Vec LoadBf16(const uint8_t* p) {
    return Make([&](size_t i) { return P::LoadBf16(p + 2 * i * P::kLanes); });
  }
  MILLRACE_KERNEL_INLINE static Vec LoadI8(const uint8_t* p) {
    return Make([&](size_t i) { return P::LoadI8(p + i * P::kLanes); });
  }
  // Sixteen elements rounded to nearest even; and the low byte of each lane's bits.
  MILLRACE_KERNEL_INLINE void StoreF16(uint8_t* p) const {
    for (size_t i = 0; i < kParts; ++i) part[i].StoreF16(p + 2 * i * P::kLanes);
  }
  MILLRACE_KERNEL_INLINE void StoreLowBytes(uint8_t* p) const {
    for (size_t i = 0; i < kParts; ++i) part[i].StoreLowBytes(p + i * P::kLanes);
  }
  // The low or high nibbles q of sixteen bytes as d * (q - 8), or as d * q + m rounded once.
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static Vec LoadQ4_0(const uint8_t* p, float d) {
    return Make([&](size_t i) { return P::template LoadQ4_0<kHigh>(p + i * P::kLanes, d); });
  }
  template <bool kHigh>
  MILLRACE_KERNEL_INLINE static Vec LoadQ4_1(const uint8_t* p, float d, float m) {
    return Make([&](size_t i) { return P::template LoadQ4_1<kHigh>(p + i * P::kLanes, d, m); });
  }

  // The lanes of all parts added down to one part, in the one order.
  MILLRACE_KERNEL_INLINE P FoldAdd() const {
    P sums[kParts];
    for (size_t i = 0; i < kParts; ++i) sums[i] = part[i];
    for (size_t width = kParts / 2; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) sums[i] = Add(sums[i], sums[i + width]);
    }
    return sums[0];
  }
  MILLRACE_KERNEL_INLINE static float ReduceAdd(const Vec& v) { return P::ReduceAdd(v.FoldAdd()); }
  // Four sums at once, to out[0..3].
  MILLRACE_KERNEL_INLINE static void ReduceAdd4(const Vec* v, float* out) {
    P::ReduceAdd4(v[0].FoldAdd(), v[1].FoldAdd(), v[2].FoldAdd(), v[3].FoldAdd(), out);
  }
  MILLRACE_KERNEL_INLINE static float ReduceMax(const Vec& v) {
    P most = v.part[0];
    for (size_t i = 1; i < kParts; ++i) most = Max(most, v.part[i]);
    return P::ReduceMax(most);
  }
};

template <class P>
MILLRACE_KERNEL_INLINE Vec<P> Add(Vec<P> a, Vec<P> b) {
  return Vec<P>::Make([&](size_t i) { return Add(a.part[i], b.part[i]); });
}
template <class P>
MILLRACE_KERNEL_INLINE Vec<P> Sub(Vec<P> a, Vec<P> b) {
  return Vec<P>::Make([&](size_t i) { return Sub(a.part[i], b.part[i]); });
}
template <class P>
MILLRACE_KERNEL_INLINE Vec<P> Mul(Vec<P> a, Vec<P> b) {
  return Vec<P>::Make([&](size_t i) { return Mul(a.part[i], b.part[i]); });
}
template <class P>
MILLRACE_KERNEL_INLINE Vec<P> Div(Vec<P> a, Vec<P> b) {
  return Vec<P>::Make([&](size_t i) { return Div(a.part[i], b.part[i]); });
}
// a * b + c, rounded once.
template <class P>
MILLRACE_KERNEL_INLINE Vec<P> Fma(Vec<P> a, Vec<P> b, Vec<P> c) {
  return Vec<P>::Make([&](size_t i) { return Fma(a.part[i], b.part[i], c.part[i]); });
}
// a < b ? a : b, so that a NaN in b gets through; Max likewise.
template <class P>
MILLRACE_KERNEL_INLINE Vec<P> Min(Vec<P> a, Vec<P> b) {
  return Vec<P>::Make([&](size_t i) { return Min(a.part[i], b.part[i]); });
}
template <class P>
MILLRACE_KERNEL_INLINE Vec<P> Max(Vec<P> a, Vec<P> b) {
  return Vec<P>::Make([&](size_t i) { return Max(a.part[i], b.part[i]); });
}
// The first n lanes of v, the rest of `other`.
template <class P>
MILLRACE_KERNEL_INLINE Vec<P> KeepFirst(Vec<P> v, size_t n, Vec<P> other) {
  return Vec<P>::Make([&](size_t i) { return KeepFirst(v.part[i], Vec<P>::LanesOf(i, n), other.part[i]); });
}

}  // namespace millrace::kernels::cpu
