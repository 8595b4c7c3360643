// The race detector on kernels with a race each, and the same ones without. This file is compiled with
// -fsanitize=thread.
#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "cuda_on_cpu/kernel.h"
#include "cuda_on_cpu/mma.h"
#include "gtest/gtest.h"
#include "kernel_launch.h"
#include "race_detector.h"

namespace cuda_on_cpu {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// Sums 64 numbers of two warps by way of shared memory.
template <bool first_barrier, bool second_barrier>
__global__ void Sum(const float* in, float* out) {
  float* const shared = shared_memory<float>();
  for (int round = 0; round < 2; ++round) {
    float sum = in[threadIdx.x];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAll, sum, distance);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    if constexpr (first_barrier) __syncthreads();
    out[threadIdx.x] = shared[0] + shared[1];
    if constexpr (second_barrier) __syncthreads();
  }
}

template <bool sync>
__global__ void TurnInWarp(int* out) {
  int* const shared = shared_memory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if constexpr (sync) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// A shuffle waits for the lanes, but orders no memory.
__global__ void ShuffleBetween(int* out) {
  int* const shared = shared_memory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
  out[threadIdx.x] += shared[threadIdx.x ^ 1];
}

template <bool barrier>
__global__ void CopyAndLoad(const void* in, uint32_t* out) {
  char* const shared = shared_memory<char>();
  cp_async_16(shared + 16 * threadIdx.x, static_cast<const char*>(in) + 16 * threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<0>();
  if constexpr (barrier) __syncthreads();
  uint32_t d[4];
  ldmatrix_x4(d, shared + 16 * (threadIdx.x % 32));
  out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

template <bool atomic>
__global__ void Count(int* out) {
  int* const shared = shared_memory<int>();
  if (threadIdx.x == 0) *shared = 0;
  __syncthreads();
  if constexpr (atomic) {
    atomicAdd(shared, 1);
  } else {
    *shared += 1;
  }
  __syncthreads();
  out[threadIdx.x] = *shared;
}

// Neighbouring bytes are different threads' own.
__global__ void Bytes(int* out) {
  int8_t* const shared = shared_memory<int8_t>();
  shared[threadIdx.x] = 1;
  out[threadIdx.x] = shared[threadIdx.x];
}

// All read; who writes comes after a barrier, or not.
template <bool barrier>
__global__ void ReadThenWrite(int* out) {
  int* const shared = shared_memory<int>();
  const int value = *shared;
  if constexpr (barrier) __syncthreads();
  if (threadIdx.x == 63) *shared = 1;
  out[threadIdx.x] = value;
}

template <class... Params>
size_t Races(void (*kernel)(Params...), std::type_identity_t<Params>... args) {
  EXPECT_EQ(TakeRaces(), std::vector<std::string>());
  RunKernel(MakeLaunch(kernel, {dim3(2), dim3(64), 1024}, args...));
  const std::vector<std::string> races = TakeRaces();
  for (const std::string& race : races) {
    EXPECT_NE(race.find("races_test"), std::string::npos) << race;
    EXPECT_NE(race.find("cuda_on_cpu::(anonymous namespace)::"), std::string::npos) << race;
  }
  return races.size();
}

TEST(RacesTest, RemovedBarriersAreFound) {
  std::vector<float> in(64, 1), out(64);
  std::vector<int> ints(64);
  alignas(16) char bytes[1024] = {};
  std::vector<uint32_t> words(64);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    SetSeed(seed);
    EXPECT_EQ((Races(Sum<true, true>, in.data(), out.data())), 0u);
    EXPECT_GT((Races(Sum<false, true>, in.data(), out.data())), 0u);
    EXPECT_GT((Races(Sum<true, false>, in.data(), out.data())), 0u);
    EXPECT_EQ(Races(TurnInWarp<true>, ints.data()), 0u);
    EXPECT_GT(Races(TurnInWarp<false>, ints.data()), 0u);
    EXPECT_GT(Races(ShuffleBetween, ints.data()), 0u);
    EXPECT_EQ(Races(CopyAndLoad<true>, bytes, words.data()), 0u);
    EXPECT_GT(Races(CopyAndLoad<false>, bytes, words.data()), 0u);
    EXPECT_EQ(Races(Count<true>, ints.data()), 0u);
    EXPECT_GT(Races(Count<false>, ints.data()), 0u);
    EXPECT_EQ(Races(Bytes, ints.data()), 0u);
    EXPECT_EQ(Races(ReadThenWrite<true>, ints.data()), 0u);
    EXPECT_GT(Races(ReadThenWrite<false>, ints.data()), 0u);
  }
  SetSeed(1);
}

}  // namespace
}  // namespace cuda_on_cpu
