#include "worker/stage/stage_runner.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "common/buffer_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "tests/testing/tiny_llama.h"
#include "tests/unit/stage/far_devices.h"
#include "worker/device/cpu/host_devices.h"
#include "worker/stage/stage_model.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kEpoch = 2;
constexpr uint32_t kRows = 8;
constexpr uint32_t kBlocks = 4;
constexpr uint32_t kBlockTokens = 16;
constexpr uint32_t kHidden = 64;

// A stage of a small model whose runner is fed by the test, which keeps what it gives out.
class StageRunnerTest : public ::testing::Test {
 protected:
  // The model's three layers as one stage, or one of them.
  void Make(bool first, bool last, bool far = false) {
    TinyLlamaOptions tiny;
    tiny.layers = 3;
    bytes_ = BuildTinyLlama(tiny);
    file_ = *GgufFile::Parse(bytes_, "tiny");
    const HyperParameters shape = *ReadHyperParameters(*file_);
    std::vector<std::unique_ptr<kernels::Backend>> backends;
    backends.push_back(*kernels::MakeCpuBackend({.isa = "portable"}));
    const StageLayout layout{first ? 0u : last ? 2u : 1u, first && last ? 3u : 1u, first, last};
    host_devices_ = std::make_unique<HostDevices>(std::move(backends));
    if (far) far_devices_ = testing::MakeFarDevices(host_devices_->host_ops(), &far_memory_);
    DeviceGroup& devices = far ? *far_devices_ : *host_devices_;
    model_ = *StageModel::Create(*file_, shape, devices, {layout, kRows, 64});
    cache_ = *KvCache::Create({layout.num_layers, kBlocks, kBlockTokens, shape.num_kv_heads, shape.head_size},
                              devices);
    StageRunnerOptions options;
    options.epoch = Epoch(kEpoch);
    options.first = first;
    options.last = last;
    options.hidden_size = kHidden;
    options.max_in_flight = 3;
    options.limits = {kRows, kBlocks, kBlockTokens, shape.vocabulary_size, 64};
    runner_ = std::make_unique<StageRunner>(options, model_.get(), cache_.get(), &inbox_,
                                            [this](StageOutput output) { return Keep(std::move(output)); });
  }

  absl::Status Keep(StageOutput output) {
    std::vector<float>& kept = activations_.emplace_back();
    if (output.activations != nullptr) {
      kept.assign(output.activations->floats(),
                  output.activations->floats() + output.activations->num_floats());
    }
    outputs_.push_back(std::move(output));
    return emit_status_;
  }

  static StageBatch Batch(uint64_t id, uint32_t first_position, std::vector<TokenId> tokens) {
    StageBatch batch;
    batch.epoch = Epoch(kEpoch);
    batch.id = MicrobatchId(id);
    batch.segments.resize(1);
    batch.segments[0].sequence = SequenceId(9);
    batch.segments[0].first_position = first_position;
    batch.segments[0].token_ids = std::move(tokens);
    batch.segments[0].block_ids = {0, 1};
    batch.segments[0].sampling.emplace().temperature = 0;
    return batch;
  }

  HopMessage Activations(uint64_t id, uint32_t rows, float value = 0.5f) {
    HopMessage message;
    message.epoch = Epoch(kEpoch);
    message.microbatch = MicrobatchId(id);
    message.rows = rows;
    message.stamps.resize(1);
    message.stamps[0] = {11, 12, 13, 14};
    message.payload = pool_.Get(size_t{rows} * kHidden * sizeof(float));
    for (size_t i = 0; i < message.payload->num_floats(); ++i) message.payload->floats()[i] = value;
    return message;
  }

  void Feed(std::variant<StageBatch, HopMessage> content, int64_t arrived = 0) {
    ASSERT_TRUE(inbox_.Push(StageInput{arrived, std::move(content)}));
  }

  // What a run over all that was fed ends with.
  absl::Status RunAll() {
    inbox_.Close();
    return runner_->Run();
  }

