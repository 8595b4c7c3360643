// How the engine turns events into plans and actions.
#include "coordinator/pipeline/engine.h"

#include <string>

#include "common/error_reason.h"
#include "tests/unit/pipeline/fake_ring.h"

namespace millrace::testing {
namespace {

TEST_F(EngineTest, TurnsARequestIntoPlansAndResultsIntoTokens) {
  RaiseRing(4);
  Submit(Request(1, 2));
  const v1::Plan prefill = NextPlan();
  EXPECT_EQ(prefill.epoch(), 4u);
  EXPECT_EQ(prefill.microbatch_id(), 1u);
  ASSERT_EQ(prefill.segments_size(), 1);
  EXPECT_EQ(prefill.segments(0).sequence_id(), 1u);
  EXPECT_EQ(prefill.segments(0).token_ids(0), 100u);
  Return(prefill, 51);
  ExpectToken(1, 51);
  const v1::Plan decode = NextPlan();
  EXPECT_EQ(decode.microbatch_id(), 2u);
  EXPECT_EQ(decode.segments(0).first_position(), 1u);
  EXPECT_EQ(decode.segments(0).token_ids(0), 51u);
  Return(decode, 52);
  ExpectToken(1, 52);
  const SequenceFinished finished = ExpectFinished(1, absl::StatusCode::kOk);
  EXPECT_EQ(finished.reason, FinishReason::kLength);
  EXPECT_EQ(finished.prompt_tokens, 1u);
  EXPECT_EQ(finished.output_tokens, 2u);
  EXPECT_EQ(finished.numeric_classes, (std::vector<std::string>{"class 0", "class 1"}));
}

TEST_F(EngineTest, KeepsSeveralMicrobatchesInFlight) {
  RaiseRing(1, 2, 3);
  Submit(Request(1, 5));
  const v1::Plan first = NextPlan();
  Submit(Request(2, 5));
  const v1::Plan second = NextPlan();
  EXPECT_EQ(second.microbatch_id(), 2u);
  EXPECT_EQ(second.segments(0).sequence_id(), 2u);
  Return(first);
  ExpectToken(1, 50);
  EXPECT_EQ(NextPlan().microbatch_id(), 3u);
}

TEST_F(EngineTest, RefusesRequestsWhileThereIsNoRing) {
  Submit(Request(1));
  ExpectFinished(1, absl::StatusCode::kUnavailable);
  EXPECT_EQ(plans_.size(), 0u);
}

TEST_F(EngineTest, EndsACancelledRequestWithTheReasonGiven) {
  RaiseRing(1);
  Submit(Request(1, 100));
  const v1::Plan plan = NextPlan();
  engine_->Cancel(SequenceId(1), absl::CancelledError("the client left"));
  const SequenceFinished finished = ExpectFinished(1, absl::StatusCode::kCancelled);
  EXPECT_EQ(finished.status.message(), "the client left");
  Return(plan);  // what was in flight is dropped
  AwaitHandled();
  EXPECT_EQ(plans_.size(), 0u);
}

TEST_F(EngineTest, EndsARequestAtAStopString) {
  RaiseRing(1);
  Submit(Request(1, 100));
  for (int i = 0; i < 3; ++i) {
    Return(NextPlan());
    ExpectToken(1, 50);
  }
  engine_->StopAt(SequenceId(1), 2);
  const SequenceFinished finished = ExpectFinished(1, absl::StatusCode::kOk);
  EXPECT_EQ(finished.reason, FinishReason::kStopSequence);
  EXPECT_EQ(finished.output_tokens, 2u);
}

TEST_F(EngineTest, EndsARequestAtItsDeadline) {
  RaiseRing(1);
  SequenceRequest request = Request(1, 100);
  request.deadline = Clock::Steady().Now() + absl::Milliseconds(50);
  Submit(request);
  NextPlan();
  ExpectFinished(1, absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(Clock::Steady().Now(), request.deadline);
}

TEST_F(EngineTest, EndsARequestWhoseDeadlineHasPassed) {
  RaiseRing(1);
  SequenceRequest request = Request(1, 100);
  request.deadline = Clock::Steady().Now() - absl::Seconds(1);
  Submit(std::move(request));
  ExpectFinished(1, absl::StatusCode::kDeadlineExceeded);
}

TEST_F(EngineTest, DropsResultsOfAnotherEpoch) {
  RaiseRing(7);
  Submit(Request(1, 1));
  const v1::Plan plan = NextPlan();
  v1::Plan stale = plan;
  stale.set_epoch(6);
  Return(stale, 99);
  ASSERT_TRUE(engine_->Returned(ResultMessage(stale, "no result at all \xff")));
  AwaitHandled();
  Return(plan, 51);
  ExpectToken(1, 51);
  EXPECT_EQ(faults_.size(), 0u);
}

TEST_F(EngineTest, KeepsTheClockOffsetsOfItsRing) {
  engine_->SetClockOffset(Epoch(7), 1, absl::Milliseconds(-3));  // before the ring is there
  RaiseRing(7, 2);
  AwaitHandled();
  std::vector<StageSnapshot> stages = engine_->Snapshot().stages;
  ASSERT_EQ(stages.size(), 2u);
  EXPECT_EQ(stages[0].clock_offset, absl::ZeroDuration());
  EXPECT_EQ(stages[1].clock_offset, absl::Milliseconds(-3));
  engine_->SetClockOffset(Epoch(7), 0, absl::Seconds(5));
  engine_->SetClockOffset(Epoch(7), 2, absl::Seconds(6));  // no such stage
  AwaitHandled();
  engine_->SetClockOffset(Epoch(6), 1, absl::Seconds(7));  // of another ring
  AwaitHandled();
  stages = engine_->Snapshot().stages;
  EXPECT_EQ(stages[0].clock_offset, absl::Seconds(5));
  EXPECT_EQ(stages[1].clock_offset, absl::Milliseconds(-3));
}

TEST_F(EngineTest, PlansNothingWhileTheSinkHasNoRoom) {
  RaiseRing(1);
  AwaitHandled();
  sink_.SetRoom(false);
  Submit(Request(1, 1));
  AwaitHandled();
  AwaitHandled();
  EXPECT_EQ(plans_.size(), 0u);
  sink_.SetRoom(true);
  Return(NextPlan(), 51);
  ExpectToken(1, 51);
  ExpectFinished(1, absl::StatusCode::kOk);
}

TEST_F(EngineTest, StillTakesResultsWhileTheSinkHasNoRoom) {
  RaiseRing(1);
  Submit(Request(1, 1));
  const v1::Plan plan = NextPlan();
  sink_.SetRoom(false);
  Return(plan, 51);
  ExpectToken(1, 51);
  ExpectFinished(1, absl::StatusCode::kOk);
}

TEST_F(EngineTest, RefusesMoreLiveRequestsThanAgreedOn) {
  EngineOptions options = Options();
  options.scheduler.max_running_sequences = 1;
  Make(std::move(options));
  RaiseRing(1);
  Submit(Request(1, 100));
  NextPlan();  // it runs, and does not wait any more
  for (uint64_t id = 2; id <= 17; ++id) Submit(Request(id, 100));
  const absl::Status status = engine_->Submit(Request(18));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "the queue is full: 17 requests");
  EXPECT_TRUE(status.GetPayload(kRetryAfterPayload).has_value());
  engine_->Cancel(SequenceId(5), absl::CancelledError(""));
  ExpectFinished(5, absl::StatusCode::kCancelled);
  Submit(Request(18));
  EXPECT_EQ(engine_->Submit(Request(19)).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(EngineTest, CountsWhatStagesDid) {
  EngineOptions options = Options();
  options.activation_row_bytes = 40;
  Make(std::move(options));
  RaiseRing(3, 2);
  Submit(Request(1, 3));
  for (int i = 0; i < 2; ++i) {
    HopMessage message = Answer(NextPlan());
    message.stamps.resize(2);
    message.stamps[0] = {0, 100, 1100, 1200, 900};
    message.stamps[1] = {0, 500, 2500, 2600, 2000};
    ASSERT_TRUE(engine_->Returned(std::move(message)));
    ExpectToken(1, 50);
  }
  NextPlan();
  AwaitHandled();
  const PipelineSnapshot snapshot = engine_->Snapshot();
  EXPECT_EQ(snapshot.epoch, 3u);
  ASSERT_EQ(snapshot.stages.size(), 2u);
  EXPECT_EQ(snapshot.stages[0].total.busy, absl::Nanoseconds(2000));
  EXPECT_EQ(snapshot.stages[1].total.busy, absl::Nanoseconds(4000));
  EXPECT_EQ(snapshot.stages[1].total.microbatches, 2u);
  EXPECT_EQ(snapshot.stages[1].total.rows, 2u);
  EXPECT_EQ(snapshot.stages[0].window.busy, absl::Nanoseconds(2000));
  EXPECT_EQ(snapshot.stages[0].total.preempted, absl::Nanoseconds(200));
  EXPECT_EQ(snapshot.stages[0].activation_bytes_sent, 80u);
  EXPECT_EQ(snapshot.stages[1].activation_bytes_sent, 0u);
  EXPECT_EQ(snapshot.hops.count(), 2u);
  EXPECT_GT(snapshot.mean_hop, absl::ZeroDuration());
  EXPECT_EQ(snapshot.stages[1].first_layer, 1u);
  EXPECT_EQ(snapshot.load.in_flight, 1u);
  EXPECT_EQ(snapshot.load.running, 1u);
  EXPECT_EQ(snapshot.load.output_tokens, 2u);
  EXPECT_GT(snapshot.active, absl::ZeroDuration());
}

// The clock stands still but for what the test moves.
class TestClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixMillis(millis_); }
  void Set(int64_t millis) { millis_ = millis; }

 private:
  std::atomic<int64_t> millis_{1000};
};

// Two stages of 10 ms, and a round of 60 ms: 20 ms a hop, so that 2 x (10 + 20) / 10 = 6 microbatches fill
// it.
TEST_F(EngineTest, LearnsFromStampsHowManyMicrobatchesFillTheRing) {
  TestClock clock;
  EngineOptions options = Options();
  options.clock = &clock;
  Make(std::move(options));
  RaiseRing(1, 2, 8);
  Submit(Request(1, 2));
  const v1::Plan plan = NextPlan();
  AwaitHandled();
  HopMessage message = Answer(plan);
  message.stamps.resize(2);
  message.stamps[0] = {1, 1, 10'000'001, 10'000'001, 0};
  message.stamps[1] = {-7, -7, 9'999'993, 9'999'993, 0};
  clock.Set(1000 + 60);
  ASSERT_TRUE(engine_->Returned(std::move(message)));
  ExpectToken(1, 50);
  NextPlan();
  AwaitHandled();
  EXPECT_NEAR(engine_->Snapshot().load.hop_seconds, 0.020, 1e-6);
  EXPECT_EQ(engine_->Snapshot().load.slots, 6u);
  engine_->Stop();
}

// A peer's clock may do anything, and it may send any number of stamps.
TEST_F(EngineTest, CountsNoNegativeTimesAndNoStagesThatAreNone) {
  RaiseRing(3, 2);
  Submit(Request(1, 2));
  HopMessage message = Answer(NextPlan());
  message.stamps.resize(5);
  message.stamps[0] = {0, 1100, 100, 0, 0};
  message.stamps[1] = {0, 10, 30, 0, 0};
  ASSERT_TRUE(engine_->Returned(std::move(message)));
  ExpectToken(1, 50);
  NextPlan();
  AwaitHandled();
  const PipelineSnapshot snapshot = engine_->Snapshot();
  ASSERT_EQ(snapshot.stages.size(), 2u);
  EXPECT_EQ(snapshot.stages[0].total.busy, absl::ZeroDuration());
  EXPECT_EQ(snapshot.stages[1].total.busy, absl::Nanoseconds(20));
}

TEST_F(EngineTest, CountsTheTimeWithAMicrobatchInFlight) {
  TestClock clock;
  EngineOptions options = Options();
  options.clock = &clock;
  Make(std::move(options));
  RaiseRing(1);
  AwaitHandled();
  clock.Set(2000);  // idle: does not count
  Submit(Request(1, 1));
  const v1::Plan plan = NextPlan();
  AwaitHandled();
  EXPECT_EQ(engine_->Snapshot().active, absl::ZeroDuration());
  clock.Set(2300);
  AwaitHandled();
  EXPECT_EQ(engine_->Snapshot().active, absl::Milliseconds(300));
  clock.Set(2500);
  Return(plan);
  ExpectToken(1, 50);
  ExpectFinished(1, absl::StatusCode::kOk);
  clock.Set(9000);
  AwaitHandled();
  EXPECT_EQ(engine_->Snapshot().active, absl::Milliseconds(500));
  engine_->Stop();
}

// Who is told that requests run, and asks at once, must see the ring.
TEST_F(EngineTest, ServesOnceItsSnapshotShowsTheRing) {
  BoundedQueue<std::pair<bool, uint64_t>> told(10);
  EngineOptions options = Options();
  options.on_serving = [&](bool serving) { told.Push({serving, engine_->Snapshot().epoch}); };
  Make(std::move(options));
  engine_->SetState(PipelineState::kServing, "");
  EXPECT_EQ(engine_->Snapshot().state, PipelineState::kLoading);
  RaiseRing(7);
  EXPECT_EQ(told.Pop(kPatience), std::make_pair(true, uint64_t{7}));
  EXPECT_EQ(engine_->Snapshot().state, PipelineState::kServing);
  engine_->RingLost(Epoch(7), absl::UnavailableError("gone"));
  EXPECT_EQ(told.Pop(kPatience), std::make_pair(false, uint64_t{0}));
}

TEST_F(EngineTest, ShowsTheStateItWasTold) {
  EXPECT_EQ(engine_->Snapshot().state, PipelineState::kWaitingForWorkers);
  engine_->SetState(PipelineState::kLoading, "half of it");
  EXPECT_EQ(engine_->Snapshot().state, PipelineState::kLoading);
  EXPECT_EQ(engine_->Snapshot().detail, "half of it");
  RaiseRing(9);
  AwaitHandled();
  EXPECT_EQ(engine_->Snapshot().detail, "half of it");
}

}  // namespace
}  // namespace millrace::testing
