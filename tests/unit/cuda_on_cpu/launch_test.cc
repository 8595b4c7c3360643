// Grids, blocks, threads, their limits and their orders.
#include <cuda_runtime.h>

#include <set>
#include <vector>

#include "cuda_on_cpu/kernel.h"
#include "gtest/gtest.h"
#include "kernel_launch.h"

namespace cuda_on_cpu {
namespace {

__global__ void CountThreads(unsigned* counts) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  atomicAdd(&counts[block * threads + thread], 1);
}

TEST(LaunchTest, RunsEveryThreadOfEveryBlockOnce) {
  for (const dim3 block : {dim3(1), dim3(33), dim3(1024), dim3(4, 5, 6), dim3(2, 1, 64)}) {
    const dim3 grid(3, 2, 2);
    std::vector<unsigned> counts(12 * block.x * block.y * block.z);
    RunKernel(MakeLaunch(CountThreads, {grid, block}, counts.data()));
    EXPECT_EQ(counts, std::vector<unsigned>(counts.size(), 1u)) << block.x;
  }
}

TEST(LaunchTest, RefusesWhatDevicesRefuse) {
  unsigned count = 0;
  const auto start = [&](dim3 grid, dim3 block, size_t shared) {
    return Launch(CountThreads, {grid, block, shared}, &count);
  };
  EXPECT_EQ(start(dim3(0), dim3(1), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(dim3(1, 65536), dim3(1), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(dim3(1, 1, 65536), dim3(1), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(dim3(0x80000000u), dim3(1), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(dim3(1), dim3(1025), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(dim3(1), dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(dim3(1), dim3(64, 17), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(start(dim3(1), dim3(1), 1 << 20), cudaErrorInvalidValue);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(count, 0u);
}

// Who came when, by numbers drawn in turn.
__global__ void DrawNumbers(unsigned* next, unsigned* drawn) {
  drawn[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

std::vector<unsigned> Order(uint64_t seed) {
  SetSeed(seed);
  unsigned next = 0;
  std::vector<unsigned> drawn(4 * 128);
  RunKernel(MakeLaunch(DrawNumbers, {dim3(4), dim3(128)}, &next, drawn.data()));
  SetSeed(1);
  return drawn;
}

TEST(LaunchTest, SeedsDecideTheOrder) {
  std::set<std::vector<unsigned>> orders;
  std::set<bool> lane_0_first, warp_0_first, block_0_first;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<unsigned> order = Order(seed);
    EXPECT_EQ(std::set<unsigned>(order.begin(), order.end()).size(), order.size());
    lane_0_first.insert(order[0] < order[1]);
    warp_0_first.insert(order[0] < order[32]);
    block_0_first.insert(order[0] < order[128]);
    orders.insert(order);
    EXPECT_EQ(Order(seed), order);
  }
  EXPECT_EQ(orders.size(), 20u);
  EXPECT_EQ(lane_0_first.size(), 2u);
  EXPECT_EQ(warp_0_first.size(), 2u);
  EXPECT_EQ(block_0_first.size(), 2u);
  std::vector<unsigned> in_order(4 * 128);
  for (unsigned i = 0; i < in_order.size(); ++i) in_order[i] = i;
  EXPECT_EQ(Order(0), in_order);
}

__global__ void ReadShared(unsigned* seen) {
  unsigned* const shared = shared_memory<unsigned>();
  for (unsigned i = threadIdx.x; i < 100; i += blockDim.x) atomicAnd(&seen[i], shared[i]);
  __syncthreads();
  for (unsigned i = threadIdx.x; i < 100; i += blockDim.x) shared[i] = blockIdx.x;
}

TEST(LaunchTest, SharedMemoryIsPoisonedForEachBlock) {
  std::vector<unsigned> seen(100, ~0u);
  RunKernel(MakeLaunch(ReadShared, {dim3(3), dim3(64), 400}, seen.data()));
  EXPECT_EQ(seen, std::vector<unsigned>(100, ~0u));
}

__global__ void WriteBehindShared() {
  shared_memory<unsigned>()[4] = 1;
}

TEST(LaunchDeathTest, SharedMemoryEndsWhereItWasSaidTo) {
  EXPECT_DEATH(RunKernel(MakeLaunch(WriteBehindShared, {dim3(1), dim3(1), 16})), "");
}

}  // namespace
}  // namespace cuda_on_cpu
