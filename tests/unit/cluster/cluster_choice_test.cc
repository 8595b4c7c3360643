// What the coordinator chooses for all workers, and what it tells each of its share of the machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/cluster/cluster_state.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

ClusterOptions Options(uint32_t stages) {
  ClusterOptions options;
  options.version = "1";
  options.model_fingerprint = "model";
  for (uint32_t s = 0; s < stages; ++s) options.placement.push_back({s, 1});
  return options;
}

WorkerHello Hello() {
  WorkerHello hello;
  hello.version = "1";
  hello.model_fingerprint = "model";
  hello.numeric_class = "cpu";
  hello.host = "here";
  hello.activation_types = {ActivationType::kF32, ActivationType::kInt8};
  return hello;
}

template <typename Action>
std::vector<Action> Take(ClusterState& state) {
  std::vector<Action> found;
  for (ClusterAction& action : state.TakeActions()) {
    if (auto* match = std::get_if<Action>(&action)) found.push_back(std::move(*match));
  }
  return found;
}

TEST(ClusterChoiceTest, RefusesWhoHasNotTheActivationTypeAndNamesItInTheState) {
  ClusterOptions options = Options(1);
  options.numeric.activations = ActivationType::kInt8;
  ClusterState state(options);
  WorkerHello hello = Hello();
  hello.activation_types = {ActivationType::kF32};
  state.OnHello(WorkerId(1), hello, absl::UnixEpoch());
  const auto refused = Take<RefuseWorker>(state);
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].why.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused[0].why.message(),
            "the worker cannot compute with int8 activations, only with f32; the coordinator's --activations "
            "chooses for all");
  EXPECT_THAT(state.Detail(), HasSubstr("waiting for 1 of 1 workers"));
  EXPECT_THAT(state.Detail(), HasSubstr("refused here: the worker cannot compute with int8"));
  state.OnHello(WorkerId(2), Hello(), absl::UnixEpoch());
  EXPECT_EQ(Take<AssignStage>(state).size(), 1u);
}

TEST(ClusterChoiceTest, RefusesWhoHasNotTheKvType) {
  ClusterOptions options = Options(1);
  options.numeric = {ActivationType::kInt8, KvType::kF32};
  ClusterState state(options);
  WorkerHello hello = Hello();
  hello.numeric_class = "cuda/sm_90";
  hello.kv_types = {KvType::kF16, KvType::kI8};
  state.OnHello(WorkerId(1), hello, absl::UnixEpoch());
  const auto refused = Take<RefuseWorker>(state);
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].why, absl::FailedPreconditionError(
                                "the worker (cuda/sm_90) cannot keep keys and values as f32, only as "
                                "f16, int8; the coordinator's --kv-type chooses for all"));
  EXPECT_THAT(state.Detail(), HasSubstr("refused here: the worker (cuda/sm_90) cannot keep"));
  state.OnHello(WorkerId(2), Hello(), absl::UnixEpoch());
  EXPECT_EQ(Take<AssignStage>(state).size(), 1u);
}

TEST(ClusterChoiceTest, ShowsTheNumericClassOfStagesAndWorkers) {
  ClusterOptions options = Options(1);
  options.numeric = {ActivationType::kInt8, KvType::kF16};
  ClusterState state(options);
  WorkerHello hello = Hello();
  hello.kernels = "cpu/best";
  hello.threads = 0;
  state.OnHello(WorkerId(1), hello, absl::UnixEpoch());
  EXPECT_EQ(state.Snapshot().workers[0].threads, 0u);
  state.OnLoaded(WorkerId(1), {Epoch(1), "model", 1, 1, 1, 1, 7}, absl::UnixEpoch());
  state.OnReady(WorkerId(1), Epoch(1), "tcp");
  const auto up = Take<RingUp>(state);
  ASSERT_EQ(up.size(), 1u);
  EXPECT_EQ(up[0].stages[0].numeric_class, "cpu/int8/kv-f16");
  EXPECT_EQ(up[0].stages[0].kernels, "cpu/best");
  EXPECT_EQ(up[0].stages[0].threads, 7u);
  EXPECT_EQ(state.Snapshot().workers[0].numeric_class, "cpu/int8/kv-f16");
  EXPECT_EQ(state.Snapshot().workers[0].threads, 7u);
}

struct Where {
  const char* machine;
  const char* cores;
};

// A worker for each, in order, and the shares as "index/count".
std::vector<std::string> SharesOf(const std::vector<Where>& workers, bool measures) {
  ClusterState state(Options(static_cast<uint32_t>(workers.size())));
  for (size_t i = 0; i < workers.size(); ++i) {
    WorkerHello hello = Hello();
    hello.machine = workers[i].machine;
    hello.cores = workers[i].cores;
    hello.measures = measures;
    state.OnHello(WorkerId(i + 1), hello, absl::UnixEpoch());
  }
  std::vector<std::string> shares;
  const auto add = [&](const CoreShare& share) {
    shares.push_back(std::to_string(share.index) + "/" + std::to_string(share.count));
  };
  if (measures) {
    for (const MeasureWorker& measure : Take<MeasureWorker>(state)) add(measure.cores);
  } else {
    for (const AssignStage& assign : Take<AssignStage>(state)) add(assign.cores);
  }
  return shares;
}

TEST(ClusterChoiceTest, DividesTheCoresAmongWorkersThatMayUseTheSame) {
  for (const bool measures : {false, true}) {
    EXPECT_EQ(SharesOf({{"a", "0-7"}}, measures), (std::vector<std::string>{"0/1"}));
    EXPECT_EQ(SharesOf({{"a", "0-7"}, {"b", "0-7"}, {"a", "0-7"}, {"a", "0-3"}}, measures),
              (std::vector<std::string>{"0/2", "0/1", "1/2", "0/1"}));
    EXPECT_EQ(SharesOf({{"", "0-7"}, {"", "0-7"}}, measures), (std::vector<std::string>{"0/1", "0/1"}));
  }
}

// An only stage has all layers anyway.
TEST(ClusterChoiceTest, MeasuresBrieflyWhereNothingIsPlacedByIt) {
  for (const uint32_t stages : {1u, 2u}) {
    ClusterState state(Options(stages));
    for (uint64_t id = 1; id <= stages; ++id) {
      WorkerHello hello = Hello();
      hello.measures = true;
      state.OnHello(WorkerId(id), hello, absl::UnixEpoch());
    }
    const auto asked = Take<MeasureWorker>(state);
    ASSERT_EQ(asked.size(), stages);
    for (const MeasureWorker& measure : asked) EXPECT_EQ(measure.brief, stages == 1);
  }
}

TEST(ClusterChoiceTest, AWorkerThatWaitsAsASpareTakesNoCores) {
  ClusterState state(Options(1));
  for (uint64_t id = 1; id <= 2; ++id) {
    WorkerHello hello = Hello();
    hello.machine = "a";
    state.OnHello(WorkerId(id), hello, absl::UnixEpoch());
  }
  const auto assigned = Take<AssignStage>(state);
  ASSERT_EQ(assigned.size(), 1u);
  EXPECT_EQ(assigned[0].cores.count, 1u);
}

}  // namespace
}  // namespace millrace
