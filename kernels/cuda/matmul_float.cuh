// What the kernels of products with F16 and BF16 weights share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/matmul_float.h"
#include "kernels/cuda/mma.cuh"

namespace millrace::kernels::cuda {

// Columns that two mma take. Lane t of a group has elements 8 t .. 8 t + 7 of both operands, one load of 16
// bytes; in which slots of the fragments they lie does not matter, as long as it is the same for both.
inline constexpr uint32_t kFloatStep = 32;
inline constexpr uint32_t kFloatLoad = 8;

// Segments that one launch goes through; more take several.
inline constexpr uint32_t kSegmentsPerLaunch = 16;

// A segment of the columns, and where it begins among the rounded activations, whose segments are filled up
// with zeros to whole steps.
struct FloatSegment {
  uint32_t begin;
  uint32_t end;
  uint32_t padded_begin;
};

struct FloatSegments {
  FloatSegment segments[kSegmentsPerLaunch];
  uint32_t count;
  uint32_t padded_columns;
};

struct FloatProduct {
  const uint8_t* weights;  // [n], row_bytes apart
  size_t row_bytes;
  const uint16_t* x;  // [rows, segments.padded_columns], rounded
  uint32_t rows;
  uint32_t n;
  float* out;
  size_t out_stride;
  size_t partial_stride;
  MatMulStore store;
  FloatSegments segments;
};

template <WeightType type>
struct Float16;

template <>
struct Float16<WeightType::kF16> {
  static __device__ __forceinline__ void Multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
  static __device__ __forceinline__ uint32_t Round(float v) { return __half_as_ushort(__float2half_rn(v)); }
};

template <>
struct Float16<WeightType::kBF16> {
  static __device__ __forceinline__ void Multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
  static __device__ __forceinline__ uint32_t Round(float v) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
  }
};

// Eight elements at `p`, of which `valid` may be read; the others 0. kAligned: p is a multiple of 16 bytes.
template <bool kAligned>
__device__ __forceinline__ uint4 LoadEight(const uint16_t* p, uint32_t valid) {
  if (kAligned && valid >= kFloatLoad) return *reinterpret_cast<const uint4*>(p);
  uint32_t words[kFloatLoad / 2] = {};
#pragma unroll
  for (uint32_t i = 0; i < kFloatLoad; ++i) {
    if (i < valid) words[i / 2] |= static_cast<uint32_t>(p[i]) << 16 * (i % 2);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// What a lane holds of 16 rows of weights and kFloatStep columns: elements of rows g and g + 8.
struct WeightStep {
  uint4 upper;
  uint4 lower;
};

// A warp's 16 rows of weights.
struct WeightRows {
  const uint16_t* upper;  // row g, from column 0
  const uint16_t* lower;  // row g + 8

  // Rows behind the last stand for the last; nobody reads their sums.
  __device__ __forceinline__ WeightRows(const FloatProduct& product, uint32_t first) {
    const uint32_t group = threadIdx.x % kWarp / 4;
    const uint32_t last = product.n - 1;
    const size_t row = first + group < last ? first + group : last;
    const size_t other = first + group + 8 < last ? first + group + 8 : last;
    upper = reinterpret_cast<const uint16_t*>(product.weights + row * product.row_bytes);
    lower = reinterpret_cast<const uint16_t*>(product.weights + other * product.row_bytes);
  }

  // Of columns [column, column + kFloatStep), those before `end`.
  template <bool kAligned>
  __device__ __forceinline__ WeightStep Load(uint32_t column, uint32_t end) const {
    const uint32_t at = column + kFloatLoad * (threadIdx.x % 4);
    const uint32_t valid = at < end ? end - at : 0;
    return {LoadEight<kAligned>(upper + at, valid), LoadEight<kAligned>(lower + at, valid)};
  }
};

// sums[i] += row g + 8 (i / 2) of the weights times token 2 t + i % 2.
template <WeightType type>
__device__ __forceinline__ void MultiplyStep(float (&sums)[4], const WeightStep& w, const uint4& x) {
  const uint32_t first[4] = {w.upper.x, w.lower.x, w.upper.y, w.lower.y};
  const uint32_t second[4] = {w.upper.z, w.lower.z, w.upper.w, w.lower.w};
  const uint32_t x_first[2] = {x.x, x.y};
  const uint32_t x_second[2] = {x.z, x.w};
  Float16<type>::Multiply(sums, first, x_first);
  Float16<type>::Multiply(sums, second, x_second);
}

}  // namespace millrace::kernels::cuda
