// Stages on CUDA devices, as they run on the CPU (tests/testing/cuda_on_cpu).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "cuda_on_cpu/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/expect_close.h"
#include "tests/testing/tiny_llama.h"
#include "tests/unit/stage/stage_ring.h"
#include "worker/device/cuda/cuda_device_group.h"
#include "worker/stage/sampler.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;

struct Model {
  std::string name;
  TinyLlamaOptions options;
  KvType kv_type = KvType::kF16;
};

void PrintTo(const Model& model, std::ostream* out) {
  *out << model.name;
}

TinyLlamaOptions Sized(TensorType type, uint32_t heads, uint32_t kv_heads, uint32_t head_size) {
  TinyLlamaOptions options;
  options.layers = 2;
  options.type = type;
  options.heads = heads;
  options.kv_heads = kv_heads;
  options.head_size = head_size;
  options.ffn = 320;
  return options;
}

// As SmolLM2: 9 query heads, 3 KV heads; blocks of 256 elements; weights that are not quantised; no group of
// heads.
std::vector<Model> Models() {
  std::vector<Model> models = {{"NineHeadsQ4_1", Sized(TensorType::kQ4_1, 9, 3, 32)},
                               {"NineHeadsQ4_1KvInt8", Sized(TensorType::kQ4_1, 9, 3, 32), KvType::kI8},
                               {"SixHeadsQ8_0", Sized(TensorType::kQ8_0, 6, 6, 32)},
                               {"SixHeadsF16", Sized(TensorType::kF16, 6, 3, 16)},
                               {"FourKvHeadsQ4_K", Sized(TensorType::kQ4_K, 8, 4, 128)}};
  models[2].options.tied = false;
  models[4].options.hidden = 256;
  models[4].options.ffn = 768;
  models[4].options.types_of = {{"attn_v.weight", TensorType::kQ6_K}, {"ffn_down.weight", TensorType::kQ6_K}};
  return models;
}

constexpr uint32_t kTokens = 75;
constexpr uint32_t kMostShards = 3;

