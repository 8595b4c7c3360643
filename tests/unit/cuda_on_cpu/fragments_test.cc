// Which element of a matrix lies in which register of which lane: PTX ISA 8.5, 9.7.14.5.8 (mma.m16n8k16),
// 9.7.14.5.10 (mma.m16n8k32), 9.7.14.5.15 (ldmatrix), whose formulas the tests repeat.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda_on_cpu/kernel.h"
#include "cuda_on_cpu/mma.h"
#include "gtest/gtest.h"
#include "kernel_launch.h"

namespace cuda_on_cpu {
namespace {

// The D of all layouts.
template <class Sum>
void StoreD(const Sum (&d)[4], Sum* to) {
  const int group = static_cast<int>(threadIdx.x) >> 2, in_group = static_cast<int>(threadIdx.x) % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8;
    const int column = in_group * 2 + (i & 1);
    to[row * 8 + column] = d[i];
  }
}

template <class Sum>
void LoadD(const Sum* from, Sum (&d)[4]) {
  const int group = static_cast<int>(threadIdx.x) >> 2, in_group = static_cast<int>(threadIdx.x) % 4;
  for (int i = 0; i < 4; ++i) d[i] = from[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
}

// a: 16 rows of 32, b: 32 rows of 8, d: 16 rows of 8.
__global__ void MultiplyBytes(const int8_t* a, const int8_t* b, int* d) {
  const int group = static_cast<int>(threadIdx.x) >> 2, in_group = static_cast<int>(threadIdx.x) % 4;
  uint32_t a_words[4] = {}, b_words[2] = {};
  for (int i = 0; i < 16; ++i) {
    const int row = (0 <= i && i < 4) || (8 <= i && i < 12) ? group : group + 8;
    const int column = in_group * 4 + (i & 3) + (i < 8 ? 0 : 16);
    a_words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(a[row * 32 + column])) << 8 * (i % 4);
  }
  for (int i = 0; i < 8; ++i) {
    const int row = in_group * 4 + (i & 3) + (i < 4 ? 0 : 16);
    b_words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(b[row * 8 + group])) << 8 * (i % 4);
  }
  int sums[4];
  LoadD(d, sums);
  mma_s8(sums, a_words, b_words);
  StoreD(sums, d);
}

TEST(FragmentsTest, ProductsOfBytes) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 3; ++trial) {
    std::vector<int8_t> a(16 * 32, -128), b(32 * 8, -128);
    std::vector<int> d(16 * 8), expected(16 * 8);
    for (int i = 0; i < 128; ++i) d[i] = expected[i] = static_cast<int>(random());
    if (trial > 0) {
      for (int8_t& value : a) value = static_cast<int8_t>(random());
      for (int8_t& value : b) value = static_cast<int8_t>(random());
    }
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        unsigned sum = static_cast<unsigned>(expected[row * 8 + column]);
        for (int k = 0; k < 32; ++k) sum += static_cast<unsigned>(a[row * 32 + k] * b[k * 8 + column]);
        expected[row * 8 + column] = static_cast<int>(sum);
      }
    }
    RunKernel(MakeLaunch(MultiplyBytes, {dim3(1), dim3(32)}, a.data(), b.data(), d.data()));
    EXPECT_EQ(d, expected);
  }
}

// a: 16 rows of 16, b: 16 rows of 8, d: 16 rows of 8; 16-bit floats of either type.
__global__ void MultiplyHalves(const uint16_t* a, const uint16_t* b, float* d, bool bfloat) {
  const int group = static_cast<int>(threadIdx.x) >> 2, in_group = static_cast<int>(threadIdx.x) % 4;
  uint32_t a_words[4] = {}, b_words[2] = {};
  for (int i = 0; i < 8; ++i) {
    const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
    const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
    a_words[i / 2] |= static_cast<uint32_t>(a[row * 16 + column]) << 16 * (i % 2);
  }
  for (int i = 0; i < 4; ++i) {
    const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
    b_words[i / 2] |= static_cast<uint32_t>(b[row * 8 + group]) << 16 * (i % 2);
  }
  float sums[4];
  LoadD(d, sums);
  if (bfloat) {
    mma_bf16(sums, a_words, b_words);
  } else {
    mma_f16(sums, a_words, b_words);
  }
  StoreD(sums, d);
}

uint16_t Bits(float value, bool bfloat) {
  return bfloat ? __bfloat16_as_ushort(__float2bfloat16_rn(value)) : __half_as_ushort(__float2half_rn(value));
}
float Value(uint16_t bits, bool bfloat) {
  return bfloat ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
}

TEST(FragmentsTest, ProductsOf16BitFloats) {
  std::mt19937 random(1);
  for (const bool bfloat : {false, true}) {
    // Small integers and quarters: every order of adding gives the same.
    std::vector<uint16_t> a(16 * 16), b(16 * 8);
    std::vector<float> d(16 * 8), expected(16 * 8);
    for (uint16_t& bits : a) bits = Bits((static_cast<int>(random() % 65) - 32) / 4.0f, bfloat);
    for (uint16_t& bits : b) bits = Bits((static_cast<int>(random() % 65) - 32) / 4.0f, bfloat);
    for (int i = 0; i < 128; ++i) d[i] = expected[i] = static_cast<float>(random() % 100);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        for (int k = 0; k < 16; ++k) {
          expected[row * 8 + column] += Value(a[row * 16 + k], bfloat) * Value(b[k * 8 + column], bfloat);
        }
      }
    }
    RunKernel(MakeLaunch(MultiplyHalves, {dim3(1), dim3(32)}, a.data(), b.data(), d.data(), bfloat));
    EXPECT_EQ(d, expected) << bfloat;
  }
}

