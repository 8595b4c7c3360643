#include "worker/control/stage_backends.h"

#include <gtest/gtest.h>

#include "common/process.h"
#include "common/transport/numeric_messages.h"
#include "worker/control/backend_choice.h"

namespace millrace {
namespace {

std::vector<std::vector<int>> Parts(const std::vector<int>& cores, size_t count) {
  std::vector<std::vector<int>> parts;
  for (size_t i = 0; i < count; ++i) {
    const absl::Span<const int> part = PartOfCores(cores, i, count);
    parts.emplace_back(part.begin(), part.end());
  }
  return parts;
}

TEST(StageBackendsTest, DividesCoresInOrder) {
  using Expected = std::vector<std::vector<int>>;
  EXPECT_EQ(Parts({4, 5, 6, 7}, 1), (Expected{{4, 5, 6, 7}}));
  EXPECT_EQ(Parts({4, 5, 6, 7}, 2), (Expected{{4, 5}, {6, 7}}));
  EXPECT_EQ(Parts({4, 5, 6, 7, 9}, 3), (Expected{{4}, {5, 6}, {7, 9}}));
  EXPECT_EQ(Parts({4, 5}, 3), (Expected{{4}, {4}, {5}}));
  EXPECT_EQ(Parts({0}, 2), (Expected{{0}, {0}}));
}

std::vector<size_t> Threads(const StageBackendOptions& options, uint32_t sharers,
                            const std::vector<int>& cores) {
  const auto backends = MakeStageBackends(options, {{}, sharers - 1, sharers}, cores);
  EXPECT_TRUE(backends.ok()) << backends.status();
  std::vector<size_t> threads;
  for (const auto& backend : *backends) threads.push_back(backend->threads());
  return threads;
}

TEST(StageBackendsTest, UsesItsShareOfTheCores) {
  StageBackendOptions options;
  options.isa = "portable";
  const size_t limit = CpuTimeLimit();
  const auto at_most = [&](size_t threads) { return std::min(threads, limit); };
  EXPECT_EQ(Threads(options, 1, {0, 1, 2, 3, 4, 5, 6, 7}), (std::vector<size_t>{at_most(8)}));
  EXPECT_EQ(Threads(options, 2, {0, 1, 2, 3, 4, 5, 6, 7}), (std::vector<size_t>{at_most(4)}));
  EXPECT_EQ(Threads(options, 3, {0, 1}), (std::vector<size_t>{1}));
  options.shards = 2;
  EXPECT_EQ(Threads(options, 1, {0, 1}), (std::vector<size_t>{1, 1}));
}

TEST(StageBackendsTest, UsesAsManyThreadsAsItIsTold) {
  StageBackendOptions options;
  options.isa = "portable";
  options.threads = 3;
  options.shards = 2;
  EXPECT_EQ(Threads(options, 2, {0, 1}), (std::vector<size_t>{3, 3}));
}

TEST(StageBackendsTest, PinsOnlyToCoresThatItMayUse) {
  StageBackendOptions options;
  options.pin_threads = true;
  EXPECT_TRUE(MakeStageBackends(options, {}, AllowedCores()).ok());
  EXPECT_EQ(MakeStageBackends(options, {}, {-1}).status().code(), absl::StatusCode::kInvalidArgument);
  options.pin_threads = false;
  EXPECT_TRUE(MakeStageBackends(options, {}, {-1}).ok());
}

TEST(StageBackendsTest, HasABackendForEachActivationTypeItNames) {
  for (const ActivationType type : SupportedActivations({})) {
    const auto backends = MakeStageBackends({}, {{type, KvType::kF32}}, {0});
    ASSERT_TRUE(backends.ok()) << backends.status();
    EXPECT_EQ((*backends)[0]->numeric_class(),
              BackendFamily({}) + "/" + std::string(ActivationTypeName(type)));
  }
}

TEST(StageBackendsTest, ReadsWhatTheCoordinatorChose) {
  v1::Assign assign;
  assign.set_activations(v1::ACTIVATION_TYPE_INT8);
  assign.set_kv_type(v1::KV_TYPE_F16);
  assign.mutable_core_share()->set_index(1);
  assign.mutable_core_share()->set_count(2);
  const auto choice = ToBackendChoice(assign);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->numeric, (NumericChoice{ActivationType::kInt8, KvType::kF16}));
  EXPECT_EQ(choice->sharer, 1u);
  EXPECT_EQ(choice->sharers, 2u);
}

TEST(StageBackendsTest, RefusesWhatCannotBeChosen) {
  v1::Measure good;
  good.set_activations(v1::ACTIVATION_TYPE_F32);
  good.set_kv_type(v1::KV_TYPE_F32);
  good.mutable_core_share()->set_count(1);
  EXPECT_TRUE(ToBackendChoice(good).ok());
  v1::Measure no_activations = good, no_kv = good, no_share = good, beyond = good;
  no_activations.set_activations(static_cast<v1::ActivationType>(99));
  no_kv.set_kv_type(v1::KV_TYPE_UNSPECIFIED);
  no_share.clear_core_share();
  beyond.mutable_core_share()->set_index(1);
  for (const v1::Measure& measure : {no_activations, no_kv, no_share, beyond}) {
    EXPECT_EQ(ToBackendChoice(measure).status().code(), absl::StatusCode::kInvalidArgument)
        << measure.ShortDebugString();
  }
}

TEST(NumericMessagesTest, TypesCrossTheWire) {
  for (const ActivationType type : {ActivationType::kF32, ActivationType::kInt8}) {
    EXPECT_EQ(FromWire(ToWire(type)), type);
  }
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kI8}) EXPECT_EQ(FromWire(ToWire(type)), type);
}

}  // namespace
}  // namespace millrace
