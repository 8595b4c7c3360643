#include "worker/stage/stage_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/expect_close.h"
#include "tests/testing/tiny_llama.h"
#include "tests/unit/stage/naive_llama.h"
#include "tests/unit/stage/stage_ring.h"
#include "worker/device/cpu/host_devices.h"
#include "worker/stage/sampler.h"

namespace millrace::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

struct Shape {
  std::string name;
  TinyLlamaOptions options;
};

void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.name;
}

TinyLlamaOptions OfType(TensorType type) {
  TinyLlamaOptions options;
  options.type = type;
  if (LayoutOf(type).elements == 256) {
    options.hidden = options.ffn = 256;
    options.head_size = 64;
    options.weight_std = 0.05f;
  }
  return options;
}

// All tensor types, tied and not; one, some and as many KV heads as query heads; heads that do not fill the
// hidden size; partly rotated heads; both ways to stretch RoPE.
std::vector<Shape> Shapes() {
  std::vector<Shape> shapes = {{"F32", OfType(TensorType::kF32)},   {"F16", OfType(TensorType::kF16)},
                               {"BF16", OfType(TensorType::kBF16)}, {"Q8_0", OfType(TensorType::kQ8_0)},
                               {"Q4_0", OfType(TensorType::kQ4_0)}, {"Q4_1", OfType(TensorType::kQ4_1)},
                               {"Q5_0", OfType(TensorType::kQ5_0)}};
  // The mixes that are called Q4_K_M and Q5_K_M.
  for (const TensorType type : {TensorType::kQ4_K, TensorType::kQ5_K}) {
    TinyLlamaOptions mixed = OfType(type);
    for (const char* finer : {"attn_v.weight", "ffn_down.weight", "token_embd.weight"}) {
      mixed.types_of.emplace_back(finer, TensorType::kQ6_K);
    }
    shapes.push_back({std::string(NameOf(type)) + "_M", mixed});
  }
  TinyLlamaOptions untied = OfType(TensorType::kQ8_0);
  untied.tied = false;
  untied.kv_heads = 4;
  shapes.push_back({"UntiedNotGrouped", untied});
  TinyLlamaOptions one_kv_head = OfType(TensorType::kBF16);
  one_kv_head.kv_heads = 1;
  one_kv_head.rope_freqs = true;
  shapes.push_back({"OneKvHeadRopeFreqs", one_kv_head});
  TinyLlamaOptions odd;
  odd.heads = 3;
  odd.kv_heads = 3;
  odd.head_size = 24;
  odd.rope_dims = 20;
  odd.rope_linear_factor = 2.5f;
  odd.vocabulary = 333;
  odd.ffn = 100;
  odd.hidden = 68;
  shapes.push_back({"OddSizesLinearScaling", odd});
  return shapes;
}

std::string NameOfShape(const ::testing::TestParamInfo<Shape>& info) {
  return info.param.name;
}

class StageModelTest : public ::testing::TestWithParam<Shape> {
 protected:
  StageModelTest() : model_(TestModel::FromBytes(BuildTinyLlama(GetParam().options), "auto")) {
    sequence_.tokens = RandomTokens(50, model_.shape.vocabulary_size, 1);
    sequence_.blocks = Blocks(0, 50);
  }
  std::vector<float> WholeLogits() {
    StageRing ring(model_, {});
    return AllLogits(ring, sequence_, 50);
  }

  TestModel model_;
  TestSequence sequence_;
};
INSTANTIATE_TEST_SUITE_P(Shapes, StageModelTest, ::testing::ValuesIn(Shapes()), NameOfShape);

