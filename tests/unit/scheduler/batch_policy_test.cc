#include "coordinator/scheduler/batch_policy.h"

#include <deque>
#include <numeric>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/policy_views.h"

namespace millrace::policy_test {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

TEST(BatchPolicyTest, HasNothingToDoWithoutSequences) {
  const BatchDecision decision = DecideBatch(Snapshot({}));
  EXPECT_THAT(decision.picks, IsEmpty());
  EXPECT_EQ(decision.num_admitted, 0u);
  EXPECT_EQ(decision.num_preempted, 0u);
}

TEST(BatchPolicyTest, HasNothingToDoWhileEveryTokenIsInFlight) {
  EXPECT_THAT(DecideBatch(Snapshot({Flying(), Flying()})).picks, IsEmpty());
}

struct ShareCase {
  size_t ready;
  size_t flying;
  uint32_t in_flight;
  uint32_t share;
};

TEST(BatchPolicyTest, SpreadsDecodesEvenlyOverTheWindow) {
  const ShareCase cases[] = {
      {8, 0, 0, 2},                              // 2 2 2 2
      {3, 0, 0, 1},                              // fewer than slots: each alone
      {5, 0, 0, 1},                              // 1 1 1 2
      {3, 2, 1, 1}, {2, 3, 3, 1}, {6, 3, 3, 2},  // slots that finished unevenly even out
      {1, 9, 3, 1}, {2, 0, 2, 1}, {100, 0, 0, 25},
  };
  for (const ShareCase& c : cases) {
    std::vector<SequenceView> running(c.ready, Ready());
    running.insert(running.end(), c.flying, Flying());
    BatchSnapshot s = Snapshot(std::move(running));
    s.in_flight = c.in_flight;
    EXPECT_EQ(Rows(DecideBatch(s)), c.share)
        << c.ready << " ready, " << c.flying << " flying, " << c.in_flight << " in flight";
  }
}

// Four slots in flight; the first comes back, and a new one is made of what is ready then.
std::vector<uint32_t> RunSlots(std::vector<uint32_t> slots, int turns, absl::Span<const StageCostModel> costs,
                               uint32_t tokens = 20) {
  std::deque<uint32_t> in_flight(slots.begin(), slots.end());
  uint32_t ready = 0;
  double carry = 0;
  for (int turn = 0; turn < turns; ++turn) {
    ready += in_flight.front();
    in_flight.pop_front();
    std::vector<SequenceView> running(ready, Ready(0, tokens));
    const uint32_t flying = std::accumulate(in_flight.begin(), in_flight.end(), 0u);
    running.insert(running.end(), flying, Flying(tokens));
    BatchSnapshot s = Snapshot(std::move(running));
    s.in_flight = static_cast<uint32_t>(in_flight.size());
    s.decode_carry = carry;
    s.costs = costs;
    const BatchDecision decision = DecideBatch(s);
    carry = decision.decode_carry;
    in_flight.push_back(Rows(decision));
    ready -= Rows(decision);
  }
  return {in_flight.begin(), in_flight.end()};
}

TEST(BatchPolicyTest, EvensOutSlotsThatFinishedUnevenly) {
  const std::vector<StageCostModel> costs(4, StageCostModel(TestCost()));
  for (const auto& with_costs : {absl::Span<const StageCostModel>(), absl::MakeConstSpan(costs)}) {
    EXPECT_THAT(RunSlots({3, 3, 3, 1}, 8, with_costs), UnorderedElementsAre(3, 2, 3, 2));
    EXPECT_THAT(RunSlots({1, 1, 1, 7}, 12, with_costs), UnorderedElementsAre(3, 2, 3, 2));
    EXPECT_THAT(RunSlots({13, 1, 1, 1}, 12, with_costs), UnorderedElementsAre(4, 4, 4, 4));
    EXPECT_THAT(RunSlots({6, 0, 1, 2}, 12, with_costs), UnorderedElementsAre(2, 2, 2, 3));
  }
}

TEST(BatchPolicyTest, SharesTimeNotSequences) {
  // Two with long contexts, six without: a long one costs as much as four short ones.
  StageCost cost = TestCost();
  cost.decode_attention = 3 * 1e-3 / 1000;
  const std::vector<StageCostModel> costs(4, StageCostModel(cost));
  std::vector<SequenceView> running = {Ready(0, 1000), Ready(1, 1000)};
  running.resize(10, Ready(2, 1));
  BatchSnapshot s = Snapshot(std::move(running));
  s.num_stages = 2;
  s.slots = 3;
  s.costs = costs;
  EXPECT_EQ(Rows(DecideBatch(s)), 1u);
  s.sequences.erase(s.sequences.begin());
  s.num_running = 9;
  s.sequences.resize(9);
  s.sequences[0] = Flying(1000);
  s.in_flight = 1;
  EXPECT_EQ(Rows(DecideBatch(s)), 4u);
}

TEST(BatchPolicyTest, NeverExceedsTheRows) {
  BatchSnapshot s = Snapshot(std::vector<SequenceView>(300, Ready()));
  s.slots = 1;
  EXPECT_EQ(Rows(DecideBatch(s)), 128u);
}

TEST(BatchPolicyTest, TakesFirstWhatHasBeenReadyForLongest) {
  BatchSnapshot s = Snapshot({Ready(7), Ready(3), Ready(9), Ready(4)});
  s.slots = 2;
  EXPECT_THAT(DecideBatch(s).picks, ElementsAre(BatchPick{1, 1}, BatchPick{3, 1}));
}

TEST(BatchPolicyTest, PutsDecodesBeforeAPrefillChunk) {
  const BatchDecision decision = DecideBatch(Snapshot({Prompt(4000, 64), Ready()}));
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{1, 1}, BatchPick{0, 127}));
  EXPECT_TRUE(decision.has_prefill);
}