// Every 16-bit float as the only element of its row of A that is not 0, times 1: subnormals, infinities, NaN.
TEST(FragmentsTest, Every16BitFloatIsConvertedExactly) {
  for (const bool bfloat : {false, true}) {
    for (uint32_t first = 0; first < 0x10000; first += 1024) {
      const uint16_t one = Bits(1, bfloat);
      for (uint32_t base = first; base < first + 1024; base += 128) {
        std::vector<uint16_t> a(16 * 16), b(16 * 8);
        for (int k = 0; k < 8; ++k) b[k * 8 + k] = one;
        for (int i = 0; i < 128; ++i) a[i / 8 * 16 + i % 8] = static_cast<uint16_t>(base + i);
        // An infinity times 0 would spoil its row.
        const bool finite = std::isfinite(Value(static_cast<uint16_t>(base + 127), bfloat)) &&
                            std::isfinite(Value(static_cast<uint16_t>(base), bfloat));
        if (!finite) continue;
        std::vector<float> d(16 * 8);
        RunKernel(MakeLaunch(MultiplyHalves, {dim3(1), dim3(32)}, a.data(), b.data(), d.data(), bfloat));
        for (int i = 0; i < 128; ++i) {
          ASSERT_EQ(d[i], Value(static_cast<uint16_t>(base + i), bfloat)) << base + i << " " << bfloat;
        }
      }
    }
    for (const float special : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
      std::vector<uint16_t> a(16 * 16, Bits(special, bfloat)), b(16 * 8, Bits(1, bfloat));
      std::vector<float> d(16 * 8);
      RunKernel(MakeLaunch(MultiplyHalves, {dim3(1), dim3(32)}, a.data(), b.data(), d.data(), bfloat));
      for (const float value : d) EXPECT_EQ(std::isnan(value), std::isnan(special));
    }
  }
}

// Shared memory holds 4 matrices of 8 rows of 8; words[lane][transposed ? 7 + i : i] are the registers of
// x1, x2 and x4 in turn.
__global__ void LoadMatrices(uint32_t* words) {
  uint16_t* const shared = shared_memory<uint16_t>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) shared[i] = static_cast<uint16_t>(i);
  __syncthreads();
  const uint16_t* const row = shared + 8 * lane;
  uint32_t x1[1], x2[2], x4[4];
  uint32_t* to = words + 14 * lane;
  const auto put = [&] {
    *to++ = x1[0];
    for (const uint32_t word : x2) *to++ = word;
    for (const uint32_t word : x4) *to++ = word;
  };
  ldmatrix_x1(x1, lane < 8 ? row : shared);
  ldmatrix_x2(x2, lane < 16 ? row : shared);
  ldmatrix_x4(x4, row);
  put();
  ldmatrix_x1_trans(x1, lane < 8 ? row : shared);
  ldmatrix_x2_trans(x2, lane < 16 ? row : shared);
  ldmatrix_x4_trans(x4, row);
  put();
}

TEST(FragmentsTest, LoadedMatrices) {
  std::vector<uint32_t> words(32 * 14);
  RunKernel(MakeLaunch(LoadMatrices, {dim3(1), dim3(32), 512}, words.data()));
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t matrices[7] = {0, 0, 1, 0, 1, 2, 3};
    for (int i = 0; i < 7; ++i) {
      const uint32_t first = 64 * matrices[i] + 8 * (lane / 4) + 2 * (lane % 4);
      EXPECT_EQ(words[14 * lane + i], first | (first + 1) << 16) << lane << " " << i;
      const uint32_t transposed = 64 * matrices[i] + 8 * (2 * (lane % 4)) + lane / 4;
      EXPECT_EQ(words[14 * lane + 7 + i], transposed | (transposed + 8) << 16) << lane << " " << i;
    }
  }
}

__global__ void LoadFrom(const void* row, int offset) {
  uint32_t d[4];
  ldmatrix_x4(d, row != nullptr ? row : shared_memory<char>() + offset);
}

__global__ void MultiplyInBranch(unsigned lanes) {
  int d[4] = {};
  uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < lanes) mma_s8(d, a, b);
}

using FragmentsDeathTest = ::testing::Test;

TEST(FragmentsDeathTest, WhatHardwareWouldNotDo) {
  alignas(16) char elsewhere[512];
  EXPECT_DEATH(RunKernel(MakeLaunch(LoadFrom, {dim3(1), dim3(32), 512}, elsewhere, 0)),
               "does not lie in shared memory");
  EXPECT_DEATH(RunKernel(MakeLaunch(LoadFrom, {dim3(1), dim3(32), 512}, nullptr, 8)), "16-byte aligned");
  EXPECT_DEATH(RunKernel(MakeLaunch(LoadFrom, {dim3(1), dim3(32), 512}, nullptr, 512)),
               "does not lie in shared memory");
  EXPECT_DEATH(RunKernel(MakeLaunch(MultiplyInBranch, {dim3(1), dim3(32)}, 31u)),
               "fragments_test.*MultiplyInBranch.*needs all 32 lanes");
  EXPECT_DEATH(RunKernel(MakeLaunch(MultiplyInBranch, {dim3(1), dim3(48)}, 48u)), "needs all 32 lanes");
}

}  // namespace
}  // namespace cuda_on_cpu
