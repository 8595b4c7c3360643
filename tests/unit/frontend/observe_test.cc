// What monitoring sees: traces of microbatches, and how long requests took.
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/frontend/frontend_fixture.h"

namespace millrace {
namespace {

class ObserveTest : public FrontendTest {
 protected:
  // Begins a trace; the reader, its `begin` read, and the observer that the engine got.
  void BeginTrace(double seconds) {
    v1::TraceRequest request;
    request.set_seconds(seconds);
    reader_ = control_->Trace(&context_, request);
    v1::TraceEvent event;
    ASSERT_TRUE(reader_->Read(&event));
    ASSERT_TRUE(event.has_begin());
    begin_ = event.begin();
    observer_ = engine_.NextObserver();
  }
  grpc::Status TraceStatus(double seconds) {
    grpc::ClientContext context;
    v1::TraceRequest request;
    request.set_seconds(seconds);
    const auto reader = control_->Trace(&context, request);
    v1::TraceEvent event;
    while (reader->Read(&event)) {
    }
    return reader->Finish();
  }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::TraceEvent>> reader_;
  v1::TraceBegin begin_;
  std::weak_ptr<MicrobatchObserver> observer_;
};

MicrobatchAccount Account(uint64_t id, absl::Time now) {
  MicrobatchAccount account;
  account.planned.id = MicrobatchId(id);
  account.planned.time = now + absl::Milliseconds(1);
  account.planned.rows = 9;
  account.planned.decode_rows = 4;
  account.planned.segments = 5;
  account.planned.in_flight = 3;
  account.planned.live_sequences = 8;
  account.returned = now + absl::Milliseconds(6);
  account.visits.resize(2);
  StageVisit& visit = account.visits[0];
  visit.known = true;
  visit.received = now + absl::Milliseconds(2);
  visit.started = now + absl::Milliseconds(3);
  visit.ended = now + absl::Milliseconds(4);
  visit.sent = now + absl::Milliseconds(5);
  visit.preempted = absl::Nanoseconds(77);
  visit.idle[IdleCause::kStarved] = absl::Nanoseconds(88);
  return account;
}

TEST_F(ObserveTest, ATraceBringsMicrobatchesUntilItsTimeIsUp) {
  PipelineSnapshot snapshot;
  snapshot.stages.resize(2);
  snapshot.stages[1].worker = "w";
  snapshot.stages[1].first_layer = 4;
  snapshot.stages[1].num_layers = 3;
  engine_.set_snapshot(snapshot);
  StartServer();
  const absl::Time before = Clock::Steady().Now();
  BeginTrace(0.3);
  ASSERT_EQ(begin_.stages_size(), 2);
  EXPECT_EQ(begin_.stages(1).worker(), "w");
  EXPECT_EQ(begin_.stages(1).first_layer(), 4u);
  {
    const auto observer = observer_.lock();
    ASSERT_NE(observer, nullptr);
    for (uint64_t id = 1; id <= 50; ++id) observer->OnMicrobatch(Epoch(2), Account(id, before));
  }
  std::vector<v1::TraceMicrobatch> got;
  v1::TraceEvent event;
  while (reader_->Read(&event) && event.has_microbatches()) {
    for (const v1::TraceMicrobatch& microbatch : event.microbatches().microbatches())
      got.push_back(microbatch);
  }
  ASSERT_TRUE(event.has_end());
  EXPECT_EQ(event.end().microbatches(), 50u);
  EXPECT_EQ(event.end().missed(), 0u);
  EXPECT_FALSE(reader_->Read(&event));
  EXPECT_TRUE(reader_->Finish().ok());
  ASSERT_EQ(got.size(), 50u);
  for (uint64_t id = 1; id <= 50; ++id) EXPECT_EQ(got[id - 1].microbatch_id(), id);
  const v1::TraceMicrobatch& first = got[0];
  EXPECT_EQ(first.epoch(), 2u);
  EXPECT_EQ(first.returned_ns() - first.planned_ns(), 5000000);
  EXPECT_LE(first.planned_ns(), 1000000);
  EXPECT_EQ(first.rows(), 9u);
  EXPECT_EQ(first.decode_rows(), 4u);
  EXPECT_EQ(first.requests(), 5u);
  EXPECT_EQ(first.in_flight(), 3u);
  EXPECT_EQ(first.live_requests(), 8u);
  ASSERT_EQ(first.visits_size(), 2);
  EXPECT_EQ(first.visits(0).received_ns() - first.planned_ns(), 1000000);
  EXPECT_EQ(first.visits(0).started_ns() - first.planned_ns(), 2000000);
  EXPECT_EQ(first.visits(0).ended_ns() - first.planned_ns(), 3000000);
  EXPECT_EQ(first.visits(0).sent_ns() - first.planned_ns(), 4000000);
  EXPECT_EQ(first.visits(0).preempted_ns(), 77u);
  EXPECT_THAT(first.visits(0).idle_ns(), testing::ElementsAre(0, 0, 0, 0, 0, 88));
  EXPECT_EQ(first.visits(1).idle_ns_size(), 0);
}

// A client that does not read leaves at most so many microbatches in memory; the rest is counted.
TEST_F(ObserveTest, WhatASlowClientMissesIsCounted) {
  StartServer();
  BeginTrace(5);
  const auto observer = observer_.lock();
  ASSERT_NE(observer, nullptr);
  MicrobatchAccount account = Account(1, Clock::Steady().Now());
  // Of so many stages that all of them together are more than what connections hold unread.
  account.visits.resize(24, account.visits[0]);
  constexpr uint64_t kMany = 40000;
  for (uint64_t i = 0; i < kMany; ++i) observer->OnMicrobatch(Epoch(2), account);
  uint64_t got = 0;
  v1::TraceEvent event;
  while (reader_->Read(&event) && event.has_microbatches()) {
    EXPECT_LE(event.microbatches().microbatches_size(), 4096);
    got += event.microbatches().microbatches_size();
  }
  ASSERT_TRUE(event.has_end());
  EXPECT_EQ(event.end().microbatches(), got);
  EXPECT_EQ(event.end().microbatches() + event.end().missed(), kMany);
  EXPECT_GT(event.end().missed(), 0u);
  EXPECT_TRUE(reader_->Finish().ok());
}

TEST_F(ObserveTest, ACancelledTraceLetsTheEngineGo) {
  StartServer();
  BeginTrace(60);
  EXPECT_FALSE(observer_.expired());
  context_.TryCancel();
  EXPECT_EQ(reader_->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // The server has seen it once it has shut down.
  StopServer();
  EXPECT_TRUE(observer_.expired());
}

TEST_F(ObserveTest, TracesAreShortAndFew) {
  StartServer();
  for (double seconds : {0.0, -1.0, 60.5, std::nan(""), std::numeric_limits<double>::infinity()}) {
    const grpc::Status status = TraceStatus(seconds);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << seconds;
    EXPECT_EQ(DetailFrom(status).reason(), "TRACE_LENGTH");
  }
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::TraceEvent>>> readers;
  v1::TraceRequest request;
  request.set_seconds(60);
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(control_->Trace(contexts.back().get(), request));
    v1::TraceEvent event;
    ASSERT_TRUE(readers.back()->Read(&event));
  }
  const grpc::Status status = TraceStatus(1);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(DetailFrom(status).retryable());
  for (int i = 0; i < 4; ++i) {
    contexts[i]->TryCancel();
    readers[i]->Finish();
  }
}

TEST_F(ObserveTest, RequestsAreCountedByHowTheyEnded) {
  StartServer();
  const auto run = [&](auto end) {
    SequenceId id;
    const auto call = Submitted(TextRequest("hello"), &id);
    end(id);
    call->Rest();
  };
  run([&](SequenceId id) {
    engine_.Emit(id, "abc");
    engine_.Finish(id, FinishReason::kLength, 3);
  });
  run([&](SequenceId id) { engine_.Finish(id, FinishReason::kStopToken, 0, kTinyImEnd); });
  run([&](SequenceId id) { engine_.Fail(id, absl::UnavailableError("gone")); });
  run([&](SequenceId id) { engine_.Fail(id, absl::DeadlineExceededError("late")); });
  const RequestStats stats = frontend_->request_stats();
  EXPECT_EQ(stats.length, 1u);
  EXPECT_EQ(stats.stopped, 1u);
  EXPECT_EQ(stats.failed, 1u);
  EXPECT_EQ(stats.aborted, 1u);
  EXPECT_EQ(stats.first_token.count(), 1u);
  EXPECT_EQ(stats.inter_token.count(), 2u);
  EXPECT_EQ(stats.whole.count(), 2u);
  EXPECT_EQ(stats.decode.count(), 2u);
  EXPECT_GE(stats.whole.sum(), stats.first_token.sum());
}

}  // namespace
}  // namespace millrace
