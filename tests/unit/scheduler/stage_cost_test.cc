#include "coordinator/scheduler/stage_cost.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(BatchFeaturesTest, ADecodeAttendsToItsContextAndIsSampled) {
  const BatchFeatures decode = BatchFeatures::Decode(100);
  EXPECT_EQ(decode.decode_rows, 1);
  EXPECT_EQ(decode.prefill_rows, 0);
  EXPECT_EQ(decode.decode_attention, 100);
  EXPECT_EQ(decode.prefill_attention, 0);
  EXPECT_EQ(decode.sampled_rows, 1);
}

TEST(BatchFeaturesTest, AChunkAttendsAsItsRowsDoOneByOne) {
  double attended = 0;
  for (int position = 30; position < 37; ++position) attended += position + 1;
  const BatchFeatures chunk = BatchFeatures::Prefill(30, 7, false);
  EXPECT_EQ(chunk.prefill_attention, attended);
  EXPECT_EQ(chunk.prefill_rows, 7);
  EXPECT_EQ(chunk.decode_rows, 0);
  EXPECT_EQ(chunk.sampled_rows, 0);
  EXPECT_EQ(BatchFeatures::Prefill(30, 7, true).sampled_rows, 1);
}

// Cutting a prompt in chunks changes neither rows nor attention.
TEST(BatchFeaturesTest, ChunksAddUpToTheWhole) {
  BatchFeatures chunks = BatchFeatures::Prefill(0, 10, false);
  chunks += BatchFeatures::Prefill(10, 25, false);
  chunks += BatchFeatures::Prefill(35, 5, true);
  const BatchFeatures whole = BatchFeatures::Prefill(0, 40, true);
  EXPECT_EQ(chunks.prefill_rows, whole.prefill_rows);
  EXPECT_EQ(chunks.prefill_attention, whole.prefill_attention);
  EXPECT_EQ(chunks.sampled_rows, whole.sampled_rows);
  chunks += BatchFeatures::Decode(8);
  EXPECT_EQ(chunks.rows(), 41);
  EXPECT_EQ(chunks.decode_attention, 8);
  EXPECT_EQ(chunks.sampled_rows, 2);
}

TEST(InterpolateCostTest, IsStraightBetweenPointsAndBeyondTheLast) {
  const std::vector<CostPoint> points = {{1, 10}, {4, 16}, {8, 40}};
  EXPECT_EQ(InterpolateCost(points, 1), 10);
  EXPECT_EQ(InterpolateCost(points, 2), 12);
  EXPECT_EQ(InterpolateCost(points, 4), 16);
  EXPECT_EQ(InterpolateCost(points, 6), 28);
  EXPECT_EQ(InterpolateCost(points, 8), 40);
  EXPECT_EQ(InterpolateCost(points, 10), 52);
}

TEST(InterpolateCostTest, IsConstantBeforeTheFirstPointAndForOne) {
  EXPECT_EQ(InterpolateCost({{4, 7}, {8, 9}}, 1), 7);
  EXPECT_EQ(InterpolateCost({{4, 7}}, 100), 7);
  EXPECT_EQ(InterpolateCost({}, 3), 0);
}

TEST(InterpolateCostTest, NeverFallsBelowZero) {
  EXPECT_EQ(InterpolateCost({{1, 10}, {2, 1}}, 50), 0);
}

TEST(StageCostTest, AddsUpItsParts) {
  StageCost cost;
  cost.fixed = 1000;
  cost.rows = {{1, 100}, {11, 200}};
  cost.decode_attention = 0.5;
  cost.prefill_attention = 0.25;
  cost.sampled = {{1, 10}, {2, 20}};
  BatchFeatures batch = BatchFeatures::Decode(64);
  batch += BatchFeatures::Prefill(0, 5, false);
  EXPECT_EQ(cost.Seconds(batch), 1000 + 150 + 0.5 * 64 + 0.25 * 15 + 10);
}

TEST(StageCostTest, TheHeadCostsNothingWhereNothingIsSampled) {
  StageCost cost;
  cost.sampled = {{1, 10}, {2, 20}};
  EXPECT_EQ(cost.Seconds(BatchFeatures::Prefill(0, 5, false)), 0);
  EXPECT_EQ(cost.Seconds(BatchFeatures::Prefill(0, 5, true)), 10);
}

}  // namespace
}  // namespace millrace
