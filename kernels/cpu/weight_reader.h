// Reads stored weights as float vectors, one step (16 or 32 elements) at a time. Every value is the float32
// that the format defines, so kernels that dequantise in registers and kernels that dequantise into memory
// see the same numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/block_layout.h"
#include "kernels/cpu/inline.h"
#include "kernels/cpu/unpack_block.h"
#include "kernels/cpu/vec.h"
#include "kernels/weights.h"

namespace millrace::kernels::cpu {

// kVectors: vectors a step gives; kBytes: bytes of a block, which is kSteps steps; Load's `step` is the one
// within the block at p.
template <class V, WeightType type>
struct WeightReader;

template <class V>
struct WeightReader<V, WeightType::kF32> {
  static constexpr size_t kSteps = 1;
  static constexpr size_t kVectors = 1;
  static constexpr size_t kBytes = kVecLanes * sizeof(float);
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t /*step*/, V* out) {
    for (size_t i = 0; i < V::kParts; ++i) {
      float lanes[V::Part::kLanes];
      std::memcpy(lanes, p + i * sizeof(lanes), sizeof(lanes));
      out[0].part[i] = V::Part::Load(lanes);
    }
  }
};

template <class V>
struct WeightReader<V, WeightType::kF16> {
  static constexpr size_t kSteps = 1;
  static constexpr size_t kVectors = 1;
  static constexpr size_t kBytes = kVecLanes * kHalfBytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t /*step*/, V* out) {
    out[0] = V::LoadF16(p);
  }
};

template <class V>
struct WeightReader<V, WeightType::kBF16> {
  static constexpr size_t kSteps = 1;
  static constexpr size_t kVectors = 1;
  static constexpr size_t kBytes = kVecLanes * kHalfBytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t /*step*/, V* out) {
    out[0] = V::LoadBf16(p);
  }
};

template <class V>
struct WeightReader<V, WeightType::kQ8_0> {
  static constexpr size_t kSteps = 1;
  static constexpr size_t kVectors = 2;
  static constexpr size_t kBytes = kQ8_0Bytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t /*step*/, V* out) {
    const V d = V::Set1(V::Part::HalfToFloat(p));
    out[0] = Mul(d, V::LoadI8(p + kHalfBytes));
    out[1] = Mul(d, V::LoadI8(p + kHalfBytes + kVecLanes));
  }
};

template <class V>
struct WeightReader<V, WeightType::kQ4_0> {
  static constexpr size_t kSteps = 1;
  static constexpr size_t kVectors = 2;
  static constexpr size_t kBytes = kQ4_0Bytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t /*step*/, V* out) {
    const float d = V::Part::HalfToFloat(p);
    out[0] = V::template LoadQ4_0<false>(p + kHalfBytes, d);
    out[1] = V::template LoadQ4_0<true>(p + kHalfBytes, d);
  }
};

template <class V>
struct WeightReader<V, WeightType::kQ4_1> {
  static constexpr size_t kSteps = 1;
  static constexpr size_t kVectors = 2;
  static constexpr size_t kBytes = kQ4_1Bytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t /*step*/, V* out) {
    const float d = V::Part::HalfToFloat(p);
    const float m = V::Part::HalfToFloat(p + kHalfBytes);
    out[0] = V::template LoadQ4_1<false>(p + 2 * kHalfBytes, d, m);
    out[1] = V::template LoadQ4_1<true>(p + 2 * kHalfBytes, d, m);
  }
};

template <class V>
struct WeightReader<V, WeightType::kQ5_0> {
  static constexpr size_t kSteps = 1;
  static constexpr size_t kVectors = 2;
  static constexpr size_t kBytes = kQ5_0Bytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t /*step*/, V* out) {
    const V d = V::Set1(V::Part::HalfToFloat(p));
    uint8_t q[kBlockElements];
    Unpack<V>::Q5_0(p, q);
    for (size_t j = 0; j < kBlockElements; ++j) q[j] = static_cast<uint8_t>(q[j] - 16);
    for (size_t i = 0; i < 2; ++i) out[i] = Mul(d, V::LoadI8(q + i * kVecLanes));
  }
};

