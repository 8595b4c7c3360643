// How sequences end: once each, for the right reason, with true usage and timings.
#include <memory>
#include <string>
#include <utility>

#include "common/error_reason.h"
#include "coordinator/scheduler/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_harness.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class SchedulerEndTest : public ::testing::Test {
 protected:
  explicit SchedulerEndTest(const RingShape& shape = Shape(1)) { s_.OnRingReady(shape, At(0)); }

  // Plans one microbatch and lands it with `token`.
  void Step(TokenId token, absl::Time now = At(0)) {
    const auto plan = s_.PlanNext(now);
    ASSERT_TRUE(plan);
    Land(s_, *plan, now, token);
  }
  SequenceFinished TakeOnlyEnd() {
    Actions actions = Take(s_);
    EXPECT_THAT(actions.finished, SizeIs(1));
    return actions.finished.empty() ? SequenceFinished() : actions.finished[0];
  }

  Scheduler s_{SmallOptions()};
};

struct EndCase {
  std::string name;
  bool ignore_eos;
  uint32_t max_tokens;
  std::vector<TokenId> tokens;  // sampled until the end
  FinishReason reason;
  std::optional<TokenId> matched;
};

TEST_F(SchedulerEndTest, EndsForTheFirstReasonThatHolds) {
  const EndCase cases[] = {
      {"end token", false, 9, {50, kEnd}, FinishReason::kEndOfSequence, kEnd},
      {"end token first of all", false, 9, {kEnd}, FinishReason::kEndOfSequence, kEnd},
      {"stop token", false, 9, {50, 51, 7}, FinishReason::kStopToken, 7},
      {"ignored end token", true, 3, {kEnd, kEnd, kEnd}, FinishReason::kLength, std::nullopt},
      {"stop token though end tokens are ignored", true, 9, {kEnd, 7}, FinishReason::kStopToken, 7},
      {"length", false, 2, {50, 51}, FinishReason::kLength, std::nullopt},
      {"end token at the last place", false, 2, {50, kEnd}, FinishReason::kEndOfSequence, kEnd},
      {"one token", false, 1, {50}, FinishReason::kLength, std::nullopt},
  };
  uint64_t id = 0;
  for (const EndCase& c : cases) {
    SCOPED_TRACE(c.name);
    SequenceRequest request = MakeRequest(++id, 3, c.max_tokens);
    request.ignore_eos = c.ignore_eos;
    request.stop_token_ids = {7};
    s_.Add(request, At(0));
    for (TokenId token : c.tokens) Step(token);
    const Actions actions = Take(s_);
    ASSERT_THAT(actions.tokens, SizeIs(c.tokens.size()));
    EXPECT_EQ(actions.tokens.back().token, c.tokens.back()) << "the last token is streamed, too";
    ASSERT_THAT(actions.finished, SizeIs(1));
    EXPECT_TRUE(actions.finished[0].status.ok());
    EXPECT_EQ(actions.finished[0].reason, c.reason);
    EXPECT_EQ(actions.finished[0].matched_token, c.matched);
    EXPECT_EQ(actions.finished[0].prompt_tokens, 3u);
    EXPECT_EQ(actions.finished[0].output_tokens, c.tokens.size());
    EXPECT_TRUE(s_.idle());
    EXPECT_EQ(s_.load().blocks_used, 0u);
  }
  EXPECT_EQ(s_.load().finished, id);
  EXPECT_EQ(s_.load().prompt_tokens, 3 * id);
}

TEST_F(SchedulerEndTest, PutsTokensBeforeTheEnd) {
  s_.Add(MakeRequest(1, 3, 1), At(0));
  Step(50);
  const auto actions = s_.TakeActions();
  ASSERT_THAT(actions, SizeIs(2));
  EXPECT_TRUE(std::holds_alternative<TokenReady>(actions[0]));
  EXPECT_TRUE(std::holds_alternative<SequenceFinished>(actions[1]));
  EXPECT_THAT(s_.TakeActions(), IsEmpty());
}

TEST_F(SchedulerEndTest, CapsTheLengthByTheContext) {
  SequenceRequest request = MakeRequest(1, 996, 4000000000u);
  s_.Add(request, At(0));
  RunToEnd(s_);
  const SequenceFinished end = TakeOnlyEnd();
  EXPECT_EQ(end.reason, FinishReason::kLength);
  EXPECT_EQ(end.output_tokens, 4u);
}

