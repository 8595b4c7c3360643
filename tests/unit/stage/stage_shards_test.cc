// Stages that are cut into shards compute what those that are not compute, bit by bit.
#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/expect_close.h"
#include "tests/testing/tiny_llama.h"
#include "tests/unit/stage/stage_ring.h"
#include "worker/device/cpu/host_devices.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_model.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

struct Model {
  std::string name;
  TinyLlamaOptions options;
  uint32_t most_shards;
  kernels::ActivationType activations = kernels::ActivationType::kF32;
  KvType kv_type = KvType::kF32;
  size_t threads = 1;  // of each shard
};

void PrintTo(const Model& model, std::ostream* out) {
  *out << model.name;
}

TinyLlamaOptions Sized(TensorType type, uint32_t heads, uint32_t kv_heads, uint32_t head_size) {
  TinyLlamaOptions options;
  options.type = type;
  options.heads = heads;
  options.kv_heads = kv_heads;
  options.head_size = head_size;
  options.ffn = 320;
  return options;
}

// As SmolLM2: 9 query heads, 3 KV heads; as TinyLlama; KV groups that are no whole weight blocks; sizes that
// nothing divides.
std::vector<Model> Models() {
  std::vector<Model> models = {{"NineHeadsQ4_1", Sized(TensorType::kQ4_1, 9, 3, 32), 3},
                               {"NineHeadsF32", Sized(TensorType::kF32, 9, 3, 16), 3},
                               {"FourKvHeadsQ8_0", Sized(TensorType::kQ8_0, 8, 4, 32), 4},
                               {"HalfBlocksQ4_0", Sized(TensorType::kQ4_0, 6, 6, 16), 3}};
  models[2].options.tied = false;
  Model odd = {"OddBF16", Sized(TensorType::kBF16, 10, 5, 24), 5};
  odd.options.rope_dims = 20;
  odd.options.vocabulary = 333;
  odd.options.ffn = 100;
  odd.options.hidden = 68;
  models.push_back(odd);
  // The same on the default path: weights packed, activations of 8 bits, shorter keys and values.
  Model k_quants = {"FourKvHeadsQ4_K", Sized(TensorType::kQ4_K, 8, 4, 128), 3};
  k_quants.options.hidden = 256;
  k_quants.options.ffn = 768;
  k_quants.options.types_of = {{"attn_v.weight", TensorType::kQ6_K}, {"ffn_down.weight", TensorType::kQ6_K}};
  const Model rounded[] = {models[0], models[2], models[3], k_quants};
  for (Model model : rounded) {
    model.activations = kernels::ActivationType::kInt8;
    for (const KvType kv_type : {KvType::kF16, KvType::kI8}) {
      model.kv_type = kv_type;
      models.push_back(model);
      models.back().name += kv_type == KvType::kF16 ? "_Int8KvF16" : "_Int8KvInt8";
    }
  }
  Model threads = models[0];
  threads.name += "_Int8TwoThreads";
  threads.activations = kernels::ActivationType::kInt8;
  threads.kv_type = KvType::kF16;
  threads.threads = 2;
  models.push_back(threads);
  return models;
}

constexpr uint32_t kTokens = 140;

class StageShardsTest : public ::testing::TestWithParam<Model> {
 protected:
  StageShardsTest()
      : model_(TestModel::FromBytes(BuildTinyLlama(GetParam().options),
                                    {.activations = GetParam().activations, .threads = GetParam().threads})) {
    sequence_.tokens = RandomTokens(kTokens, model_.shape.vocabulary_size, 1);
    sequence_.blocks = Blocks(0, kTokens);
  }

  // Of every row of the sequence, prefilled in chunks of so many.
  std::vector<float> Logits(uint32_t shards, const std::vector<uint32_t>& layers, uint32_t chunk) {
    StageRing ring(model_, RingOptions(shards, layers));
    return AllLogits(ring, sequence_, chunk);
  }

  static StageRingOptions RingOptions(uint32_t shards, const std::vector<uint32_t>& layers = {}) {
    return {.layers = layers, .max_rows = kTokens, .shards = shards, .kv_type = GetParam().kv_type};
  }

  TestModel model_;
  TestSequence sequence_;
};
INSTANTIATE_TEST_SUITE_P(Models, StageShardsTest, ::testing::ValuesIn(Models()),
                         [](const auto& info) { return info.param.name; });

TEST_P(StageShardsTest, GiveTheBitsOfOneShard) {
  const std::vector<float> whole = Logits(1, {3}, kTokens);
  EXPECT_TRUE(std::all_of(whole.begin(), whole.end(), [](float logit) { return std::isfinite(logit); }));
  for (uint32_t shards = 2; shards <= GetParam().most_shards; ++shards) {
    // More rows than are added together at once, and a few.
    for (uint32_t chunk : {kTokens, 9u}) {
      EXPECT_TRUE(IsBitEqual(Logits(shards, {3}, chunk), whole)) << shards << " shards, chunks of " << chunk;
    }
    EXPECT_TRUE(IsBitEqual(Logits(shards, {1, 2}, 64), whole)) << shards << " shards, 2 stages";
    StageRing ring(model_, RingOptions(shards));
    TestSequence begin = sequence_;
    begin.tokens.resize(20);
    const std::vector<float> expected(whole.begin(), whole.begin() + 20 * model_.shape.vocabulary_size);
    EXPECT_TRUE(IsBitEqual(AllLogits(ring, begin, 1), expected)) << shards << " shards, row by row";
  }
}

