// What sequences that begin the same share.
#include <vector>

#include "coordinator/scheduler/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

// Blocks of 4 tokens.
class PrefixCacheTest : public ::testing::Test {
 protected:
  explicit PrefixCacheTest(uint32_t blocks = 1000) : s_(Options()) {
    s_.OnRingReady(Shape(1, blocks), At(0));
  }

  static SchedulerOptions Options() {
    SchedulerOptions options = SmallOptions();
    options.prefix_cache = true;
    return options;
  }
  // Runs a request by itself; the first segment of it, and its usage.
  struct Outcome {
    PlanSegment first;
    uint32_t cached = 0;
  };
  Outcome RunAlone(const SequenceRequest& request, TokenId token = 50) {
    s_.Add(request, At(0));
    Outcome outcome;
    bool seen = false;
    while (const auto plan = s_.PlanNext(At(0))) {
      if (!seen) outcome.first = plan->segments[0];
      seen = true;
      Land(s_, *plan, At(0), token);
    }
    const Actions actions = Take(s_);
    EXPECT_THAT(actions.finished, SizeIs(1));
    if (!actions.finished.empty()) outcome.cached = actions.finished[0].cached_prompt_tokens;
    s_.CheckInvariants();
    return outcome;
  }

  Scheduler s_;
};

TEST_F(PrefixCacheTest, StartsBehindTheFullBlocksOfAnEarlierPrompt) {
  EXPECT_EQ(RunAlone(MakeRequest(1, 11, 1)).cached, 0u);
  EXPECT_EQ(s_.load().blocks_used, 0u);
  EXPECT_EQ(s_.load().blocks_cached, 2u);
  const Outcome second = RunAlone(MakeRequest(2, 11, 1));
  EXPECT_EQ(second.cached, 8u);
  EXPECT_EQ(second.first.first_position, 8u);
  EXPECT_THAT(second.first.token_ids, ElementsAre(108, 109, 110));
  EXPECT_THAT(second.first.block_ids, SizeIs(3));
  EXPECT_TRUE(second.first.sampling);
  EXPECT_EQ(s_.load().prefix_cache_queries, 22u);
  EXPECT_EQ(s_.load().prefix_cache_hits, 8u);
}

TEST_F(PrefixCacheTest, ComputesTheLastTokenAlways) {
  RunAlone(MakeRequest(1, 12, 2));
  EXPECT_EQ(s_.load().blocks_cached, 3u);
  const Outcome second = RunAlone(MakeRequest(2, 12, 1));
  EXPECT_EQ(second.cached, 8u);
  EXPECT_EQ(second.first.token_ids.size(), 4u);
  EXPECT_EQ(s_.load().blocks_cached, 3u) << "the block computed again was given back";
  EXPECT_EQ(RunAlone(MakeRequest(3, 13, 1)).cached, 12u);
}

TEST_F(PrefixCacheTest, FindsTheAnswerInTheNextTurn) {
  RunAlone(MakeRequest(1, 6, 7), 50);  // of 13 tokens the last is in no block
  SequenceRequest next = MakeRequest(2, 6, 1);
  next.prompt.insert(next.prompt.end(), 7, 50);
  next.prompt.insert(next.prompt.end(), 3, 7);
  EXPECT_EQ(RunAlone(next).cached, 12u);
}

TEST_F(PrefixCacheTest, SharesNoMoreThanTheCommonPrefix) {
  RunAlone(MakeRequest(1, 20, 1));
  SequenceRequest other = MakeRequest(2, 20, 1);
  other.prompt[9] = 7;
  EXPECT_EQ(RunAlone(other).cached, 8u);
  SequenceRequest shifted = MakeRequest(3, 20, 1);
  shifted.prompt.insert(shifted.prompt.begin(), 7);
  EXPECT_EQ(RunAlone(shifted).cached, 0u);
  other.id = SequenceId(4);
  EXPECT_EQ(RunAlone(other).cached, 16u);
}

TEST_F(PrefixCacheTest, KeepsSaltsApart) {
  SequenceRequest request = MakeRequest(1, 20, 1);
  RunAlone(request);
  request.cache_salt = "a";
  request.id = SequenceId(2);
  EXPECT_EQ(RunAlone(request).cached, 0u);
  request.id = SequenceId(3);
  EXPECT_EQ(RunAlone(request).cached, 16u);
  request.cache_salt = "b";
  request.id = SequenceId(4);
  EXPECT_EQ(RunAlone(request).cached, 0u);
}

TEST_F(PrefixCacheTest, ComputesAPromptWhoseLogprobsAreWantedButKeepsItForOthers) {
  SequenceRequest request = MakeRequest(1, 20, 1);
  RunAlone(request);
  request.id = SequenceId(2);
  request.prompt_logprobs = 0;
  EXPECT_EQ(RunAlone(request).cached, 0u);
  EXPECT_EQ(s_.load().prefix_cache_queries, 20u);
  request.prompt[0] = 7;
  request.id = SequenceId(3);
  RunAlone(request);
  request.id = SequenceId(4);
  request.prompt_logprobs.reset();
  EXPECT_EQ(RunAlone(request).cached, 16u);
}

