// How the engine loses a ring, gives one up, and stops.
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/error_reason.h"
#include "gmock/gmock.h"
#include "tests/unit/pipeline/fake_ring.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;

TEST_F(EngineTest, EndsEveryRequestWithTheStatusOfTheLostRing) {
  RaiseRing(1);
  Submit(Request(1, 100));
  const v1::Plan plan = NextPlan();
  engine_->RingLost(Epoch(1), RetryLater(absl::StatusCode::kUnavailable, "WORKER_LOST", "worker 2 was lost"));
  const SequenceFinished finished = ExpectFinished(1, absl::StatusCode::kUnavailable);
  EXPECT_EQ(finished.status.message(), "worker 2 was lost");
  EXPECT_EQ(finished.status.GetPayload(kReasonPayload), absl::Cord("WORKER_LOST"));
  Return(plan);  // too late
  AwaitHandled();
  EXPECT_EQ(engine_->Snapshot().epoch, 0u);
  EXPECT_TRUE(engine_->Snapshot().stages.empty());
  EXPECT_EQ(plans_.size(), 0u);
}

TEST_F(EngineTest, ServesAgainOnTheNextRing) {
  RaiseRing(1);
  Submit(Request(1, 100));
  const v1::Plan stale = NextPlan();
  engine_->RingLost(Epoch(1), absl::UnavailableError("lost"));
  ExpectFinished(1, absl::StatusCode::kUnavailable);
  RaiseRing(2);
  Submit(Request(2, 1));
  const v1::Plan plan = NextPlan();
  EXPECT_EQ(plan.epoch(), 2u);
  EXPECT_EQ(plan.microbatch_id(), 1u);
  Return(stale, 99);
  Return(plan, 51);
  ExpectToken(2, 51);
  ExpectFinished(2, absl::StatusCode::kOk);
  EXPECT_EQ(faults_.size(), 0u);
}

TEST_F(EngineTest, IgnoresTheLossOfAnotherRing) {
  RaiseRing(2);
  engine_->RingLost(Epoch(1), absl::UnavailableError("lost"));
  Submit(Request(1, 1));
  Return(NextPlan(), 51);
  ExpectToken(1, 51);
  ExpectFinished(1, absl::StatusCode::kOk);
}

class EngineFaultTest : public EngineTest {
 protected:
  // A result that cannot be ends the requests and is reported once.
  void ExpectFault(const std::function<HopMessage(const v1::Plan&)>& answer, const std::string& why) {
    RaiseRing(3);
    Submit(Request(1, 100));
    ASSERT_TRUE(engine_->Returned(answer(NextPlan())));
    const SequenceFinished finished = ExpectFinished(1, absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(finished.status.message()),
                HasSubstr("the pipeline gave a result that cannot be: "));
    EXPECT_THAT(std::string(finished.status.message()), HasSubstr(why));
    EXPECT_EQ(faults_.Pop(kPatience), Epoch(3));
    Submit(Request(2));
    ExpectFinished(2, absl::StatusCode::kUnavailable);
    EXPECT_EQ(faults_.size(), 0u);
    // The cluster answers with the loss of the ring that is already gone, and then with the next.
    engine_->RingLost(Epoch(3), absl::UnavailableError("given up"));
    RaiseRing(4);
    Submit(Request(3, 1));
    Return(NextPlan(), 51);
    ExpectToken(3, 51);
    ExpectFinished(3, absl::StatusCode::kOk);
  }
};

TEST_F(EngineFaultTest, GivesTheRingUpOverBytesThatAreNoResult) {
  ExpectFault([this](const v1::Plan& plan) { return ResultMessage(plan, "\xff\xff"); },
              "microbatch 1: not a result");
}

TEST_F(EngineFaultTest, GivesTheRingUpOverActivations) {
  ExpectFault(
      [this](const v1::Plan& plan) {
        HopMessage message = Answer(plan);
        message.kind = HopKind::kActivations;
        return message;
      },
      "not a result");
}

TEST_F(EngineFaultTest, GivesTheRingUpOverAnUnknownMicrobatch) {
  ExpectFault(
      [this](const v1::Plan& plan) {
        HopMessage message = Answer(plan);
        message.microbatch = MicrobatchId(2);
        return message;
      },
      "microbatch 2");
}

TEST_F(EngineFaultTest, GivesTheRingUpOverAMissingToken) {
  ExpectFault([this](const v1::Plan& plan) { return ResultMessage(plan, ""); }, "microbatch 1");
}

TEST_F(EngineFaultTest, GivesTheRingUpOverNumbersThatAreNone) {
  ExpectFault(
      [this](const v1::Plan& plan) {
        v1::MicrobatchResult result;
        result.add_segments()->mutable_logprobs()->mutable_chosen()->set_logprob(
            std::numeric_limits<float>::quiet_NaN());
        return ResultMessage(plan, result.SerializeAsString());
      },
      "log probabilities");
}

TEST_F(EngineFaultTest, GivesTheRingUpOverATokenOutsideTheVocabulary) {
  EngineOptions options = Options();
  options.vocabulary_size = 320;
  Make(std::move(options));
  ExpectFault([this](const v1::Plan& plan) { return Answer(plan, 320); },
              "a token outside the vocabulary of 320");
}

TEST_F(EngineTest, EndsEveryRequestWhenItStops) {
  RaiseRing(1);
  for (uint64_t id = 1; id <= 12; ++id) Submit(Request(id, 100));
  NextPlan();
  engine_->Stop();
  std::vector<bool> ended(13, false);
  while (sink_.size() > 0) {
    const std::optional<SchedulerAction> action = sink_.Pop();
    ASSERT_TRUE(std::holds_alternative<SequenceFinished>(*action));
    const SequenceFinished& finished = std::get<SequenceFinished>(*action);
    EXPECT_EQ(finished.status.code(), absl::StatusCode::kUnavailable);
    ASSERT_LE(finished.sequence.value(), 12u);
    EXPECT_FALSE(ended[finished.sequence.value()]);
    ended[finished.sequence.value()] = true;
  }
  for (uint64_t id = 1; id <= 12; ++id) EXPECT_TRUE(ended[id]) << id;
}

TEST_F(EngineTest, RefusesRequestsOnceItHasStopped) {
  RaiseRing(1);
  engine_->Stop();
  EXPECT_EQ(engine_->Submit(Request(1)).code(), absl::StatusCode::kUnavailable);
  engine_->Cancel(SequenceId(1), absl::CancelledError(""));
  engine_->StopAt(SequenceId(1), 1);
  EXPECT_TRUE(engine_->Returned(Answer(v1::Plan())));  // not the sender's fault
  engine_->Stop();
  EXPECT_EQ(sink_.size(), 0u);
}

// Whatever wins the race, a request that was taken ends exactly once, and one that was refused never.
TEST_F(EngineTest, EndsExactlyWhatItTookWhileStopping) {
  for (int round = 0; round < 20; ++round) {
    Make(Options());
    RaiseRing(1);
    int taken = 0;
    std::thread client([&] {
      for (uint64_t id = 1; id <= 16; ++id) taken += engine_->Submit(Request(id, 100)).ok() ? 1 : 0;
    });
    engine_->Stop();
    client.join();
    EXPECT_EQ(sink_.size(), static_cast<size_t>(taken));
    while (sink_.size() > 0) sink_.Pop();
    while (plans_.size() > 0) plans_.Pop();
  }
}

}  // namespace
}  // namespace millrace::testing