TEST_P(StageShardsTest, GiveTheAnswersOfOneShard) {
  std::vector<StageSegment> segments;
  for (uint32_t i = 0; i < 20; ++i) {
    TestSequence sequence{i + 1, RandomTokens(12, model_.shape.vocabulary_size, i), Blocks(i, 12)};
    StageSegment& segment = segments.emplace_back(sequence.Segment(0, 1 + i % 12));
    SamplingOptions& sampling = segment.sampling.emplace();
    sampling.temperature = i % 2 == 0 ? 0 : 1;
    sampling.seed = i;
    sampling.logprobs = 4;
    if (i % 3 == 0) segment.prompt_logprobs = 2;
  }
  StageRing one(model_, RingOptions(1));
  const std::vector<SequenceResult> expected = one.Run(BatchOf(segments));
  StageRing cut(model_, RingOptions(GetParam().most_shards, {2, 1}));
  const std::vector<SequenceResult> results = cut.Run(BatchOf(segments));
  ASSERT_EQ(results.size(), expected.size());
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].token, expected[i].token);
    EXPECT_EQ(results[i].logprobs->top, expected[i].logprobs->top);
    ASSERT_EQ(results[i].prompt_logprobs.size(), expected[i].prompt_logprobs.size());
    for (size_t j = 0; j < results[i].prompt_logprobs.size(); ++j) {
      EXPECT_EQ(results[i].prompt_logprobs[j].logprob, expected[i].prompt_logprobs[j].logprob);
    }
  }
}

// What shards share must be written before it is read, whoever is late: NaN would spread.
TEST_P(StageShardsTest, WhatBuffersHeldBeforeDoesNotMatter) {
  const std::vector<float> whole = Logits(1, {3}, kTokens);
  StageRing ring(model_, RingOptions(GetParam().most_shards));
  const StageBatch batch = BatchOf({sequence_.Segment(0, 135)});
  for (int round = 0; round < 2; ++round) {
    const std::shared_ptr<PooledBuffer> residual = *ring.stage(0).Run(batch, nullptr, ring.cache(0));
    std::fill_n(residual->floats(), residual->capacity / sizeof(float),
                std::numeric_limits<float>::quiet_NaN());
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t shard = 0; shard < GetParam().most_shards; ++shard) {
        const kernels::PagedKv kv = ring.cache(0).Layer(layer, shard);
        const size_t heads = ring.limits().num_blocks * kv.block_tokens * kv.kv_heads;
        const size_t bytes = heads * kv.head_size * kernels::KvElementBytes(kv.type);
        std::fill_n(kv.key_blocks, bytes, 0xFF);  // NaN in float32 and float16
        std::fill_n(kv.value_blocks, bytes, 0xFF);
        if (kv.key_scales == nullptr) continue;
        std::fill_n(kv.key_scales, heads, std::numeric_limits<float>::quiet_NaN());
        std::fill_n(kv.value_scales, heads, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  EXPECT_TRUE(IsBitEqual(AllLogits(ring, sequence_, kTokens), whole));
}

TEST_P(StageShardsTest, WeightsAndKvHeadsAreThoseOfTheModelTogether) {
  StageRing one(model_, RingOptions(1));
  for (uint32_t shards = 1; shards <= GetParam().most_shards; ++shards) {
    StageRing ring(model_, RingOptions(shards));
    const std::vector<ShardUse> uses = ring.stage(0).shards();
    ASSERT_THAT(uses, SizeIs(shards));
    uint64_t bytes = 0;
    uint32_t kv_heads = 0;
    for (const ShardUse& use : uses) {
      EXPECT_GT(use.weight_bytes, 0u);
      bytes += use.weight_bytes;
      kv_heads += use.kv_heads;
    }
    EXPECT_EQ(kv_heads, model_.shape.num_kv_heads);
    EXPECT_EQ(bytes, ring.stage(0).weight_bytes());
    // What is packed begins on a page, for each shard: 7 matrices of 3 layers, and the output's.
    const bool packs = GetParam().activations == kernels::ActivationType::kInt8;
    const double padding = packs ? shards * 22 * 4096.0 : 0;
    EXPECT_NEAR(static_cast<double>(bytes), static_cast<double>(one.stage(0).weight_bytes()),
                0.05 * static_cast<double>(bytes) + padding);
  }
}

TEST_P(StageShardsTest, TimeInCollectivesIsCounted) {
  StageRing one(model_, RingOptions(1));
  StageRing two(model_, RingOptions(2));
  const StageBatch batch = BatchOf({sequence_.Segment(0, 3)});
  one.Run(batch);
  EXPECT_EQ(one.stage(0).collective_ns(), 0);
  two.Run(batch);
  const int64_t once = two.stage(0).collective_ns();
  EXPECT_GT(once, 0);
  two.Run(batch);
  EXPECT_GT(two.stage(0).collective_ns(), once);
}

TEST_P(StageShardsTest, RefusesMoreShardsThanItCanBeCutInto) {
  const std::vector<const kernels::Backend*> backends(GetParam().most_shards + 1, model_.backend.get());
  HostDevices devices(backends);
  const absl::Status status =
      StageModel::Create(*model_.file, model_.shape, devices, {{0, 3, true, true}, 8, 64}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("1 to " + std::to_string(GetParam().most_shards) + " shards"));
}

}  // namespace
}  // namespace millrace::testing
