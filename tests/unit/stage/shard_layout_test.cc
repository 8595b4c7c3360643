#include "worker/stage/shard_layout.h"

#include <ostream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Case {
  std::string name;
  ShardShape shape;
  uint32_t attention_segments;
  uint32_t ffn_segments;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

// heads, KV heads, head size, FFN, vocabulary, block of attention output and of FFN down
std::vector<Case> Cases() {
  return {{"SmolLm2", {9, 3, 64, 1536, 49152, 32, 32}, 3, 12},
          {"TinyLlama", {32, 4, 64, 5632, 32000, 32, 32}, 4, 12},
          {"Llama3Of8B", {32, 8, 128, 14336, 128256, 32, 32}, 8, 12},
          {"Llama3Of8BInKQuants", {32, 8, 128, 14336, 128256, 256, 256}, 8, 12},
          {"NotGrouped", {32, 32, 128, 11008, 32000, 32, 32}, 12, 12},
          {"NotGroupedInKQuants", {32, 32, 64, 11008, 32000, 256, 256}, 8, 12},
          {"LikeQwen", {14, 2, 64, 4864, 151936, 32, 32}, 2, 12},
          {"LikeQwenMixed", {14, 2, 64, 4864, 151936, 32, 256}, 2, 12},
          {"OddFloats", {3, 3, 24, 100, 333, 1, 1}, 3, 7},
          {"OneOfAll", {1, 1, 8, 16, 5, 1, 1}, 1, 1},
          {"MixedBlocks", {16, 16, 32, 1024, 1000, 32, 256}, 12, 4}};
}

class ShardLayoutTest : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Models, ShardLayoutTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// Rising to `total`, each but the last a multiple of `block`.
void ExpectEnds(const std::vector<uint32_t>& ends, uint32_t total, uint32_t block) {
  uint32_t before = 0;
  for (uint32_t end : ends) {
    EXPECT_GT(end, before);
    EXPECT_EQ(end % block, 0u);
    before = end;
  }
  EXPECT_EQ(before, total);
}

TEST_P(ShardLayoutTest, CutsSegmentsAtWholeBlocksAndKvGroups) {
  const ShardShape& shape = GetParam().shape;
  const auto layout = CutShards(shape, 1);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->attention_ends.size(), GetParam().attention_segments);
  EXPECT_EQ(layout->ffn_ends.size(), GetParam().ffn_segments);
  ExpectEnds(layout->attention_ends, shape.num_heads * shape.head_size, shape.attention_block);
  ExpectEnds(layout->ffn_ends, shape.ffn_size, shape.ffn_block);
  const uint32_t group = shape.num_heads / shape.num_kv_heads * shape.head_size;
  for (uint32_t end : layout->attention_ends) EXPECT_EQ(end % group, 0u);
}

TEST_P(ShardLayoutTest, SegmentsAreTheSameForEveryNumberOfShards) {
  const ShardShape& shape = GetParam().shape;
  const auto one = CutShards(shape, 1);
  ASSERT_TRUE(one.ok());
  const uint32_t most = std::min(GetParam().attention_segments, GetParam().ffn_segments);
  for (uint32_t shards = 1; shards <= most; ++shards) {
    const auto layout = CutShards(shape, shards);
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_EQ(layout->attention_ends, one->attention_ends);
    EXPECT_EQ(layout->ffn_ends, one->ffn_ends);
  }
}

