// Stages on a device whose memory is not the host's compute what they compute in host memory.
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/expect_close.h"
#include "tests/testing/tiny_llama.h"
#include "tests/unit/stage/far_devices.h"
#include "tests/unit/stage/stage_ring.h"
#include "worker/kv/kv_room.h"
#include "worker/stage/decode_buckets.h"
#include "worker/stage/stage_profiler.h"

namespace millrace::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kTokens = 50;

class StageDeviceTest : public ::testing::Test {
 protected:
  StageDeviceTest()
      : model_(
            TestModel::FromBytes(BuildTinyLlama({.type = TensorType::kQ8_0, .tied = false}),
                                 kernels::CpuBackendOptions{.activations = kernels::ActivationType::kInt8})) {
    sequence_.tokens = RandomTokens(kTokens, model_.shape.vocabulary_size, 1);
    sequence_.blocks = Blocks(0, kTokens);
  }

  StageRingOptions Far(const std::vector<uint32_t>& layers = {}) {
    StageRingOptions options{.layers = layers, .kv_type = KvType::kF16};
    options.make_devices = [this](uint32_t) { return MakeFarDevices(*model_.backend, &memory_); };
    return options;
  }

  TestModel model_;
  TestSequence sequence_;
  FarMemory memory_;
};

TEST_F(StageDeviceTest, GiveTheBitsOfTheHost) {
  StageRing host(model_, {.kv_type = KvType::kF16});
  const std::vector<float> expected = AllLogits(host, sequence_, 13);
  for (const std::vector<uint32_t>& layers : {std::vector<uint32_t>{3}, {1, 2}}) {
    StageRing far(model_, Far(layers));
    EXPECT_TRUE(IsBitEqual(AllLogits(far, sequence_, 13), expected)) << layers.size() << " stages";
  }
  EXPECT_EQ(memory_.misplaced, 0);
}

TEST_F(StageDeviceTest, SamplesWhatTheHostSamples) {
  std::vector<StageSegment> segments;
  for (uint32_t i = 0; i < 20; ++i) {
    TestSequence sequence{i + 1, RandomTokens(12, model_.shape.vocabulary_size, i), Blocks(i, 12)};
    segments.push_back(sequence.Segment(0, i % 3 + 1));
    segments.back().sampling.emplace().seed = i;
  }
  StageRing host(model_, {.kv_type = KvType::kF16});
  StageRing far(model_, Far());
  const std::vector<SequenceResult> expected = host.Run(BatchOf(segments));
  const std::vector<SequenceResult> results = far.Run(BatchOf(segments));
  ASSERT_EQ(results.size(), expected.size());
  for (size_t i = 0; i < results.size(); ++i) EXPECT_EQ(results[i].token, expected[i].token);
}

TEST_F(StageDeviceTest, NothingIsAllocatedAfterLoadAndNothingKept) {
  {
    StageRing far(model_, Far());
    const int loaded = memory_.allocations;
    AllLogits(far, sequence_, 13);
    EXPECT_EQ(memory_.allocations, loaded);
    EXPECT_GT(loaded, 0);
  }
  EXPECT_THAT(memory_.live, IsEmpty());
  EXPECT_THAT(memory_.staging, IsEmpty());
}

TEST_F(StageDeviceTest, EveryAllocationThatFailsIsNamed) {
  const StageModelOptions options{{0, 3, true, true}, 8, 64};
  int failures = 0;
  for (memory_.fails = 0;; ++memory_.fails) {
    memory_.allocations = 0;
    const std::unique_ptr<DeviceGroup> devices = MakeFarDevices(*model_.backend, &memory_);
    const auto stage = StageModel::Create(*model_.file, model_.shape, *devices, options);
    if (stage.ok()) break;
    ++failures;
    EXPECT_EQ(stage.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(stage.status().message()), HasSubstr(memory_.failed));
    EXPECT_THAT(memory_.live, IsEmpty()) << memory_.failed;
    EXPECT_THAT(memory_.staging, IsEmpty()) << memory_.failed;
  }
  EXPECT_GT(failures, 15);
}

TEST_F(StageDeviceTest, WhatFailsOnTheDeviceIsNoResult) {
  StageRing far(model_, Far());
  StageSegment segment = sequence_.Segment(0, 5);
  segment.sampling.emplace();
  const StageBatch batch = BatchOf({segment});
  const auto residual = far.stage(0).Run(batch, nullptr, far.cache(0));
  ASSERT_TRUE(residual.ok());
  memory_.status = absl::InternalError("gone");
  EXPECT_EQ(far.stage(0).Sample(batch, **residual).status(), memory_.status);
  EXPECT_EQ(far.stage(0).Run(batch, nullptr, far.cache(0)).status(), memory_.status);
}

TEST_F(StageDeviceTest, IsMeasuredByTheClock) {
  const std::unique_ptr<DeviceGroup> devices = MakeFarDevices(*model_.backend, &memory_);
  StageProfilerOptions options{.max_rows = 4, .context_tokens = 64};
  options.kv_type = KvType::kF16;
  const auto profile = MeasureProfile(*model_.file, model_.shape, *devices, options);
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_FALSE(profile->layer.empty());
  EXPECT_FALSE(profile->head.empty());
  memory_.status = absl::InternalError("gone");
  EXPECT_EQ(MeasureProfile(*model_.file, model_.shape, *devices, options).status(), memory_.status);
}

TEST_F(StageDeviceTest, KvRoomIsWhatIsFreeLessAReserve) {
  const std::unique_ptr<DeviceGroup> devices = MakeFarDevices(*model_.backend, &memory_);
  const KvCache::Shape shape{3, 1, 16, 2, 16, KvType::kF16};
  constexpr uint64_t kBlock = 2 * 3 * 16 * 2 * 16 * 2;
  memory_.free = kDeviceReserveBytes + 7 * kBlock + kBlock / 2;
  EXPECT_EQ(DeviceKvBlocks(*devices, shape, ~uint64_t{0}), 7u);
  EXPECT_EQ(DeviceKvBlocks(*devices, shape, 5 * kBlock), 5u);
  memory_.free = kDeviceReserveBytes - 1;
  EXPECT_EQ(DeviceKvBlocks(*devices, shape, ~uint64_t{0}), 0u);
}

TEST(DecodeBucketsTest, RiseToTheLargestMicrobatch) {
  EXPECT_THAT(DecodeBuckets(1), ElementsAre(1));
  EXPECT_THAT(DecodeBuckets(3), ElementsAre(1, 2, 3));
  EXPECT_THAT(DecodeBuckets(8), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(DecodeBuckets(50), ElementsAre(1, 2, 4, 8, 16, 24, 32, 48, 50));
  EXPECT_EQ(DecodeBuckets(5000).back(), 256u);
}

}  // namespace
}  // namespace millrace::testing