std::vector<float> ToFloat(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

TEST_P(StageModelTest, AgreesWithTheModelByTheBook) {
  const NaiveLlama::Trace expected = NaiveLlama(*model_.file, model_.shape).Run(sequence_.tokens);
  for (const char* isa : {"reference", "portable", "auto"}) {
    model_.backend = MakeBackend(isa);
    StageRing ring(model_, {.layers = {1, 1, 1}});
    // Float32 sums of a few hundred terms of order 1.
    const Tolerance tolerance{.absolute = 2e-5, .relative = 2e-5};
    EXPECT_TRUE(IsClose(AllLogits(ring, sequence_, 50), ToFloat(expected.logits), tolerance)) << isa;
    for (size_t layer = 0; layer < 3; ++layer) {
      EXPECT_TRUE(IsClose(ring.hops()[layer], ToFloat(expected.residual[layer + 1]), tolerance))
          << isa << layer;
    }
  }
}

TEST_P(StageModelTest, GivesTheSameBitsInAnyNumberOfStages) {
  const std::vector<float> whole = WholeLogits();
  for (const std::vector<uint32_t>& layers : std::vector<std::vector<uint32_t>>{{1, 2}, {2, 1}, {1, 1, 1}}) {
    StageRing ring(model_, {.layers = layers});
    EXPECT_TRUE(IsBitEqual(AllLogits(ring, sequence_, 50), whole)) << layers.size() << " stages";
  }
}

TEST_P(StageModelTest, GivesTheSameBitsInAnyChunks) {
  const std::vector<float> whole = WholeLogits();
  for (uint32_t chunk : {1, 2, 7, 16, 17, 33, 49}) {
    StageRing ring(model_, {.max_rows = chunk});
    EXPECT_TRUE(IsBitEqual(AllLogits(ring, sequence_, chunk), whole)) << "chunks of " << chunk;
  }
}

TEST_P(StageModelTest, GivesTheSameBitsForAnyBlocks) {
  const std::vector<float> whole = WholeLogits();
  for (const std::vector<BlockId>& blocks :
       std::vector<std::vector<BlockId>>{{255, 0, 17, 4}, {9, 8, 7, 6}}) {
    StageRing ring(model_, {});
    sequence_.blocks = blocks;
    EXPECT_TRUE(IsBitEqual(AllLogits(ring, sequence_, 13), whole));
  }
}

// Microbatches of 16 other sequences, in prefill and in decode, with this one's rows first, last and in
// between.
TEST_P(StageModelTest, GivesTheSameBitsAmongOthers) {
  const std::vector<float> whole = WholeLogits();
  StageRing ring(model_, {.layers = {2, 1}, .max_rows = 128});
  const size_t vocabulary = model_.shape.vocabulary_size;
  std::vector<uint32_t> done(17, 0);
  const auto other = [&](uint32_t i) {
    TestSequence sequence{i + 100, RandomTokens(64, vocabulary, i + 100), Blocks(255 - 4 * i, 64, -1)};
    const uint32_t rows = i % 3 == 0 ? 4 : 1;
    StageSegment segment = sequence.Segment(done[i], rows);
    done[i] += rows;
    return segment;
  };
  uint32_t first = 0;
  for (uint32_t step = 0; first < 50; ++step) {
    const uint32_t rows = std::min<uint32_t>(step % 2 == 0 ? 5 : 6, 50 - first);
    std::vector<StageSegment> segments;
    for (uint32_t i = 0; i < 16; ++i) segments.push_back(other(i));
    const size_t place = step * 3 % 17;
    segments.insert(segments.begin() + place, sequence_.Segment(first, rows));
    uint32_t row = 0;
    for (size_t i = 0; i < place; ++i) row += segments[i].token_ids.size();
    ring.Run(BatchOf(segments));
    for (uint32_t i = 0; i < rows; ++i) {
      const std::vector<float> expected(whole.begin() + (first + i) * vocabulary,
                                        whole.begin() + (first + i + 1) * vocabulary);
      ASSERT_TRUE(IsBitEqual(ring.Logits(row + i), expected)) << "position " << first + i;
    }
    first += rows;
  }
}

// A block carries whatever its last owner left there, and that may be anything.
TEST_P(StageModelTest, WhatABlockHeldBeforeDoesNotMatter) {
  const std::vector<float> whole = WholeLogits();
  StageRing ring(model_, {});
  const KvCache::Shape& shape = ring.cache(0).shape();
  const size_t bytes =
      sizeof(float) * shape.num_blocks * shape.block_tokens * shape.kv_heads * shape.head_size;
  for (uint32_t layer = 0; layer < shape.num_layers; ++layer) {
    const kernels::PagedKv kv = ring.cache(0).Layer(layer);
    std::fill_n(kv.key_blocks, bytes, 0xFF);  // NaN everywhere
    std::fill_n(kv.value_blocks, bytes, 0xFF);
  }
  EXPECT_TRUE(IsBitEqual(AllLogits(ring, sequence_, 9), whole));
}

// The same for the buffers that residual streams live in, behind their rows, too.
TEST_P(StageModelTest, WhatABufferHeldBeforeDoesNotMatter) {
  StageRing ring(model_, {});
  const StageBatch batch = BatchOf({sequence_.Segment(0, 9)});
  std::shared_ptr<PooledBuffer> residual = *ring.stage(0).Run(batch, nullptr, ring.cache(0));
  const PooledBuffer* const used = residual.get();
  const std::vector<float> clean(residual->floats(), residual->floats() + residual->num_floats());
  std::fill_n(residual->floats(), residual->capacity / sizeof(float),
              std::numeric_limits<float>::quiet_NaN());
  residual.reset();
  residual = *ring.stage(0).Run(batch, nullptr, ring.cache(0));
  ASSERT_EQ(residual.get(), used);
  EXPECT_TRUE(IsBitEqual(clean, {residual->floats(), residual->floats() + residual->num_floats()}));
  for (size_t i = residual->num_floats(); i < residual->capacity / sizeof(float); ++i) {
    ASSERT_TRUE(std::isnan(residual->floats()[i])) << "wrote behind the rows";
  }
}

TEST_P(StageModelTest, WeightBytesAreThoseOfTheFile) {
  for (const std::vector<uint32_t>& layers : std::vector<std::vector<uint32_t>>{{3}, {1, 1, 1}}) {
    StageRing ring(model_, {.layers = layers});
    for (size_t i = 0; i < layers.size(); ++i) {
      EXPECT_EQ(ring.stage(i).weight_bytes(),
                StageWeightBytes(*model_.file, i, layers[i], i == 0, i + 1 == layers.size()));
    }
  }
  uint64_t all = 0;
  for (const TensorInfo& tensor : model_.file->tensors()) all += tensor.bytes.size();
  StageRing whole(model_, {});
  EXPECT_EQ(whole.stage(0).weight_bytes(), all);
}

// Each product rounds its input to 1/254 of the largest of 32 values, 0.4 % of them: noise of about 1 % after
// 3 layers, far from what a wrong scale, minimum or order of blocks would give.
TEST_P(StageModelTest, EightBitActivationsGiveNearlyTheSame) {
  const std::vector<float> exact = WholeLogits();
  const TestModel rounded = TestModel::FromBytes(BuildTinyLlama(GetParam().options),
                                                 {.activations = kernels::ActivationType::kInt8});
  StageRing ring(rounded, {});
  const std::vector<float> logits = AllLogits(ring, sequence_, 50);
  if (LayoutOf(GetParam().options.type).elements == 1) {
    EXPECT_TRUE(IsBitEqual(logits, exact)) << "weights in float are not packed";
    return;
  }
  EXPECT_FALSE(IsBitEqual(logits, exact)) << "nothing was packed";
  double noise = 0, signal = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    noise += std::pow(logits[i] - exact[i], 2);
    signal += std::pow(exact[i], 2);
  }
  EXPECT_LT(std::sqrt(noise / signal), 0.03);
  const double error = std::sqrt(noise / exact.size());
  const size_t vocabulary = model_.shape.vocabulary_size;
  for (size_t row = 0; row < 50; ++row) {
    const auto begin = exact.begin() + row * vocabulary;
    const size_t best = std::max_element(begin, begin + vocabulary) - begin;
    const float* ours = logits.data() + row * vocabulary;
    const size_t chosen = std::max_element(ours, ours + vocabulary) - ours;
    // Chosen instead only if both were within a few errors of each other.
    EXPECT_LE(begin[best] - begin[chosen], 8 * error) << row;
  }
}

