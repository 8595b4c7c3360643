// Coordinator and workers over real gRPC: joining, serving, losing a worker, refusing one.
#include "tests/integration/in_process_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "common/error_reason.h"
#include "tests/integration/expect_same.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;

TinyLlamaOptions Model(uint64_t seed = 1) {
  TinyLlamaOptions model;
  model.layers = 5;
  model.seed = seed;
  return model;
}

// Greedy and seeded, short and longer than a microbatch.
std::vector<SequenceRequest> Requests() {
  std::mt19937 rng(3);
  std::vector<SequenceRequest> requests(6);
  for (size_t i = 0; i < requests.size(); ++i) {
    SequenceRequest& request = requests[i];
    request.id = SequenceId(i + 1);
    for (size_t t = 0; t < 1 + i * 25; ++t) request.prompt.push_back(kTinyFirstByteToken + rng() % 256);
    request.max_tokens = 10;
    request.ignore_eos = true;
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    request.sampling.seed = 40 + i;
    request.sampling.logprobs = 2;
    request.prompt_logprobs = 1;
    if (i == 3) request.sampling.repetition_penalty = 1.3f;
    if (i == 4) request.sampling.logit_bias = {{7, 5.0f}, {9, -5.0f}};
    if (i == 5) request.min_tokens = 3;
  }
  return requests;
}

class InProcessClusterTest : public ::testing::Test {
 protected:
  InProcessClusterTest() : bytes_(BuildTinyLlama(Model())), model_(bytes_) {
    fingerprint_ = (*GgufFile::Parse(bytes_, "tiny"))->Fingerprint();
  }
  ~InProcessClusterTest() override { workers_.clear(); }

  void Start(std::vector<uint32_t> layers, absl::Duration worker_timeout = absl::Hours(1)) {
    TestCoordinator::Options options;
    options.layers = std::move(layers);
    options.model_path = model_.path();
    options.fingerprint = fingerprint_;
    options.worker_timeout = worker_timeout;
    coordinator_ = std::make_unique<TestCoordinator>(options);
  }
  TestWorker::Options WorkerOptions() {
    TestWorker::Options options;
    options.coordinator = coordinator_->address();
    options.model_path = model_.path();
    return options;
  }
  void AddWorker() { workers_.push_back(std::make_unique<TestWorker>(WorkerOptions())); }
  void Serve(std::vector<uint32_t> layers) {
    const size_t stages = layers.size();
    Start(std::move(layers));
    for (size_t i = 0; i < stages; ++i) AddWorker();
    ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  }

  // What the same requests give without gRPC.
  static const Outcomes& Expected() {
    static const Outcomes* const expected = [] {
      InMemoryRing ring(Model(), {{5}, 64, 0, 512});
      std::vector<Arrival> arrivals;
      for (SequenceRequest& request : Requests()) arrivals.push_back({0, std::move(request)});
      return new Outcomes(ring.Run(std::move(arrivals)));
    }();
    return *expected;
  }

  // Sends all requests at once, under ids that begin at `first_id`, and compares.
  void ExpectRightAnswers(uint64_t first_id = 1) {
    for (SequenceRequest& request : Requests()) {
      request.id = SequenceId(first_id + request.id.value() - 1);
      ASSERT_TRUE(coordinator_->engine().Submit(std::move(request)).ok());
    }
    for (const auto& [id, expected] : Expected()) {
      const auto actual = coordinator_->sink().AwaitEnd(SequenceId(first_id + id.value() - 1));
      ASSERT_TRUE(actual.has_value());
      EXPECT_TRUE(actual->status.ok()) << actual->status;
      EXPECT_EQ(actual->tokens.size(), 10u);
      EXPECT_EQ(actual->tokens, expected.tokens);
      ExpectSameBits(actual->logprobs, expected.logprobs);
      ExpectSameBits(actual->prompt_logprobs, expected.prompt_logprobs);
    }
  }

  // Opens a control stream, says these, and expects it to be ended.
  void ExpectRefused(const std::vector<v1::WorkerMessage>& messages, absl::StatusCode code,
                     const std::string& why) {
    BoundedQueue<absl::Status> closed(1);
    CoordinatorSession session(
        coordinator_->address(), nullptr,
        {[](v1::CoordinatorMessage) {}, [&](absl::Status status) { closed.Push(status); }});
    for (const v1::WorkerMessage& message : messages) session.Send(message);
    const std::optional<absl::Status> status = closed.Pop(kPatience);
    ASSERT_TRUE(status.has_value());
    EXPECT_EQ(status->code(), code) << *status;
    EXPECT_THAT(std::string(status->message()), HasSubstr(why));
  }