std::unique_ptr<DeviceGroup> MakeDevices(const TestModel& model, std::vector<int> devices) {
  CudaDevicesOptions options;
  options.devices = std::move(devices);
  options.watchdog = absl::ZeroDuration();
  options.host_ops = MakeBackend(model.options);
  absl::StatusOr<std::unique_ptr<DeviceGroup>> group = MakeCudaDevices(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

class CudaStageTest : public ::testing::TestWithParam<Model> {
 protected:
  CudaStageTest()
      : model_(TestModel::FromBytes(BuildTinyLlama(GetParam().options),
                                    {.activations = kernels::ActivationType::kInt8})) {
    sequence_.tokens = RandomTokens(kTokens, model_.shape.vocabulary_size, 1);
    sequence_.blocks = Blocks(9, kTokens, -2);
  }

  StageRingOptions RingOptions(uint32_t shards = 1, std::vector<uint32_t> layers = {}) const {
    StageRingOptions options{.layers = std::move(layers),
                             .max_rows = kTokens,
                             .num_blocks = 64,
                             .shards = shards,
                             .kv_type = GetParam().kv_type};
    options.record_decodes = false;  // takes a while
    options.make_devices = [this](uint32_t count) {
      std::vector<int> devices;
      for (uint32_t i = 0; i < count; ++i) devices.push_back(static_cast<int>(i));
      return MakeDevices(model_, devices);
    };
    return options;
  }

  std::vector<float> Logits(const StageRingOptions& options, uint32_t chunk) {
    StageRing ring(model_, options);
    return AllLogits(ring, sequence_, chunk);
  }

  TestModel model_;
  TestSequence sequence_;
};
INSTANTIATE_TEST_SUITE_P(Models, CudaStageTest, ::testing::ValuesIn(Models()),
                         [](const auto& info) { return info.param.name; });

// Products have the CPU's bits; attention rounds queries and probabilities to float16, and what follows
// rounds the difference to 8 bits.
TEST_P(CudaStageTest, GivesNearlyTheLogitsOfTheCpu) {
  const std::vector<float> actual = Logits(RingOptions(), kTokens);
  StageRing cpu(model_, {.max_rows = kTokens, .num_blocks = 64, .kv_type = GetParam().kv_type});
  const std::vector<float> expected = AllLogits(cpu, sequence_, kTokens);
  ASSERT_EQ(actual.size(), expected.size());
  double squares = 0, differences = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << i;
    squares += double{expected[i]} * expected[i];
    differences += (double{actual[i]} - expected[i]) * (double{actual[i]} - expected[i]);
  }
  EXPECT_LT(std::sqrt(differences / squares), 0.03);
}

TEST_P(CudaStageTest, ShardsStagesAndChunksGiveTheSameBits) {
  const std::vector<float> whole = Logits(RingOptions(), kTokens);
  for (const uint32_t chunk : {1u, 40u}) {
    EXPECT_TRUE(IsBitEqual(Logits(RingOptions(), chunk), whole)) << "chunks of " << chunk;
  }
  EXPECT_TRUE(IsBitEqual(Logits(RingOptions(1, {1, 1}), 40), whole)) << "2 stages";
  for (uint32_t shards = 2; shards <= kMostShards; ++shards) {
    EXPECT_TRUE(IsBitEqual(Logits(RingOptions(shards, {1, 1}), 9), whole)) << shards << " shards, 2 stages";
  }
}

TEST_P(CudaStageTest, ShardsOfOneDeviceGiveTheSameBits) {
  const std::vector<float> whole = Logits(RingOptions(), kTokens);
  StageRingOptions options = RingOptions(2);
  options.make_devices = [this](uint32_t) { return MakeDevices(model_, {1, 1}); };
  EXPECT_TRUE(IsBitEqual(Logits(options, 40), whole));
}

// Decodes of several sequences in one batch, replayed as they were recorded or run op by op.
TEST_P(CudaStageTest, DecodesTogetherOrAloneRecordedOrNotAlike) {
  constexpr uint32_t kSequences = 5, kPrompt = 20, kSteps = 3;
  std::vector<TestSequence> sequences;
  for (uint32_t i = 0; i < kSequences; ++i) {
    sequences.push_back({i + 1, RandomTokens(kPrompt + kSteps + i, model_.shape.vocabulary_size, 30 + i),
                         Blocks(4 * i, kPrompt + kSteps + i)});
  }
  const auto run = [&](const StageRingOptions& options, bool together) {
    StageRing ring(model_, options);
    std::vector<float> all;
    for (uint32_t i = 0; i < kSequences; ++i) ring.Run(BatchOf({sequences[i].Segment(0, kPrompt + i)}));
    for (uint32_t step = 0; step < kSteps; ++step) {
      std::vector<StageSegment> segments;
      for (uint32_t i = 0; i < kSequences; ++i) {
        segments.push_back(sequences[i].Segment(kPrompt + i + step, 1));
        if (together) continue;
        ring.Run(BatchOf({segments.back()}));
        const std::vector<float> logits = ring.Logits(0);
        all.insert(all.end(), logits.begin(), logits.end());
      }
      if (!together) continue;
      ring.Run(BatchOf(segments));
      for (uint32_t i = 0; i < kSequences; ++i) {
        const std::vector<float> logits = ring.Logits(i);
        all.insert(all.end(), logits.begin(), logits.end());
      }
    }
    EXPECT_EQ(ring.stage(0).replays() > 0, options.record_decodes);
    return all;
  };
  for (const uint32_t shards : {1u, 2u}) {
    StageRingOptions recorded = RingOptions(shards), plain = RingOptions(shards);
    recorded.record_decodes = true;
    recorded.max_rows = plain.max_rows = kPrompt + kSequences;
    const std::vector<float> expected = run(plain, false);
    EXPECT_TRUE(std::all_of(expected.begin(), expected.end(), [](float x) { return std::isfinite(x); }));
    EXPECT_TRUE(IsBitEqual(run(plain, true), expected)) << shards;
    EXPECT_TRUE(IsBitEqual(run(recorded, true), expected)) << shards;
    EXPECT_TRUE(IsBitEqual(run(recorded, false), expected)) << shards;
  }
}

// The device chooses from its own logits what the host's sampler chooses from them.
TEST_P(CudaStageTest, SamplesAsTheHostDoes) {
  std::vector<StageSegment> segments;
  std::vector<uint32_t> last_rows;
  uint32_t rows = 0;
  for (uint32_t i = 0; i < 20; ++i) {
    const TestSequence sequence{i + 1, RandomTokens(4, model_.shape.vocabulary_size, i), Blocks(i, 4)};
    StageSegment& segment = segments.emplace_back(sequence.Segment(0, 1 + i % 3));
    SamplingOptions& sampling = segment.sampling.emplace();
    sampling.temperature = i % 3 == 0 ? 0.0f : 0.5f + 0.1f * static_cast<float>(i);
    sampling.seed = 100 + i;
    sampling.top_p = i % 2 == 0 ? 1.0f : 0.8f;
    sampling.top_k = i % 4 == 0 ? 30 : 0;
    if (i % 2 == 0) sampling.logprobs = 3;
    if (i % 5 == 0) sampling.repetition_penalty = 1.5f;
    if (sampling.needs_history()) {
      segment.history = segment.token_ids;
      segment.history_prompt_tokens = static_cast<uint32_t>(segment.token_ids.size());
    }
    segment.suppressed_ids = {5, 6};
    if (i % 3 == 1) segment.prompt_logprobs = 2;
    rows += 1 + i % 3;
    last_rows.push_back(rows - 1);
  }
  for (uint32_t shards = 1; shards <= kMostShards; ++shards) {
    SCOPED_TRACE(shards);
    StageRing ring(model_, RingOptions(shards));
    const std::vector<SequenceResult> results = ring.Run(BatchOf(segments));
    ASSERT_EQ(results.size(), segments.size());
    Sampler sampler(model_.shape.vocabulary_size);
    for (size_t i = 0; i < segments.size(); ++i) {
      const StageSegment& segment = segments[i];
      const std::vector<float> logits = ring.Logits(last_rows[i]);
      SampleInput input;
      input.logits = logits;
      input.options = &*segment.sampling;
      input.history = segment.history;
      input.history_prompt_tokens = segment.history_prompt_tokens;
      input.suppressed_ids = segment.suppressed_ids;
      input.position = results[i].position;
      EXPECT_EQ(results[i].token, sampler.Sample(input)) << i;
      ASSERT_EQ(results[i].logprobs.has_value(), segment.sampling->logprobs.has_value());
      if (segment.sampling->logprobs.has_value()) {
        const TokenLogprobs expected = ComputeLogprobs(logits, *results[i].token, 3);
        EXPECT_NEAR(results[i].logprobs->logprob, expected.logprob, 1e-5);
        ASSERT_EQ(results[i].logprobs->top.size(), 3u);
        for (size_t j = 0; j < 3; ++j) EXPECT_EQ(results[i].logprobs->top[j].first, expected.top[j].first);
      }
      ASSERT_EQ(results[i].prompt_logprobs.size(),
                segment.prompt_logprobs.has_value() ? segment.token_ids.size() - 1 : 0);
      for (size_t j = 0; j < results[i].prompt_logprobs.size(); ++j) {
        const uint32_t row = last_rows[i] + 1 - static_cast<uint32_t>(segment.token_ids.size() - j);
        const TokenLogprobs expected = ComputeLogprobs(ring.Logits(row), segment.token_ids[j + 1], 2);
        EXPECT_EQ(results[i].prompt_logprobs[j].token, expected.token);
        EXPECT_NEAR(results[i].prompt_logprobs[j].logprob, expected.logprob, 1e-5);
      }
    }
  }
}

// Everything that is taken is given back, and nothing is taken once a stage is ready.
TEST_P(CudaStageTest, TakesNothingAfterLoadingAndGivesAllBack) {
  {
    StageRingOptions options = RingOptions(2);
    options.record_decodes = true;
    options.max_rows = 40;
    StageRing ring(model_, options);
    const cuda_on_cpu::Census before = cuda_on_cpu::TakeCensus();
    EXPECT_GT(before.device_allocations, 0);
    AllLogits(ring, sequence_, 40);
    StageSegment segment = sequence_.Segment(0, 3);
    segment.sampling.emplace();
    ring.Run(BatchOf({segment}));
    const cuda_on_cpu::Census after = cuda_on_cpu::TakeCensus();
    EXPECT_EQ(after.device_allocations, before.device_allocations);
    EXPECT_EQ(after.host_allocations, before.host_allocations);
    EXPECT_EQ(after.graphs, before.graphs);
  }
  const cuda_on_cpu::Census end = cuda_on_cpu::TakeCensus();
  EXPECT_EQ(end.streams + end.events + end.graphs + end.device_allocations + end.host_allocations, 0);
}

// Whichever allocation of loading fails: one line that says for what, and nothing is left behind.
TEST(CudaStageMemoryTest, NoMemoryIsAnErrorThatNamesWhatFor) {
  TestModel model = TestModel::FromBytes(BuildTinyLlama(Sized(TensorType::kQ8_0, 4, 2, 32)),
                                         {.activations = kernels::ActivationType::kInt8});
  for (const char* function : {"cudaMalloc", "cudaHostAlloc"}) {
    int failures = 0;
    for (int nth = 1; nth < 100; ++nth) {
      cuda_on_cpu::SetMachine(cuda_on_cpu::Machine());  // without the fault that was not met
      const std::unique_ptr<DeviceGroup> devices = MakeDevices(model, {0});
      cuda_on_cpu::FailCall(function, nth, cudaErrorMemoryAllocation);
      StageModelOptions options{{0, 2, true, true}, 16, 64};
      options.kv_type = KvType::kF16;
      const auto stage = StageModel::Create(*model.file, model.shape, *devices, options);
      if (stage.ok()) break;
      ++failures;
      EXPECT_EQ(stage.status().code(), absl::StatusCode::kResourceExhausted) << nth << ": " << stage.status();
    }
    EXPECT_GT(failures, 2) << function;
    EXPECT_LT(failures, 99) << function;
  }
  cuda_on_cpu::SetMachine(cuda_on_cpu::Machine());
  const cuda_on_cpu::Census end = cuda_on_cpu::TakeCensus();
  EXPECT_EQ(end.device_allocations + end.host_allocations + end.graphs, 0);
}

}  // namespace
}  // namespace millrace::testing
