// The policy with known costs: slots of equal time.
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "coordinator/scheduler/batch_policy.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/policy_views.h"

namespace millrace::policy_test {
namespace {

class TimedPolicyTest : public ::testing::Test {
 protected:
  // One stage that takes 10 ms, 1 ms a row, and for a prefill row 1 us a position.
  BatchSnapshot Timed(std::vector<SequenceView> running, const std::vector<SequenceView>& waiting = {}) {
    BatchSnapshot s = Snapshot(std::move(running), waiting);
    s.costs = costs_;
    return s;
  }
  static StageCost Cost() {
    StageCost cost = TestCost();
    cost.prefill_attention = 1e-6;
    return cost;
  }
  double Seconds(const BatchSnapshot& s, const BatchDecision& decision) const {
    BatchFeatures features;
    for (const BatchPick& pick : decision.picks) {
      const SequenceView& view = s.sequences[pick.index];
      features += view.decode_ready() ? BatchFeatures::Decode(view.tokens)
                                      : BatchFeatures::Prefill(view.planned, pick.rows, false);
    }
    return SlowestStageCost(costs_)(features);
  }
  double Budget() const { return SlowestStageCost(costs_)(BatchFeatures::Prefill(0, 128, false)); }

  const std::vector<StageCostModel> costs_ = std::vector<StageCostModel>(4, StageCostModel(Cost()));
};

TEST_F(TimedPolicyTest, FillsEverySlotToTheTimeOfTheBudget) {
  for (const uint32_t planned : {0u, 320u, 1600u, 3200u, 6400u}) {
    for (const size_t decodes : {0u, 40u, 160u}) {
      std::vector<SequenceView> running(decodes, Ready());
      running.push_back(Prompt(8000, planned));
      const BatchSnapshot s = Timed(std::move(running));
      const BatchDecision decision = DecideBatch(s);
      EXPECT_LE(Rows(decision), 128u);
      if (decision.picks.back().rows == kMinChunkRows) continue;
      EXPECT_NEAR(Seconds(s, decision) / Budget(), 1, 0.06)
          << planned << " planned, " << decodes << " decode";
    }
  }
}

TEST_F(TimedPolicyTest, MakesLaterChunksOfALongPromptShorter) {
  uint32_t planned = 0;
  uint32_t before = 129;
  int chunks = 0;
  while (planned < 7000) {
    const uint32_t rows = DecideBatch(Timed({Prompt(8000, planned)})).picks.at(0).rows;
    EXPECT_LE(rows, before) << planned;
    before = rows;
    planned += rows;
    ++chunks;
  }
  EXPECT_LT(before, 40u);
  EXPECT_GT(chunks, 100);
}

TEST_F(TimedPolicyTest, CutsAShortPromptIntoEqualTimes) {
  uint32_t planned = 0;
  std::vector<double> seconds;
  while (planned < 400) {
    const BatchSnapshot s = Timed({Prompt(400, planned)});
    const BatchDecision decision = DecideBatch(s);
    seconds.push_back(Seconds(s, decision));
    planned += decision.picks.at(0).rows;
  }
  ASSERT_EQ(seconds.size(), 8u);  // two for each of four stages
  for (const double chunk : seconds) EXPECT_NEAR(chunk / seconds[0], 1, 0.1);
}

TEST_F(TimedPolicyTest, KeepsToTheInterTokenGoal) {
  BatchSnapshot s = Timed(std::vector<SequenceView>(16, Ready()), {Prompt(4000)});
  EXPECT_GT(Seconds(s, DecideBatch(s)), 0.1);
  s.inter_token_goal = 0.2;  // four slots: 50 ms each
  EXPECT_NEAR(Seconds(s, DecideBatch(s)), 0.05, 2e-3);
  s.inter_token_goal = 1e-6;  // cannot be kept; prefill still goes on
  EXPECT_EQ(DecideBatch(s).picks.back(), (BatchPick{16, kMinChunkRows}));
}

TEST_F(TimedPolicyTest, LeavesAQuarterOfTheBudgetToPrefill) {
  // 90 decodes that attend to much take longer than a whole budget.
  StageCost cost = Cost();
  cost.decode_attention = 3e-6;
  const std::vector<StageCostModel> costs(4, StageCostModel(cost));
  BatchSnapshot s = Timed(std::vector<SequenceView>(90, Ready(0, 1000)), {Prompt(4000)});
  s.slots = s.num_stages = 1;
  s.costs = costs;
  const BatchDecision decision = DecideBatch(s);
  ASSERT_EQ(decision.picks.size(), 91u);
  EXPECT_NEAR(decision.picks.back().rows, 34, 2);  // a quarter of 137 ms
}

// A model that has learnt nonsense must not stop anything.
TEST_F(TimedPolicyTest, GoesOnWhateverTheModelsSay) {
  std::mt19937_64 random(3);
  for (int run = 0; run < 300; ++run) {
    std::vector<StageCostModel> costs(2);
    for (int i = 0; i < 20; ++i) {
      BatchFeatures features = BatchFeatures::Prefill(static_cast<double>(random() % 9000),
                                                      static_cast<double>(1 + random() % 128), random() % 2);
      for (uint64_t n = random() % 4; n > 0; --n)
        features += BatchFeatures::Decode(static_cast<double>(1 + random() % 9000));
      for (StageCostModel& model : costs)
        model.Observe(features, std::pow(10.0, -static_cast<double>(random() % 9)));
    }
    BatchSnapshot s = Timed({Prompt(4000, 800), Ready()}, {Prompt(50)});
    s.costs = costs;
    const BatchDecision decision = DecideBatch(s);
    ASSERT_GE(decision.picks.size(), 2u);
    EXPECT_EQ(decision.picks[0], (BatchPick{1, 1}));
    EXPECT_GE(decision.picks[1].rows, 1u);
    EXPECT_LE(Rows(decision), 128u);
  }
}

}  // namespace
}  // namespace millrace::policy_test