TEST_F(SchedulerEndTest, StopsAtAStopStringAndDropsWhatCameSince) {
  s_.Add(MakeRequest(1, 3, 100), At(0));
  for (int i = 0; i < 5; ++i) Step(50);
  const auto in_flight = s_.PlanNext(At(0));
  Take(s_);
  s_.StopAt(SequenceId(1), 3, At(0));
  const SequenceFinished end = TakeOnlyEnd();
  EXPECT_TRUE(end.status.ok());
  EXPECT_EQ(end.reason, FinishReason::kStopSequence);
  EXPECT_EQ(end.output_tokens, 3u);
  EXPECT_EQ(s_.load().blocks_used, 0u);
  EXPECT_FALSE(s_.idle()) << "something is in flight";
  Land(s_, *in_flight);
  EXPECT_THAT(s_.TakeActions(), IsEmpty());
  EXPECT_TRUE(s_.idle());
  s_.StopAt(SequenceId(1), 3, At(0));
  s_.Cancel(SequenceId(1), absl::CancelledError("late"), At(0));
  EXPECT_THAT(s_.TakeActions(), IsEmpty());
}

TEST_F(SchedulerEndTest, CountsNoMoreThanWasGeneratedWhenStopped) {
  s_.Add(MakeRequest(1, 3, 100), At(0));
  Step(50);
  s_.StopAt(SequenceId(1), 9, At(0));
  EXPECT_EQ(TakeOnlyEnd().output_tokens, 1u);
}

TEST_F(SchedulerEndTest, CancelsAtEveryPhaseAndFreesTheBlocksAtOnce) {
  for (int steps = 0; steps < 4; ++steps) {  // waiting, prefilling, decoding, decoding
    for (bool in_flight : {false, true}) {
      SCOPED_TRACE(::testing::Message() << steps << " steps, in flight: " << in_flight);
      const uint64_t id = 100 + 2 * static_cast<uint64_t>(steps) + in_flight;
      s_.Add(MakeRequest(id, 100, 50), At(0));
      for (int i = 0; i < steps; ++i) Step(50);
      std::optional<MicrobatchPlan> plan;
      if (in_flight) plan = s_.PlanNext(At(0));
      Take(s_);
      s_.Cancel(SequenceId(id), absl::CancelledError("gone"), At(0));
      const SequenceFinished end = TakeOnlyEnd();
      EXPECT_EQ(end.status, absl::CancelledError("gone"));
      EXPECT_EQ(end.output_tokens, steps < 2 ? 0u : static_cast<uint32_t>(steps - 1));
      EXPECT_EQ(s_.load().blocks_used, 0u);
      if (plan) Land(s_, *plan);
      EXPECT_THAT(s_.TakeActions(), IsEmpty());
      EXPECT_TRUE(s_.idle());
    }
  }
}

TEST_F(SchedulerEndTest, GivesTheBlocksOfACancelledSequenceToTheNextMicrobatch) {
  Scheduler s(SmallOptions());
  s.OnRingReady(Shape(2, 4), At(0));
  s.Add(MakeRequest(1, 14, 2), At(0));
  const auto first = s.PlanNext(At(0));
  s.Add(MakeRequest(2, 14, 2), At(0));
  EXPECT_FALSE(s.PlanNext(At(0)));
  s.Cancel(SequenceId(1), absl::CancelledError("gone"), At(0));
  const auto second = s.PlanNext(At(0));
  ASSERT_TRUE(second);
  EXPECT_EQ(second->segments[0].block_ids, first->segments[0].block_ids);
}

TEST_F(SchedulerEndTest, EndsWhatIsPastItsDeadlineAndNothingElse) {
  SequenceRequest request = MakeRequest(1, 3, 100);
  request.deadline = At(50);
  s_.Add(request, At(0));
  request = MakeRequest(2, 3, 100);
  request.deadline = At(20);
  s_.Add(request, At(0));
  s_.Add(MakeRequest(3, 3, 100), At(0));
  EXPECT_EQ(s_.NextDeadline(), At(20));
  Step(50, At(10));
  Take(s_);
  s_.Tick(At(19));
  EXPECT_THAT(s_.TakeActions(), IsEmpty());
  s_.Tick(At(20));
  const SequenceFinished end = TakeOnlyEnd();
  EXPECT_EQ(end.sequence, SequenceId(2));
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(end.output_tokens, 1u);
  EXPECT_EQ(s_.NextDeadline(), At(50));
  s_.Tick(At(1000));
  EXPECT_EQ(TakeOnlyEnd().sequence, SequenceId(1));
  EXPECT_EQ(s_.NextDeadline(), absl::InfiniteFuture());
  s_.Tick(absl::InfiniteFuture());
  EXPECT_THAT(s_.TakeActions(), IsEmpty());
  EXPECT_EQ(s_.load().running, 1u);
}

