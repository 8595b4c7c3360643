// What is planned, and how results are applied.
#include "coordinator/scheduler/scheduler.h"

#include <deque>
#include <memory>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class SchedulerTest : public ::testing::Test {
 protected:
  // A scheduler with a ring.
  Scheduler& Start(const RingShape& shape, const SchedulerOptions& options = SmallOptions()) {
    scheduler_ = std::make_unique<Scheduler>(options);
    scheduler_->OnRingReady(shape, At(0));
    return *scheduler_;
  }

 private:
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, SamplesTheFirstTokenWithTheLastPromptChunk) {
  Scheduler& s = Start(Shape(1));
  s.Add(MakeRequest(1, 100, 5), At(0));
  const auto first = s.PlanNext(At(0));
  ASSERT_TRUE(first);
  ASSERT_THAT(first->segments, SizeIs(1));
  EXPECT_EQ(first->id, MicrobatchId(1));
  EXPECT_EQ(first->rows(), 64u);
  EXPECT_FALSE(first->segments[0].sampling);
  EXPECT_EQ(first->segments[0].next_prompt_id, 164u);
  EXPECT_THAT(first->segments[0].block_ids, SizeIs(16));
  Land(s, *first);
  EXPECT_THAT(Take(s).tokens, IsEmpty());
  const auto second = s.PlanNext(At(0));
  ASSERT_TRUE(second);
  EXPECT_EQ(second->segments[0].first_position, 64u);
  EXPECT_EQ(second->rows(), 36u);
  EXPECT_TRUE(second->segments[0].sampling);
  EXPECT_FALSE(second->segments[0].next_prompt_id);
  EXPECT_THAT(second->segments[0].block_ids, SizeIs(25));
  Land(s, *second, At(0), 33);
  const Actions actions = Take(s);
  ASSERT_THAT(actions.tokens, SizeIs(1));
  EXPECT_EQ(actions.tokens[0].token, 33u);
}

TEST_F(SchedulerTest, PlansTheSampledTokenAtTheNextPosition) {
  Scheduler& s = Start(Shape(1));
  s.Add(MakeRequest(1, 3, 5), At(0));
  Land(s, *s.PlanNext(At(0)), At(0), 33);
  const auto plan = s.PlanNext(At(0));
  ASSERT_TRUE(plan);
  EXPECT_THAT(plan->segments[0].token_ids, ElementsAre(33));
  EXPECT_EQ(plan->segments[0].first_position, 3u);
}

TEST_F(SchedulerTest, FillsThePipelineWithChunksOfALonePrompt) {
  Scheduler& s = Start(Shape(4));
  s.Add(MakeRequest(1, 64, 5), At(0));
  const auto plans = PlanAll(s);
  ASSERT_THAT(plans, SizeIs(4));
  for (size_t i = 0; i < plans.size(); ++i) {
    EXPECT_EQ(plans[i].id, MicrobatchId(i + 1));
    EXPECT_EQ(plans[i].segments[0].first_position, 16 * i);
    EXPECT_EQ(plans[i].segments[0].sampling.has_value(), i == 3);
  }
}

TEST_F(SchedulerTest, DoesNotPlanASequenceWhoseTokenIsInFlight) {
  Scheduler& s = Start(Shape(4));
  s.Add(MakeRequest(1, 3, 5), At(0));
  const auto plans = PlanAll(s);
  ASSERT_THAT(plans, SizeIs(1));
  Land(s, plans[0]);
  EXPECT_THAT(PlanAll(s), SizeIs(1));
}

TEST_F(SchedulerTest, KeepsEverySlotBusyWhenThereAreSequencesForIt) {
  Scheduler& s = Start(Shape(4));
  for (uint64_t id = 1; id <= 10; ++id) s.Add(MakeRequest(id, 3, 50), At(0));
  std::deque<MicrobatchPlan> in_flight;
  for (int step = 0; step < 60; ++step) {
    for (MicrobatchPlan& plan : PlanAll(s)) in_flight.push_back(std::move(plan));
    if (step > 12) {
      EXPECT_THAT(in_flight, SizeIs(4)) << step;
      for (const MicrobatchPlan& plan : in_flight)
        EXPECT_THAT(plan.rows(), ::testing::AllOf(::testing::Ge(2u), ::testing::Le(3u)));
    }
    Land(s, in_flight.front());
    in_flight.pop_front();
  }
}