TEST(StagePackingTest, TakesLittleMoreThanTheFile) {
  for (const TensorType type : {TensorType::kQ4_1, TensorType::kQ8_0, TensorType::kQ4_K}) {
    TinyLlamaOptions options = OfType(type);
    options.layers = 1;
    options.hidden = options.ffn = 1024;
    options.heads = options.kv_heads = 8;
    options.head_size = 128;
    options.tied = false;
    TestModel model = TestModel::FromBytes(BuildTinyLlama(options), "auto");
    const uint64_t exact = StageRing(model, {}).stage(0).weight_bytes();
    model.backend = MakeBackend(kernels::CpuBackendOptions{.activations = kernels::ActivationType::kInt8});
    const uint64_t packed = StageRing(model, {}).stage(0).weight_bytes();
    EXPECT_LE(packed, exact * 1.03) << NameOf(type);
  }
}

class StageSampleTest : public ::testing::Test {
 protected:
  StageSampleTest() : model_(TestModel::FromBytes(BuildTinyLlama(TinyLlamaOptions()), "auto")) {}

  TestSequence Sequence(uint32_t i) const {
    return {i + 1, RandomTokens(40, model_.shape.vocabulary_size, i), Blocks(3 * i, 40)};
  }

  TestModel model_;
};

bool SameLogprobs(const TokenLogprobs& a, const TokenLogprobs& b) {
  return a.token == b.token && a.logprob == b.logprob && a.top == b.top;
}