  std::vector<uint8_t> bytes_;
  ScopedTempFile model_;
  std::string fingerprint_;
  std::unique_ptr<TestCoordinator> coordinator_;
  std::vector<std::unique_ptr<TestWorker>> workers_;
};

// Answers without computing.
class ConstantStage final : public StageCompute {
 public:
  static constexpr TokenId kToken = kTinyFirstByteToken + 5;

  explicit ConstantStage(size_t hidden_size) : hidden_size_(hidden_size) {}
  absl::StatusOr<std::shared_ptr<PooledBuffer>> Run(const StageBatch& batch,
                                                    std::shared_ptr<PooledBuffer> input, KvCache&) override {
    return input != nullptr ? input : pool_.Get(batch.rows() * hidden_size_ * sizeof(float));
  }
  absl::StatusOr<std::vector<SequenceResult>> Sample(const StageBatch& batch, const PooledBuffer&) override {
    std::vector<SequenceResult> results;
    for (const StageSegment& segment : batch.segments) {
      if (!segment.sampling.has_value()) continue;
      SequenceResult& result = results.emplace_back();
      result.sequence = segment.sequence;
      result.position = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
      result.token = kToken;
    }
    return results;
  }
  uint64_t weight_bytes() const override { return 0; }
  uint64_t activation_bytes() const override { return 0; }

 private:
  const size_t hidden_size_;
  BufferPool pool_{4};
};

TEST_F(InProcessClusterTest, HopsGoByUnixSocketsOnOneHost) {
  using Local = TestWorker::Options::Local;
  Start({2, 2, 1});
  const Local local[] = {Local::kYes, Local::kYes, Local::kNo};
  for (uint32_t stage = 0; stage < 3; ++stage) {
    TestWorker::Options options = WorkerOptions();
    options.stage = stage;
    options.local = local[stage];
    workers_.push_back(std::make_unique<TestWorker>(options));
  }
  ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  ExpectRightAnswers();
  const std::vector<StageSnapshot> stages = coordinator_->engine().Snapshot().stages;
  ASSERT_EQ(stages.size(), 3u);
  EXPECT_EQ(stages[0].hop, "unix");
  EXPECT_EQ(stages[1].hop, "tcp");
  EXPECT_EQ(stages[2].hop, "tcp");
}

TEST_F(InProcessClusterTest, HopsGoByTcpWhereAUnixSocketCannotBeReached) {
  Start({3, 2});
  for (uint32_t stage = 0; stage < 2; ++stage) {
    TestWorker::Options options = WorkerOptions();
    options.stage = stage;
    options.local = TestWorker::Options::Local::kUnreachable;
    workers_.push_back(std::make_unique<TestWorker>(options));
  }
  ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  ExpectRightAnswers();
  const std::vector<StageSnapshot> stages = coordinator_->engine().Snapshot().stages;
  ASSERT_EQ(stages.size(), 2u);
  EXPECT_EQ(stages[0].hop, "tcp");
  EXPECT_EQ(stages[1].hop, "unix") << "the coordinator listens";
}

TEST_F(InProcessClusterTest, LearnsHowFarTheWorkersClocksAreAhead) {
  Start({3, 2});
  const absl::Duration ahead[] = {absl::Hours(-30), absl::Seconds(5)};
  for (uint32_t stage = 0; stage < 2; ++stage) {
    TestWorker::Options options = WorkerOptions();
    options.stage = stage;
    options.clock_ahead = ahead[stage];
    workers_.push_back(std::make_unique<TestWorker>(options));
  }
  ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  for (auto& worker : workers_) {
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(worker->ExchangeClocks());
  }
  // The engine takes up what it is told with its next event.
  const absl::Time deadline = Clock::Steady().Now() + kPatience;
  std::vector<StageSnapshot> stages;
  for (uint64_t id = 1; Clock::Steady().Now() < deadline; ++id) {
    SequenceRequest request;
    request.id = SequenceId(id);
    request.prompt = {kTinyFirstByteToken};
    request.max_tokens = 1;
    ASSERT_TRUE(coordinator_->engine().Submit(std::move(request)).ok());
    ASSERT_TRUE(coordinator_->sink().AwaitEnd(SequenceId(id)).has_value());
    stages = coordinator_->engine().Snapshot().stages;
    ASSERT_EQ(stages.size(), 2u);
    if (stages[0].clock_offset != absl::ZeroDuration() && stages[1].clock_offset != absl::ZeroDuration())
      break;
  }
  // Half of a round trip within one process at most, on whatever machine.
  for (uint32_t stage = 0; stage < 2; ++stage) {
    EXPECT_LT(absl::AbsDuration(stages[stage].clock_offset - ahead[stage]), absl::Milliseconds(500));
  }
}

