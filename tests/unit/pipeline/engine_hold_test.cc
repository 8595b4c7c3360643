// When the engine calls a ring proven, and what it holds while a ring is replaced.
#include "common/error_reason.h"
#include "tests/unit/pipeline/fake_ring.h"

namespace millrace::testing {
namespace {

constexpr TokenId kCanary = 9;

class EngineHoldTest : public EngineTest {
 protected:
  EngineHoldTest() {
    EngineOptions options = Options();
    options.canary = kCanary;
    options.on_serving = [this](bool serving) { serving_.Push(serving); };
    options.on_quiet = [this](uint64_t number) { quiet_.Push(number); };
    Make(std::move(options));
  }
  ~EngineHoldTest() override { engine_->Stop(); }

  v1::Plan NextCanary() {
    const v1::Plan plan = NextPlan();
    EXPECT_EQ(plan.microbatch_id(), 1u);
    EXPECT_EQ(plan.segments(0).token_ids(0), kCanary);
    return plan;
  }
  void Serve(uint64_t epoch) {
    RaiseRing(epoch);
    Return(NextCanary());
    AwaitHandled();
  }

  BoundedQueue<bool> serving_{100};
  BoundedQueue<uint64_t> quiet_{100};
};

TEST_F(EngineHoldTest, IsReadyOnceTheCanaryOfEachRingCameBack) {
  for (const uint64_t epoch : {3, 4}) {
    engine_->SetState(PipelineState::kServing, "");
    RaiseRing(epoch);
    const v1::Plan canary = NextCanary();
    EXPECT_EQ(canary.epoch(), epoch);
    AwaitHandled();
    EXPECT_EQ(serving_.size(), 0u);
    EXPECT_EQ(engine_->Snapshot().state, PipelineState::kLoading);
    Return(canary);
    EXPECT_EQ(serving_.Pop(kPatience), true);
    EXPECT_EQ(engine_->Snapshot().state, PipelineState::kServing);
    EXPECT_EQ(engine_->Snapshot().load.output_tokens, 0u);
    EXPECT_EQ(engine_->Snapshot().stages.at(0).total.microbatches, 0u);
    engine_->RingLost(Epoch(epoch), absl::UnavailableError("gone"));
    EXPECT_EQ(serving_.Pop(kPatience), false);
  }
}

TEST_F(EngineHoldTest, ACanaryThatIsLateOrWrongLeavesTheRingUnready) {
  EngineOptions options = Options();
  options.canary = kCanary;
  options.canary_patience = absl::Milliseconds(1);
  options.vocabulary_size = 100;
  options.on_serving = [this](bool serving) { serving_.Push(serving); };
  Make(std::move(options));
  ::testing::internal::CaptureStderr();
  RaiseRing(3);
  const v1::Plan late = NextCanary();
  std::string log;
  const absl::Time deadline = Clock::Steady().Now() + kPatience;
  while (log.find("epoch 3: not ready") == std::string::npos && Clock::Steady().Now() < deadline) {
    AwaitHandled();
    log += ::testing::internal::GetCapturedStderr();
    ::testing::internal::CaptureStderr();
  }
  EXPECT_NE(log.find("epoch 3: not ready"), std::string::npos);
  EXPECT_EQ(serving_.size(), 0u);
  Return(late, 100);  // no token of the vocabulary
  EXPECT_EQ(faults_.Pop(kPatience), Epoch(3));
  ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(serving_.size(), 0u);
}

TEST_F(EngineHoldTest, HoldsWhatHasNotBegunUntilTheNextRingIsProven) {
  Serve(3);
  EXPECT_EQ(serving_.Pop(kPatience), true);
  Submit(Request(1, 2));
  const v1::Plan first = NextPlan();
  engine_->Hold(5);
  Submit(Request(2));
  AwaitHandled();
  EXPECT_EQ(quiet_.size(), 0u);
  Return(first);
  ExpectToken(1, 50);
  Return(NextPlan());
  ExpectToken(1, 50);
  ExpectFinished(1, absl::StatusCode::kOk);
  EXPECT_EQ(quiet_.Pop(kPatience), 5u);
  engine_->RingLost(Epoch(3), absl::UnavailableError("left"));
  Submit(Request(3));
  AwaitHandled();
  EXPECT_EQ(engine_->Snapshot().load.held, 2u);
  RaiseRing(4);
  engine_->Release();
  const v1::Plan canary = NextCanary();
  AwaitHandled();
  EXPECT_EQ(plans_.size(), 0u);
  Return(canary);
  Return(NextPlan());
  ExpectToken(2, 50);
  ExpectFinished(2, absl::StatusCode::kOk);
  // Readiness was never taken back, and no request saw an error.
  EXPECT_EQ(serving_.size(), 0u);
  EXPECT_EQ(quiet_.size(), 0u);
}

TEST_F(EngineHoldTest, EndsWhatIsHeldWhereNoRingComes) {
  Serve(3);
  engine_->Hold(1);
  EXPECT_EQ(quiet_.Pop(kPatience), 1u);
  engine_->RingLost(Epoch(3), absl::UnavailableError("left"));
  Submit(Request(1));
  AwaitHandled();
  engine_->Release();
  const SequenceFinished finished = ExpectFinished(1, absl::StatusCode::kUnavailable);
  EXPECT_EQ(finished.status.GetPayload(kReasonPayload), absl::Cord("NO_REPLACEMENT"));
  EXPECT_EQ(serving_.Pop(kPatience), true);
  EXPECT_EQ(serving_.Pop(kPatience), false);
}

TEST_F(EngineHoldTest, StoppingEndsWhatIsHeld) {
  Serve(3);
  engine_->Hold(1);
  Submit(Request(1));
  AwaitHandled();
  engine_->Stop();
  ExpectFinished(1, absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace millrace::testing
