// Control.Drain: what it refuses, what it closes, when it answers.
#include <utility>

#include "common/bounded_queue.h"
#include "tests/unit/frontend/frontend_fixture.h"

namespace millrace {
namespace {

class DrainTest : public FrontendTest {
 protected:
  struct Asked {
    std::optional<uint32_t> stage;
    absl::Duration wait;
    std::function<void(absl::StatusOr<bool>)> done;
  };

  DrainTest() {
    options_.drain.on_drain = [this] { drains_.Push(1); };
    options_.drain.on_all_idle = [this] { idle_.Push(1); };
    options_.drain.drain = [this](std::optional<uint32_t> stage, absl::Duration wait, auto done) {
      if (stage == 9u) return done(absl::InvalidArgumentError("there is no stage 9"));
      asked_.Push({stage, wait, std::move(done)});
    };
  }

  // Before the queues, which are told of the end.
  ~DrainTest() override { StopServer(); }

  // A call whose drain has been asked for; `finished` is what it comes to.
  v1::DrainResponse Drain(const v1::DrainRequest& request, bool finished) {
    v1::DrainResponse response;
    std::thread call([&] {
      grpc::ClientContext context;
      const grpc::Status status = control_->Drain(&context, request, &response);
      EXPECT_TRUE(status.ok()) << status.error_message();
    });
    std::optional<Asked> asked = asked_.Pop(kPatience);
    if (asked.has_value()) asked->done(finished);
    call.join();
    if (asked.has_value()) last_ = *std::move(asked);
    return response;
  }

  grpc::Status Refused(const v1::DrainRequest& request) {
    grpc::ClientContext context;
    v1::DrainResponse response;
    return control_->Drain(&context, request, &response);
  }

  BoundedQueue<int> drains_{10}, idle_{10};
  BoundedQueue<Asked> asked_{10};
  Asked last_;
};

TEST_F(DrainTest, TheWholeFinishesTheOldRefusesTheNewAndStaysSo) {
  StartServer();
  SequenceId id;
  const auto running = Submitted(TextRequest("hello"), &id);
  const v1::DrainResponse first = Drain(v1::DrainRequest(), false);
  EXPECT_FALSE(first.finished());
  EXPECT_EQ(first.remaining_requests(), 1u);
  EXPECT_FALSE(last_.stage.has_value());
  EXPECT_EQ(last_.wait, absl::Seconds(60));
  EXPECT_EQ(drains_.size(), 1u);

  const Outcome refused = Generate(TextRequest("hello"))->Rest();
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const v1::ErrorDetail detail = DetailFrom(refused.status);
  EXPECT_EQ(detail.reason(), "DRAINING");
  EXPECT_TRUE(detail.retryable());
  EXPECT_EQ(detail.retry_after().seconds(), 1);
  v1::GetServerInfoResponse info;
  grpc::ClientContext context;
  ASSERT_TRUE(control_->GetServerInfo(&context, v1::GetServerInfoRequest(), &info).ok());
  EXPECT_EQ(info.state(), v1::GetServerInfoResponse::STATE_DRAINING);
  EXPECT_EQ(info.state_detail().substr(0, 2), "1 ");

  EXPECT_EQ(idle_.size(), 0u);
  engine_.Finish(id, FinishReason::kLength, 0);
  EXPECT_TRUE(running->Rest().status.ok());
  EXPECT_TRUE(idle_.Pop(kPatience).has_value());
  EXPECT_TRUE(Drain(v1::DrainRequest(), true).finished());
  frontend_->BeginStop();
  EXPECT_EQ(DetailFrom(Generate(TextRequest("hello"))->Rest().status).reason(), "SHUTTING_DOWN");
  ExpectIdle();
  EXPECT_EQ(idle_.size(), 0u);  // told once
}

TEST_F(DrainTest, OfAStageLeavesAdmissionToTheEngine) {
  PipelineSnapshot snapshot;
  snapshot.load.running = 3;
  snapshot.load.waiting = 5;
  snapshot.load.held = 4;
  engine_.set_snapshot(snapshot);
  StartServer();
  v1::DrainRequest request;
  request.set_stage(1);
  request.mutable_wait()->set_seconds(2);
  const v1::DrainResponse response = Drain(request, false);
  EXPECT_FALSE(response.finished());
  EXPECT_EQ(response.remaining_requests(), 4u);
  EXPECT_EQ(last_.stage, 1u);
  EXPECT_EQ(last_.wait, absl::Seconds(2));
  EXPECT_EQ(drains_.size(), 0u);
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  engine_.Finish(id, FinishReason::kLength, 0);
  EXPECT_TRUE(call->Rest().status.ok());
}

TEST_F(DrainTest, RefusesWhatCannotBe) {
  StartServer();
  for (const int64_t seconds : {int64_t{-1}, int64_t{3601}, INT64_MAX}) {
    v1::DrainRequest request;
    request.mutable_wait()->set_seconds(seconds);
    const grpc::Status status = Refused(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << seconds;
    EXPECT_EQ(DetailFrom(status).reason(), "DRAIN_WAIT");
  }
  v1::DrainRequest request;
  request.set_stage(9);
  EXPECT_EQ(Refused(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  // None of them closed anything.
  EXPECT_EQ(drains_.size(), 0u);
  SequenceId id;
  const auto call = Submitted(TextRequest("hello"), &id);
  engine_.Finish(id, FinishReason::kLength, 0);
  EXPECT_TRUE(call->Rest().status.ok());
}

}  // namespace
}  // namespace millrace
