#include "coordinator/scheduler/ring_timing.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace millrace {
namespace {

constexpr double kMs = 1e-3;

BatchFeatures Decodes(int rows) {
  BatchFeatures features;
  for (int i = 0; i < rows; ++i) features += BatchFeatures::Decode(100);
  return features;
}

// A round of `stages` stages that compute `busy` each, with `hop` between all of them and the way back.
void Return(RingTiming& timing, std::vector<double> busy, double hop) {
  double elapsed = hop * static_cast<double>(busy.size());
  std::vector<StageTimes> stages;
  for (double seconds : busy) {
    stages.push_back({seconds + kMs, seconds});
    elapsed += seconds + kMs;
  }
  timing.OnReturned(Decodes(1), elapsed, stages);
}

TEST(RingTimingTest, TakesOneMoreThanStagesWhileNothingIsKnown) {
  const RingTiming timing(4, {}, 0);
  EXPECT_EQ(timing.Slots(100, {}), 5u);
  EXPECT_EQ(timing.Slots(4, {}), 4u);
  EXPECT_EQ(timing.hop_seconds(), 0);
}

struct SlotsCase {
  std::vector<double> busy;
  double hop;
  uint32_t slots;
};

TEST(RingTimingTest, FillsTheHopsWithMicrobatches) {
  const SlotsCase cases[] = {
      {{10 * kMs, 10 * kMs}, 0.1 * kMs, 3},
      {{10 * kMs, 10 * kMs}, 9 * kMs, 4},
      {{10 * kMs, 10 * kMs, 10 * kMs, 10 * kMs}, 20 * kMs, 12},
      {{10 * kMs, 40 * kMs, 10 * kMs, 10 * kMs}, 20 * kMs, 6},  // the slowest stage counts
      {{10 * kMs}, 1 * kMs, 2},
      {{1 * kMs, 1 * kMs}, 100 * kMs, 64},  // capped
  };
  for (const SlotsCase& c : cases) {
    RingTiming timing(static_cast<uint32_t>(c.busy.size()), {}, 0);
    for (int i = 0; i < 3; ++i) Return(timing, c.busy, c.hop);
    EXPECT_NEAR(timing.hop_seconds(), c.hop, 1e-9);
    EXPECT_EQ(timing.Slots(64, {}), c.slots) << c.busy.size() << " stages, hop of " << c.hop;
  }
}

// 4 ms to read the weights, and 1 ms a row.
RingTiming OneStage(double hop) {
  StageCost cost;
  cost.fixed = 4 * kMs;
  cost.rows = {{0, 0}, {1, 1 * kMs}};
  RingTiming timing(1, {cost}, hop);
  timing.OnPlanned(Decodes(1));
  return timing;
}

TEST(RingTimingTest, LeavesDecodesTogetherOnASingleStage) {
  EXPECT_EQ(OneStage(1 * kMs).Slots(64, Decodes(16)), 1u);    // 20 + 1 < 2 (4 + 8)
  EXPECT_EQ(OneStage(3.9 * kMs).Slots(64, Decodes(16)), 1u);  // 20 + 3.9
  EXPECT_EQ(OneStage(4.1 * kMs).Slots(64, Decodes(16)), 2u);
  EXPECT_EQ(OneStage(9 * kMs).Slots(64, Decodes(16)), 2u);  // 2 (4 + 8) < 20 + 9, 3 (4 + 16 / 3)
  EXPECT_EQ(OneStage(1 * kMs).Slots(64, Decodes(1)), 2u);   // nothing to put together
  EXPECT_EQ(OneStage(1 * kMs).Slots(64, {}), 2u);           // prefill runs
  EXPECT_EQ(OneStage(1 * kMs).Slots(1, Decodes(16)), 1u);
}

// `fixed` ms to read the weights, and 1 ms a row.
RingTiming TwoStages(double fixed, double hop) {
  StageCost cost;
  cost.fixed = fixed * kMs;
  cost.rows = {{0, 0}, {1, 1 * kMs}};
  RingTiming timing(2, {cost, cost}, hop * kMs);
  timing.OnPlanned(Decodes(8));
  return timing;
}

TEST(RingTimingTest, KeepsSeveralStagesFullUnlessFewerMicrobatchesAreClearlyFaster) {
  EXPECT_EQ(TwoStages(40, 1).Slots(64, Decodes(16)), 2u);   // 2 (40 + 8 + 1) < 0.9 * 3 (40 + 16 / 3)
  EXPECT_EQ(TwoStages(40, 20).Slots(64, Decodes(16)), 3u);  // 2 (40 + 8 + 20) = 3 (40 + 16 / 3)
  EXPECT_EQ(TwoStages(1, 0.1).Slots(64, Decodes(16)), 3u);  // 2 (1 + 8 + 0.1) > 0.9 * 3 (1 + 16 / 3)
  EXPECT_EQ(TwoStages(40, 1).Slots(64, {}), 3u);            // prefill runs
}

TEST(RingTimingTest, StartsFromWhatIsKnownBefore) {
  StageCost cost;
  cost.fixed = 10 * kMs;
  RingTiming timing(2, {cost, cost}, 9 * kMs);
  EXPECT_EQ(timing.Slots(64, {}), 3u);  // no microbatch to predict yet
  timing.OnPlanned(Decodes(1));
  EXPECT_EQ(timing.Slots(64, {}), 4u);
  for (int i = 0; i < 200; ++i) Return(timing, {10 * kMs, 10 * kMs}, 20 * kMs);
  EXPECT_EQ(timing.Slots(64, {}), 6u);
}

TEST(RingTimingTest, LearnsWhatStagesCost) {
  RingTiming timing(2, {}, 0);
  EXPECT_TRUE(timing.costs().empty());
  Return(timing, {10 * kMs, 30 * kMs}, kMs);
  ASSERT_EQ(timing.costs().size(), 2u);
  EXPECT_NEAR(timing.costs()[0].Seconds(Decodes(1)), 10 * kMs, 0.1 * kMs);
  EXPECT_NEAR(SlowestStageCost(timing.costs())(Decodes(1)), 30 * kMs, 0.1 * kMs);
}

TEST(RingTimingTest, IgnoresTimesThatCannotBe) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  RingTiming timing(2, {}, 0);
  Return(timing, {10 * kMs, 10 * kMs}, 9 * kMs);
  const StageTimes good{11 * kMs, 10 * kMs};
  for (const StageTimes& bad : {StageTimes{-1, 0}, StageTimes{1, 2}, StageTimes{kNaN, 0}, StageTimes{1, kNaN},
                                StageTimes{kInfinity, 1}, StageTimes{1e300, 1e300}}) {
    timing.OnReturned(Decodes(1), 1, {bad, good});
    timing.OnReturned(Decodes(1), 1, {good, bad});
  }
  timing.OnReturned(Decodes(1), 1, {good});
  timing.OnReturned(Decodes(1), 1, {good, good, good});
  timing.OnReturned(Decodes(1), kNaN, {good, good});
  timing.OnReturned(Decodes(1), -5, {good, good});
  EXPECT_NEAR(timing.hop_seconds(), 9 * kMs, 1e-9);
  EXPECT_NEAR(timing.slowest_stage_seconds(), 10 * kMs, 1e-9);
}

