// How requests end early: cancelled in each phase, past their deadline, aborted, too slow, drained. Nothing
// may be left.
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "tests/unit/frontend/frontend_fixture.h"

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using EndingTest = FrontendTest;

TEST_F(EndingTest, CancelledBeforeItIsTokenized) {
  StartServer();
  engine_.AnswerCancels();
  engine_.HoldSubmits();
  const auto first = Generate(TextRequest("one"));
  engine_.NextSubmitting();
  const auto second = Generate(TextRequest("two"));
  WaitForQueuedJobs(1);
  second->Cancel();
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::CANCELLED);
  engine_.Release();
  first->Started();
  Abort({}, /*all=*/true);
  ExpectIdle();
}

TEST_F(EndingTest, AbortedBeforeItIsTokenizedNeverReachesTheEngine) {
  StartServer();
  engine_.HoldSubmits();
  const auto first = Generate(TextRequest("one", "first"));
  engine_.NextSubmitting();
  const auto second = Generate(TextRequest("two", "second"));
  WaitForQueuedJobs(1);
  EXPECT_THAT(Abort({"second", "unknown", "second"}), ElementsAre("second"));
  engine_.Release();
  const Outcome outcome = second->Rest();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(DetailFrom(outcome.status).reason(), "ABORTED");
  engine_.NextSubmit();
  EXPECT_EQ(engine_.submits_left(), 0u);
  EXPECT_EQ(engine_.cancels_left(), 0u);
}

TEST_F(EndingTest, CancelledWhileTheEngineHasItQueued) {
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  call->Cancel();
  const FakeEngine::Cancelled cancel = engine_.NextCancel();
  EXPECT_EQ(cancel.id, id);
  EXPECT_EQ(cancel.why.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(frontend_->live_requests(), 1u) << "live until the engine let go of it";
  engine_.Fail(id, cancel.why);
  ExpectIdle();
  EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(EndingTest, CancelledWhileDecoding) {
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  call->Started();
  engine_.Emit(id, "abc");
  call->Next();
  call->Cancel();
  EXPECT_EQ(engine_.NextCancel().id, id);
  // What was in flight still arrives; the scheduler may even have finished it.
  engine_.Emit(id, "def");
  engine_.Finish(id, FinishReason::kLength, 6);
  ExpectIdle();
  EXPECT_EQ(engine_.cancels_left(), 0u);
}

TEST_F(EndingTest, CancelledAfterItsEnd) {
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  engine_.Finish(id, FinishReason::kLength, 0);
  ExpectIdle();
  call->Cancel();
  call->Finish();
  EXPECT_EQ(engine_.cancels_left(), 0u);
}

TEST_F(EndingTest, CancelAndEndRaceWithoutHarm) {
  StartServer();
  for (int i = 0; i < 200; ++i) {
    SequenceId id;
    const auto call = Submitted(TextRequest("hello", "same"), &id);
    call->Cancel();
    engine_.Emit(id, "x");
    engine_.Finish(id, FinishReason::kLength, 1);
    call->Finish();
    ExpectIdle();
  }
}

TEST_F(EndingTest, AbortedWhileDecoding) {
  StartServer();
  SequenceId a;
  SequenceId b;
  const auto first = Submitted(TextRequest("hello", "a"), &a);
  const auto second = Submitted(TextRequest("hello", "b"), &b);
  EXPECT_THAT(Abort({"a"}), ElementsAre("a"));
  const FakeEngine::Cancelled cancel = engine_.NextCancel();
  EXPECT_EQ(cancel.id, a);
  engine_.Emit(a, "late");
  engine_.Fail(a, cancel.why);
  const Outcome outcome = first->Rest();
  EXPECT_EQ(outcome.tokens.text(), "") << "nothing is sent once a request is to end";
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(DetailFrom(outcome.status).reason(), "ABORTED");
  EXPECT_THAT(Abort({}, /*all=*/true), ElementsAre("b"));
  EXPECT_EQ(engine_.NextCancel().id, b);
  EXPECT_THAT(Abort({"b"}), ElementsAre("b")) << "still live";
  engine_.Fail(b, cancel.why);
  second->Rest();
  EXPECT_THAT(Abort({"b"}), ElementsAre());
  EXPECT_EQ(engine_.cancels_left(), 0u);
  ExpectIdle();
}

TEST_F(EndingTest, AbortOfNothingIsAnError) {
  StartServer();
  v1::AbortResponse response;
  grpc::ClientContext context;
  const grpc::Status status = control_->Abort(&context, v1::AbortRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailFrom(status).reason(), "NO_REQUEST_IDS");
}

TEST_F(EndingTest, TheEngineGetsTheDeadline) {
  StartServer();
  const absl::Time before = Clock::Steady().Now();
  const auto call = Generate(TextRequest("hello"), absl::Hours(1));
  const SequenceRequest submitted = engine_.NextSubmit();
  EXPECT_GT(submitted.deadline, before + absl::Minutes(59));
  EXPECT_LT(submitted.deadline, Clock::Steady().Now() + absl::Minutes(61));
  engine_.Fail(submitted.id, absl::DeadlineExceededError("the deadline passed after 3 generated tokens"));
  const Outcome outcome = call->Rest();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailFrom(outcome.status).reason(), "DEADLINE_EXCEEDED");
  ExpectIdle();
}

TEST_F(EndingTest, ADeadlineThatPassesCancelsTheSequence) {
  StartServer();
  engine_.AnswerCancels();
  // On a busy machine a short deadline may pass before the request has come to the engine.
  for (absl::Duration deadline = absl::Milliseconds(200); deadline < kPatience; deadline *= 2) {
    const auto call = Generate(TextRequest("hello"), deadline);
    EXPECT_EQ(call->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    ExpectIdle();
    // Those of earlier rounds may have come late.
    std::vector<SequenceId> submitted;
    std::vector<SequenceId> cancelled;
    for (size_t left = engine_.submits_left(); left > 0; --left) {
      submitted.push_back(engine_.NextSubmit().id);
      cancelled.push_back(engine_.NextCancel().id);
    }
    EXPECT_THAT(cancelled, testing::UnorderedElementsAreArray(submitted));
    if (!submitted.empty()) return;
  }
  FAIL() << "no request came to the engine";
}

// Stands still until told.
class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixSeconds(seconds_); }
  void Advance(int64_t seconds) { seconds_ += seconds; }

 private:
  std::atomic<int64_t> seconds_{1000};
};