TEST_F(SchedulerTest, LetsRequestsJoinAndLeaveBetweenSteps) {
  Scheduler& s = Start(Shape(1));
  s.Add(MakeRequest(1, 3, 2), At(0));
  Land(s, *s.PlanNext(At(0)));
  s.Add(MakeRequest(2, 4, 9), At(0));
  const auto both = s.PlanNext(At(0));
  ASSERT_TRUE(both);
  ASSERT_THAT(both->segments, SizeIs(2));
  EXPECT_EQ(both->segments[0].sequence, SequenceId(1));
  EXPECT_EQ(both->segments[1].token_ids.size(), 4u);
  Land(s, *both);
  const Actions actions = Take(s);
  EXPECT_THAT(actions.tokens, SizeIs(3));
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].sequence, SequenceId(1));
  const auto rest = s.PlanNext(At(0));
  ASSERT_TRUE(rest);
  ASSERT_THAT(rest->segments, SizeIs(1));
  EXPECT_EQ(rest->segments[0].sequence, SequenceId(2));
}

TEST_F(SchedulerTest, ServesALongPromptWhileOthersDecodeAllTheTime) {
  SchedulerOptions options = SmallOptions();
  options.max_rows = 8;
  Scheduler& s = Start(Shape(1), options);
  for (uint64_t id = 1; id <= 40; ++id) s.Add(MakeRequest(id, 1, 500), At(0));
  for (int i = 0; i < 30; ++i) Land(s, *s.PlanNext(At(0)));
  s.Add(MakeRequest(99, 200, 1), At(0));
  for (int i = 0; i < 100; ++i) Land(s, *s.PlanNext(At(0)));
  const Actions actions = Take(s);
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].sequence, SequenceId(99));
}

TEST_F(SchedulerTest, ServesEveryDecodeWhenMoreDecodeThanFitAMicrobatch) {
  SchedulerOptions options = SmallOptions();
  options.max_rows = 4;
  Scheduler& s = Start(Shape(1), options);
  for (uint64_t id = 1; id <= 10; ++id) s.Add(MakeRequest(id, 1, 8), At(0));
  RunToEnd(s, At(0), 40);
  EXPECT_THAT(Take(s).finished, SizeIs(10));
}

TEST_F(SchedulerTest, GrowsTheBlockTableOnlyWhenABlockIsFull) {
  Scheduler& s = Start(Shape(1));
  s.Add(MakeRequest(1, 3, 9), At(0));
  std::vector<size_t> blocks;
  for (int i = 0; i < 7; ++i) {
    const auto plan = s.PlanNext(At(0));
    blocks.push_back(plan->segments[0].block_ids.size());
    EXPECT_EQ(s.load().blocks_used, blocks.back());
    Land(s, *plan);
  }
  EXPECT_THAT(blocks, ElementsAre(1, 1, 2, 2, 2, 2, 3));
}

TEST_F(SchedulerTest, SuppressesEndAndStopTokensUntilMinTokens) {
  Scheduler& s = Start(Shape(1));
  SequenceRequest request = MakeRequest(1, 40, 9);
  request.min_tokens = 2;
  request.stop_token_ids = {7};
  request.prompt.resize(3);
  s.Add(request, At(0));
  for (int generated = 0; generated < 4; ++generated) {
    const auto plan = s.PlanNext(At(0));
    const std::vector<TokenId> expected =
        generated < 2 ? std::vector<TokenId>{7, kEnd} : std::vector<TokenId>{};
    EXPECT_THAT(plan->segments[0].suppressed_ids, ::testing::UnorderedElementsAreArray(expected))
        << generated;
    Land(s, *plan);
  }
}

