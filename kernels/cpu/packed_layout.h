// How the int8 path lays out weights and activations. Not a file format: both live as long as the process.
//
// The product goes through 32-element blocks, rising. Of a block b, an input row r and a weight row n:
//   dot = sum of quant(r) * quant(n), an exact integer, the weights' zero point removed
//   acc = fma(float(dot) * scale[r][b], weight_scale[n][b], acc)
//   acc = fma(weight_min[n][b], scaled_sum[r][b], acc)              only formats with a minimum
// in float32, acc starting at 0 with each segment, and the same two steps once more with the refinement of a
// block that has one. This one chain makes the bits equal for all row counts, tiles and instruction sets.
//
// Weights: rows in groups of kGroupRows, the last group padded with rows of zeros. A group is one record per
// block, a record is
//   quants  step by step: of each row of the group, elements 4 * step .. 4 * step + 3 of the block, unsigned
//             8 bits  8 x 64 bytes: byte 64 * step + 4 * row + i is element 4 * step + i, plus 128
//             4 bits  4 x 64 bytes: byte 64 * s + 4 * row + i is element 4 * s + i in its low nibble (step s)
//                     and element 16 + 4 * s + i in its high one (step s + 4): the bytes of the file's block
//   scales  kGroupRows x f16
//   minima  kGroupRows x f16, where the format has them
// Five bits: after the nibbles 64 bytes, bit s of byte 4 * row + i being the fifth bit of step s. Six bits: 2
// x 64 bytes, bits 2 * (s % 4) and up of byte 64 * (s / 4) + 4 * row + i being the upper two of step s.
//
// The formats of 256-element blocks have eight records a block behind a header
//   d       kGroupRows x f16
//   -dmin   kGroupRows x f16, where the format has minima
// with, in place of the scales and minima of a record, the integers that multiply d and -dmin:
//   kQ4_K, kQ5_K  kGroupRows bytes of scales, kGroupRows of minima: weight_scale = d * scale, weight_min =
//                 -dmin * minimum
//   kQ6_K         kGroupRows scales of the first 16 elements, kGroupRows of the others. dot = scale0 * dot0 +
//                 scale1 * dot1, still an exact integer, which a float can hold: below 2^24; weight_scale = d
// so that one register of 16 x 4 bytes is what the dot product instructions take, and a group is read from
// its first byte to its last. It takes as many bytes as in the file, but for
// kQ4_K and kQ5_K, whose scales of six bits take a byte (2.8 % and 2.3 % more).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/block_layout.h"
#include "kernels/cpu/inline.h"
#include "kernels/matmul_input.h"
#include "kernels/weights.h"

