// What is held while a ring is given up on purpose, and the token that tries a new one.
#include <gmock/gmock.h>

#include "common/error_reason.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace::testing {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

class SchedulerHoldTest : public ::testing::Test {
 protected:
  SchedulerHoldTest() { s_.OnRingReady(Shape(2), At(0)); }

  // Plans one microbatch and lands it.
  void Step() {
    const auto plan = s_.PlanNext(At(0));
    ASSERT_TRUE(plan);
    Land(s_, *plan);
  }

  const absl::Status none_ = absl::UnavailableError("no ring");
  Scheduler s_{SmallOptions()};
};

TEST_F(SchedulerHoldTest, WhatHasBegunFinishesAndTheRestWaitsForTheNextRing) {
  s_.Add(MakeRequest(1, 3, 3), At(0));
  Step();
  s_.Add(MakeRequest(2, 3, 1), At(1));  // arrived, not admitted
  s_.Hold();
  s_.Add(MakeRequest(3, 3, 1), At(2));
  EXPECT_EQ(s_.load().waiting, 2u);
  EXPECT_EQ(s_.load().held, 2u);
  EXPECT_EQ(s_.load().begun(), 1u);
  RunToEnd(s_);
  const Actions first = Take(s_);
  ASSERT_THAT(first.finished, SizeIs(1));
  EXPECT_EQ(first.finished[0].sequence, SequenceId(1));
  EXPECT_TRUE(first.finished[0].status.ok());
  EXPECT_EQ(s_.load().begun(), 0u);

  s_.OnRingLost(absl::UnavailableError("the worker left"), At(5));
  s_.Add(MakeRequest(4, 3, 1), At(6));
  EXPECT_THAT(Take(s_).finished, IsEmpty());
  s_.OnRingReady(Shape(2), At(7));
  EXPECT_FALSE(s_.PlanNext(At(7)));
  s_.Release(none_, At(8));
  EXPECT_FALSE(s_.holding());
  s_.CheckInvariants();
  RunToEnd(s_, At(9));
  const Actions rest = Take(s_);
  ASSERT_THAT(rest.finished, SizeIs(3));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(rest.finished[i].sequence, SequenceId(i + 2));
    EXPECT_TRUE(rest.finished[i].status.ok()) << rest.finished[i].status;
  }
}

TEST_F(SchedulerHoldTest, WhatRunsWhenTheRingGoesEndsAndWhatIsHeldDoesNot) {
  s_.Add(MakeRequest(1, 3, 100), At(0));
  Step();
  s_.Hold();
  s_.Add(MakeRequest(2, 3, 1), At(0));
  Take(s_);
  s_.OnRingLost(absl::UnavailableError("gone"), At(1));
  const Actions actions = Take(s_);
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].sequence, SequenceId(1));
  EXPECT_EQ(s_.load().held, 1u);
  s_.CheckInvariants();
}

TEST_F(SchedulerHoldTest, ReleaseWithoutARingEndsWhatWasHeld) {
  s_.Hold();
  s_.Add(MakeRequest(1, 3, 1), At(0));
  s_.OnRingLost(absl::UnavailableError("gone"), At(1));
  s_.Release(none_, At(2));
  const Actions actions = Take(s_);
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].status, none_);
  s_.Add(MakeRequest(2, 3, 1), At(3));
  EXPECT_EQ(Take(s_).finished.at(0).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(s_.idle());
}

TEST_F(SchedulerHoldTest, ReleaseOnTheSameRingLetsTheQueueRunInItsOrder) {
  s_.Hold();
  SequenceRequest late = MakeRequest(1, 3, 1);
  late.priority = 5;
  s_.Add(std::move(late), At(0));
  s_.Add(MakeRequest(2, 3, 1), At(1));
  EXPECT_FALSE(s_.PlanNext(At(1)));
  s_.Release(none_, At(2));
  const auto plan = s_.PlanNext(At(2));
  ASSERT_TRUE(plan);
  ASSERT_THAT(plan->segments, SizeIs(2));
  EXPECT_EQ(plan->segments[0].sequence, SequenceId(2));
  Land(s_, *plan);
}