TEST_F(SchedulerTest, DoesNotSuppressEndTokensThatAreIgnored) {
  Scheduler& s = Start(Shape(1));
  SequenceRequest request = MakeRequest(1, 3, 9);
  request.min_tokens = 2;
  request.ignore_eos = true;
  request.stop_token_ids = {7};
  s.Add(request, At(0));
  EXPECT_THAT(s.PlanNext(At(0))->segments[0].suppressed_ids, ElementsAre(7));
}

TEST_F(SchedulerTest, SendsHistoryOnlyIfPenaltiesNeedIt) {
  Scheduler& s = Start(Shape(1));
  SequenceRequest penalised = MakeRequest(1, 3, 9);
  penalised.sampling.presence_penalty = 0.5f;
  s.Add(penalised, At(0));
  s.Add(MakeRequest(2, 3, 9), At(0));
  Land(s, *s.PlanNext(At(0)));
  const auto plan = s.PlanNext(At(0));
  ASSERT_THAT(plan->segments, SizeIs(2));
  EXPECT_THAT(plan->segments[0].history, ElementsAre(100, 101, 102, 50));
  EXPECT_EQ(plan->segments[0].history_prompt_tokens, 3u);
  EXPECT_THAT(plan->segments[1].history, IsEmpty());
}

TEST_F(SchedulerTest, AsksForPromptLogprobsOnlyWhereAPromptTokenFollows) {
  SchedulerOptions options = SmallOptions();
  options.max_rows = 16;
  Scheduler& s = Start(Shape(1), options);
  SequenceRequest request = MakeRequest(1, 33, 9);
  request.prompt_logprobs = 3;
  s.Add(request, At(0));
  std::vector<bool> asked;
  for (int i = 0; i < 4; ++i) {
    const auto plan = s.PlanNext(At(0));
    asked.push_back(plan->segments[0].prompt_logprobs == 3u);
    Land(s, *plan);
  }
  // 16 and 16 rows, then the last prompt token, then a decode.
  EXPECT_THAT(asked, ElementsAre(true, true, false, false));
  const Actions actions = Take(s);
  ASSERT_THAT(actions.prompt_logprobs, SizeIs(2));
  EXPECT_EQ(actions.prompt_logprobs[0].first_position, 1u);
  EXPECT_EQ(actions.prompt_logprobs[1].first_position, 17u);
  EXPECT_THAT(actions.prompt_logprobs[1].positions, SizeIs(16));
}

TEST_F(SchedulerTest, PassesLogprobsOfSampledTokensOn) {
  Scheduler& s = Start(Shape(1));
  SequenceRequest request = MakeRequest(1, 3, 1);
  request.sampling.logprobs = 0;
  s.Add(request, At(0));
  Land(s, *s.PlanNext(At(0)));
  const Actions actions = Take(s);
  ASSERT_THAT(actions.tokens, SizeIs(1));
  ASSERT_TRUE(actions.tokens[0].logprobs);
  EXPECT_EQ(actions.tokens[0].logprobs->logprob, -1.5f);
}

TEST_F(SchedulerTest, AdmitsNothingToAStaticBatchUntilItsLongestHasEnded) {
  SchedulerOptions options = SmallOptions();
  options.static_batching = true;
  options.max_running_sequences = 3;
  Scheduler& s = Start(Shape(1), options);
  const uint32_t lengths[] = {2, 7, 3, 4};
  for (uint64_t id = 1; id <= 4; ++id) s.Add(MakeRequest(id, 3, lengths[id - 1]), At(0));
  std::vector<uint32_t> rows;
  for (int i = 0; i < 7; ++i) {
    const auto plan = s.PlanNext(At(0));
    ASSERT_TRUE(plan);
    rows.push_back(plan->rows());
    if (i == 2) s.Add(MakeRequest(5, 3, 1), At(0));
    Land(s, *plan);
  }
  EXPECT_THAT(rows, ElementsAre(9, 3, 2, 1, 1, 1, 1));
  EXPECT_EQ(s.load().finished, 3u);
  EXPECT_EQ(s.load().waiting, 2u);
  const auto next = s.PlanNext(At(0));
  ASSERT_TRUE(next);
  EXPECT_EQ(next->rows(), 6u);
}