// Every head, column, vocabulary row and segment belongs to one shard, and a shard's segments are the columns
// of its heads and of its part of the FFN.
TEST_P(ShardLayoutTest, ShardsTogetherAreTheModel) {
  const ShardShape& shape = GetParam().shape;
  const uint32_t most = std::min(GetParam().attention_segments, GetParam().ffn_segments);
  const uint32_t group = shape.num_heads / shape.num_kv_heads;
  for (uint32_t shards = 1; shards <= most; ++shards) {
    const auto layout = CutShards(shape, shards);
    ASSERT_TRUE(layout.ok());
    ASSERT_EQ(layout->shards.size(), shards);
    ShardSlice before;
    for (const ShardSlice& slice : layout->shards) {
      EXPECT_EQ(slice.heads.begin, before.heads.end);
      EXPECT_EQ(slice.kv_heads.begin, before.kv_heads.end);
      EXPECT_EQ(slice.ffn.begin, before.ffn.end);
      EXPECT_EQ(slice.vocabulary.begin, before.vocabulary.end);
      EXPECT_GE(slice.kv_heads.size(), 1u);
      EXPECT_GE(slice.ffn.size(), 1u);
      EXPECT_EQ(slice.heads.size(), slice.kv_heads.size() * group);
      const std::vector<uint32_t> attention = layout->AttentionEnds(slice);
      EXPECT_EQ(attention.size(), slice.attention_segments.size());
      ExpectEnds(attention, slice.heads.size() * shape.head_size, shape.attention_block);
      ExpectEnds(layout->FfnEnds(slice), slice.ffn.size(), shape.ffn_block);
      before = slice;
    }
    EXPECT_EQ(before.heads.end, shape.num_heads);
    EXPECT_EQ(before.kv_heads.end, shape.num_kv_heads);
    EXPECT_EQ(before.ffn.end, shape.ffn_size);
    EXPECT_EQ(before.vocabulary.end, shape.vocabulary_size);
    EXPECT_EQ(before.attention_segments.end, layout->attention_ends.size());
    EXPECT_EQ(before.ffn_segments.end, layout->ffn_ends.size());
    EXPECT_EQ(layout->Whole().heads, (ShardRange{0, shape.num_heads}));
    EXPECT_EQ(layout->AttentionEnds(layout->Whole()), layout->attention_ends);
  }
}

TEST_P(ShardLayoutTest, RefusesMoreShardsThanThereAreSegments) {
  const uint32_t most = std::min(GetParam().attention_segments, GetParam().ffn_segments);
  for (uint32_t shards : {0u, most + 1, ~0u}) {
    const absl::Status status = CutShards(GetParam().shape, shards).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("1 to " + std::to_string(most) + " shards"));
  }
}

TEST(ShardLayoutOfModelTest, UnevenKvHeadsGoToShardsInWhole) {
  const auto layout = CutShards({9, 3, 64, 1536, 49152, 32, 32}, 2);
  ASSERT_TRUE(layout.ok());
  EXPECT_THAT(layout->attention_ends, ElementsAre(192, 384, 576));
  EXPECT_EQ(layout->shards[0].kv_heads, (ShardRange{0, 1}));
  EXPECT_EQ(layout->shards[0].heads, (ShardRange{0, 3}));
  EXPECT_EQ(layout->shards[1].heads, (ShardRange{3, 9}));
  EXPECT_EQ(layout->shards[0].ffn, (ShardRange{0, 768}));
  EXPECT_EQ(layout->shards[1].vocabulary, (ShardRange{24576, 49152}));
}

TEST(ShardLayoutOfModelTest, ReadsTheBlocksOfTheFile) {
  TinyLlamaOptions options;
  options.type = TensorType::kQ8_0;
  const std::vector<uint8_t> bytes = BuildTinyLlama(options);
  const auto file = GgufFile::Parse(bytes, "tiny");
  ASSERT_TRUE(file.ok());
  const auto hyper_parameters = ReadHyperParameters(**file);
  ASSERT_TRUE(hyper_parameters.ok());
  const ShardShape shape = ReadShardShape(**file, *hyper_parameters);
  EXPECT_EQ(shape.num_kv_heads, hyper_parameters->num_kv_heads);
  EXPECT_EQ(shape.ffn_size, hyper_parameters->ffn_size);
  EXPECT_EQ(shape.attention_block, 32u);
  EXPECT_EQ(shape.ffn_block, 32u);
}

}  // namespace
}  // namespace millrace
