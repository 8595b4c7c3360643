#include "coordinator/cluster/cluster_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error_reason.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModel[] = "model-a";

// Drives a ClusterState with a clock of its own and sorts its actions by kind.
class ClusterStateTest : public ::testing::Test {
 protected:
  static ClusterOptions Options(uint32_t stages) {
    ClusterOptions options;
    options.version = "1";
    options.secret = "s3cret";
    options.model_fingerprint = kModel;
    for (uint32_t s = 0; s < stages; ++s) options.placement.push_back({s * 4, 4});
    options.worker_timeout = absl::Seconds(3);
    return options;
  }

  void Start(uint32_t stages) { state_.emplace(Options(stages)); }

  static WorkerHello Hello(std::optional<uint32_t> stage = std::nullopt) {
    return {"1", "s3cret", "host:1", kModel, stage, "cpu/f32", "host"};
  }

  void Join(uint64_t id, std::optional<uint32_t> stage = std::nullopt) {
    WorkerHello hello = Hello(stage);
    hello.ring_address = "host:" + std::to_string(id);
    state_->OnHello(WorkerId(id), hello, now_);
  }

  void Load(uint64_t id, uint64_t epoch, uint32_t blocks = 100) {
    state_->OnLoaded(WorkerId(id), {Epoch(epoch), kModel, 1000, 10, blocks, 64}, now_);
  }

  void Ready(uint64_t id, uint64_t epoch) { state_->OnReady(WorkerId(id), Epoch(epoch), "tcp"); }

  // Brings workers 1..stages to serving in epoch 1.
  void Serve(uint32_t stages) {
    Start(stages);
    for (uint64_t id = 1; id <= stages; ++id) Join(id);
    for (uint64_t id = 1; id <= stages; ++id) Load(id, 1);
    for (uint64_t id = 1; id <= stages; ++id) Ready(id, 1);
    ASSERT_EQ(state_->state(), PipelineState::kServing);
    state_->TakeActions();
  }

  void Advance(absl::Duration by, std::initializer_list<uint64_t> alive = {}) {
    now_ += by;
    for (const uint64_t id : alive) state_->OnHeard(WorkerId(id), now_);
    state_->Tick(now_);
  }

  template <typename Action>
  std::vector<Action> Take() {
    std::vector<Action> found;
    for (ClusterAction& action : state_->TakeActions()) {
      if (auto* match = std::get_if<Action>(&action)) found.push_back(std::move(*match));
    }
    return found;
  }

  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::optional<ClusterState> state_;
};

TEST_F(ClusterStateTest, AssignsOnceEveryStageHasAWorker) {
  Start(2);
  Join(1);
  EXPECT_TRUE(Take<AssignStage>().empty());
  EXPECT_EQ(state_->state(), PipelineState::kWaitingForWorkers);
  EXPECT_THAT(state_->Detail(), HasSubstr("1 of 2 workers (stage 1)"));
  Join(2);
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].worker, WorkerId(1));
  EXPECT_EQ(assigned[0].stage, 0u);
  EXPECT_EQ(assigned[0].next_address, "host:2");
  EXPECT_EQ(assigned[1].layers, (LayerRange{4, 4}));
  EXPECT_EQ(assigned[1].next_address, "");
  EXPECT_EQ(state_->state(), PipelineState::kLoading);
}

TEST_F(ClusterStateTest, GivesUnixAddressesToNeighboursOnOneHost) {
  ClusterOptions options = Options(4);
  options.unix_address = "unix-abstract:coordinator";
  options.host_identity = "a";
  state_.emplace(options);
  const char* const hosts[] = {"a", "a", "b", "a"};
  for (uint64_t id = 1; id <= 4; ++id) {
    WorkerHello hello = Hello();
    hello.host_identity = hosts[id - 1];
    hello.unix_address = "unix-abstract:" + std::to_string(id);
    state_->OnHello(WorkerId(id), hello, now_);
  }
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 4u);
  EXPECT_EQ(assigned[0].next_unix_address, "unix-abstract:2");
  EXPECT_EQ(assigned[1].next_unix_address, "");
  EXPECT_EQ(assigned[2].next_unix_address, "");
  EXPECT_EQ(assigned[3].next_unix_address, "unix-abstract:coordinator");
}