TEST(BatchPolicyTest, KeepsAQuarterOfTheRowsForPrefillUnderDecodeLoad) {
  BatchSnapshot s = Snapshot(std::vector<SequenceView>(200, Ready()), {Prompt(500)});
  s.slots = s.num_stages = 1;
  const BatchDecision decision = DecideBatch(s);
  ASSERT_EQ(decision.picks.size(), 97u);
  EXPECT_EQ(decision.picks.back(), (BatchPick{200, 32}));
  EXPECT_EQ(decision.num_admitted, 1u);
}

TEST(BatchPolicyTest, KeepsNoRowsForAPromptThatCannotBeAdmitted) {
  BatchSnapshot s = Snapshot(std::vector<SequenceView>(200, Ready()), {Prompt(500)});
  s.slots = 1;
  s.max_running_sequences = 200;
  EXPECT_EQ(Rows(DecideBatch(s)), 128u);
}

TEST(BatchPolicyTest, TakesTurnsWhenThereIsOneRow) {
  BatchSnapshot s = Snapshot({Ready(), Prompt(50, 10)});
  s.max_rows = 1;
  EXPECT_THAT(DecideBatch(s).picks, ElementsAre(BatchPick{0, 1}));
  EXPECT_FALSE(DecideBatch(s).has_prefill);
  s.prefill_turn = true;
  EXPECT_THAT(DecideBatch(s).picks, ElementsAre(BatchPick{1, 1}));
}

TEST(BatchPolicyTest, GivesTheOneRowToADecodeIfThePrefillWhoseTurnItIsLacksABlock) {
  BatchSnapshot s = Snapshot({Ready(), Prompt(50, 16)});
  s.max_rows = 1;
  s.prefill_turn = true;
  s.free_blocks = 0;
  EXPECT_THAT(DecideBatch(s).picks, ElementsAre(BatchPick{0, 1}));
}

struct ChunkCase {
  uint32_t stages;
  uint32_t tokens;
  uint32_t planned;
  uint32_t rows;
};

TEST(BatchPolicyTest, CutsALonePromptSoThatThePipelineFills) {
  const ChunkCase cases[] = {
      {1, 100, 0, 100},                                                       // nothing to fill
      {1, 300, 0, 128},                                                       // max_rows
      {2, 128, 0, 32},  {2, 128, 32, 32}, {2, 128, 96, 32}, {4, 128, 0, 16},  // not below the smallest chunk
      {4, 20, 0, 20},  // no scrap of 4 behind a chunk of 16
      {4, 33, 0, 17},   {4, 33, 17, 16},  {4, 1, 0, 1},     {4, 4000, 0, 128}, {4, 4000, 3968, 32},
  };
  for (const ChunkCase& c : cases) {
    BatchSnapshot s =
        c.planned > 0 ? Snapshot({Prompt(c.tokens, c.planned)}) : Snapshot({}, {Prompt(c.tokens)});
    s.num_stages = c.stages;
    EXPECT_THAT(DecideBatch(s).picks, ElementsAre(BatchPick{0, c.rows}))
        << c.stages << " stages, prompt of " << c.tokens << ", planned " << c.planned;
  }
}

TEST(BatchPolicyTest, FillsTheRowsWithSeveralPromptsWhenMuchIsPending) {
  const BatchDecision decision =
      DecideBatch(Snapshot({Prompt(1000, 960)}, {Prompt(60), Prompt(1000), Prompt(1000)}));
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 40}, BatchPick{1, 60}, BatchPick{2, 28}));
  EXPECT_EQ(decision.num_admitted, 2u);
}

TEST(BatchPolicyTest, LeavesNoScrapOfAChunkAtTheEndOfTheRows) {
  const BatchDecision decision = DecideBatch(Snapshot({Prompt(1000, 880)}, {Prompt(1000), Prompt(1000)}));
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 120}));
  EXPECT_EQ(decision.num_admitted, 0u);
}

TEST(BatchPolicyTest, AdmitsInOrderAndNotPastOneThatDoesNotFit) {
  BatchSnapshot s = Snapshot({}, {Prompt(5), Prompt(300), Prompt(5)});
  s.free_blocks = 10;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 5}));
  EXPECT_EQ(decision.num_admitted, 1u);
}

TEST(BatchPolicyTest, AdmitsUpToTheLimitOfRunningSequences) {
  BatchSnapshot s = Snapshot({Flying(), Flying()}, {Prompt(4), Prompt(4)});
  s.max_running_sequences = 3;
  EXPECT_EQ(DecideBatch(s).num_admitted, 1u);
}