// d * scale * q is exact, and so is dmin * min: one fma rounds as the format's formula does.
template <class V, WeightType type>
struct WeightReaderWithMinimum {
  static constexpr size_t kSteps = kSubBlocks;
  static constexpr size_t kVectors = 2;
  static constexpr size_t kBytes = type == WeightType::kQ4_K ? kQ4_KBytes : kQ5_KBytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t step, V* out) {
    uint8_t scale, min;
    Unpack<V>::SixBits(p + 2 * kHalfBytes, step, &scale, &min);
    const V d = V::Set1(V::Part::HalfToFloat(p) * static_cast<float>(scale));
    const V m = V::Set1(-(V::Part::HalfToFloat(p + kHalfBytes) * static_cast<float>(min)));
    uint8_t q[kBlockElements];
    if constexpr (type == WeightType::kQ4_K) {
      Unpack<V>::Q4_K(p, step, q);
    } else {
      Unpack<V>::Q5_K(p, step, q);
    }
    for (size_t i = 0; i < 2; ++i) out[i] = Fma(d, V::LoadI8(q + i * kVecLanes), m);
  }
};

template <class V>
struct WeightReader<V, WeightType::kQ4_K> : WeightReaderWithMinimum<V, WeightType::kQ4_K> {};
template <class V>
struct WeightReader<V, WeightType::kQ5_K> : WeightReaderWithMinimum<V, WeightType::kQ5_K> {};

template <class V>
struct WeightReader<V, WeightType::kQ6_K> {
  static constexpr size_t kSteps = kSubBlocks;
  static constexpr size_t kVectors = 2;
  static constexpr size_t kBytes = kQ6_KBytes;
  MILLRACE_KERNEL_INLINE static void Load(const uint8_t* p, size_t step, V* out) {
    const float d = V::Part::HalfToFloat(p + kQ6_KBytes - kHalfBytes);
    const uint8_t* scales = p + kQ6_KBytes - kHalfBytes - kQ6_KScales + 2 * step;
    uint8_t q[kBlockElements];
    Unpack<V>::Q6_K(p, step, q);
    for (size_t j = 0; j < kBlockElements; ++j) q[j] = static_cast<uint8_t>(q[j] - 32);
    for (size_t i = 0; i < 2; ++i) {
      const float scale = d * static_cast<float>(static_cast<int8_t>(scales[i]));
      out[i] = Mul(V::Set1(scale), V::LoadI8(q + i * kVecLanes));
    }
  }
};

// The last, incomplete step of a row: `count` elements (1..15), the other lanes 0. Only types that are not
// quantised have one.
template <class V, WeightType type>
inline V LoadWeightTail(const uint8_t* p, size_t count) {
  using Reader = WeightReader<V, type>;
  static_assert(Reader::kVectors == 1, "quantised rows are whole blocks");
  uint8_t padded[Reader::kBytes] = {};
  std::memcpy(padded, p, count * (Reader::kBytes / kVecLanes));
  V out[1];
  Reader::Load(padded, 0, out);
  return out[0];
}

// One row of `columns` weights to out[0 .. columns rounded up to 16), the padding 0; `write_padding` false
// leaves it alone.
template <class V, WeightType type>
inline void DequantizeRow(const uint8_t* row, size_t columns, float* out, bool write_padding) {
  using Reader = WeightReader<V, type>;
  constexpr size_t kStep = Reader::kVectors * kVecLanes;
  const size_t steps = columns / kStep;
  for (size_t s = 0; s < steps; ++s) {
    V w[Reader::kVectors];
    Reader::Load(row + s / Reader::kSteps * Reader::kBytes, s % Reader::kSteps, w);
    for (size_t i = 0; i < Reader::kVectors; ++i) w[i].Store(out + s * kStep + i * kVecLanes);
  }
  if constexpr (Reader::kVectors == 1) {
    const size_t tail = columns - steps * kStep;
    if (tail == 0) return;
    const V w = LoadWeightTail<V, type>(row + steps * Reader::kBytes, tail);
    w.StorePartial(out + steps * kStep, write_padding ? kVecLanes : tail);
  }
}

// Calls f.template operator()<type>() for the type found at run time.
template <class F>
inline void WithWeightType(WeightType type, F f) {
  switch (type) {
    case WeightType::kF32:
      return f.template operator()<WeightType::kF32>();
    case WeightType::kF16:
      return f.template operator()<WeightType::kF16>();
    case WeightType::kBF16:
      return f.template operator()<WeightType::kBF16>();
    case WeightType::kQ8_0:
      return f.template operator()<WeightType::kQ8_0>();
    case WeightType::kQ4_0:
      return f.template operator()<WeightType::kQ4_0>();
    case WeightType::kQ4_1:
      return f.template operator()<WeightType::kQ4_1>();
    case WeightType::kQ5_0:
      return f.template operator()<WeightType::kQ5_0>();
    case WeightType::kQ4_K:
      return f.template operator()<WeightType::kQ4_K>();
    case WeightType::kQ5_K:
      return f.template operator()<WeightType::kQ5_K>();
    case WeightType::kQ6_K:
      return f.template operator()<WeightType::kQ6_K>();
  }
}

}  // namespace millrace::kernels::cpu
