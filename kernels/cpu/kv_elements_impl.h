// Elements of the KV cache as vectors of floats, for each type they are kept in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/vec.h"
#include "kernels/paged_attention.h"

namespace millrace::kernels::cpu {

template <KvType kType>
inline constexpr size_t kKvBytes = kType == KvType::kF32   ? 4
                                   : kType == KvType::kF16 ? 2
                                                           : 1;

// Sixteen elements. kI8: the quants.
template <class V, KvType kType>
MILLRACE_KERNEL_INLINE V LoadKv(const uint8_t* p) {
  if constexpr (kType == KvType::kF32) return V::Load(reinterpret_cast<const float*>(p));
  if constexpr (kType == KvType::kF16) return V::LoadF16(p);
  if constexpr (kType == KvType::kI8) return V::LoadI8(p);
}

// The first n of them, the other lanes 0. Only head sizes that are no multiple of 16 come here.
template <class V, KvType kType>
MILLRACE_KERNEL_INLINE V LoadKvPartial(const uint8_t* p, size_t n) {
  if constexpr (kType == KvType::kF32) return V::LoadPartial(reinterpret_cast<const float*>(p), n);
  alignas(64) uint8_t copy[kVecLanes * kKvBytes<kType>] = {};
  for (size_t i = 0; i < n * kKvBytes<kType>; ++i) copy[i] = p[i];
  return LoadKv<V, kType>(copy);
}

// How the elements of one position and head are rounded, and their scale (see KvType).
template <class V, KvType kType>
struct Rounding {
  Rounding(const float*, size_t) {}
  MILLRACE_KERNEL_INLINE void Store(V v, uint8_t* p) const {
    if constexpr (kType == KvType::kF32) v.Store(reinterpret_cast<float*>(p));
    if constexpr (kType == KvType::kF16) v.StoreF16(p);
  }
};

template <class V>
struct Rounding<V, KvType::kI8> {
  float scale;
  V inverse;
  bool zeros;  // all quants are 0

  Rounding(const float* x, size_t count) {
    V most = V::Set1(0);
    V strange = V::Set1(0);  // NaN in a lane that has seen infinity or NaN
    for (size_t i = 0; i < count; i += kVecLanes) {
      const V v = V::LoadPartial(x + i, count - i < kVecLanes ? count - i : kVecLanes);
      most = Max(most, Max(v, Sub(V::Set1(0), v)));
      strange = Add(strange, Sub(v, v));
    }
    const bool finite = V::ReduceAdd(strange) == 0;
    scale = V::ReduceMax(most) / 127.0f;
    if (scale < 0x1p-126f) scale = 0;
    if (!finite) scale = __builtin_nanf("");
    zeros = !(scale > 0);
    inverse = V::Set1(1.0f / scale);
  }
  MILLRACE_KERNEL_INLINE void Store(V v, uint8_t* p) const {
    // Adding 1.5 * 2^23 rounds to an integer, whose low bits are those of the sum.
    const V quants = zeros ? V::Set1(0) : Mul(v, inverse);
    Add(quants, V::Set1(12582912.0f)).StoreLowBytes(p);
  }
};

}  // namespace millrace::kernels::cpu