TEST_F(ClusterStateTest, WorkersThatDoNotKnowTheirHostAreOnNone) {
  ClusterOptions options = Options(2);
  options.unix_address = "unix-abstract:coordinator";
  state_.emplace(options);
  for (uint64_t id = 1; id <= 2; ++id) {
    WorkerHello hello = Hello();
    hello.unix_address = "unix-abstract:" + std::to_string(id);
    state_->OnHello(WorkerId(id), hello, now_);
  }
  for (const AssignStage& assign : Take<AssignStage>()) EXPECT_EQ(assign.next_unix_address, "");
}

TEST_F(ClusterStateTest, KvRoomIsTheMinimumOverStages) {
  Start(2);
  Join(1);
  Join(2);
  state_->TakeActions();
  Load(1, 1, 70);
  EXPECT_TRUE(Take<ActivateStage>().empty());
  Load(2, 1, 50);
  const auto activated = Take<ActivateStage>();
  ASSERT_EQ(activated.size(), 2u);
  EXPECT_EQ(activated[0].kv_blocks, 50u);
  EXPECT_EQ(activated[1].kv_blocks, 50u);
  Ready(1, 1);
  EXPECT_TRUE(Take<RingUp>().empty());
  Ready(2, 1);
  const auto up = Take<RingUp>();
  ASSERT_EQ(up.size(), 1u);
  EXPECT_EQ(up[0].kv_blocks, 50u);
  EXPECT_EQ(up[0].stages[0].kv_bytes, 50u * 64);
}

TEST_F(ClusterStateTest, AWorkerGetsTheStageItAsksFor) {
  Start(2);
  Join(1, 1);
  Join(2);
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].worker, WorkerId(2));
  EXPECT_EQ(assigned[1].worker, WorkerId(1));
}

TEST_F(ClusterStateTest, RefusesWhoDoesNotBelong) {
  struct Case {
    const char* what;
    void (*change)(WorkerHello&);
    absl::StatusCode code;
    const char* words;
  };
  const Case cases[] = {
      {"secret", [](WorkerHello& h) { h.secret = "wrong"; }, absl::StatusCode::kPermissionDenied, "secret"},
      {"version", [](WorkerHello& h) { h.version = "2"; }, absl::StatusCode::kFailedPrecondition,
       "Millrace 2"},
      {"model", [](WorkerHello& h) { h.model_fingerprint = "model-b"; },
       absl::StatusCode::kFailedPrecondition, "model-b"},
      {"no such stage", [](WorkerHello& h) { h.stage = 7; }, absl::StatusCode::kInvalidArgument, "0 to 1"},
      {"taken stage", [](WorkerHello& h) { h.stage = 0; }, absl::StatusCode::kAlreadyExists,
       "held by worker 1"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    Start(2);
    Join(1);
    state_->TakeActions();
    WorkerHello hello = Hello();
    c.change(hello);
    state_->OnHello(WorkerId(2), hello, now_);
    const auto refused = Take<RefuseWorker>();
    ASSERT_EQ(refused.size(), 1u);
    EXPECT_EQ(refused[0].why.code(), c.code);
    EXPECT_THAT(refused[0].why.message(), HasSubstr(c.words));
    EXPECT_EQ(state_->state(), PipelineState::kWaitingForWorkers);
  }
}

TEST_F(ClusterStateTest, RefusesAWorkerThatLoadedAnotherModel) {
  Start(1);
  Join(1);
  state_->TakeActions();
  state_->OnLoaded(WorkerId(1), {Epoch(1), "model-b", 1, 1, 1, 1}, now_);
  const auto refused = Take<RefuseWorker>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].why.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(state_->state(), PipelineState::kWaitingForWorkers);
}