  void ExpectFault(const std::string& why) {
    const absl::Status status = RunAll();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_TRUE(outputs_.empty());
    EXPECT_EQ(runner_->microbatches_done(), 0u);
  }

  std::vector<uint8_t> bytes_;
  std::unique_ptr<GgufFile> file_;
  testing::FarMemory far_memory_;
  std::unique_ptr<DeviceGroup> host_devices_;
  std::unique_ptr<DeviceGroup> far_devices_;
  std::unique_ptr<StageModel> model_;
  std::unique_ptr<KvCache> cache_;
  BufferPool pool_{4};
  StageInbox inbox_{16};
  absl::Status emit_status_;
  std::vector<StageOutput> outputs_;
  std::vector<std::vector<float>> activations_;
  std::unique_ptr<StageRunner> runner_;
};

TEST_F(StageRunnerTest, SamplesOnTheLastStage) {
  Make(true, true);
  Feed(Batch(1, 0, {5, 6, 7}), 123);
  Feed(Batch(2, 3, {8}));
  ASSERT_TRUE(RunAll().ok());
  ASSERT_EQ(outputs_.size(), 2u);
  EXPECT_EQ(runner_->microbatches_done(), 2u);
  const StageOutput& output = outputs_[0];
  EXPECT_EQ(output.epoch, Epoch(kEpoch));
  EXPECT_EQ(output.microbatch, MicrobatchId(1));
  EXPECT_EQ(output.rows, 3u);
  EXPECT_TRUE(activations_[0].empty());
  ASSERT_EQ(output.results.size(), 1u);
  EXPECT_EQ(output.results[0].sequence, SequenceId(9));
  EXPECT_EQ(output.results[0].position, 3u);
  ASSERT_TRUE(output.results[0].token.has_value());
  EXPECT_LT(*output.results[0].token, 320u);
  EXPECT_EQ(outputs_[1].results[0].position, 4u);
  ASSERT_EQ(output.stamps.size(), 1u);
  EXPECT_EQ(output.stamps[0].received_ns, 123);
  EXPECT_GT(output.stamps[0].started_ns, 0);
  EXPECT_GE(output.stamps[0].ended_ns, output.stamps[0].started_ns);
  EXPECT_LE(output.stamps[0].ended_ns, outputs_[1].stamps[0].started_ns);
}

TEST_F(StageRunnerTest, IsBusyWhileADeviceWorksForIt) {
  Make(true, true, true);
  Feed(Batch(1, 0, {5, 6, 7}));
  ASSERT_TRUE(RunAll().ok());
  const StageStamp& stamp = outputs_.at(0).stamps.at(0);
  EXPECT_EQ(stamp.cpu_ns, stamp.ended_ns - stamp.started_ns);
}

TEST_F(StageRunnerTest, GivesActivationsOnOtherStages) {
  Make(true, false);
  Feed(Batch(1, 0, {5, 6, 7}));
  ASSERT_TRUE(RunAll().ok());
  ASSERT_EQ(outputs_.size(), 1u);
  EXPECT_TRUE(outputs_[0].results.empty());
  ASSERT_EQ(activations_[0].size(), 3u * kHidden);
  for (const float value : activations_[0]) ASSERT_TRUE(std::isfinite(value));
}

TEST_F(StageRunnerTest, PutsItsStampBehindThoseOfEarlierStages) {
  Make(false, true);
  Feed(Activations(1, 2), 50);
  Feed(Batch(1, 0, {5, 6}), 70);
  ASSERT_TRUE(RunAll().ok());
  ASSERT_EQ(outputs_.size(), 1u);
  ASSERT_EQ(outputs_[0].stamps.size(), 2u);
  EXPECT_EQ(outputs_[0].stamps[0].ended_ns, 13);
  EXPECT_EQ(outputs_[0].stamps[1].received_ns, 70);
  EXPECT_EQ(outputs_[0].results.size(), 1u);
}