TEST_F(InProcessClusterTest, RunsTheStagesThatTheFactoryMakes) {
  Start({3, 2});
  for (int i = 0; i < 2; ++i) {
    TestWorker::Options options = WorkerOptions();
    options.make_stage = [](const GgufFile&, const HyperParameters& shape, DeviceGroup&,
                            const StageModelOptions&) {
      return absl::StatusOr<std::unique_ptr<StageCompute>>(
          std::make_unique<ConstantStage>(shape.hidden_size));
    };
    workers_.push_back(std::make_unique<TestWorker>(options));
  }
  ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  SequenceRequest request;
  request.id = SequenceId(1);
  request.prompt = {kTinyFirstByteToken};
  request.max_tokens = 3;
  request.ignore_eos = true;
  ASSERT_TRUE(coordinator_->engine().Submit(std::move(request)).ok());
  const auto outcome = coordinator_->sink().AwaitEnd(SequenceId(1));
  ASSERT_TRUE(outcome.has_value());
  EXPECT_TRUE(outcome->status.ok()) << outcome->status;
  EXPECT_EQ(outcome->tokens, std::vector<TokenId>(3, ConstantStage::kToken));
}

TEST_F(InProcessClusterTest, GivesTheTokensOfTheInMemoryRingWithOneStage) {
  Serve({5});
  ExpectRightAnswers();
}

TEST_F(InProcessClusterTest, GivesTheTokensOfTheInMemoryRingWithThreeStages) {
  Serve({2, 1, 2});
  ExpectRightAnswers();
  const PipelineSnapshot snapshot = coordinator_->engine().Snapshot();
  EXPECT_EQ(snapshot.state, PipelineState::kServing);
  ASSERT_EQ(snapshot.stages.size(), 3u);
  EXPECT_EQ(snapshot.stages[2].first_layer, 3u);
  for (const StageSnapshot& stage : snapshot.stages) {
    EXPECT_GT(stage.total.microbatches, 10u);
    EXPECT_EQ(stage.total.microbatches, snapshot.stages[0].total.microbatches);
    EXPECT_GT(stage.total.busy, absl::ZeroDuration());
    EXPECT_LE(stage.total.busy, snapshot.active);
    EXPECT_GT(stage.weight_bytes, 0u);
  }
}

TEST_F(InProcessClusterTest, CancelsARequestUnderWay) {
  Serve({3, 2});
  SequenceRequest request = Requests()[1];
  request.max_tokens = 400;
  ASSERT_TRUE(coordinator_->engine().Submit(request).ok());
  ASSERT_TRUE(coordinator_->sink().AwaitToken(request.id));
  coordinator_->engine().Cancel(request.id, absl::CancelledError("the client left"));
  const auto outcome = coordinator_->sink().AwaitEnd(request.id);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->status.code(), absl::StatusCode::kCancelled);
  ExpectRightAnswers(100);
}

TEST_F(InProcessClusterTest, NamesTheLostWorkerAndServesAgainWithItsSuccessor) {
  for (const size_t lost : {0, 1}) {
    workers_.clear();
    Serve({3, 2});
    SequenceRequest request = Requests()[0];
    request.id = SequenceId(50);
    request.max_tokens = 500;
    ASSERT_TRUE(coordinator_->engine().Submit(request).ok());
    ASSERT_TRUE(coordinator_->sink().AwaitToken(request.id));
    workers_[lost]->Vanish();
    const auto outcome = coordinator_->sink().AwaitEnd(request.id);
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(outcome->status.GetPayload(kReasonPayload), absl::Cord("WORKER_LOST")) << outcome->status;
    EXPECT_EQ(outcome->status.GetPayload(kRetryablePayload), absl::Cord("true"));
    ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kWaitingForWorkers));
    AddWorker();
    ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
    ExpectRightAnswers(100);
  }
}

TEST_F(InProcessClusterTest, TakesASpareWorkerAtOnce) {
  Serve({5});
  AddWorker();
  EXPECT_EQ(workers_[0]->NextAssigned(), 1u);
  workers_[0]->Vanish();
  EXPECT_EQ(workers_[1]->NextAssigned(), 2u);
  ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  ExpectRightAnswers();
}

TEST_F(InProcessClusterTest, GivesWorkersTheStagesTheyAskFor) {
  Start({3, 2});
  for (const uint32_t stage : {1, 0}) {
    TestWorker::Options options = WorkerOptions();
    options.stage = stage;
    workers_.push_back(std::make_unique<TestWorker>(options));
  }
  ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  ExpectRightAnswers();
  v1::WorkerMessage hello = MakeHello(fingerprint_);
  hello.mutable_hello()->set_stage(1);
  ExpectRefused({hello}, absl::StatusCode::kAlreadyExists, "stage 1 is held by worker ");
  ExpectRightAnswers(100);
}