TEST_F(ClusterStateTest, ALostWorkerEndsTheEpochAndIsNamed) {
  Serve(2);
  state_->OnGone(WorkerId(2), "its control stream ended", now_);
  const auto down = Take<RingDown>();
  ASSERT_EQ(down.size(), 1u);
  EXPECT_EQ(down[0].epoch, Epoch(1));
  EXPECT_EQ(down[0].why.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(down[0].why.message(), HasSubstr("worker 2 (stage 1, host:2) was lost"));
  EXPECT_EQ(down[0].why.GetPayload(kReasonPayload), absl::Cord("WORKER_LOST"));
  EXPECT_EQ(state_->state(), PipelineState::kWaitingForWorkers);
}

TEST_F(ClusterStateTest, AReplacementBringsTheNextEpochWithTheSameLayers) {
  Serve(2);
  state_->OnGone(WorkerId(1), "gone", now_);
  state_->TakeActions();
  Join(3);
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].worker, WorkerId(3));
  EXPECT_EQ(assigned[0].epoch, Epoch(2));
  EXPECT_EQ(assigned[1].worker, WorkerId(2));
  EXPECT_EQ(assigned[1].layers, (LayerRange{4, 4}));
  Load(2, 1);  // of the former epoch: stale
  Load(3, 2);
  EXPECT_TRUE(Take<ActivateStage>().empty());
  Load(2, 2);
  EXPECT_EQ(Take<ActivateStage>().size(), 2u);
}

TEST_F(ClusterStateTest, ASpareTakesOverAtOnce) {
  Serve(2);
  Join(3);
  EXPECT_TRUE(Take<AssignStage>().empty());
  state_->OnGone(WorkerId(1), "gone", now_);
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].worker, WorkerId(3));
}

TEST_F(ClusterStateTest, LosingASpareDisturbsNobody) {
  Serve(1);
  Join(2);
  state_->TakeActions();
  state_->OnGone(WorkerId(2), "gone", now_);
  EXPECT_TRUE(Take<RingDown>().empty());
  EXPECT_EQ(state_->state(), PipelineState::kServing);
}

TEST_F(ClusterStateTest, SilenceCountsAsLoss) {
  Serve(2);
  Advance(absl::Seconds(2), {1});
  EXPECT_TRUE(Take<RingDown>().empty());
  Advance(absl::Milliseconds(1500), {1});
  const auto actions = state_->TakeActions();
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_EQ(std::get<RefuseWorker>(actions[0]).worker, WorkerId(2));
  EXPECT_THAT(std::get<RingDown>(actions[1]).why.message(), HasSubstr("silent for 3s"));
}

TEST_F(ClusterStateTest, WakesInTimeForTheNextSilence) {
  Serve(1);
  EXPECT_GT(state_->NextTick(), now_ + absl::Seconds(3));
  EXPECT_LT(state_->NextTick(), now_ + absl::Seconds(3) + absl::Milliseconds(10));
}

TEST_F(ClusterStateTest, ABrokenHopIsBlamedOnTheWorkerThatDied) {
  Serve(2);
  state_->OnStageFailed(WorkerId(1), Epoch(1), "hop broke", now_);
  EXPECT_TRUE(Take<RingDown>().empty());
  state_->OnGone(WorkerId(2), "gone", now_);
  const auto down = Take<RingDown>();
  ASSERT_EQ(down.size(), 1u);
  EXPECT_THAT(down[0].why.message(), HasSubstr("worker 2"));
  EXPECT_THAT(down[0].why.message(), Not(HasSubstr("hop broke")));
}

TEST_F(ClusterStateTest, ABrokenHopBetweenLivingWorkersBringsANewEpochAfterAPause) {
  Serve(2);
  state_->OnStageFailed(WorkerId(1), Epoch(1), "hop broke", now_);
  Advance(absl::Milliseconds(301), {1, 2});
  const auto down = Take<RingDown>();
  ASSERT_EQ(down.size(), 1u);
  EXPECT_THAT(down[0].why.message(), HasSubstr("worker 1 (stage 0, host:1) failed: hop broke"));
  Advance(absl::Milliseconds(100), {1, 2});
  EXPECT_TRUE(Take<AssignStage>().empty());
  Advance(absl::Milliseconds(101), {1, 2});
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].epoch, Epoch(2));
}

TEST_F(ClusterStateTest, PausesGrowWhileEpochsKeepFailing) {
  Start(1);
  Join(1);
  absl::Duration last;
  for (uint64_t epoch = 1; epoch <= 8; ++epoch) {
    state_->OnAssignFailed(WorkerId(1), Epoch(epoch), "no memory", now_);
    const absl::Time failed = now_;
    state_->TakeActions();
    while (Take<AssignStage>().empty()) Advance(absl::Milliseconds(50), {1});
    EXPECT_GE(now_ - failed, last) << "epoch " << epoch;
    last = now_ - failed;
  }
  EXPECT_GT(last, absl::Seconds(5));
  EXPECT_LT(last, absl::Seconds(11));
  EXPECT_THAT(state_->Detail(), HasSubstr("no memory"));
}

