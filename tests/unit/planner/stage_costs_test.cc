#include "coordinator/planner/stage_costs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace millrace {
namespace {

using ::testing::HasSubstr;

ModelShape Shape() {
  ModelShape shape = *NamedShape("SmolLM2-135M");
  shape.layer_elements[3] *= 2;
  return shape;
}

// A worker that takes 100 us and 10 us a row for a layer, 1 ns for a position of a decode and half of it in a
// chunk.
WorkerProfile Linear(const ModelShape& shape) {
  const auto layer = [](uint32_t rows, uint32_t sequences, uint32_t context) {
    const double chunk = static_cast<double>(rows) / sequences;
    const double slope = rows == sequences ? 1e-9 : 0.5e-9;
    return ProfilePoint{rows, sequences, context,
                        100e-6 + 10e-6 * rows + slope * rows * (context + (chunk + 1) / 2)};
  };
  WorkerProfile profile;
  profile.layer_elements = shape.layer_elements[0];
  profile.layer = {layer(1, 1, 0),   layer(8, 8, 0),  layer(32, 32, 0),
                   layer(8, 8, 500), layer(32, 1, 0), layer(32, 1, 500)};
  profile.head = {{1, 1, 0, 300e-6}, {16, 16, 0, 450e-6}};
  profile.overhead_seconds = 20e-6;
  return profile;
}

TEST(MakeStageCostTest, FindsWhatAWorkerTakesForEachPart) {
  const ModelShape shape = Shape();
  const StageCost cost = MakeStageCost(Linear(shape), shape, {10, 20});
  EXPECT_NEAR(cost.fixed, 20e-6, 1e-12);
  EXPECT_NEAR(cost.decode_attention, 20 * 1e-9, 1e-15);
  EXPECT_NEAR(cost.prefill_attention, 20 * 0.5e-9, 1e-15);
  BatchFeatures batch;
  for (int i = 0; i < 16; ++i) batch += BatchFeatures::Decode(100);
  EXPECT_NEAR(cost.Seconds(batch), 20e-6 + 20 * (260e-6 + 1600e-9) + 450e-6, 1e-9);
}

TEST(MakeStageCostTest, OnlyTheLastStageHasAHead) {
  const ModelShape shape = Shape();
  EXPECT_TRUE(MakeStageCost(Linear(shape), shape, {0, 29}).sampled.empty());
  EXPECT_EQ(MakeStageCost(Linear(shape), shape, {29, 1}).sampled.size(), 2u);
}

TEST(MakeStageCostTest, ALayerCostsByItsElements) {
  const ModelShape shape = Shape();
  const WorkerProfile profile = Linear(shape);
  const BatchFeatures row = BatchFeatures::Prefill(0, 8, false);
  const double plain = InterpolateCost(MakeStageCost(profile, shape, {2, 1}).rows, row.rows());
  const double twice = InterpolateCost(MakeStageCost(profile, shape, {3, 1}).rows, row.rows());
  EXPECT_NEAR(twice, 2 * plain, 1e-12);
}

TEST(MakeStageCostTest, NoiseGivesNeitherNegativeNorFallingCosts) {
  const ModelShape shape = Shape();
  WorkerProfile profile = Linear(shape);
  profile.layer = {{1, 1, 0, 200e-6}, {8, 8, 0, 150e-6}, {8, 8, 500, 100e-6}};
  const StageCost cost = MakeStageCost(profile, shape, {0, 1});
  EXPECT_EQ(cost.decode_attention, 0);
  ASSERT_EQ(cost.rows.size(), 2u);
  EXPECT_GE(cost.rows[1].seconds, cost.rows[0].seconds);
}

TEST(MakeStageCostTest, TakesChunksWhereNoDecodesWereMeasured) {
  const ModelShape shape = Shape();
  WorkerProfile profile = Linear(shape);
  profile.layer.erase(profile.layer.begin() + 2);
  const StageCost cost = MakeStageCost(profile, shape, {0, 1});
  EXPECT_NEAR(InterpolateCost(cost.rows, 32), 420e-6, 1e-9);
}

TEST(CheckProfileTest, TakesWhatCanHaveBeenMeasured) {
  EXPECT_TRUE(CheckProfile(Linear(Shape())).ok());
}

TEST(CheckProfileTest, RefusesWhatCannot) {
  const WorkerProfile good = Linear(Shape());
  const double bad_seconds[] = {-1e-9, std::numeric_limits<double>::quiet_NaN(),
                                std::numeric_limits<double>::infinity(), 1e9};
  const auto refused = [](const WorkerProfile& profile) {
    return CheckProfile(profile).code() == absl::StatusCode::kInvalidArgument;
  };
  for (const double seconds : bad_seconds) {
    WorkerProfile profile = good;
    profile.layer[1].seconds = seconds;
    EXPECT_TRUE(refused(profile)) << seconds;
    profile = good;
    profile.head[0].seconds = seconds;
    EXPECT_TRUE(refused(profile)) << seconds;
    profile = good;
    profile.overhead_seconds = seconds;
    EXPECT_TRUE(refused(profile)) << seconds;
  }
  for (const double elements : {0.0, -5.0, std::nan(""), 1e300}) {
    WorkerProfile profile = good;
    profile.layer_elements = elements;
    EXPECT_TRUE(refused(profile)) << elements;
  }
  const ProfilePoint bad_points[] = {
      {0, 1, 0, 1}, {1, 0, 0, 1}, {8, 3, 0, 1}, {1u << 30, 1, 0, 1}, {1, 1, 1u << 30, 1}};
  for (const ProfilePoint& point : bad_points) {
    WorkerProfile profile = good;
    profile.layer.push_back(point);
    EXPECT_TRUE(refused(profile)) << point.rows << " " << point.sequences << " " << point.context;
  }
  WorkerProfile profile = good;
  profile.layer.assign(kMaxProfilePoints + 1, good.layer[0]);
  EXPECT_TRUE(refused(profile));
  profile = good;
  profile.head.clear();
  EXPECT_TRUE(refused(profile));
}

// A100: 312 TFLOP/s and 2.0 TB/s; a Llama-2-7B layer of 202 M elements in 16 bit.
TEST(EstimateProfileTest, IsTheRoofline) {
  const ModelShape shape = *NamedShape("Llama-2-7B");
  const WorkerProfile profile = EstimateProfile({312e12, 2.0e12, 10e-6}, shape);
  ASSERT_TRUE(CheckProfile(profile).ok());
  const StageCost cost = MakeStageCost(profile, shape, {0, 16});
  const double layer_bytes = static_cast<double>(shape.layer_bytes[0]);
  // A decode reads every weight.
  EXPECT_NEAR(InterpolateCost(cost.rows, 1), 16 * layer_bytes / 2.0e12, 1e-6);
  // 2048 rows compute.
  EXPECT_NEAR(InterpolateCost(cost.rows, 2048), 16 * 2 * shape.layer_elements[0] * 2048 / 312e12, 1e-4);
  // A position of a decode is one read of its keys and values.
  EXPECT_NEAR(cost.decode_attention, 16 * 16384.0 / 2.0e12, 1e-10);
}

}  // namespace
}  // namespace millrace