TEST_F(SchedulerEndTest, EndsEverythingWhenTheRingIsLostAndServesAgainOnTheNext) {
  for (uint64_t id = 1; id <= 3; ++id) s_.Add(MakeRequest(id, 3, 100), At(0));
  Step(50);
  s_.PlanNext(At(0));
  s_.Add(MakeRequest(4, 3, 100), At(0));
  Take(s_);
  s_.OnRingLost(absl::UnavailableError("worker 2 (stage 1) is gone"), At(5));
  Actions actions = Take(s_);
  ASSERT_THAT(actions.finished, SizeIs(4));
  for (const SequenceFinished& end : actions.finished) {
    EXPECT_EQ(end.status, absl::UnavailableError("worker 2 (stage 1) is gone"));
  }
  EXPECT_TRUE(s_.idle());
  EXPECT_EQ(s_.load().blocks_total, 0u);
  EXPECT_FALSE(s_.PlanNext(At(6)));
  s_.Add(MakeRequest(5, 3, 100), At(6));
  EXPECT_EQ(TakeOnlyEnd().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(s_.OnResult(MicrobatchId(2), {}, At(6)).code(), absl::StatusCode::kInternal);

  s_.OnRingReady(Shape(2, 7), At(7));
  EXPECT_EQ(s_.load().blocks_total, 7u);
  s_.Add(MakeRequest(6, 3, 2), At(7));
  const auto plan = s_.PlanNext(At(7));
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->id, MicrobatchId(1));
  Land(s_, *plan);
  RunToEnd(s_);
  EXPECT_TRUE(TakeOnlyEnd().status.ok());
  EXPECT_EQ(s_.load().failed, 5u);
  EXPECT_EQ(s_.load().finished, 1u);
}

class RefusalTest : public SchedulerEndTest {
 protected:
  RefusalTest() : SchedulerEndTest(Shape(1, 10)) {}  // 40 tokens of KV
};

TEST_F(RefusalTest, RefusesWhatCanNeverFitTheKvCache) {
  s_.Add(MakeRequest(1, 40, 1), At(0));
  const SequenceFinished end = TakeOnlyEnd();
  EXPECT_EQ(end.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(end.status.message()), HasSubstr("40 tokens"));
  EXPECT_EQ(end.status.GetPayload(kRetryablePayload), absl::Cord("false"));
  EXPECT_EQ(end.prompt_tokens, 40u);
}

TEST_F(RefusalTest, CapsTheLengthByTheKvRoom) {
  s_.Add(MakeRequest(1, 39, 100), At(0));
  RunToEnd(s_);
  SequenceFinished end = TakeOnlyEnd();
  EXPECT_TRUE(end.status.ok());
  EXPECT_EQ(end.output_tokens, 1u);
  s_.Add(MakeRequest(2, 1, 100), At(0));
  RunToEnd(s_);
  end = TakeOnlyEnd();
  EXPECT_EQ(end.reason, FinishReason::kLength);
  EXPECT_EQ(end.output_tokens, 39u);
}

TEST_F(RefusalTest, RefusesAPromptThatFillsTheContext) {
  s_.Add(MakeRequest(1, 1000, 1), At(0));
  const SequenceFinished end = TakeOnlyEnd();
  EXPECT_EQ(end.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(end.status.message()), HasSubstr("1000"));
}

