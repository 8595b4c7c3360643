// How a format's quants and scales come out of packed weights (packed_layout.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/packed_layout.h"

namespace millrace::kernels::cpu {

// Over PackedRecord it has
//   Step(quants, step)                 elements 4 * step .. of the rows of one register of the engine Int8,
//   `quants`
//                                      being the record's beginning plus the place of the first of these rows
//                                      in a step
//   Scale, Min(header, record, row)    what is called weight_scale and weight_min there, from row `row` of
//   the group
//                                      on
//   HalfScale(record, half, row)       the integers that multiply the dot products of half blocks, where
//   there are any
template <class Int8, WeightType type>
struct PackedFormat;

template <class Int8>
struct ByteSteps {
  MILLRACE_KERNEL_INLINE static typename Int8::Bytes Step(const uint8_t* quants, size_t step) {
    return Int8::LoadBytes(quants + step * kStepBytes);
  }
};

template <class Int8>
struct NibbleSteps {
  MILLRACE_KERNEL_INLINE static typename Int8::Bytes Step(const uint8_t* quants, size_t step) {
    const auto both = Int8::LoadBytes(quants + step % (kSteps / 2) * kStepBytes);
    return step < kSteps / 2 ? Int8::LowNibbles(both) : Int8::HighNibbles(both);
  }
};

// Nibbles and a fifth bit: bit `step` of a byte. The switches are on constants once the loops over steps are
// unrolled, as shifts want them.
template <class Int8, class Record>
struct FiveBitSteps {
  MILLRACE_KERNEL_INLINE static typename Int8::Bytes Step(const uint8_t* quants, size_t step) {
    const auto low = NibbleSteps<Int8>::Step(quants, step);
    const auto high = Int8::LoadBytes(quants + Record::kHigh);
    switch (step) {
      case 0:
        return Int8::template OrHigh<0, 1>(low, high);
      case 1:
        return Int8::template OrHigh<1, 1>(low, high);
      case 2:
        return Int8::template OrHigh<2, 1>(low, high);
      case 3:
        return Int8::template OrHigh<3, 1>(low, high);
      case 4:
        return Int8::template OrHigh<4, 1>(low, high);
      case 5:
        return Int8::template OrHigh<5, 1>(low, high);
      case 6:
        return Int8::template OrHigh<6, 1>(low, high);
      default:
        return Int8::template OrHigh<7, 1>(low, high);
    }
  }
};

template <class Int8, class Record>
struct SixBitSteps {
  MILLRACE_KERNEL_INLINE static typename Int8::Bytes Step(const uint8_t* quants, size_t step) {
    const auto low = NibbleSteps<Int8>::Step(quants, step);
    const auto high = Int8::LoadBytes(quants + Record::kHigh + step / (kSteps / 2) * kStepBytes);
    switch (step % (kSteps / 2)) {
      case 0:
        return Int8::template OrHigh<0, 2>(low, high);
      case 1:
        return Int8::template OrHigh<2, 2>(low, high);
      case 2:
        return Int8::template OrHigh<4, 2>(low, high);
      default:
        return Int8::template OrHigh<6, 2>(low, high);
    }
  }
};

// Scales that are f16 beside the quants.
template <class Int8, class Record>
struct PlainScales {
  using P = typename Int8::Part;
  MILLRACE_KERNEL_INLINE static P Scale(const uint8_t*, const uint8_t* record, size_t row) {
    return P::LoadF16(record + Record::kScales + row * kHalfBytes);
  }
  MILLRACE_KERNEL_INLINE static P Min(const uint8_t*, const uint8_t* record, size_t row) {
    return P::LoadF16(record + Record::kMins + row * kHalfBytes);
  }
};

// Scales and minima that are integers beside the quants, below 128, times the header's f16.
template <class Int8, class Record>
struct ScaledScales {
  using P = typename Int8::Part;
  MILLRACE_KERNEL_INLINE static P Scale(const uint8_t* header, const uint8_t* record, size_t row) {
    return Mul(P::LoadF16(header + row * kHalfBytes), P::LoadI8(record + Record::kScales + row));
  }
  MILLRACE_KERNEL_INLINE static P Min(const uint8_t* header, const uint8_t* record, size_t row) {
    return Mul(P::LoadF16(header + (kGroupRows + row) * kHalfBytes), P::LoadI8(record + Record::kMins + row));
  }
};

// Scales of half blocks, by which the dot products are multiplied, and the header's f16.
template <class Int8, class Record>
struct HalfScales {
  using P = typename Int8::Part;
  MILLRACE_KERNEL_INLINE static P Scale(const uint8_t* header, const uint8_t*, size_t row) {
    return P::LoadF16(header + row * kHalfBytes);
  }
  MILLRACE_KERNEL_INLINE static P HalfScale(const uint8_t* record, size_t half, size_t row) {
    return P::LoadI8(record + Record::kScales + half * kGroupRows + row);
  }
};

template <class Int8>
struct PackedFormat<Int8, WeightType::kQ8_0>
    : PackedRecord<WeightType::kQ8_0>, ByteSteps<Int8>, PlainScales<Int8, PackedRecord<WeightType::kQ8_0>> {};
template <class Int8>
struct PackedFormat<Int8, WeightType::kQ4_0> : PackedRecord<WeightType::kQ4_0>,
                                               NibbleSteps<Int8>,
                                               PlainScales<Int8, PackedRecord<WeightType::kQ4_0>> {};
template <class Int8>
struct PackedFormat<Int8, WeightType::kQ4_1> : PackedRecord<WeightType::kQ4_1>,
                                               NibbleSteps<Int8>,
                                               PlainScales<Int8, PackedRecord<WeightType::kQ4_1>> {};
template <class Int8>
struct PackedFormat<Int8, WeightType::kQ5_0> : PackedRecord<WeightType::kQ5_0>,
                                               FiveBitSteps<Int8, PackedRecord<WeightType::kQ5_0>>,
                                               PlainScales<Int8, PackedRecord<WeightType::kQ5_0>> {};
template <class Int8>
struct PackedFormat<Int8, WeightType::kQ4_K> : PackedRecord<WeightType::kQ4_K>,
                                               NibbleSteps<Int8>,
                                               ScaledScales<Int8, PackedRecord<WeightType::kQ4_K>> {};
template <class Int8>
struct PackedFormat<Int8, WeightType::kQ5_K> : PackedRecord<WeightType::kQ5_K>,
                                               FiveBitSteps<Int8, PackedRecord<WeightType::kQ5_K>>,
                                               ScaledScales<Int8, PackedRecord<WeightType::kQ5_K>> {};
template <class Int8>
struct PackedFormat<Int8, WeightType::kQ6_K> : PackedRecord<WeightType::kQ6_K>,
                                               SixBitSteps<Int8, PackedRecord<WeightType::kQ6_K>>,
                                               HalfScales<Int8, PackedRecord<WeightType::kQ6_K>> {};

}  // namespace millrace::kernels::cpu