TEST_F(PrefixCacheTest, SharesBlocksWithOneThatIsStillComputingThem) {
  Scheduler s(Options());
  s.OnRingReady({1, 2, 1000, 4}, At(0));
  s.Add(MakeRequest(1, 30, 3), At(0));
  const auto first = s.PlanNext(At(0));
  s.Add(MakeRequest(2, 33, 3), At(0));
  const auto second = s.PlanNext(At(0));
  ASSERT_TRUE(second);
  EXPECT_EQ(second->segments[0].first_position, 28u);
  EXPECT_TRUE(std::equal(first->segments[0].block_ids.begin(), first->segments[0].block_ids.begin() + 7,
                         second->segments[0].block_ids.begin()));
  EXPECT_EQ(s.load().blocks_used, 7u + 1 + 2);
  s.CheckInvariants();
  s.Cancel(SequenceId(1), absl::CancelledError(""), At(0));
  EXPECT_EQ(s.load().blocks_used, 7u + 2);
  s.CheckInvariants();
}

TEST_F(PrefixCacheTest, NeverReadsInAMicrobatchWhatTheSameMicrobatchWrites) {
  s_.Add(MakeRequest(1, 20, 1), At(0));
  s_.Add(MakeRequest(2, 20, 1), At(0));
  const auto plan = s_.PlanNext(At(0));
  ASSERT_TRUE(plan);
  ASSERT_THAT(plan->segments, SizeIs(2));
  EXPECT_EQ(plan->segments[1].first_position, 0u);
  for (BlockId block : plan->segments[1].block_ids) {
    EXPECT_THAT(plan->segments[0].block_ids, ::testing::Not(::testing::Contains(block)));
  }
  EXPECT_EQ(s_.load().blocks_used, 6u - 1) << "four of five blocks are the same, and held once";
}

TEST_F(PrefixCacheTest, IsEmptyOnANewRing) {
  RunAlone(MakeRequest(1, 20, 1));
  s_.OnRingLost(absl::UnavailableError("lost"), At(0));
  s_.OnRingReady(Shape(1), At(0));
  EXPECT_EQ(s_.load().blocks_cached, 0u);
  EXPECT_EQ(RunAlone(MakeRequest(2, 20, 1)).cached, 0u);
}

TEST_F(PrefixCacheTest, IsOffOnDemand) {
  Scheduler s(SmallOptions());
  s.OnRingReady(Shape(1), At(0));
  for (uint64_t id : {1, 2}) {
    s.Add(MakeRequest(id, 20, 1), At(0));
    const auto plan = s.PlanNext(At(0));
    EXPECT_EQ(plan->segments[0].first_position, 0u);
    Land(s, *plan);
  }
}

class SmallPrefixCacheTest : public PrefixCacheTest {
 protected:
  SmallPrefixCacheTest() : PrefixCacheTest(10) {}
};

TEST_F(SmallPrefixCacheTest, CountsCachedBlocksAsFree) {
  RunAlone(MakeRequest(1, 32, 1));
  EXPECT_EQ(s_.load().blocks_cached, 8u);
  SequenceRequest other = MakeRequest(2, 36, 1);
  other.prompt[0] = 7;
  EXPECT_EQ(RunAlone(other).cached, 0u);
  EXPECT_EQ(s_.load().blocks_cached, 9u + 1);
  EXPECT_EQ(RunAlone(MakeRequest(3, 32, 1)).cached, 4u) << "the later blocks went first";
}

TEST_F(SmallPrefixCacheTest, FindsItsOwnBlocksAfterPreemption) {
  s_.Add(MakeRequest(1, 8, 24), At(0));
  Land(s_, *s_.PlanNext(At(0)), At(0), 60);
  SequenceRequest other = MakeRequest(2, 8, 24);
  other.prompt[0] = 7;
  s_.Add(other, At(0));
  uint32_t again = 0;
  bool was_running = false;
  while (const auto plan = s_.PlanNext(At(0))) {
    for (const PlanSegment& segment : plan->segments) {
      if (segment.sequence != SequenceId(2)) continue;
      if (s_.load().preemptions > 0 && !was_running) again = segment.first_position;
      was_running = s_.load().preemptions > 0;
    }
    Land(s_, *plan, At(0), 60);
  }
  EXPECT_GT(s_.load().preemptions, 0u);
  const Actions actions = Take(s_);
  ASSERT_THAT(actions.finished, SizeIs(2));
  EXPECT_EQ(actions.finished[1].cached_prompt_tokens, 0u) << "of the first admission";
  EXPECT_GT(again, 0u);
}

// Two that hold the same blocks: preempting one of them frees nothing, preempting both frees all.
TEST_F(SmallPrefixCacheTest, GoesOnThoughThoseToPreemptHoldTheSameBlocks) {
  SequenceRequest oldest = MakeRequest(1, 4, 36);
  oldest.prompt[0] = 7;
  s_.Add(oldest, At(0));
  Land(s_, *s_.PlanNext(At(0)));
  for (uint64_t id : {2, 3, 4}) s_.Add(MakeRequest(id, 12, 20), At(0));
  RunToEnd(s_);
  EXPECT_GT(s_.load().preemptions, 0u);
  EXPECT_THAT(Take(s_).finished, SizeIs(4));
  EXPECT_EQ(s_.load().blocks_used, 0u);
}

}  // namespace
}  // namespace millrace::testing