TEST_F(StageSampleTest, GivesOneResultForEachSegmentThatAsksInOrder) {
  StageRing ring(model_, {});
  std::vector<StageSegment> segments;
  for (uint32_t i = 0; i < 4; ++i) segments.push_back(Sequence(i).Segment(0, 3 + i));
  segments[1].sampling.emplace().temperature = 0;
  segments[2].prompt_logprobs = 0;
  segments[3].sampling.emplace().temperature = 0;
  segments[3].sampling->logprobs = 2;
  const std::vector<SequenceResult> results = ring.Run(BatchOf(segments));
  ASSERT_THAT(results, SizeIs(3));
  EXPECT_EQ(results[0].sequence, SequenceId(2));
  EXPECT_EQ(results[0].position, 4u);
  EXPECT_TRUE(results[0].token.has_value());
  EXPECT_FALSE(results[0].logprobs.has_value());
  EXPECT_THAT(results[0].prompt_logprobs, IsEmpty());
  EXPECT_EQ(results[1].sequence, SequenceId(3));
  EXPECT_FALSE(results[1].token.has_value());
  EXPECT_EQ(results[1].first_prompt_position, 1u);
  EXPECT_THAT(results[1].prompt_logprobs, SizeIs(4)) << "the last of 5 rows has no next prompt token here";
  EXPECT_EQ(results[2].sequence, SequenceId(4));
  EXPECT_EQ(results[2].position, 6u);
  EXPECT_THAT(results[2].logprobs->top, SizeIs(2));
}

TEST_F(StageSampleTest, GivesNothingToWhoDoesNotAsk) {
  StageRing ring(model_, {});
  EXPECT_THAT(ring.Run(BatchOf({Sequence(0).Segment(0, 5)})), IsEmpty());
}

TEST_F(StageSampleTest, SamplesFromTheLogitsOfTheLastRow) {
  StageRing ring(model_, {});
  StageSegment segment = Sequence(0).Segment(0, 5);
  SamplingOptions& options = segment.sampling.emplace();
  options.temperature = 1.5f;
  options.seed = 99;
  options.frequency_penalty = 1;
  options.logprobs = 3;
  segment.suppressed_ids = {5, 6};
  segment.history = segment.token_ids;
  segment.history_prompt_tokens = 2;
  const std::vector<SequenceResult> results = ring.Run(BatchOf({segment}));
  const std::vector<float> logits = ring.Logits(4);
  Sampler sampler(model_.shape.vocabulary_size);
  SampleInput input;
  input.logits = logits;
  input.options = &options;
  input.history = segment.history;
  input.history_prompt_tokens = 2;
  input.suppressed_ids = segment.suppressed_ids;
  input.position = 5;
  ASSERT_THAT(results, SizeIs(1));
  EXPECT_EQ(results[0].token, sampler.Sample(input));
  EXPECT_TRUE(SameLogprobs(*results[0].logprobs, ComputeLogprobs(logits, *results[0].token, 3)));
}

TEST_F(StageSampleTest, AnswersMoreRowsThanLogitsAreMadeForAtOnce) {
  std::vector<StageSegment> segments;
  for (uint32_t i = 0; i < 20; ++i) {
    segments.push_back(Sequence(i).Segment(0, 3));
    segments.back().sampling.emplace().temperature = 0;
    segments.back().prompt_logprobs = 1;
  }
  StageRing ring(model_, {});
  const std::vector<SequenceResult> together = ring.Run(BatchOf(segments));
  ASSERT_THAT(together, SizeIs(20));
  for (uint32_t i = 0; i < 20; ++i) {
    StageRing alone(model_, {});
    const std::vector<SequenceResult> expected = alone.Run(BatchOf({segments[i]}));
    EXPECT_EQ(together[i].token, expected[0].token);
    ASSERT_THAT(together[i].prompt_logprobs, SizeIs(2));
    EXPECT_TRUE(SameLogprobs(together[i].prompt_logprobs[0], expected[0].prompt_logprobs[0]));
    EXPECT_TRUE(SameLogprobs(together[i].prompt_logprobs[1], expected[0].prompt_logprobs[1]));
  }
}

