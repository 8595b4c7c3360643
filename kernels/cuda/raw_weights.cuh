// One element of a row of weights as the file has it (layouts: kernels/weights.h), as the float32 that the
// format defines: the values of kernels/cpu/weight_reader.h. Byte by byte, so at any address: for looking up
// rows, not for products.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/block_layout.h"
#include "kernels/cuda/kernel.cuh"
#include "kernels/weights.h"

namespace millrace::kernels::cuda {

__device__ __forceinline__ float RawHalf(const uint8_t* p) {
  __half_raw half;
  half.x = static_cast<unsigned short>(p[0] | p[1] << 8);
  return __half2float(__half(half));
}

__device__ __forceinline__ float RawF32(const uint8_t* p) {
  return __uint_as_float(uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24);
}

// Element j of 16 bytes of nibbles.
__device__ __forceinline__ int RawNibble(const uint8_t* nibbles, uint32_t j) {
  return j < 16 ? nibbles[j] & 15 : nibbles[j - 16] >> 4;
}

// Scale and minimum of sub-block s, from the 12 bytes of a block of kQ4_K or kQ5_K.
__device__ __forceinline__ void RawSixBits(const uint8_t* b, uint32_t s, int* scale, int* min) {
  if (s < 4) {
    *scale = b[s] & 63;
    *min = b[s + 4] & 63;
  } else {
    *scale = (b[s + 4] & 15) | (b[s - 4] >> 6) << 4;
    *min = b[s + 4] >> 4 | (b[s] >> 6) << 4;
  }
}

// Element j of a block of 32.
template <WeightType type>
__device__ __forceinline__ float RawBlockElement(const uint8_t* block, uint32_t j) {
  const float d = RawHalf(block);
  const uint8_t* rest = block + kHalfBytes;
  if constexpr (type == WeightType::kQ8_0) {
    return __fmul_rn(d, static_cast<float>(static_cast<int8_t>(rest[j])));
  } else if constexpr (type == WeightType::kQ4_0) {
    return __fmul_rn(d, static_cast<float>(RawNibble(rest, j) - 8));
  } else if constexpr (type == WeightType::kQ4_1) {
    return __fmaf_rn(d, static_cast<float>(RawNibble(rest + kHalfBytes, j)), RawHalf(rest));
  } else {
    const int fifth = rest[j / 8] >> j % 8 & 1;
    return __fmul_rn(d, static_cast<float>(RawNibble(rest + kBlockElements / 8, j) + 16 * fifth - 16));
  }
}

// Element j of a block of 256.
template <WeightType type>
__device__ __forceinline__ float RawSuperElement(const uint8_t* block, uint32_t j) {
  const uint32_t s = j / kBlockElements;
  const uint32_t t = j % kBlockElements;
  if constexpr (type == WeightType::kQ6_K) {
    const uint8_t* high = block + kSuperNibbleBytes;
    const uint8_t* scales = high + kSuperBlockElements / 4;
    const int byte = block[64 * (s / 4) + 32 * (s % 2) + t];
    const int nibble = s % 4 / 2 == 0 ? byte & 15 : byte >> 4;
    const int q = nibble + 16 * (high[32 * (s / 4) + t] >> 2 * (s % 4) & 3) - 32;
    const float scale = static_cast<float>(static_cast<int8_t>(scales[j / 16]));
    return __fmul_rn(__fmul_rn(RawHalf(block + kQ6_KBytes - kHalfBytes), scale), static_cast<float>(q));
  } else {
    const uint8_t* rest = block + 2 * kHalfBytes + kPackedScaleBytes;
    int scale, min;
    RawSixBits(block + 2 * kHalfBytes, s, &scale, &min);
    int q = 0;
    if constexpr (type == WeightType::kQ5_K) {
      q = 16 * (rest[t] >> s & 1);
      rest += kBlockElements;
    }
    const int byte = rest[32 * (s / 2) + t];
    q += s % 2 == 0 ? byte & 15 : byte >> 4;
    const float d = __fmul_rn(RawHalf(block), static_cast<float>(scale));
    const float m = -__fmul_rn(RawHalf(block + kHalfBytes), static_cast<float>(min));
    return __fmaf_rn(d, static_cast<float>(q), m);
  }
}

__host__ __device__ constexpr size_t RawBlockBytes(WeightType type) {
  switch (type) {
    case WeightType::kQ8_0:
      return kQ8_0Bytes;
    case WeightType::kQ4_0:
      return kQ4_0Bytes;
    case WeightType::kQ4_1:
      return kQ4_1Bytes;
    case WeightType::kQ5_0:
      return kQ5_0Bytes;
    case WeightType::kQ4_K:
      return kQ4_KBytes;
    case WeightType::kQ5_K:
      return kQ5_KBytes;
    case WeightType::kQ6_K:
      return kQ6_KBytes;
    case WeightType::kF32:
      return sizeof(float);
    default:
      return kHalfBytes;
  }
}

// Element i of a row.
template <WeightType type>
__device__ __forceinline__ float RawWeight(const uint8_t* row, uint32_t i) {
  constexpr size_t kBytes = RawBlockBytes(type);
  if constexpr (type == WeightType::kF32) {
    return RawF32(row + i * kBytes);
  } else if constexpr (type == WeightType::kF16) {
    return RawHalf(row + i * kBytes);
  } else if constexpr (type == WeightType::kBF16) {
    return __uint_as_float(uint32_t{row[i * kBytes]} << 16 | uint32_t{row[i * kBytes + 1]} << 24);
  } else if constexpr (type == WeightType::kQ4_K || type == WeightType::kQ5_K || type == WeightType::kQ6_K) {
    return RawSuperElement<type>(row + i / kSuperBlockElements * kBytes, i % kSuperBlockElements);
  } else {
    return RawBlockElement<type>(row + i / kBlockElements * kBytes, i % kBlockElements);
  }
}

}  // namespace millrace::kernels::cuda