TEST(RingTimingTest, IsNotSpoiltByOneWildMicrobatch) {
  RingTiming timing(2, {}, 0);
  for (int i = 0; i < 100; ++i) Return(timing, {10 * kMs, 10 * kMs}, 4 * kMs);
  Return(timing, {1000 * kMs, 10 * kMs}, 500 * kMs);
  EXPECT_LT(timing.slowest_stage_seconds(), 12 * kMs);
  EXPECT_LT(timing.hop_seconds(), 5 * kMs);
  for (int i = 0; i < 200; ++i) Return(timing, {20 * kMs, 10 * kMs}, 4 * kMs);
  EXPECT_NEAR(timing.slowest_stage_seconds(), 20 * kMs, kMs);
}

TEST(RingTimingTest, CountsWhatGoesThroughTheOutputHead) {
  MicrobatchPlan plan;
  PlanSegment decode;
  decode.first_position = 99;
  decode.token_ids = {1};
  decode.sampling = SamplingOptions();
  PlanSegment chunk;
  chunk.first_position = 10;
  chunk.token_ids = {1, 2, 3};
  PlanSegment reported = chunk;
  reported.prompt_logprobs = 0;
  plan.segments = {decode, chunk, reported};
  const BatchFeatures features = FeaturesOf(plan);
  EXPECT_EQ(features.decode_rows, 1);
  EXPECT_EQ(features.decode_attention, 100);
  EXPECT_EQ(features.prefill_rows, 6);
  EXPECT_EQ(features.prefill_attention, 2 * (11 + 12 + 13));
  EXPECT_EQ(features.sampled_rows, 1 + 3);
}

}  // namespace
}  // namespace millrace
