// Barriers, shuffles and votes: CUDA C++ Programming Guide, PTX ISA 8.5, 9.7.9.6 (shfl.sync).
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <functional>
#include <vector>

#include "cuda_on_cpu/kernel.h"
#include "gtest/gtest.h"
#include "kernel_launch.h"

namespace cuda_on_cpu {
namespace {

constexpr unsigned kAll = 0xffffffffu;

enum class Way { kIndex, kUp, kDown, kXor };

__global__ void ShuffleLanes(Way way, int operand, int width, int* got) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = 0;
  switch (way) {
    case Way::kIndex:
      value = __shfl_sync(kAll, lane, operand, width);
      break;
    case Way::kUp:
      value = __shfl_up_sync(kAll, lane, static_cast<unsigned>(operand), width);
      break;
    case Way::kDown:
      value = __shfl_down_sync(kAll, lane, static_cast<unsigned>(operand), width);
      break;
    case Way::kXor:
      value = __shfl_xor_sync(kAll, lane, operand, width);
      break;
  }
  got[lane] = value;
}

TEST(WarpTest, ShufflesStayInTheirSegments) {
  for (const int width : {1, 2, 4, 8, 16, 32}) {
    for (int operand = 0; operand < 32; ++operand) {
      for (const Way way : {Way::kIndex, Way::kUp, Way::kDown, Way::kXor}) {
        std::vector<int> got(32), expected(32);
        for (int lane = 0; lane < 32; ++lane) {
          const int first = lane / width * width, last = first + width - 1;
          int source = lane;
          if (way == Way::kIndex) source = first + operand % width;
          if (way == Way::kUp && lane - operand >= first) source = lane - operand;
          if (way == Way::kDown && lane + operand <= last) source = lane + operand;
          // Lanes of earlier segments can be read, those of later ones cannot.
          if (way == Way::kXor && (lane ^ operand) <= last) source = lane ^ operand;
          expected[lane] = source;
        }
        RunKernel(MakeLaunch(ShuffleLanes, {dim3(1), dim3(32)}, way, operand, width, got.data()));
        ASSERT_EQ(got, expected) << static_cast<int>(way) << " " << operand << " " << width;
      }
    }
  }
}

__global__ void ShuffleTypes(float* floats, double* doubles, float* halves) {
  const unsigned lane = threadIdx.x;
  floats[lane] = __shfl_xor_sync(kAll, static_cast<float>(lane) + 0.5f, 1);
  doubles[lane] = __shfl_xor_sync(kAll, lane + 1e-12, 2);
  const __half2 pair = __shfl_xor_sync(kAll, __floats2half2_rn(static_cast<float>(lane), 1), 4);
  halves[lane] = __low2float(pair) + __high2float(pair);
}

TEST(WarpTest, ShufflesOfSeveralTypes) {
  std::vector<float> floats(32), halves(32);
  std::vector<double> doubles(32);
  RunKernel(MakeLaunch(ShuffleTypes, {dim3(1), dim3(32)}, floats.data(), doubles.data(), halves.data()));
  for (unsigned lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(floats[lane], static_cast<float>(lane ^ 1) + 0.5f);
    EXPECT_EQ(doubles[lane], (lane ^ 2) + 1e-12);
    EXPECT_EQ(halves[lane], static_cast<float>(lane ^ 4) + 1);
  }
}

__global__ void VoteLanes(unsigned* results) {
  const unsigned lane = threadIdx.x;
  unsigned* const mine = results + 16 * lane;
  mine[0] = __ballot_sync(kAll, lane % 3 == 0);
  mine[1] = static_cast<unsigned>(__any_sync(kAll, lane == 7));
  mine[2] = static_cast<unsigned>(__any_sync(kAll, 0));
  mine[3] = static_cast<unsigned>(__all_sync(kAll, lane != 7));
  mine[4] = static_cast<unsigned>(__all_sync(kAll, 2));
  mine[5] = __reduce_add_sync(kAll, lane);
  mine[6] = __reduce_max_sync(kAll, lane * 5 % 32);
  mine[7] = __reduce_min_sync(kAll, lane + 3);
  mine[8] = static_cast<unsigned>(__reduce_min_sync(kAll, static_cast<int>(lane) - 16));
  mine[9] = static_cast<unsigned>(__reduce_max_sync(kAll, static_cast<int>(lane) - 40));
  mine[10] = __reduce_or_sync(kAll, 1u << lane % 5);
  mine[11] = __reduce_and_sync(kAll, ~(1u << lane % 5));
  mine[12] = __reduce_xor_sync(kAll, lane == 3 ? 9u : 0u);
  // Two halves of the warp, each for itself.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  mine[13] = __ballot_sync(half, lane % 2 == 0);
  // Lanes that return are not waited for.
  if (lane >= 20) return;
  mine[14] = __ballot_sync(kAll, 1);
  mine[15] = static_cast<unsigned>(__shfl_sync(kAll, static_cast<int>(lane), 25));
}

TEST(WarpTest, VotesAndReductions) {
  std::vector<unsigned> results(32 * 16);
  RunKernel(MakeLaunch(VoteLanes, {dim3(1), dim3(32)}, results.data()));
  for (unsigned lane = 0; lane < 32; ++lane) {
    std::vector<unsigned> expected = {0x49249249u,
                                      1,
                                      0,
                                      0,
                                      1,
                                      496,
                                      31,
                                      3,
                                      static_cast<unsigned>(-16),
                                      static_cast<unsigned>(-9),
                                      31,
                                      ~31u,
                                      9,
                                      lane < 16 ? 0x5555u : 0x55550000u,
                                      lane < 20 ? 0xfffffu : 0,
                                      lane < 20 ? ~0u : 0};
    EXPECT_EQ(std::vector<unsigned>(results.begin() + 16 * lane, results.begin() + 16 * lane + 16), expected)
        << lane;
  }
}

// Lanes of a warp that are at different places of the program make progress and meet again.
__global__ void Diverge(int* results) {
  const unsigned lane = threadIdx.x;
  int value = 0;
  if (lane < 8) {
    for (unsigned i = 0; i <= lane; ++i) value += __shfl_sync(kAll >> 24 & ~((1u << i) - 1), 1, 7);
  } else if (lane < 24) {
    value = __reduce_add_sync(0xffff00u, 2);
  }
  __syncwarp();
  results[lane] = value;
}

TEST(WarpTest, LanesDivergeAndMeet) {
  std::vector<int> results(32);
  RunKernel(MakeLaunch(Diverge, {dim3(1), dim3(32)}, results.data()));
  for (int lane = 0; lane < 32; ++lane)
    EXPECT_EQ(results[lane], lane < 8 ? lane + 1 : lane < 24 ? 32 : 0) << lane;
}

// Each thread passes a value on through shared memory, round after round.
__global__ void PassRound(int rounds, int* results, int* predicates) {
  int* const shared = shared_memory<int>();
  const unsigned thread = threadIdx.x;
  shared[thread] = static_cast<int>(thread);
  __syncthreads();
  for (int i = 0; i < rounds; ++i) {
    const int taken = shared[(thread + 1) % blockDim.x];
    __syncthreads();
    shared[thread] = taken;
    __syncthreads();
  }
  results[thread] = shared[thread];
  predicates[4 * thread] = __syncthreads_count(thread % 5 == 0);
  predicates[4 * thread + 1] = __syncthreads_or(thread == 99);
  predicates[4 * thread + 2] = __syncthreads_and(thread != 99);
  // Threads that return are not waited for.
  if (thread < 40) return;
  predicates[4 * thread + 3] = __syncthreads_count(1);
}

TEST(WarpTest, BarriersOfABlock) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    SetSeed(seed);
    std::vector<int> results(100), predicates(400);
    RunKernel(MakeLaunch(PassRound, {dim3(1), dim3(100), 400}, 7, results.data(), predicates.data()));
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(results[i], (i + 7) % 100);
      EXPECT_EQ(std::vector<int>(predicates.begin() + 4 * i, predicates.begin() + 4 * i + 4),
                (std::vector<int>{20, 1, 0, i < 40 ? 0 : 60}));
    }
  }
  SetSeed(1);
}