namespace millrace::kernels::cpu {

inline constexpr size_t kGroupRows = 16;
inline constexpr size_t kStepElements = 4;
inline constexpr size_t kSteps = kActivationBlock / kStepElements;
inline constexpr size_t kStepBytes = kGroupRows * kStepElements;

// Input rows that lie together, and the most that a register tile has.
inline constexpr size_t kInputRows = 4;

// One block of kInputRows rows. An input is [rows / kInputRows, rounded up][columns / 32] of them, that is a
// tile's rows lie at fixed distances; rows after the last are not written and not read. As many blocks again
// follow, the refinements; only those that `refined` speaks of are written and read.
//
// A refinement holds, of the rows that need one, x - scale * quant rounded in the same way, and zeros of the
// others: these add exactly nothing to their sums, so a row does not depend on its neighbours.
struct alignas(64) InputBlock {
  int8_t quants[kInputRows][kActivationBlock];  // -127 .. 127
  float scale[kInputRows];
  float scaled_sum[kInputRows];         // scale * float(sum of the quants)
  int32_t minus_sum[kInputRows];        // -(sum of the quants)
  int16_t minus_first_sum[kInputRows];  // -(sum of the first half of them)
  bool refined;                         // some row of it is
};

// A block is refined if the square of its scale is more than this many times the mean square of its row's.
// docs/DECISIONS.md tells what it costs and gives.
inline constexpr float kRefineAbove = 4;

constexpr size_t InputBlocks(size_t rows, size_t columns) {
  return (rows + kInputRows - 1) / kInputRows * (columns / kActivationBlock);
}

// What part of a block a dot product is taken of.
enum class Half { kBoth, kFirst, kSecond };
template <Half half>
inline constexpr size_t kFirstStep = half == Half::kSecond ? kSteps / 2 : 0;
template <Half half>
inline constexpr size_t kEndStep = half == Half::kFirst ? kSteps / 2 : kSteps;

// -(sum of the quants) of that part, of row r. For each instruction set its own (vec.h).
template <class Int8, Half half>
MILLRACE_KERNEL_INLINE int32_t MinusSum(const InputBlock& x, int r) {
  if constexpr (half == Half::kBoth) return x.minus_sum[r];
  if constexpr (half == Half::kFirst) return x.minus_first_sum[r];
  return x.minus_sum[r] - x.minus_first_sum[r];
}

// Where the parts of a record begin, and what its quants are. (Not for the types that have no record.)
template <WeightType type>
struct PackedRecord;

// Formats of 32-element blocks, whose scales are f16.
struct PlainRecord {
  static constexpr size_t kHeaderBytes = 0;
  static constexpr size_t kRecords = 1;  // behind one header
  static constexpr bool kHasMin = false;
  static constexpr bool kHasHalves = false;  // a scale for 16 elements
};

template <>
struct PackedRecord<WeightType::kQ8_0> : PlainRecord {
  static constexpr size_t kScales = kSteps * kStepBytes;
  static constexpr size_t kBytes = kScales + kGroupRows * kHalfBytes;
  static constexpr int kMaxQuant = 255;
  static constexpr int kZeroBits = 7;  // the quant 2^kZeroBits stands for 0; -1: the quant 0 does
};

template <>
struct PackedRecord<WeightType::kQ4_0> : PlainRecord {
  static constexpr size_t kScales = kSteps / 2 * kStepBytes;
  static constexpr size_t kBytes = kScales + kGroupRows * kHalfBytes;
  static constexpr int kMaxQuant = 15;
  static constexpr int kZeroBits = 3;
};

template <>
struct PackedRecord<WeightType::kQ4_1> : PlainRecord {
  static constexpr size_t kScales = kSteps / 2 * kStepBytes;
  static constexpr bool kHasMin = true;
  static constexpr size_t kMins = kScales + kGroupRows * kHalfBytes;
  static constexpr size_t kBytes = kMins + kGroupRows * kHalfBytes;
  static constexpr int kMaxQuant = 15;
  static constexpr int kZeroBits = -1;
};

template <>
struct PackedRecord<WeightType::kQ5_0> : PlainRecord {
  static constexpr size_t kHigh = kSteps / 2 * kStepBytes;
  static constexpr size_t kScales = kHigh + kStepBytes;
  static constexpr size_t kBytes = kScales + kGroupRows * kHalfBytes;
  static constexpr int kMaxQuant = 31;
  static constexpr int kZeroBits = 4;
};

struct SuperRecord {
  static constexpr size_t kRecords = kSubBlocks;
  static constexpr size_t kHigh = kSteps / 2 * kStepBytes;
};

// kQ4_K without, kQ5_K with 64 bytes of fifth bits.
template <size_t kHighBytes>
struct SuperRecordWithMin : SuperRecord {
  static constexpr size_t kHeaderBytes = 2 * kGroupRows * kHalfBytes;
  static constexpr bool kHasMin = true;
  static constexpr bool kHasHalves = false;
  static constexpr size_t kScales = kHigh + kHighBytes;
  static constexpr size_t kMins = kScales + kGroupRows;
  static constexpr size_t kBytes = kMins + kGroupRows;
  static constexpr int kMaxQuant = kHighBytes == 0 ? 15 : 31;
  static constexpr int kZeroBits = -1;
};
template <>
struct PackedRecord<WeightType::kQ4_K> : SuperRecordWithMin<0> {};
template <>
struct PackedRecord<WeightType::kQ5_K> : SuperRecordWithMin<kStepBytes> {};

template <>
struct PackedRecord<WeightType::kQ6_K> : SuperRecord {
  static constexpr size_t kHeaderBytes = kGroupRows * kHalfBytes;
  static constexpr bool kHasMin = false;
  static constexpr bool kHasHalves = true;
  static constexpr size_t kScales = kHigh + 2 * kStepBytes;
  static constexpr size_t kBytes = kScales + 2 * kGroupRows;
  static constexpr int kMaxQuant = 63;
  static constexpr int kZeroBits = 5;
};

// Bytes of a header and the records behind it: of a block of the file, for a group of rows.
template <class Record>
inline constexpr size_t kPackedBlockBytes = Record::kHeaderBytes + Record::kRecords* Record::kBytes;

// The same by type; 0 for types that are not packed.
constexpr size_t PackedBlockBytes(WeightType type) {
  switch (type) {
    case WeightType::kQ8_0:
      return kPackedBlockBytes<PackedRecord<WeightType::kQ8_0>>;
    case WeightType::kQ4_0:
      return kPackedBlockBytes<PackedRecord<WeightType::kQ4_0>>;
    case WeightType::kQ4_1:
      return kPackedBlockBytes<PackedRecord<WeightType::kQ4_1>>;
    case WeightType::kQ5_0:
      return kPackedBlockBytes<PackedRecord<WeightType::kQ5_0>>;
    case WeightType::kQ4_K:
      return kPackedBlockBytes<PackedRecord<WeightType::kQ4_K>>;
    case WeightType::kQ5_K:
      return kPackedBlockBytes<PackedRecord<WeightType::kQ5_K>>;
    case WeightType::kQ6_K:
      return kPackedBlockBytes<PackedRecord<WeightType::kQ6_K>>;
    default:
      return 0;
  }
}

}  // namespace millrace::kernels::cpu