TEST_F(SchedulerHoldTest, ThePreemptedGoOnPastOlderOnesThatAreHeld) {
  s_.OnRingLost(none_, At(0));
  s_.OnRingReady(Shape(1, 6, 4), At(0));  // 24 tokens: room for two that grow only for a while
  s_.Add(MakeRequest(1, 7, 12), At(0));
  s_.Add(MakeRequest(2, 7, 12), At(1));
  while (s_.load().preemptions == 0) Step();
  SequenceRequest urgent = MakeRequest(3, 3, 1);
  urgent.priority = -10;
  s_.Hold();
  s_.Add(std::move(urgent), At(2));
  EXPECT_EQ(s_.load().begun(), 2u);
  RunToEnd(s_, At(3));
  EXPECT_EQ(s_.load().finished, 2u);
  EXPECT_EQ(s_.load().begun(), 0u);
  s_.Release(none_, At(4));
  RunToEnd(s_, At(5));
  EXPECT_EQ(s_.load().finished, 3u);
}

TEST_F(SchedulerHoldTest, HeldOnesKeepTheirDeadlinesCanBeCancelledAndFillTheQueue) {
  SchedulerOptions options = SmallOptions();
  options.max_waiting_sequences = 2;
  Scheduler s(options);
  s.OnRingReady(Shape(2), At(0));
  s.Hold();
  SequenceRequest hasty = MakeRequest(1, 3, 1);
  hasty.deadline = At(10);
  s.Add(std::move(hasty), At(0));
  s.Add(MakeRequest(2, 3, 1), At(0));
  s.Add(MakeRequest(3, 3, 1), At(0));
  EXPECT_EQ(Take(s).finished.at(0).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(s.NextDeadline(), At(10));
  s.Tick(At(10));
  EXPECT_EQ(Take(s).finished.at(0).status.code(), absl::StatusCode::kDeadlineExceeded);
  s.Cancel(SequenceId(2), absl::CancelledError("left"), At(11));
  EXPECT_EQ(Take(s).finished.at(0).status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(s.idle());
  s.CheckInvariants();
}

TEST_F(SchedulerHoldTest, HeldOnesAreFittedToTheNextRing) {
  s_.Hold();
  s_.Add(MakeRequest(1, 20, 5), At(0));
  s_.Add(MakeRequest(2, 3, 900), At(0));
  s_.OnRingLost(none_, At(1));
  s_.OnRingReady(Shape(2, 5, 4), At(2));  // 20 tokens
  const Actions actions = Take(s_);
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].sequence, SequenceId(1));
  EXPECT_EQ(actions.finished[0].status.GetPayload(kReasonPayload), absl::Cord("KV_CACHE_TOO_SMALL"));
  s_.Release(none_, At(3));
  RunToEnd(s_, At(4));
  const Actions rest = Take(s_);
  ASSERT_THAT(rest.finished, SizeIs(1));
  EXPECT_EQ(rest.finished[0].output_tokens, 17u);
}

TEST_F(SchedulerHoldTest, TheCanaryIsTheFirstMicrobatchAndLeavesNoTrace) {
  SchedulerOptions options = SmallOptions();
  options.prefix_cache = true;
  Scheduler s(options);
  s.OnRingReady(Shape(2), At(0));
  const auto canary = s.PlanCanary(7, At(0));
  ASSERT_TRUE(canary);
  EXPECT_EQ(canary->id, MicrobatchId(1));
  ASSERT_THAT(canary->segments, SizeIs(1));
  EXPECT_EQ(canary->segments[0].token_ids, std::vector<TokenId>{7});
  EXPECT_TRUE(s.canary_in_flight());
  EXPECT_EQ(s.load().in_flight, 0u);
  s.Add(MakeRequest(1, 3, 2), At(0));
  const auto plan = s.PlanNext(At(0));
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->id, MicrobatchId(2));
  const std::vector<StageTimes> times(2, StageTimes{0.5, 0.5});
  s.OnStageTimes(canary->id, times, At(1000));
  EXPECT_EQ(s.load().hop_seconds, 0);
  Land(s, *canary);
  EXPECT_FALSE(s.canary_in_flight());
  EXPECT_EQ(s.load().output_tokens, 0u);
  EXPECT_EQ(s.load().prefix_cache_queries, 3u);
  EXPECT_EQ(s.load().blocks_cached, 0u);
  EXPECT_THAT(Take(s).tokens, IsEmpty());
  Land(s, *plan);
  RunToEnd(s);
  EXPECT_EQ(s.load().finished, 1u);
}

TEST_F(SchedulerHoldTest, AResultThatDoesNotFitTheCanaryIsAFault) {
  const auto canary = s_.PlanCanary(7, At(0));
  ASSERT_TRUE(canary);
  EXPECT_EQ(s_.OnResult(canary->id, {}, At(0)).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(s_.canary_in_flight());
  s_.OnRingLost(none_, At(1));
  EXPECT_FALSE(s_.canary_in_flight());
}

}  // namespace
}  // namespace millrace::testing