// Two sequences of 8 positions in 4 blocks of 4: no block is left for the ninth.
class PreemptionTest : public SchedulerTest {
 protected:
  Scheduler& StartFull() {
    Scheduler& s = Start(Shape(2, 5));
    s.Add(MakeRequest(1, 6, 10), At(0));
    const auto first = s.PlanNext(At(0));
    s.Add(MakeRequest(2, 6, 10), At(0));
    const auto second = s.PlanNext(At(0));
    Land(s, *first, At(0), 40);
    Land(s, *second, At(0), 60);
    return s;
  }
};

TEST_F(PreemptionTest, TakesTheYoungestAndReplaysItsTokensLater) {
  Scheduler& s = StartFull();
  std::vector<PlanSegment> replay;
  std::vector<TokenId> tokens;
  for (int i = 0; i < 60 && !s.idle(); ++i) {
    const auto plan = s.PlanNext(At(0));
    if (!plan) break;
    ASSERT_THAT(plan->segments, SizeIs(1));
    const PlanSegment& segment = plan->segments[0];
    if (segment.sequence == SequenceId(2) && segment.token_ids.size() > 1) replay.push_back(segment);
    Land(s, *plan, At(0), 60 + static_cast<TokenId>(i));
  }
  EXPECT_EQ(s.load().preemptions, 1u);
  const Actions actions = Take(s);
  ASSERT_THAT(actions.finished, SizeIs(2));
  EXPECT_EQ(actions.finished[0].sequence, SequenceId(1));
  for (const TokenReady& ready : actions.tokens) {
    if (ready.sequence == SequenceId(2)) tokens.push_back(ready.token);
  }
  EXPECT_THAT(tokens, SizeIs(10));
  ASSERT_THAT(replay, SizeIs(1));
  EXPECT_EQ(replay[0].first_position, 0u);
  ASSERT_GT(replay[0].token_ids.size(), 7u);
  for (size_t i = 0; i < replay[0].token_ids.size(); ++i) {
    EXPECT_EQ(replay[0].token_ids[i], i < 6 ? 100 + i : tokens[i - 6]) << i;
  }
  EXPECT_TRUE(replay[0].sampling);
  EXPECT_EQ(s.load().blocks_used, 0u);
}

TEST_F(PreemptionTest, AppliesATokenThatWasInFlightAndReplaysItToo) {
  Scheduler& s = Start(Shape(2, 5));
  std::deque<MicrobatchPlan> in_flight;
  s.Add(MakeRequest(1, 8, 12), At(0));
  in_flight.push_back(*s.PlanNext(At(0)));
  s.Add(MakeRequest(2, 4, 12), At(0));
  in_flight.push_back(*s.PlanNext(At(0)));
  // The first one's second new block is due while a token of the second is in flight.
  while (s.load().preemptions == 0) {
    Land(s, in_flight.front());
    in_flight.pop_front();
    for (MicrobatchPlan& plan : PlanAll(s)) in_flight.push_back(std::move(plan));
    ASSERT_THAT(in_flight, SizeIs(2));
  }
  ASSERT_EQ(in_flight.front().segments[0].sequence, SequenceId(2));
  EXPECT_EQ(in_flight.front().segments[0].first_position, 7u);
  Take(s);
  Land(s, in_flight.front(), At(0), 77);
  const Actions actions = Take(s);
  ASSERT_THAT(actions.tokens, SizeIs(1));
  EXPECT_EQ(actions.tokens[0].sequence, SequenceId(2));
  Land(s, in_flight.back());
  s.Cancel(SequenceId(1), absl::CancelledError("gone"), At(0));
  const auto replay = s.PlanNext(At(0));
  ASSERT_TRUE(replay);
  ASSERT_THAT(replay->segments, SizeIs(1));
  EXPECT_EQ(replay->segments[0].token_ids.size(), 9u);
  EXPECT_EQ(replay->segments[0].token_ids.back(), 77u);
}