TEST(BatchPolicyTest, LeavesABlockForEachRunningSequenceWhenItAdmits) {
  BatchSnapshot s = Snapshot(std::vector<SequenceView>(5, Flying()), {Prompt(31)});
  s.free_blocks = 2 + 5;
  EXPECT_EQ(DecideBatch(s).num_admitted, 1u);
  s.free_blocks = 2 + 4;
  EXPECT_EQ(DecideBatch(s).num_admitted, 0u);
  s.num_blocks = 16;  // at most an eighth
  EXPECT_EQ(DecideBatch(s).num_admitted, 1u);
}

TEST(BatchPolicyTest, CountsWhatRunningPrefillsStillNeedWhenItAdmits) {
  // The running prompt has 2 blocks of the 11 that it and its first token need; one block is margin.
  BatchSnapshot s = Snapshot({Prompt(160, 32)}, {Prompt(15)});
  s.num_stages = 1;
  s.max_rows = 256;
  s.free_blocks = 9 + 1 + 1;
  EXPECT_EQ(DecideBatch(s).num_admitted, 1u);
  s.free_blocks = 9 + 1;
  EXPECT_EQ(DecideBatch(s).num_admitted, 0u);
}

TEST(BatchPolicyTest, AdmitsWhateverFitsAloneWhenNothingRuns) {
  BatchSnapshot s = Snapshot({}, {Prompt(159)});
  s.num_blocks = s.free_blocks = 10;
  EXPECT_EQ(DecideBatch(s).num_admitted, 1u);
}

TEST(BatchPolicyTest, DoesNotRestartASequenceWithSomethingInFlight) {
  SequenceView preempted = Prompt(40);
  preempted.in_flight = true;
  EXPECT_THAT(DecideBatch(Snapshot({}, {preempted, Prompt(4)})).picks, IsEmpty());
}

TEST(BatchPolicyTest, TakesTheBlockThatADecodeLacksFromTheYoungest) {
  BatchSnapshot s = Snapshot({Ready(0, 17), Flying(20), Flying(40)});
  s.free_blocks = 0;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 1}));
  EXPECT_EQ(decision.num_preempted, 1u);
}

TEST(BatchPolicyTest, NeverTakesABlockFromAnOlderSequence) {
  BatchSnapshot s = Snapshot({Flying(40), Ready(0, 17)});
  s.free_blocks = 0;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, IsEmpty());
  EXPECT_EQ(decision.num_preempted, 0u);
}

TEST(BatchPolicyTest, GoesOnToTheNextDecodeWhenOneLacksABlock) {
  BatchSnapshot s = Snapshot({Ready(5, 20), Ready(1, 17)});
  s.free_blocks = 0;
  EXPECT_THAT(DecideBatch(s).picks, ElementsAre(BatchPick{0, 1}));
}

TEST(BatchPolicyTest, DropsAYoungerDecodeAlreadyPickedWhenItsBlocksAreNeeded) {
  BatchSnapshot s = Snapshot({Ready(5, 17), Ready(1, 20)});
  s.slots = 1;
  s.free_blocks = 0;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 1}));
  EXPECT_EQ(decision.num_preempted, 1u);
}

TEST(BatchPolicyTest, GivesOnTheBlockThatADroppedDecodeHadJustTaken) {
  // The youngest holds one block and takes the last free one: two for the two older ones.
  BatchSnapshot s = Snapshot({Ready(5, 17), Ready(6, 17), Ready(1, 17)});
  s.slots = 1;
  s.free_blocks = 1;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 1}, BatchPick{1, 1}));
  EXPECT_EQ(decision.num_preempted, 1u);
}

TEST(BatchPolicyTest, PreemptsForAnOlderPrefillThatHasNoBlockLeft) {
  BatchSnapshot s = Snapshot({Prompt(64, 32), Flying(40)});
  s.free_blocks = 0;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 16}));
  EXPECT_EQ(decision.num_preempted, 1u);
}

TEST(BatchPolicyTest, ShortensAChunkToTheFreeBlocksRatherThanPreempt) {
  BatchSnapshot s = Snapshot({Prompt(164, 32), Flying(40)});
  s.num_stages = 1;
  s.free_blocks = 1;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 16}));
  EXPECT_EQ(decision.num_preempted, 0u);
}

TEST(BatchPolicyTest, AdmitsNothingWhileItPreempts) {
  BatchSnapshot s = Snapshot({Ready(0, 17), Flying(600)}, {Prompt(4)});
  s.free_blocks = 0;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_EQ(decision.num_preempted, 1u);
  EXPECT_EQ(decision.num_admitted, 0u);
}

TEST(BatchPolicyTest, DecidesTheSameForTheSameSnapshot) {
  const BatchSnapshot s = Snapshot({Prompt(300, 32), Ready(3), Ready(3), Ready(1), Flying()}, {Prompt(70)});
  EXPECT_EQ(DecideBatch(s).picks, DecideBatch(s).picks);
}

}  // namespace
}  // namespace millrace::policy_test