TEST_F(ClusterStateTest, AResultThatCannotBeEndsTheEpoch) {
  Serve(1);
  state_->OnRingFault(Epoch(1), "nonsense", now_);
  EXPECT_EQ(Take<RingDown>().size(), 1u);
  state_->OnRingFault(Epoch(1), "nonsense", now_);
  EXPECT_TRUE(Take<RingDown>().empty());
}

TEST_F(ClusterStateTest, StaleAndUnknownVoicesChangeNothing) {
  Serve(1);
  state_->OnStageFailed(WorkerId(1), Epoch(9), "other epoch", now_);
  state_->OnStageFailed(WorkerId(5), Epoch(1), "unknown worker", now_);
  state_->OnReady(WorkerId(5), Epoch(1), "tcp");
  state_->OnGone(WorkerId(5), "unknown", now_);
  Load(1, 1);
  Advance(absl::Seconds(1), {1});
  EXPECT_TRUE(state_->TakeActions().empty());
  EXPECT_EQ(state_->state(), PipelineState::kServing);
}

TEST_F(ClusterStateTest, SaysHowFarLoadingIs) {
  Start(2);
  Join(1);
  Join(2);
  state_->OnProgress(WorkerId(1), 50, 100);
  state_->OnProgress(WorkerId(2), 0, 100);
  EXPECT_THAT(state_->Detail(), HasSubstr("25 %"));
}

// A layer takes `layer` seconds for the microbatch that placements are compared by.
WorkerProfile Profile(double layer) {
  WorkerProfile profile;
  profile.layer_elements = 1e6;
  profile.layer = {{16, 16, 0, layer}};
  profile.head = {{16, 16, 0, 0}};
  return profile;
}

class MeasuredClusterTest : public ClusterStateTest {
 protected:
  // Two stages of a model of `layers` equal layers.
  void Start(uint32_t layers, uint64_t layer_bytes = 1000) {
    auto shape = std::make_shared<ModelShape>();
    shape->num_layers = layers;
    shape->num_kv_heads = shape->head_size = 1;
    shape->layer_elements.assign(layers, 1e6);
    shape->layer_bytes.assign(layers, layer_bytes);
    ClusterOptions options = Options(2);
    options.placement = {{0, layers / 2}, {layers / 2, layers - layers / 2}};
    options.shape = shape;
    options.max_rows = 16;
    options.context_tokens = 100;
    state_.emplace(options);
  }

  void Join(uint64_t id, std::optional<uint32_t> stage = std::nullopt, uint64_t memory = 0) {
    WorkerHello hello = Hello(stage);
    hello.ring_address = "host:" + std::to_string(id);
    hello.measures = true;
    hello.memory_bytes = memory;
    state_->OnHello(WorkerId(id), hello, now_);
  }

  void Measured(uint64_t id, double layer) { state_->OnProfile(WorkerId(id), Profile(layer), now_); }
};

TEST_F(MeasuredClusterTest, AllMeasureAtOnceOnceEveryStageHasAWorker) {
  Start(30);
  Join(1);
  EXPECT_TRUE(Take<MeasureWorker>().empty());
  Join(2);
  const auto asked = Take<MeasureWorker>();
  ASSERT_EQ(asked.size(), 2u);
  EXPECT_EQ(asked[0].worker, WorkerId(1));
  EXPECT_EQ(asked[1].worker, WorkerId(2));
  EXPECT_THAT(state_->Detail(), HasSubstr("measure"));
  Measured(1, 1);
  EXPECT_TRUE(Take<AssignStage>().empty());
  Measured(2, 2);
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].layers, (LayerRange{0, 20}));
  EXPECT_EQ(assigned[1].layers, (LayerRange{20, 10}));
  ASSERT_TRUE(state_->forecast().has_value());
  EXPECT_TRUE(state_->forecast()->measured);
}