TEST_F(StageSampleTest, PromptLogprobsAreThoseOfTheNextTokenAcrossChunks) {
  const TestSequence sequence = Sequence(7);
  const std::vector<float> logits = [&] {
    StageRing ring(model_, {});
    return AllLogits(ring, sequence, 40);
  }();
  const size_t vocabulary = model_.shape.vocabulary_size;
  for (uint32_t chunk : {1, 9, 40}) {
    StageRing ring(model_, {.layers = {1, 2}});
    uint32_t position = 1;
    for (uint32_t first = 0; first < 40; first += chunk) {
      const uint32_t rows = std::min(chunk, 40 - first);
      StageSegment segment = sequence.Segment(first, rows);
      segment.prompt_logprobs = 5;
      if (first + rows < 40) segment.next_prompt_id = sequence.tokens[first + rows];
      const std::vector<SequenceResult> results = ring.Run(BatchOf({segment}));
      ASSERT_THAT(results, SizeIs(1));
      EXPECT_EQ(results[0].first_prompt_position, position);
      for (const TokenLogprobs& logprobs : results[0].prompt_logprobs) {
        const absl::Span<const float> row =
            absl::MakeConstSpan(logits).subspan((position - 1) * vocabulary, vocabulary);
        EXPECT_TRUE(SameLogprobs(logprobs, ComputeLogprobs(row, sequence.tokens[position], 5))) << position;
        ++position;
      }
    }
    EXPECT_EQ(position, 40u) << "every token but the first";
  }
}

class StageCreateTest : public StageSampleTest {
 protected:
  absl::Status Create(const StageLayout& layout, uint32_t max_rows = 8, uint32_t context_tokens = 64) {
    return StageModel::Create(*model_.file, model_.shape, devices_, {layout, max_rows, context_tokens})
        .status();
  }

  HostDevices devices_{{model_.backend.get()}};
};

TEST_F(StageCreateTest, RefusesALayoutOutsideTheModel) {
  for (const StageLayout& layout :
       {StageLayout{0, 0, true, false}, StageLayout{0, 4, true, true}, StageLayout{3, 1, false, true},
        StageLayout{2, ~0u, false, true}, StageLayout{0, 2, false, false}, StageLayout{1, 2, true, true},
        StageLayout{1, 2, false, false}, StageLayout{0, 2, true, true}}) {
    EXPECT_EQ(Create(layout).code(), absl::StatusCode::kInvalidArgument)
        << layout.first_layer << " " << layout.num_layers;
  }
  EXPECT_EQ(Create({1, 2, false, true}), absl::OkStatus());
}

TEST_F(StageCreateTest, RefusesSizesOutOfRange) {
  const StageLayout all{0, 3, true, true};
  EXPECT_THAT(std::string(Create(all, 0, 64).message()), HasSubstr("max_rows is 0"));
  EXPECT_THAT(std::string(Create(all, 8, 0).message()), HasSubstr("context of 0 tokens"));
  EXPECT_THAT(std::string(Create(all, 8, 513).message()), HasSubstr("context of 513 tokens; must be 1 to"));
  EXPECT_EQ(Create(all, 8, 512), absl::OkStatus());
}

TEST_F(StageCreateTest, ReportsProgressToTheEnd) {
  std::vector<std::pair<uint64_t, uint64_t>> calls;
  const auto stage = StageModel::Create(
      *model_.file, model_.shape, devices_,
      {{0, 3, true, true}, 8, 64, [&](uint64_t done, uint64_t total) { calls.emplace_back(done, total); }});
  ASSERT_TRUE(stage.ok());
  ASSERT_FALSE(calls.empty());
  EXPECT_EQ(calls.back(), std::make_pair((*stage)->weight_bytes(), (*stage)->weight_bytes()));
  EXPECT_TRUE(std::is_sorted(calls.begin(), calls.end()));
}

TEST_F(StageCreateTest, ActivationBytesGrowWithTheRowsByWhatARowNeeds) {
  const auto bytes = [&](uint32_t rows) {
    StageRing ring(model_, {.max_rows = rows});
    return ring.stage(0).activation_bytes();
  };
  // residual, normed, queries, keys, values, attended, gate, up: floats; token id and position.
  const uint64_t row = 4 * (64 + 64 + 64 + 32 + 32 + 64 + 96 + 96 + 2);
  EXPECT_GE(bytes(600) - bytes(500), 100 * row);
  EXPECT_LE(bytes(600) - bytes(500), 3 * 100 * row);
}

}  // namespace
}  // namespace millrace::testing