TEST_F(RefusalTest, RefusesAnEmptyPrompt) {
  s_.Add(MakeRequest(1, 0, 1), At(0));
  EXPECT_EQ(TakeOnlyEnd().status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RefusalTest, RefusesADeadlineThatHasPassed) {
  SequenceRequest request = MakeRequest(1, 3, 1);
  request.deadline = At(5);
  s_.Add(request, At(5));
  EXPECT_EQ(TakeOnlyEnd().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(s_.idle());
}

TEST_F(RefusalTest, RefusesWhatTheQueueHasNoPlaceForAndServesTheRest) {
  SchedulerOptions options = SmallOptions();
  options.max_waiting_sequences = 2;
  options.max_running_sequences = 1;
  Scheduler s(options);
  s.OnRingReady(Shape(1), At(0));
  for (uint64_t id = 1; id <= 3; ++id) s.Add(MakeRequest(id, 3, 2), At(0));
  Actions actions = Take(s);
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].sequence, SequenceId(3));
  EXPECT_EQ(actions.finished[0].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(actions.finished[0].status.GetPayload(kRetryablePayload), absl::Cord("true"));
  Land(s, *s.PlanNext(At(4000)), At(4000));
  s.Add(MakeRequest(4, 3, 2), At(8000));
  s.Add(MakeRequest(5, 3, 2), At(8000));
  actions = Take(s);
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].status.GetPayload(kRetryAfterPayload), absl::Cord("16000"))
      << "one was admitted in 8 s, and two wait";
  EXPECT_EQ(s.RetryAfter(At(8000)), absl::Seconds(16));
  RunToEnd(s);
  actions = Take(s);
  ASSERT_THAT(actions.finished, SizeIs(3));
  for (const SequenceFinished& end : actions.finished) EXPECT_TRUE(end.status.ok()) << end.status;
}

TEST_F(RefusalTest, RefusesEverythingOnARingWithoutKvBlocks) {
  Scheduler s(SmallOptions());
  s.OnRingReady(Shape(1, 0), At(0));
  s.Add(MakeRequest(1, 1, 1), At(0));
  Actions actions = Take(s);
  ASSERT_THAT(actions.finished, SizeIs(1));
  EXPECT_EQ(actions.finished[0].status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SchedulerEndTest, MeasuresQueuePrefillAndDecode) {
  s_.Add(MakeRequest(1, 100, 3), At(10));
  Step(50, At(15));
  Step(50, At(22));
  Step(50, At(30));
  Step(50, At(41));
  const SequenceTimings timings = TakeOnlyEnd().timings;
  EXPECT_EQ(timings.queue, absl::Milliseconds(5));
  EXPECT_EQ(timings.prefill, absl::Milliseconds(7));
  EXPECT_EQ(timings.decode, absl::Milliseconds(19));
}

TEST_F(SchedulerEndTest, MeasuresOnlyThePhasesThatACancelledOneReached) {
  struct Case {
    int steps;  // at 15, 22, 29
    SequenceTimings timings;
  };
  const absl::Duration zero = absl::ZeroDuration();
  const auto ms = [](int n) { return absl::Milliseconds(n); };
  const Case cases[] = {{0, {ms(90), zero, zero}},
                        {1, {ms(5), ms(85), zero}},
                        {2, {ms(5), ms(7), zero}},
                        {3, {ms(5), ms(7), ms(7)}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.steps);
    const SequenceId id(10 + static_cast<uint64_t>(c.steps));
    s_.Add(MakeRequest(id.value(), 100, 9), At(10));
    for (int i = 0; i < c.steps; ++i) Step(50, At(15 + 7 * i));
    s_.Cancel(id, absl::CancelledError("gone"), At(100));
    const SequenceTimings timings = TakeOnlyEnd().timings;
    EXPECT_EQ(timings.queue, c.timings.queue);
    EXPECT_EQ(timings.prefill, c.timings.prefill);
    EXPECT_EQ(timings.decode, c.timings.decode);
  }
}

TEST_F(SchedulerEndTest, TellsItsLoad) {
  for (uint64_t id = 1; id <= 3; ++id) s_.Add(MakeRequest(id, 10, 100), At(0));
  EXPECT_EQ(s_.load().waiting, 3u);
  Step(50);
  s_.Add(MakeRequest(4, 10, 100), At(0));
  s_.Cancel(SequenceId(1), absl::CancelledError("gone"), At(0));
  const SchedulerLoad load = s_.load();
  EXPECT_EQ(load.running, 2u);
  EXPECT_EQ(load.waiting, 1u);
  EXPECT_EQ(load.in_flight, 0u);
  EXPECT_EQ(load.blocks_total, 1000u);
  EXPECT_EQ(load.blocks_used, 6u);
  EXPECT_EQ(load.block_tokens, 4u);
  EXPECT_EQ(load.prompt_tokens, 30u);
  EXPECT_EQ(load.output_tokens, 3u);
  EXPECT_EQ(load.failed, 1u);
}

}  // namespace
}  // namespace millrace::testing