TEST_F(EndingTest, ADeadlineThatPassesInTheQueueEndsTheRequestThere) {
  ManualClock clock;
  options_.clock = &clock;
  StartServer();
  engine_.HoldSubmits();
  const auto first = Generate(TextRequest("one"));
  engine_.NextSubmitting();
  const auto second = Generate(TextRequest("two"), absl::Hours(1));
  WaitForQueuedJobs(1);
  clock.Advance(2 * 3600);
  engine_.Release();
  const Outcome outcome = second->Rest();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("before its prompt was tokenized"));
  engine_.Finish(engine_.NextSubmit().id, FinishReason::kLength, 0);
  EXPECT_TRUE(first->Rest().status.ok());
  ExpectIdle();
  EXPECT_EQ(engine_.submits_left(), 0u);
  StopServer();  // before the clock goes
}

// About 15 KiB on the wire.
std::vector<SchedulerAction> LargeActions(SequenceId id) {
  TokenLogprobs logprobs{5, -1.0f, {}};
  for (TokenId i = 0; i < 32; ++i) logprobs.top.emplace_back(i, -2.0f);
  return std::vector<SchedulerAction>(32, TokenReady{id, 5, logprobs});
}

TEST_F(EndingTest, AClientThatDoesNotReadIsCancelled) {
  options_.slow_client_timeout = absl::Milliseconds(200);
  options_.max_mailbox_bytes = size_t{1} << 30;
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  // More than any window of the connection.
  for (int i = 0; i < 800; ++i) engine_.Act(LargeActions(id));
  const FakeEngine::Cancelled cancel = engine_.NextCancel();
  EXPECT_EQ(cancel.id, id);
  EXPECT_THAT(std::string(cancel.why.message()), HasSubstr("has not read for 200ms"));
  engine_.Fail(id, cancel.why);
  ExpectIdle();
  EXPECT_EQ(call->Rest().status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(EndingTest, AFinishedStreamThatIsNotReadIsCancelled) {
  options_.slow_client_timeout = absl::Milliseconds(200);
  options_.max_mailbox_bytes = size_t{1} << 30;
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  for (int i = 0; i < 800; ++i) engine_.Act(LargeActions(id));
  engine_.Finish(id, FinishReason::kLength, 25600);
  ExpectIdle();
  EXPECT_EQ(call->Rest().status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(EndingTest, AMailboxHasABound) {
  options_.max_mailbox_bytes = size_t{1} << 20;
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  for (int i = 0; i < 800; ++i) engine_.Act(LargeActions(id));
  const FakeEngine::Cancelled cancel = engine_.NextCancel();
  EXPECT_THAT(std::string(cancel.why.message()), HasSubstr("reads too slowly"));
  engine_.Fail(id, cancel.why);
  ExpectIdle();
}

TEST_F(EndingTest, MergesWhatWaitsForAClient) {
  options_.max_mailbox_bytes = size_t{1} << 30;
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  for (int i = 0; i < 400; ++i) engine_.Act(LargeActions(id));
  engine_.Finish(id, FinishReason::kLength, 12800);
  const Outcome outcome = call->Rest();
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.tokens.token_ids_size(), 12800);
  EXPECT_EQ(outcome.tokens.logprobs_size(), 12800);
  EXPECT_LT(outcome.texts.size(), 6400u) << "most of 12800 deltas were merged";
}

TEST_F(EndingTest, TheEngineIsToldToPauseWhenTheTextThreadIsBehind) {
  options_.inbox.max_actions = 10;
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  engine_.HoldSubmits();
  const auto blocker = Generate(TextRequest("two"));
  engine_.NextSubmitting();
  engine_.NextSubmitting();
  EXPECT_TRUE(frontend_->sink()->HasRoom());
  engine_.Emit(id, "123456789");
  EXPECT_TRUE(frontend_->sink()->HasRoom());
  engine_.Emit(id, "0");
  EXPECT_FALSE(frontend_->sink()->HasRoom());
  engine_.Emit(id, "in flight");
  engine_.Release();
  engine_.Finish(id, FinishReason::kLength, 19);
  EXPECT_EQ(call->Rest().tokens.text(), "1234567890in flight");
  EXPECT_TRUE(frontend_->sink()->HasRoom());
}

TEST_F(EndingTest, DrainingRefusesTheNewAndFinishesTheOld) {
  StartServer();
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  frontend_->BeginStop();
  const Outcome refused = Generate(TextRequest("hello"))->Rest();
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailFrom(refused.status).reason(), "SHUTTING_DOWN");
  EXPECT_TRUE(DetailFrom(refused.status).retryable());
  EXPECT_FALSE(frontend_->WaitIdle(absl::Milliseconds(1)));
  v1::GetServerInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(control_->GetServerInfo(&context, v1::GetServerInfoRequest(), &info).ok());
  EXPECT_EQ(info.state(), v1::GetServerInfoResponse::STATE_STOPPING);
  engine_.Emit(id, "done");
  engine_.Finish(id, FinishReason::kLength, 4);
  const Outcome outcome = call->Rest();
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.tokens.text(), "done");
  ExpectIdle();
}

TEST_F(EndingTest, CancelAllEndsEveryRequest) {
  StartServer();
  SequenceId id;
  const auto live = Submitted(TextRequest("hello"), &id);
  engine_.HoldSubmits();
  const auto submitting = Generate(TextRequest("two"));
  engine_.NextSubmitting();
  engine_.NextSubmitting();
  const auto queued = Generate(TextRequest("three"));
  WaitForQueuedJobs(1);
  frontend_->BeginStop();
  frontend_->CancelAll(RetryLater(absl::StatusCode::kUnavailable, "SHUTTING_DOWN", "grace time is over"));
  engine_.Release();
  for (int i = 0; i < 2; ++i) {
    const FakeEngine::Cancelled cancel = engine_.NextCancel();
    engine_.Fail(cancel.id, cancel.why);
  }
  for (Call* call : {live.get(), submitting.get(), queued.get()}) {
    const Outcome outcome = call->Rest();
    EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(outcome.status.error_message(), "grace time is over");
    EXPECT_EQ(DetailFrom(outcome.status).reason(), "SHUTTING_DOWN");
  }
  ExpectIdle();
}

TEST_F(EndingTest, StopEndsEverythingEvenIfTheEngineIsSilent) {
  StartServer();
  SequenceId id;
  const auto live = Submitted(TextRequest("hello"), &id);
  live->Started();
  engine_.HoldSubmits();
  const auto submitting = Generate(TextRequest("two"));
  engine_.NextSubmitting();
  engine_.NextSubmitting();
  const auto queued = Generate(TextRequest("three"));
  WaitForQueuedJobs(1);
  engine_.Release();
  frontend_->Stop();
  for (Call* call : {live.get(), submitting.get(), queued.get()}) {
    const Outcome outcome = call->Rest();
    EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(DetailFrom(outcome.status).reason(), "SHUTTING_DOWN");
  }
  ExpectIdle();
  // The engine does not know yet.
  engine_.Emit(id, "late");
  EXPECT_EQ(Generate(TextRequest("four"))->Rest().status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace millrace
