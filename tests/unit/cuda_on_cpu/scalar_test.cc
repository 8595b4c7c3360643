// Scalar functions of device code and 16-bit floats, against CUDA's Math API documentation and PTX ISA 8.5.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "cuda_on_cpu/kernel.h"
#include "gtest/gtest.h"
#include "kernel_launch.h"

namespace cuda_on_cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

TEST(ScalarTest, ConversionsToIntegersRoundClampAndMakeNanZero) {
  EXPECT_EQ(__float2int_rn(0.5f), 0);
  EXPECT_EQ(__float2int_rn(1.5f), 2);
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rn(-2.5f), -2);
  EXPECT_EQ(__float2int_rn(-3.5f), -4);
  EXPECT_EQ(__float2int_rz(-1.9f), -1);
  EXPECT_EQ(__float2int_rd(-1.1f), -2);
  EXPECT_EQ(__float2int_ru(1.1f), 2);
  EXPECT_EQ(__float2int_rn(3e9f), 0x7fffffff);
  EXPECT_EQ(__float2int_rn(-kInfinity), std::numeric_limits<int>::min());
  EXPECT_EQ(__float2int_rn(kNan), 0);
  EXPECT_EQ(__float2uint_rn(-1), 0u);
  EXPECT_EQ(__float2uint_rn(4294967040.0f), 4294967040u);
  EXPECT_EQ(__float2uint_rz(5e9f), ~0u);
  EXPECT_EQ(__float2ll_rn(kInfinity), std::numeric_limits<long long>::max());
  EXPECT_EQ(__double2int_rn(0x1p31), 0x7fffffff);
}

TEST(ScalarTest, FusedProductsRoundOnce) {
  // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: the last term is lost where the product is rounded first.
  const float x = 1 + 0x1p-12f;
  EXPECT_EQ(__fmaf_rn(x, x, -1), 0x1p-11f + 0x1p-24f);
  EXPECT_EQ(__fadd_rn(__fmul_rn(x, x), -1), 0x1p-11f);
  volatile float y = x;
  EXPECT_EQ(y * y - 1, 0x1p-11f);
  EXPECT_EQ(__frsqrt_rn(4), 0.5f);
  EXPECT_EQ(__frcp_rn(3), 1.0f / 3);
  EXPECT_EQ(__saturatef(kNan), 0);
  EXPECT_EQ(__saturatef(1.5f), 1);
}

TEST(ScalarTest, BitFunctions) {
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__ffsll(1LL << 40), 41);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__popc(0xf0f0u), 8);
  EXPECT_EQ(__brev(1), 0x80000000u);
  EXPECT_EQ(__brev(0x12345678u), 0x1e6a2c48u);
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x6240), 0x66224400u);
  EXPECT_EQ(__byte_perm(0x00008000u, 0, 0x0009), 0x000000ffu);
  EXPECT_EQ(__funnelshift_l(0x80000001u, 0x2u, 1), 5u);
  EXPECT_EQ(__funnelshift_r(0x80000001u, 0x3u, 1), 0xc0000000u);
  EXPECT_EQ(__mulhi(-1, 1), -1);
  EXPECT_EQ(__umulhi(~0u, ~0u), 0xfffffffeu);
  EXPECT_EQ(__umul64hi(~0ull, 2), 1u);
}

TEST(ScalarTest, BytesInWords) {
  EXPECT_EQ(__dp4a(static_cast<int>(0x80808080u), static_cast<int>(0x80808080u), 5), 4 * 16384 + 5);
  EXPECT_EQ(__dp4a(0x80808080u, 0x80808080u, 5u), 4u * 16384 + 5);
  EXPECT_EQ(__dp4a(0x01020304, static_cast<int>(0xff01ff01u), 0), -1 + 2 - 3 + 4);
  EXPECT_EQ(__vsub4(0x00010203u, 0x01010101u), 0xff000102u);
  EXPECT_EQ(__vadd4(0xff7f0102u, 0x01010101u), 0x00800203u);
  EXPECT_EQ(__vsubss4(0x80000000u, 0x01000000u), 0x80000000u);
  EXPECT_EQ(__vaddss4(0x7f000000u, 0x01000000u), 0x7f000000u);
  EXPECT_EQ(__vcmpeq4(0x01020304u, 0x01ff03ffu), 0xff00ff00u);
}

// To the nearest, ties to even, by double arithmetic.
double RoundTo(double value, int mantissa_bits, int least_exponent) {
  if (value == 0) return 0;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  const double unit = std::ldexp(1.0, exponent - mantissa_bits);
  return std::nearbyint(value / unit) * unit;
}

TEST(ScalarTest, SixteenBitFloatsRoundToNearestEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!std::isfinite(value)) continue;
    if (std::fabs(value) < 65504) {
      ASSERT_EQ(__half2float(__float2half_rn(value)), RoundTo(value, 10, -14)) << value;
    }
    if (std::fabs(value) < 3e38f) {
      ASSERT_EQ(__bfloat162float(__float2bfloat16_rn(value)), RoundTo(value, 7, -126)) << value;
    }
  }
  EXPECT_EQ(__half2float(__float2half_rn(65519.0f)), 65504);
  EXPECT_EQ(__half2float(__float2half_rn(65520.0f)), kInfinity);
  EXPECT_TRUE(std::isnan(__half2float(__float2half_rn(kNan))));
  EXPECT_TRUE(std::isnan(__bfloat162float(__float2bfloat16_rn(kNan))));
}

__global__ void UseAtomics(int* sum, unsigned* most, float* total, unsigned* ticket,
                           unsigned long long* swapped) {
  atomicAdd(sum, -1);
  atomicMax(most, threadIdx.x);
  atomicAdd(total, 0.5f);
  atomicInc(ticket, 9);
  atomicCAS(swapped, static_cast<unsigned long long>(threadIdx.x), threadIdx.x + 1ull);
}

TEST(ScalarTest, Atomics) {
  SetSeed(0);
  int sum = 0;
  unsigned most = 0, ticket = 0;
  float total = 0;
  unsigned long long swapped = 0;
  RunKernel(MakeLaunch(UseAtomics, {dim3(1), dim3(64)}, &sum, &most, &total, &ticket, &swapped));
  SetSeed(1);
  EXPECT_EQ(sum, -64);
  EXPECT_EQ(most, 63u);
  EXPECT_EQ(total, 32);
  EXPECT_EQ(ticket, 4u);
  EXPECT_EQ(swapped, 64u);
}

}  // namespace
}  // namespace cuda_on_cpu
