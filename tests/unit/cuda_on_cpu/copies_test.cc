// cp.async: PTX ISA 8.5, 9.7.9.25. What has not been waited for has not arrived.
#include <cuda_runtime.h>

#include <numeric>
#include <vector>

#include "cuda_on_cpu/kernel.h"
#include "cuda_on_cpu/mma.h"
#include "gtest/gtest.h"
#include "kernel_launch.h"

namespace cuda_on_cpu {
namespace {

// One thread starts three groups: 4, 8 and 16 bytes; `seen` gets the 7 words at the start and after each
// wait.
__global__ void CopyInGroups(const uint32_t* global, uint32_t* seen) {
  uint32_t* const shared = shared_memory<uint32_t>();
  for (int i = 0; i < 8; ++i) shared[i] = 0;
  const auto look = [&] {
    for (int i = 0; i < 8; ++i) *seen++ = shared[i];
  };
  cp_async_4(shared + 6, global + 6, true);
  cp_async_commit();
  cp_async_8(shared + 4, global + 4, true);
  cp_async_commit();
  cp_async_16(shared, global, true);
  cp_async_commit();
  look();
  cp_async_wait<2>();
  look();
  cp_async_wait<1>();
  look();
  cp_async_4(shared + 7, global + 7, true);  // of no group yet: no wait covers it
  cp_async_wait<0>();
  look();
  cp_async_commit();
  cp_async_commit();
  cp_async_wait<1>();
  look();
}

TEST(CopiesTest, ArriveAtTheWaitThatCoversThem) {
  constexpr uint32_t kNot = ~0u;
  const std::vector<uint32_t> global = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<uint32_t> seen(40);
  RunKernel(MakeLaunch(CopyInGroups, {dim3(1), dim3(1), 32}, global.data(), seen.data()));
  const std::vector<uint32_t> expected = {kNot, kNot, kNot, kNot, kNot, kNot, kNot, 0,     //
                                          kNot, kNot, kNot, kNot, kNot, kNot, 7,    0,     //
                                          kNot, kNot, kNot, kNot, 5,    6,    7,    0,     //
                                          1,    2,    3,    4,    5,    6,    7,    kNot,  //
                                          1,    2,    3,    4,    5,    6,    7,    8};
  EXPECT_EQ(seen, expected);
}

__global__ void CopyNothing(uint32_t* seen) {
  uint32_t* const shared = shared_memory<uint32_t>();
  const uint32_t* const nowhere = reinterpret_cast<const uint32_t*>(uintptr_t{4096});
  cp_async_16(shared, nowhere, false);
  cp_async_8(shared + 4, nowhere, false);
  cp_async_4(shared + 6, nowhere, false);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 8; ++i) seen[i] = shared[i];
}

TEST(CopiesTest, InvalidOnesAreZerosAndReadNothing) {
  std::vector<uint32_t> seen(8);
  RunKernel(MakeLaunch(CopyNothing, {dim3(1), dim3(1), 32}, seen.data()));
  EXPECT_EQ(seen, (std::vector<uint32_t>{0, 0, 0, 0, 0, 0, 0, ~0u}));
}

__global__ void CopyTo(void* to, int offset, const char* from) {
  cp_async_16(to != nullptr ? to : shared_memory<char>() + offset, from, true);
}

using CopiesDeathTest = ::testing::Test;

TEST(CopiesDeathTest, WrongAddresses) {
  alignas(16) char global[32];
  const LaunchShape shape = {dim3(1), dim3(1), 32};
  EXPECT_DEATH(RunKernel(MakeLaunch(CopyTo, shape, global, 0, global)), "does not lie in shared memory");
  EXPECT_DEATH(RunKernel(MakeLaunch(CopyTo, shape, nullptr, 4, global)), "destination is not aligned");
  EXPECT_DEATH(RunKernel(MakeLaunch(CopyTo, shape, nullptr, 0, global + 8)), "source is not aligned");
  EXPECT_DEATH(RunKernel(MakeLaunch(CopyTo, shape, nullptr, 32, global)), "does not lie in shared memory");
}

}  // namespace
}  // namespace cuda_on_cpu
