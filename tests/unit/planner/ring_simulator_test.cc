#include "coordinator/planner/ring_simulator.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

// Stages that take the same time whatever is in a microbatch.
RingSimulation Ring(const std::vector<double>& stage_seconds, double hop_seconds) {
  RingSimulation ring;
  ring.scheduler.context_tokens = 4096;
  ring.scheduler.max_rows = 128;
  ring.shape.num_stages = static_cast<uint32_t>(stage_seconds.size());
  ring.shape.max_in_flight = 4 * ring.shape.num_stages + 4;
  ring.shape.num_blocks = 10000;
  for (const double seconds : stage_seconds) {
    StageCost cost;
    cost.fixed = seconds;
    ring.shape.stage_costs.push_back(cost);
  }
  ring.hops.assign(stage_seconds.size(), {hop_seconds, 0});
  return ring;
}

void AddSteady(RingSimulation& ring, size_t sequences, uint32_t output_tokens) {
  ring.requests.assign(sequences, {absl::ZeroDuration(), 8, output_tokens});
  ring.warm_up_first_tokens = sequences;
  ring.until_first_end = true;
}

double Rate(const SimulationResult& result) {
  return static_cast<double>(result.output_tokens) / absl::ToDoubleSeconds(result.window);
}

TEST(RingSimulatorTest, OneSequenceLeavesOneMinusOneOverP) {
  for (const uint32_t stages : {1u, 2u, 4u}) {
    RingSimulation ring = Ring(std::vector<double>(stages, 0.010), 0);
    AddSteady(ring, 1, 200);
    const SimulationResult result = SimulateRing(ring);
    EXPECT_NEAR(result.bubble, 1 - 1.0 / stages, 0.01) << stages;
    EXPECT_NEAR(absl::ToDoubleSeconds(result.inter_token), stages * 0.010, 1e-6);
    EXPECT_NEAR(Rate(result), 100.0 / stages, 1);
  }
}

TEST(RingSimulatorTest, ManySequencesFillThePipeline) {
  RingSimulation ring = Ring({0.001, 0.001, 0.001, 0.001}, 0.001);
  // Rows count more than microbatches, so that fewer of these would be no gain.
  for (StageCost& cost : ring.shape.stage_costs) cost.rows = {{0, 0}, {1, 0.0006}};
  AddSteady(ring, 64, 200);
  const SimulationResult result = SimulateRing(ring);
  EXPECT_LT(result.bubble, 0.01);
  // A round of p (t + c) is shared by the microbatches in flight.
  EXPECT_GE(result.mean_in_flight, 4.3);
}

TEST(RingSimulatorTest, ASlowStageKeepsTheOtherWaiting) {
  RingSimulation ring = Ring({0.010, 0.005}, 0.0001);
  AddSteady(ring, 32, 300);
  const SimulationResult result = SimulateRing(ring);
  ASSERT_EQ(result.stages.size(), 2u);
  EXPECT_LT(result.stages[0].BubbleRatio(), 0.01);
  EXPECT_NEAR(result.stages[1].BubbleRatio(), 0.5, 0.02);
  EXPECT_GT(result.stages[1].idle[IdleCause::kImbalance], 0.8 * result.stages[1].idle.Bubble());
}

TEST(RingSimulatorTest, FirstTokensOfOneRequestPassEveryStageAndHop) {
  RingSimulation ring = Ring({0.010, 0.020}, 0.003);
  ring.plan_seconds = 0.001;
  ring.requests.assign(1, {absl::Seconds(5), 8, 1});
  const SimulationResult result = SimulateRing(ring);
  EXPECT_TRUE(result.complete);
  EXPECT_NEAR(absl::ToDoubleSeconds(result.first_token), 0.001 + 0.010 + 0.003 + 0.020 + 0.003, 1e-9);
  EXPECT_EQ(result.output_tokens, 1u);
  EXPECT_EQ(result.prompt_tokens, 8u);
}

TEST(RingSimulatorTest, RowsMakeAHopLonger) {
  RingSimulation ring = Ring({0.010, 0.010}, 0);
  ring.hops[0].row_seconds = 0.001;
  ring.requests.assign(1, {absl::ZeroDuration(), 16, 1});
  EXPECT_NEAR(absl::ToDoubleSeconds(SimulateRing(ring).first_token), 0.036, 0.0101);
  EXPECT_GT(SimulateRing(ring).first_token, absl::Milliseconds(27));
}

TEST(RingSimulatorTest, WaitsForKvCache) {
  RingSimulation ring = Ring({0.010, 0.010}, 0);
  ring.shape.num_blocks = 8;  // 128 tokens: two sequences of 64 at a time
  ring.requests.assign(6, {absl::ZeroDuration(), 8, 50});
  const SimulationResult result = SimulateRing(ring);
  EXPECT_TRUE(result.complete);
  EXPECT_EQ(result.output_tokens, 300u);
}

TEST(RingSimulatorTest, EndsAtItsLimits) {
  RingSimulation ring = Ring({0.010}, 0);
  AddSteady(ring, 4, 4000);
  ring.max_microbatches = 50;
  EXPECT_LE(SimulateRing(ring).microbatches, 50u);
  ring.max_microbatches = 1000000;
  ring.max_window_tokens = 40;
  EXPECT_LE(SimulateRing(ring).output_tokens, 44u);
  ring.max_window_tokens = UINT64_MAX;
  ring.limit = absl::Seconds(1);
  EXPECT_LE(SimulateRing(ring).window, absl::Seconds(1.1));
}

TEST(RingSimulatorTest, TheSameTwiceIsTheSame) {
  RingSimulation ring = Ring({0.010, 0.012}, 0.0002);
  AddSteady(ring, 24, 100);
  const SimulationResult a = SimulateRing(ring);
  const SimulationResult b = SimulateRing(ring);
  EXPECT_EQ(a.window, b.window);
  EXPECT_EQ(a.output_tokens, b.output_tokens);
  EXPECT_EQ(a.bubble, b.bubble);
}

}  // namespace
}  // namespace millrace
