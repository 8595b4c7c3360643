// Device functions of the elementwise ops, for kernels that fuse them with others. Arithmetic, order and so
// bits are those of the CPU backends (kernels/cpu/{rms_norm,rope,swiglu}_impl.h, exp.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/kernel.cuh"

namespace millrace::kernels::cuda {

// Sums are of 16 lanes, lane l taking elements l, l + 16, ... in rising order (kernels/cpu/vec.h).
inline constexpr int kSumLanes = 16;

// The sum of lanes l and l + 8, then l + 4, l + 2, l + 1, in every lane. Lanes l and l + 16 of the warp are
// lane l of two sums. Called by whole warps.
__device__ __forceinline__ float AddSumLanes(float lane) {
  for (int step = kSumLanes / 2; step > 0; step /= 2) {
    lane = __fadd_rn(lane, __shfl_xor_sync(kAllLanes, lane, step));
  }
  return lane;
}

__device__ __forceinline__ bool IsAligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Elements of a row that a block looks at together, and floats of shared memory that SumOfSquares takes.
inline constexpr int kNormTile = 2048;
inline constexpr int kNormSharedFloats = kNormTile + 4;

// The sum of squares of x[0 .. columns), in every thread. Called by all threads of a block, of whole warps
// and one dimension; `shared`: kNormSharedFloats floats, 16-byte aligned, free again after the next barrier.
__device__ __forceinline__ float SumOfSquares(const float* x, uint32_t columns, float* shared) {
  const uint32_t thread = threadIdx.x;
  const bool vectors = IsAligned16(x);
  float squares = 0;
  for (uint32_t begin = 0; begin < columns; begin += kNormTile) {
    const uint32_t count = columns - begin < kNormTile ? columns - begin : kNormTile;
    const uint32_t whole = vectors ? count / 4 * 4 : 0;
    __syncthreads();
    for (uint32_t i = 4 * thread; i < whole; i += 4 * blockDim.x) {
      *reinterpret_cast<float4*>(shared + i) = *reinterpret_cast<const float4*>(x + begin + i);
    }
    // Up to whole steps of the lanes: what is not there counts as 0.
    const uint32_t padded = (count + kSumLanes - 1) / kSumLanes * kSumLanes;
    for (uint32_t i = whole + thread; i < padded; i += blockDim.x) shared[i] = i < count ? x[begin + i] : 0;
    __syncthreads();
    if (thread < kSumLanes) {
#pragma unroll 8
      for (uint32_t i = thread; i < padded; i += kSumLanes) {
        squares = __fmaf_rn(shared[i], shared[i], squares);
      }
    }
  }
  if (thread < kWarp) {
    squares = AddSumLanes(squares);
    if (thread == 0) shared[kNormTile] = squares;
  }
  __syncthreads();
  return shared[kNormTile];
}

// What RmsNorm multiplies a row with that sum of squares by.
__device__ __forceinline__ float NormScale(float squares, uint32_t columns, float epsilon) {
  const float mean = __fdiv_rn(squares, static_cast<float>(columns));
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, epsilon)));
}

__device__ __forceinline__ float Normed(float x, float scale, float weight) {
  return __fmul_rn(__fmul_rn(x, scale), weight);
}

// kernels/cpu/exp.h, operation by operation.
__device__ __forceinline__ float Exp(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  x = 100.0f < x ? 100.0f : x;
  x = -110.0f > x ? -110.0f : x;
  const float shifted = __fmaf_rn(x, 0x1.715476p+0f, kShift);
  const float n = __fsub_rn(shifted, kShift);
  float r = __fmaf_rn(n, -0x1.62e400p-1f, x);
  r = __fmaf_rn(n, -0x1.7f7d1cp-20f, r);
  float p = 1.0f / 5040;
  p = __fmaf_rn(p, r, 1.0f / 720);
  p = __fmaf_rn(p, r, 1.0f / 120);
  p = __fmaf_rn(p, r, 1.0f / 24);
  p = __fmaf_rn(p, r, 1.0f / 6);
  p = __fmaf_rn(p, r, 0.5f);
  p = __fmaf_rn(p, r, 1.0f);
  p = __fmaf_rn(p, r, 1.0f);
  const int power = static_cast<int>(__float_as_uint(shifted) - 0x4B400000u);
  const int half = power >> 1;
  p = __fmul_rn(p, __uint_as_float(static_cast<unsigned>(half + 127) << 23));
  return __fmul_rn(p, __uint_as_float(static_cast<unsigned>(power - half + 127) << 23));
}

// silu(gate) * up.
__device__ __forceinline__ float SiluTimes(float gate, float up) {
  const float denominator = __fadd_rn(1.0f, Exp(__fsub_rn(0.0f, gate)));
  return __fmul_rn(__fdiv_rn(gate, denominator), up);
}

// The pair (even, odd) turned by the angle of that cosine (x) and sine (y).
__device__ __forceinline__ float2 RopePair(float2 pair, float2 cos_sin) {
  float2 turned;
  turned.x = __fmaf_rn(-pair.y, cos_sin.y, __fmul_rn(pair.x, cos_sin.x));
  turned.y = __fmaf_rn(pair.y, cos_sin.x, __fmul_rn(pair.x, cos_sin.y));
  return turned;
}

}  // namespace millrace::kernels::cuda