TEST_F(PreemptionTest, ReportsPromptLogprobsOnceWhenAPromptIsReplayed) {
  SchedulerOptions options = SmallOptions();
  options.max_rows = 3;
  Scheduler& s = Start(Shape(1, 8), options);
  s.Add(MakeRequest(1, 7, 20), At(0));
  while (s.load().output_tokens == 0) Land(s, *s.PlanNext(At(0)));
  // Two rows a step; the first takes the last block, and then another, before this prompt is through.
  // Replayed in chunks of three, a chunk holds positions reported before and others.
  SequenceRequest request = MakeRequest(2, 19, 1);
  request.prompt_logprobs = 0;
  s.Add(request, At(0));
  RunToEnd(s);
  EXPECT_EQ(s.load().preemptions, 1u);
  const Actions actions = Take(s);
  ASSERT_THAT(actions.finished, SizeIs(2));
  uint32_t next = 1;
  for (const PromptLogprobsReady& ready : actions.prompt_logprobs) {
    EXPECT_EQ(ready.first_position, next);
    next += static_cast<uint32_t>(ready.positions.size());
  }
  EXPECT_EQ(next, 19u);
}

TEST_F(SchedulerTest, RefusesResultsThatDoNotFitAndAppliesNothing) {
  Scheduler& s = Start(Shape(1));
  s.Add(MakeRequest(1, 3, 2), At(0));
  s.Add(MakeRequest(2, 3, 2), At(0));
  const auto plan = s.PlanNext(At(0));
  auto results = Answer(*plan);
  ASSERT_THAT(results, SizeIs(2));
  results[1].position = 9;
  EXPECT_EQ(s.OnResult(plan->id, results, At(0)).code(), absl::StatusCode::kInternal);
  EXPECT_THAT(s.TakeActions(), IsEmpty());
  EXPECT_EQ(s.load().in_flight, 1u);
}

TEST_F(SchedulerTest, RefusesMicrobatchesOutOfOrder) {
  Scheduler& s = Start(Shape(2));
  s.Add(MakeRequest(1, 3, 2), At(0));
  s.Add(MakeRequest(2, 3, 2), At(0));
  EXPECT_EQ(s.OnResult(MicrobatchId(1), {}, At(0)).code(), absl::StatusCode::kInternal);
  s.Add(MakeRequest(3, 200, 2), At(0));
  const auto plans = PlanAll(s);
  ASSERT_THAT(plans, SizeIs(2));
  EXPECT_EQ(s.OnResult(plans[1].id, Answer(plans[1]), At(0)).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(s.OnResult(MicrobatchId(77), {}, At(0)).code(), absl::StatusCode::kInternal);
  EXPECT_THAT(s.TakeActions(), IsEmpty());
  Land(s, plans[0]);
  EXPECT_EQ(s.OnResult(plans[0].id, Answer(plans[0]), At(0)).code(), absl::StatusCode::kInternal);
  Land(s, plans[1]);
}

TEST_F(SchedulerTest, GivesTheSamePlansForTheSameCalls) {
  std::vector<std::vector<BlockId>> runs[2];
  for (auto& run : runs) {
    Scheduler& s = Start(Shape(3, 40));
    for (uint64_t id = 1; id <= 12; ++id) s.Add(MakeRequest(id, 3 + 7 * id % 50, 20), At(0));
    std::deque<MicrobatchPlan> in_flight;
    for (int i = 0; i < 500; ++i) {
      for (MicrobatchPlan& plan : PlanAll(s)) {
        for (const PlanSegment& segment : plan.segments) run.push_back(segment.block_ids);
        in_flight.push_back(std::move(plan));
      }
      if (in_flight.empty()) break;
      Land(s, in_flight.front());
      in_flight.pop_front();
    }
    EXPECT_TRUE(s.idle());
  }
  EXPECT_GT(runs[0].size(), 200u);
  EXPECT_EQ(runs[0], runs[1]);
}

}  // namespace
}  // namespace millrace::testing
