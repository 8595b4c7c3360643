#include "coordinator/planner/model_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

// As the models' own cards and `sum(p.numel())` of their published weights say.
TEST(NamedShapeTest, HasThePublishedNumberOfParameters) {
  const std::map<std::string, double> published = {
      {"Llama-2-7B", 6738415616.0},  {"Llama-2-13B", 13015864320.0},   {"Llama-2-70B", 68976648192.0},
      {"Llama-3-8B", 8030261248.0},  {"Llama-3-70B", 70553706496.0},   {"SmolLM2-135M", 134515008.0},
      {"SmolLM2-360M", 361821120.0}, {"SmolLM2-1.7B", 1711376384.0},   {"Qwen2.5-0.5B", 494032768.0},
      {"Qwen2.5-7B", 7615616512.0},  {"TinyLlama-1.1B", 1100048384.0}, {"Mistral-7B", 7241732096.0}};
  for (const auto& [name, parameters] : published) {
    const auto shape = NamedShape(name);
    ASSERT_TRUE(shape.ok()) << shape.status();
    EXPECT_EQ(shape->parameters, parameters) << name;
  }
  // Its paper says 175.0 B (table 2.1), with two digits after the point in places and none in others.
  EXPECT_NEAR(NamedShape("GPT-3-175B")->parameters, 175e9, 0.5e9);
  EXPECT_EQ(ShapeNames().size(), published.size() + 1);
}

TEST(NamedShapeTest, WeighsWhatSixteenBitParametersWeigh) {
  for (const std::string& name : ShapeNames()) {
    const auto shape = NamedShape(name);
    ASSERT_TRUE(shape.ok());
    EXPECT_EQ(static_cast<double>(shape->WeightBytes({0, shape->num_layers})), 2 * shape->parameters) << name;
  }
}

TEST(NamedShapeTest, Llama2KeepsTwoGibibytesOfKvCacheFor4096Tokens) {
  const auto shape = NamedShape("llama-2-7b");
  ASSERT_TRUE(shape.ok());
  EXPECT_EQ(shape->KvBytesPerToken(32) * 4096, uint64_t{2} << 30);
  EXPECT_NEAR(static_cast<double>(shape->WeightBytes({0, 32})), 13.48e9, 0.01e9);
}

TEST(NamedShapeTest, StagesOfAnUntiedModelAddUpToTheWhole) {
  const auto shape = NamedShape("Llama-3-8B");
  ASSERT_TRUE(shape.ok());
  EXPECT_EQ(shape->WeightBytes({0, 20}) + shape->WeightBytes({20, 12}), shape->WeightBytes({0, 32}));
}

TEST(NamedShapeTest, ATiedMatrixIsOnBothEndStages) {
  const auto shape = NamedShape("SmolLM2-135M");
  ASSERT_TRUE(shape.ok());
  EXPECT_EQ(shape->WeightBytes({0, 20}) + shape->WeightBytes({20, 10}),
            shape->WeightBytes({0, 30}) + uint64_t{49152} * 576 * 2);
}

TEST(NamedShapeTest, AnUnknownNameListsTheKnownOnes) {
  const absl::Status status = NamedShape("llama-9").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'llama-9'"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("SmolLM2-360M"));
}

class FileShapeTest : public ::testing::TestWithParam<bool> {};

TEST_P(FileShapeTest, AgreesWithWhatTheWorkersCount) {
  TinyLlamaOptions options;
  options.tied = GetParam();
  options.rope_freqs = true;
  const std::vector<uint8_t> bytes = BuildTinyLlama(options);
  const auto file = GgufFile::Parse(bytes, "tiny");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto parameters = ReadHyperParameters(**file);
  ASSERT_TRUE(parameters.ok());
  ModelShape shape = ReadModelShape(**file, *parameters);
  for (uint32_t first = 0; first < options.layers; ++first) {
    for (uint32_t count = 1; first + count <= options.layers; ++count) {
      EXPECT_EQ(shape.WeightBytes({first, count}),
                StageWeightBytes(**file, first, count, first == 0, first + count == options.layers))
          << first << " " << count;
    }
  }
  EXPECT_EQ(shape.layer_elements[0], 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96);
  EXPECT_EQ(shape.output_elements, 320 * 64);
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kI8}) {
    shape.kv_type = type;
    EXPECT_EQ(shape.KvBytesPerToken(3), parameters->KvBytesPerToken(3, type));
  }
}

INSTANTIATE_TEST_SUITE_P(TiedOrNot, FileShapeTest, ::testing::Bool());

}  // namespace
}  // namespace millrace