__global__ void MissLane() {
  if (threadIdx.x != 5) __shfl_sync(kAll, 1, 0);
  __syncthreads();
}
__global__ void DifferentBarriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void BarrierInBranch() {
  if (threadIdx.x % 2 == 0) __syncthreads();
  __syncwarp();
}
__global__ void DifferentCalls() {
  if (threadIdx.x < 16) {
    __shfl_sync(kAll, 1, 0);
  } else {
    __ballot_sync(kAll, 1);
  }
}
__global__ void ForeignMask() {
  __syncwarp(1u << (threadIdx.x + 1) % 32);
}
__global__ void OddWidth() {
  __shfl_sync(kAll, 1, 0, 12);
}
__global__ void Trap() {
  __trap();
}

using WarpDeathTest = ::testing::Test;

TEST(WarpDeathTest, WhatWouldHangOrMeanNothing) {
  const LaunchShape shape = {dim3(1), dim3(64)};
  EXPECT_DEATH(RunKernel(MakeLaunch(MissLane, shape)),
               "deadlock in kernel.*MissLane.*64 threads have not returned");
  EXPECT_DEATH(RunKernel(MakeLaunch(DifferentBarriers, shape)), "DifferentBarriers.*different barriers");
  EXPECT_DEATH(RunKernel(MakeLaunch(BarrierInBranch, shape)), "deadlock in kernel.*BarrierInBranch");
  EXPECT_DEATH(RunKernel(MakeLaunch(DifferentCalls, shape)), "lanes of one warp are at different calls");
  EXPECT_DEATH(RunKernel(MakeLaunch(ForeignMask, shape)), "the mask lacks the calling lane");
  EXPECT_DEATH(RunKernel(MakeLaunch(OddWidth, shape)), "power of two");
  EXPECT_DEATH(RunKernel(MakeLaunch(Trap, shape)), "warp_test.cc.*Trap.*thread .*__trap");
}

}  // namespace
}  // namespace cuda_on_cpu