TEST_F(StageRunnerTest, UsesTheActivationsItWasGiven) {
  Make(false, false);
  Feed(Activations(1, 1, 0.5f));
  Feed(Batch(1, 0, {5}));
  HopMessage second = Activations(2, 1, 0.5f);
  second.payload->floats()[3] = -2;
  Feed(std::move(second));
  Feed(Batch(2, 0, {5}));
  ASSERT_TRUE(RunAll().ok());
  ASSERT_EQ(activations_.size(), 2u);
  EXPECT_NE(activations_[0], activations_[1]);
}

TEST_F(StageRunnerTest, WorksInTheBufferItReceived) {
  Make(false, false);
  HopMessage message = Activations(1, 2);
  const PooledBuffer* received = message.payload.get();
  Feed(std::move(message));
  Feed(Batch(1, 0, {5, 6}));
  ASSERT_TRUE(RunAll().ok());
  ASSERT_EQ(outputs_.size(), 1u);
  EXPECT_EQ(outputs_[0].activations.get(), received);
  EXPECT_EQ(outputs_[0].activations.use_count(), 1) << "the sender alone holds it";
}

TEST_F(StageRunnerTest, RunsInTheOrderOfTheIds) {
  Make(true, false);
  Feed(Batch(3, 2, {5}));
  Feed(Batch(1, 0, {5}));
  Feed(Batch(2, 1, {5}));
  ASSERT_TRUE(RunAll().ok());
  ASSERT_EQ(outputs_.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(outputs_[i].microbatch, MicrobatchId(i + 1));
}

TEST_F(StageRunnerTest, StopsAtAPlanThatBreaksTheLimits) {
  Make(true, true);
  StageBatch batch = Batch(1, 0, {5});
  batch.segments[0].block_ids = {kBlocks};
  Feed(std::move(batch));
  ExpectFault("microbatch 1");
}

TEST_F(StageRunnerTest, StopsAtActivationsOfTheWrongSize) {
  Make(false, true);
  HopMessage message = Activations(1, 2);
  message.payload->size -= 4;
  Feed(std::move(message));
  Feed(Batch(1, 0, {5, 6}));
  ExpectFault("microbatch 1: 508 bytes of activations, expected 512");
}

TEST_F(StageRunnerTest, StopsAtActivationsWithoutAPayload) {
  Make(false, true);
  HopMessage message = Activations(1, 2);
  message.payload = nullptr;
  Feed(std::move(message));
  Feed(Batch(1, 0, {5, 6}));
  ExpectFault("microbatch 1: 0 bytes of activations");
}

TEST_F(StageRunnerTest, StopsAtAResultInPlaceOfActivations) {
  Make(false, true);
  HopMessage message = Activations(1, 2);
  message.kind = HopKind::kResult;
  Feed(std::move(message));
  Feed(Batch(1, 0, {5, 6}));
  ExpectFault("microbatch 1");
}

TEST_F(StageRunnerTest, StopsAtWhatCannotBeJoined) {
  Make(false, true);
  Feed(Activations(1, 1));
  Feed(Activations(1, 1));
  ExpectFault("came twice");
}

TEST_F(StageRunnerTest, StopsWhenItsOutputIsNotTaken) {
  Make(true, true);
  emit_status_ = absl::UnavailableError("the hop is gone");
  Feed(Batch(1, 0, {5}));
  Feed(Batch(2, 1, {5}));
  EXPECT_EQ(RunAll(), emit_status_);
  EXPECT_EQ(outputs_.size(), 1u);
  EXPECT_EQ(runner_->microbatches_done(), 0u);
}

TEST_F(StageRunnerTest, EndsWhenTheInboxIsClosedWhileItWaits) {
  Make(true, true);
  absl::Status status = absl::UnknownError("did not end");
  std::thread compute([&] { status = runner_->Run(); });
  inbox_.Close();
  compute.join();
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace millrace
