#include "tests/kernels/cuda/cuda_testing.h"

namespace millrace::kernels::cuda {
namespace {

TEST(CudaTestingTest, DeviceMemoryIsPoisonedAndGuarded) {
  DeviceArray<float> array(3);
  for (const float value : array.values()) EXPECT_NE(value, value);
  array.Set({1, 2, 3});
  EXPECT_EQ(array.values(), (std::vector<float>{1, 2, 3}));
  EXPECT_TRUE(array.Intact());
  for (float* outside : {array.data() - 1, array.data() + 3}) {
    const float before = -1;
    ASSERT_EQ(cudaMemcpy(outside, &before, 1, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_FALSE(array.Intact());
    ASSERT_EQ(cudaMemset(outside, 0xa5, 1), cudaSuccess);
  }
  EXPECT_TRUE(array.Intact());
}

}  // namespace
}  // namespace millrace::kernels::cuda
