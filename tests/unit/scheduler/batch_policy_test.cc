#include "coordinator/scheduler/batch_policy.h"

#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {

bool operator==(const BatchPick& a, const BatchPick& b) {
  return a.index == b.index && a.rows == b.rows;
}
void PrintTo(const BatchPick& pick, std::ostream* out) {
  *out << "#" << pick.index << " x " << pick.rows;
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint32_t kBlock = 16;

uint32_t BlocksFor(uint32_t tokens) {
  return (tokens + kBlock - 1) / kBlock;
}

// A running sequence whose next token can be computed.
SequenceView Ready(uint64_t ready_order = 0, uint32_t tokens = 20) {
  SequenceView view;
  view.tokens = tokens;
  view.planned = tokens - 1;
  view.blocks = BlocksFor(view.planned);
  view.generating = true;
  view.ready_order = ready_order;
  return view;
}

// A running sequence whose token is in flight.
SequenceView Flying(uint32_t tokens = 20) {
  SequenceView view = Ready(0, tokens);
  view.planned = tokens;
  view.blocks = BlocksFor(tokens);
  view.in_flight = true;
  return view;
}

SequenceView Prompt(uint32_t tokens, uint32_t planned = 0) {
  SequenceView view;
  view.tokens = tokens;
  view.planned = planned;
  view.blocks = BlocksFor(planned);
  return view;
}

// Four stages, four slots, none in flight, blocks in plenty.
BatchSnapshot Snapshot(std::vector<SequenceView> running, const std::vector<SequenceView>& waiting = {}) {
  BatchSnapshot s;
  s.max_rows = 128;
  s.num_stages = 4;
  s.max_in_flight = 4;
  s.max_running_sequences = 256;
  s.block_tokens = kBlock;
  s.num_blocks = 10000;
  s.free_blocks = 5000;
  s.num_running = running.size();
  s.sequences = std::move(running);
  s.sequences.insert(s.sequences.end(), waiting.begin(), waiting.end());
  return s;
}

uint32_t Rows(const BatchDecision& decision) {
  uint32_t rows = 0;
  for (const BatchPick& pick : decision.picks) rows += pick.rows;
  return rows;
}

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
      {5, 0, 0, 2},                              // 2 1 1 1, not 2 2 1
      {3, 2, 1, 1}, {2, 3, 3, 2}, {6, 3, 3, 3},  // slots that finished unevenly even out
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

TEST(BatchPolicyTest, NeverExceedsTheRows) {
  BatchSnapshot s = Snapshot(std::vector<SequenceView>(300, Ready()));
  s.max_in_flight = 1;
  EXPECT_EQ(Rows(DecideBatch(s)), 128u);
}

TEST(BatchPolicyTest, TakesFirstWhatHasBeenReadyForLongest) {
  BatchSnapshot s = Snapshot({Ready(7), Ready(3), Ready(9), Ready(4)});
  s.max_in_flight = 2;
  EXPECT_THAT(DecideBatch(s).picks, ElementsAre(BatchPick{1, 1}, BatchPick{3, 1}));
}

TEST(BatchPolicyTest, PutsDecodesBeforeAPrefillChunk) {
  const BatchDecision decision = DecideBatch(Snapshot({Prompt(4000, 64), Ready()}));
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{1, 1}, BatchPick{0, 127}));
  EXPECT_TRUE(decision.has_prefill);
}

TEST(BatchPolicyTest, KeepsAQuarterOfTheRowsForPrefillUnderDecodeLoad) {
  BatchSnapshot s = Snapshot(std::vector<SequenceView>(200, Ready()), {Prompt(500)});
  s.max_in_flight = s.num_stages = 1;
  const BatchDecision decision = DecideBatch(s);
  ASSERT_EQ(decision.picks.size(), 97u);
  EXPECT_EQ(decision.picks.back(), (BatchPick{200, 32}));
  EXPECT_EQ(decision.num_admitted, 1u);
}

TEST(BatchPolicyTest, KeepsNoRowsForAPromptThatCannotBeAdmitted) {
  BatchSnapshot s = Snapshot(std::vector<SequenceView>(200, Ready()), {Prompt(500)});
  s.max_in_flight = 1;
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
  s.max_in_flight = 1;
  s.free_blocks = 0;
  const BatchDecision decision = DecideBatch(s);
  EXPECT_THAT(decision.picks, ElementsAre(BatchPick{0, 1}));
  EXPECT_EQ(decision.num_preempted, 1u);
}

TEST(BatchPolicyTest, GivesOnTheBlockThatADroppedDecodeHadJustTaken) {
  // The youngest holds one block and takes the last free one: two for the two older ones.
  BatchSnapshot s = Snapshot({Ready(5, 17), Ready(6, 17), Ready(1, 17)});
  s.max_in_flight = 1;
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
}  // namespace millrace
