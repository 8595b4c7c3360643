#include "kernels/backend.h"

#include "tests/kernels/kernel_testing.h"

namespace millrace::kernels {
namespace {

TEST(BackendTest, RefusesAnUnknownInstructionSet) {
  const auto backend = MakeCpuBackend({.isa = "sse9"});
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(backend.status().message()).find("sse9"), std::string::npos);
  EXPECT_FALSE(MakeCpuBackend({.isa = ""}).ok());
}

TEST(BackendTest, AlwaysHasPortableAndAuto) {
  ASSERT_TRUE(MakeCpuBackend({.isa = "portable"}).ok());
  EXPECT_EQ((*MakeCpuBackend({.isa = "portable"}))->name(), "cpu/portable");
  ASSERT_TRUE(MakeCpuBackend({.isa = "auto"}).ok());
  EXPECT_EQ((*MakeCpuBackend({.isa = "auto"}))->name(), "cpu/" + CpuBackends().back());
}

TEST(BackendTest, PutsAllInstructionSetsInOneNumericClassAndTheReferenceInAnother) {
  for (const std::string& isa : CpuBackends())
    EXPECT_EQ((*MakeCpuBackend({.isa = isa}))->numeric_class(), "cpu/f32");
  for (const std::string& isa : CpuBackends()) EXPECT_EQ(MakeInt8Backend(isa)->numeric_class(), "cpu/int8");
  EXPECT_EQ(MakeReferenceBackend()->numeric_class(), "reference/f32");
}

TEST(WeightsTest, KnowsTheSizesOfBlocks) {
  EXPECT_EQ(WeightBlockBytes(WeightType::kQ8_0), 34u);
  EXPECT_EQ(WeightBlockBytes(WeightType::kQ4_0), 18u);
  EXPECT_EQ(WeightBlockBytes(WeightType::kQ4_1), 20u);
  EXPECT_EQ(WeightBlockElements(WeightType::kQ4_1), 32u);
  EXPECT_EQ(WeightBlockBytes(WeightType::kQ5_0), 22u);
  EXPECT_EQ(WeightBlockBytes(WeightType::kQ4_K), 144u);
  EXPECT_EQ(WeightBlockBytes(WeightType::kQ5_K), 176u);
  EXPECT_EQ(WeightBlockBytes(WeightType::kQ6_K), 210u);
  for (const WeightType type : {WeightType::kQ4_K, WeightType::kQ5_K, WeightType::kQ6_K}) {
    EXPECT_EQ(WeightBlockElements(type), 256u);
  }
  EXPECT_EQ(WeightBlockBytes(WeightType::kBF16), 2u);
  EXPECT_EQ(WeightBlockElements(WeightType::kF32), 1u);
}

}  // namespace
}  // namespace millrace::kernels