TEST_F(InProcessClusterTest, RefusesWorkersThatDoNotBelong) {
  Start({3, 2});
  v1::WorkerMessage hello = MakeHello(fingerprint_);
  hello.mutable_hello()->set_secret("S3cret");
  ExpectRefused({hello}, absl::StatusCode::kPermissionDenied, "wrong join secret");
  hello = MakeHello(fingerprint_);
  hello.mutable_hello()->set_version("test2");
  ExpectRefused({hello}, absl::StatusCode::kFailedPrecondition,
                "the worker is Millrace test2, the coordinator test");
  ExpectRefused({MakeHello("0123")}, absl::StatusCode::kFailedPrecondition,
                "another model: fingerprint 0123");
  hello = MakeHello(fingerprint_);
  hello.mutable_hello()->set_stage(2);
  ExpectRefused({hello}, absl::StatusCode::kInvalidArgument, "there is no stage 2");
}

TEST_F(InProcessClusterTest, RefusesAWorkerWithAnotherModelFile) {
  Start({5});
  const ScopedTempFile other(BuildTinyLlama(Model(2)));
  TestWorker::Options options = WorkerOptions();
  options.model_path = other.path();
  TestWorker worker(options);
  const std::optional<absl::Status> status = worker.AwaitClosed();
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(status->code(), absl::StatusCode::kFailedPrecondition);
}

// One that says which model it has only after it has loaded it.
TEST_F(InProcessClusterTest, RefusesAWorkerThatLoadedAnotherModel) {
  Start({5});
  BoundedQueue<absl::Status> closed(1);
  BoundedQueue<uint64_t> assigned(1);
  CoordinatorSession session(coordinator_->address(), nullptr,
                             {[&](v1::CoordinatorMessage message) {
                                if (message.has_assign()) assigned.Push(message.assign().epoch());
                              },
                              [&](absl::Status status) { closed.Push(status); }});
  session.Send(MakeHello(""));
  const std::optional<uint64_t> epoch = assigned.Pop(kPatience);
  ASSERT_TRUE(epoch.has_value());
  v1::WorkerMessage loaded;
  loaded.mutable_loaded()->set_epoch(*epoch);
  loaded.mutable_loaded()->set_model_fingerprint("0123");
  session.Send(loaded);
  const std::optional<absl::Status> status = closed.Pop(kPatience);
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(status->code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status->message()), HasSubstr("the worker loaded another model: fingerprint 0123"));
}

TEST_F(InProcessClusterTest, RefusesWorkersThatSpeakOutOfTurn) {
  Start({3, 2});
  ExpectRefused({MakeHello(fingerprint_), MakeHello(fingerprint_)}, absl::StatusCode::kInvalidArgument,
                "a second hello");
  v1::WorkerMessage heartbeat;
  heartbeat.mutable_heartbeat();
  ExpectRefused({heartbeat}, absl::StatusCode::kInvalidArgument, "the first message must be hello");
  v1::WorkerMessage ready;
  ready.mutable_ready()->set_epoch(1);
  ExpectRefused({ready, MakeHello(fingerprint_)}, absl::StatusCode::kInvalidArgument, "must be hello");
  ExpectRefused({v1::WorkerMessage()}, absl::StatusCode::kInvalidArgument, "must be hello");
  AddWorker();
  AddWorker();
  ASSERT_TRUE(coordinator_->AwaitState(PipelineState::kServing));
  ExpectRightAnswers();
}

TEST_F(InProcessClusterTest, GivesUpAWorkerThatFallsSilent) {
  Start({5}, absl::Milliseconds(100));
  ExpectRefused({MakeHello(fingerprint_)}, absl::StatusCode::kAborted, "silent for 100ms");
}

TEST_F(InProcessClusterTest, TriesAgainWhenAWorkerCannotHoldItsStage) {
  Start({5});
  TestWorker::Options options = WorkerOptions();
  options.kv_memory_bytes = 1;
  TestWorker worker(options);
  EXPECT_EQ(worker.NextAssigned(), 1u);
  EXPECT_EQ(worker.NextAssigned(), 2u);
  EXPECT_THAT(coordinator_->engine().Snapshot().detail, HasSubstr("no room for the KV cache"));
}

TEST_F(InProcessClusterTest, TellsWorkersWhenItStops) {
  Serve({3, 2});
  coordinator_->controller().Stop("maintenance", kPatience);
  for (const auto& worker : workers_) {
    EXPECT_EQ(worker->NextShutdown(), "maintenance");
    const std::optional<absl::Status> status = worker->AwaitClosed();
    ASSERT_TRUE(status.has_value());
    EXPECT_TRUE(status->ok()) << *status;
  }
  EXPECT_EQ(coordinator_->engine().Snapshot().state, PipelineState::kStopping);
}

}  // namespace
}  // namespace millrace::testing