TEST_F(MeasuredClusterTest, TheRingLearnsWhatItsStagesCost) {
  Start(30);
  for (const uint64_t id : {1, 2}) Join(id);
  Measured(1, 1);
  Measured(2, 2);
  for (const uint64_t id : {1, 2}) Load(id, 1);
  for (const uint64_t id : {1, 2}) Ready(id, 1);
  const auto up = Take<RingUp>();
  ASSERT_EQ(up.size(), 1u);
  ASSERT_EQ(up[0].stage_costs.size(), 2u);
  EXPECT_NEAR(InterpolateCost(up[0].stage_costs[0].rows, 16), 20, 1e-9);
  EXPECT_NEAR(up[0].stages[1].predicted_seconds, 20, 1e-9);
  const ClusterSnapshot snapshot = state_->Snapshot();
  ASSERT_EQ(snapshot.workers.size(), 2u);
  EXPECT_TRUE(snapshot.workers[1].profile.has_value());
  EXPECT_EQ(snapshot.workers[1].stage, 1u);
  EXPECT_EQ(snapshot.layers, (std::vector<uint32_t>{20, 10}));
  EXPECT_NEAR(snapshot.predicted_imbalance, 1, 1e-9);
}

TEST_F(MeasuredClusterTest, WhoDoesNotMeasureIsNotWaitedFor) {
  Start(30);
  Join(1);
  ClusterStateTest::Join(2);
  EXPECT_EQ(Take<MeasureWorker>().size(), 1u);
  Measured(1, 1);
  const auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].layers.count, 15u);
}

TEST_F(MeasuredClusterTest, AHostileProfileIsRefusedAndItsWorkerLost) {
  Start(30);
  Join(1);
  Join(2);
  state_->TakeActions();
  Measured(1, -1);
  const auto refused = Take<RefuseWorker>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].worker, WorkerId(1));
  EXPECT_EQ(refused[0].why.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(state_->Detail(), HasSubstr("waiting for 1 of 2"));
}

TEST_F(MeasuredClusterTest, AProfileThatWasNotAskedForIsRefused) {
  Start(30);
  Join(1);
  state_->TakeActions();
  Measured(1, 1);
  EXPECT_EQ(Take<RefuseWorker>().size(), 1u);
  Join(2);
  Join(3);
  Measured(2, 1);
  state_->TakeActions();
  Measured(2, 1);
  EXPECT_EQ(Take<RefuseWorker>().size(), 1u);
}

TEST_F(MeasuredClusterTest, OnlyTheSuccessorMeasuresAndTheOtherKeepsItsLayers) {
  Start(40);
  for (const uint64_t id : {1, 2}) Join(id);
  Measured(1, 1);
  Measured(2, 1);
  state_->TakeActions();
  state_->OnGone(WorkerId(1), "died", now_);
  Join(3);
  const auto asked = Take<MeasureWorker>();
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].worker, WorkerId(3));
  Measured(3, 1.12);
  auto assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[0].worker, WorkerId(3));
  EXPECT_EQ(assigned[1].layers, (LayerRange{20, 20}));
  // One that is far slower is worth moving layers for.
  state_->OnGone(WorkerId(3), "died", now_);
  Join(4);
  state_->TakeActions();
  Measured(4, 3);
  assigned = Take<AssignStage>();
  ASSERT_EQ(assigned.size(), 2u);
  EXPECT_EQ(assigned[1].layers, (LayerRange{10, 30}));
}

TEST_F(MeasuredClusterTest, AModelThatDoesNotFitIsSaidAndTriedAgainWithAnotherWorker) {
  Start(4, 1 << 20);
  Join(1, std::nullopt, 1 << 20);
  Join(2, std::nullopt, 1 << 20);
  Measured(1, 1);
  Measured(2, 1);
  EXPECT_TRUE(Take<AssignStage>().empty());
  EXPECT_THAT(state_->Detail(), HasSubstr("does not fit on 2 workers: stage 0 with 2 layers needs 2.0 MiB"));
  state_->OnGone(WorkerId(1), "died", now_);
  Join(3, std::nullopt, 100 << 20);
  Measured(3, 1);
  const auto assigned = Take<AssignStage>();
  EXPECT_TRUE(assigned.empty());
  state_->OnGone(WorkerId(2), "died", now_);
  Join(4, std::nullopt, 100 << 20);
  Measured(4, 1);
  EXPECT_EQ(Take<AssignStage>().size(), 2u);
}

}  // namespace
}  // namespace millrace
