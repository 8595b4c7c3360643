// Fragments of mma m16n8k32 (mma.cuh) out of packed weights and inputs (kernels/cpu/packed_layout.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/packed_layout.h"
#include "kernels/cuda/kernel.cuh"
#include "kernels/weights.h"

namespace millrace::kernels::cuda {

__device__ __forceinline__ uint32_t LoadWord(const uint8_t* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}
__device__ __forceinline__ float LoadHalf(const uint8_t* from) {
  return __half2float(*reinterpret_cast<const __half*>(from));
}

// One warp's view of a record of 16 weight rows by 32 elements: of each lane the fragment, and the scales of
// rows lane / 4 and lane / 4 + 8.
template <WeightType type>
struct WeightBlock {
  using Record = cpu::PackedRecord<type>;
  static constexpr bool kSixBits = type == WeightType::kQ6_K;
  static constexpr bool kFiveBits = type == WeightType::kQ5_0 || type == WeightType::kQ5_K;
  static constexpr bool kSuper = Record::kRecords > 1;

  uint32_t a[4];
  float scale[2];
  float min[2];    // formats with minima
  int half[2][2];  // formats with a scale for 16 elements: [half][row]

  __device__ __forceinline__ void Load(const uint8_t* header, const uint8_t* record, unsigned lane) {
    const unsigned row = lane / 4, step = lane % 4;
    const uint8_t* quants = record + cpu::kStepBytes * step + cpu::kStepElements * row;
    constexpr unsigned kEightRows = 8 * cpu::kStepElements;
    if constexpr (type == WeightType::kQ8_0) {
      for (int i = 0; i < 4; ++i) {
        // Signed again.
        a[i] = LoadWord(quants + (i % 2) * kEightRows + (i / 2) * 4 * cpu::kStepBytes) ^ 0x80808080u;
      }
    } else {
      for (int i = 0; i < 2; ++i) {
        const uint32_t both = LoadWord(quants + i * kEightRows);
        a[i] = both & 0x0f0f0f0fu;
        a[i + 2] = both >> 4 & 0x0f0f0f0fu;
      }
    }
    if constexpr (kFiveBits) {
      for (int i = 0; i < 2; ++i) {
        const uint32_t high = LoadWord(record + Record::kHigh + cpu::kStepElements * row + i * kEightRows);
        a[i] |= (high >> step & 0x01010101u) << 4;
        a[i + 2] |= (high >> (step + 4) & 0x01010101u) << 4;
      }
    }
    if constexpr (kSixBits) {
      for (int i = 0; i < 4; ++i) {
        const uint32_t high = LoadWord(record + Record::kHigh + cpu::kStepElements * row +
                                       (i % 2) * kEightRows + (i / 2) * cpu::kStepBytes);
        a[i] |= (high >> 2 * step & 0x03030303u) << 4;
      }
    }
    for (int i = 0; i < 2; ++i) LoadScales(header, record, row + 8 * i, i);
  }

  __device__ __forceinline__ void LoadScales(const uint8_t* header, const uint8_t* record, unsigned row,
                                             int i) {
    if constexpr (kSixBits) {
      scale[i] = LoadHalf(header + row * kHalfBytes);
      for (int h = 0; h < 2; ++h) {
        half[h][i] = static_cast<int8_t>(record[Record::kScales + h * cpu::kGroupRows + row]);
      }
    } else if constexpr (kSuper) {
      scale[i] =
          __fmul_rn(LoadHalf(header + row * kHalfBytes), static_cast<float>(record[Record::kScales + row]));
      min[i] = __fmul_rn(LoadHalf(header + (cpu::kGroupRows + row) * kHalfBytes),
                         static_cast<float>(record[Record::kMins + row]));
    } else {
      scale[i] = LoadHalf(record + Record::kScales + row * kHalfBytes);
      if constexpr (Record::kHasMin) min[i] = LoadHalf(record + Record::kMins + row * kHalfBytes);
    }
  }
};

// Bytes of a group of `blocks` blocks of 32 columns; where the header of a block, and its record, begin.
template <WeightType type>
struct GroupLayout {
  using Record = cpu::PackedRecord<type>;
  static constexpr size_t kSuperBytes = Record::kHeaderBytes + Record::kRecords * Record::kBytes;
  __device__ __forceinline__ static size_t Bytes(uint32_t blocks) {
    return size_t{blocks / static_cast<uint32_t>(Record::kRecords)} * kSuperBytes;
  }
  __device__ __forceinline__ static size_t Header(uint32_t block) { return Bytes(block); }
  __device__ __forceinline__ static size_t Place(uint32_t block) {
    return Bytes(block) + Record::kHeaderBytes +
           (block % static_cast<uint32_t>(Record::kRecords)) * Record::kBytes;
  }
};

}  // namespace millrace::kernels::cuda
