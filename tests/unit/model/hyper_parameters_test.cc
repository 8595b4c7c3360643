#include "model/hyper_parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/testing/gguf_builder.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {
namespace {

using testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

absl::StatusOr<HyperParameters> Read(const GgufBuilder& builder) {
  const std::vector<uint8_t> image = builder.Build();
  const auto file = GgufFile::Parse(image, "model.gguf");
  if (!file.ok()) return file.status();
  return ReadHyperParameters(**file);
}

// The message for a model that must be refused.
std::string Refusal(const GgufBuilder& builder) {
  const auto model = Read(builder);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument) << model.status();
  EXPECT_THAT(std::string(model.status().message()), testing::StartsWith("model.gguf: "));
  return std::string(model.status().message());
}

std::string RefusalAfter(const std::function<void(GgufBuilder&)>& change,
                         const TinyLlamaOptions& options = {}) {
  GgufBuilder builder = TinyLlamaBuilder(options);
  change(builder);
  return Refusal(builder);
}

HyperParameters ReadAfter(const std::function<void(GgufBuilder&)>& change,
                          const TinyLlamaOptions& options = {}) {
  GgufBuilder builder = TinyLlamaBuilder(options);
  change(builder);
  const auto model = Read(builder);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.value_or(HyperParameters());
}

TEST(HyperParametersTest, ReadsAModelOfEachType) {
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0,
                                TensorType::kQ4_0, TensorType::kQ4_1, TensorType::kQ5_0}) {
    const auto model = Read(TinyLlamaBuilder({.layers = 2, .type = type}));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->name, "tiny");
    EXPECT_EQ(model->architecture, "llama");
    EXPECT_EQ(model->num_layers, 2u);
    EXPECT_EQ(model->hidden_size, 64u);
    EXPECT_EQ(model->ffn_size, 96u);
    EXPECT_EQ(model->num_heads, 4u);
    EXPECT_EQ(model->num_kv_heads, 2u);
    EXPECT_EQ(model->head_size, 16u);
    EXPECT_EQ(model->rope_dims, 16u);
    EXPECT_EQ(model->rope_base, 10000.0);
    EXPECT_EQ(model->rope_scaling, RopeScaling::kNone);
    EXPECT_EQ(model->rms_epsilon, 1e-5f);
    EXPECT_EQ(model->vocabulary_size, 320u);
    EXPECT_EQ(model->context_tokens, 512u);
    EXPECT_TRUE(model->tied_output);
    EXPECT_EQ(model->KvBytesPerToken(2), 2u * 2 * 2 * 16 * 4);
    EXPECT_EQ(model->KvBytesPerToken(2, KvType::kF16), 2u * 2 * 2 * 16 * 2);
    EXPECT_EQ(model->KvBytesPerToken(2, KvType::kI8), 2u * 2 * 2 * (16 + 4));
  }
}

TEST(HyperParametersTest, ReadsModelsOfSuperBlocksAndMixedTypes) {
  TinyLlamaOptions options = {.layers = 2, .hidden = 256, .ffn = 512, .head_size = 64};
  for (const TensorType type : {TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K}) {
    options.type = type;
    options.types_of = {{"ffn_down.weight", TensorType::kQ6_K}, {"attn_v.weight", TensorType::kQ5_0}};
    const auto model = Read(TinyLlamaBuilder(options));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->hidden_size, 256u);
    EXPECT_EQ(model->ffn_size, 512u);
  }
}

TEST(HyperParametersTest, ReadsOtherShapes) {
  const auto wide = Read(TinyLlamaBuilder({.hidden = 32,
                                           .heads = 6,
                                           .kv_heads = 3,
                                           .head_size = 24,
                                           .rope_dims = 12,
                                           .tied = false,
                                           .rope_freqs = true,
                                           .rope_base = 5e5f}));
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_EQ(wide->head_size, 24u);
  EXPECT_EQ(wide->rope_dims, 12u);
  EXPECT_EQ(wide->rope_base, 5e5);
  EXPECT_FALSE(wide->tied_output);
}

TEST(HyperParametersTest, HasDefaults) {
  const HyperParameters model = ReadAfter(
      [](GgufBuilder& b) {
        for (const char* key : {"llama.attention.head_count_kv", "llama.rope.dimension_count",
                                "llama.rope.freq_base", "llama.vocab_size", "general.name"}) {
          EXPECT_TRUE(b.Remove(key)) << key;
        }
      },
      {.kv_heads = 4, .rope_base = 77});
  EXPECT_EQ(model.num_kv_heads, 4u);
  EXPECT_EQ(model.rope_dims, 16u);
  EXPECT_EQ(model.rope_base, 10000.0);
  EXPECT_EQ(model.vocabulary_size, 320u);
  EXPECT_EQ(model.name, "llama");
}

TEST(HyperParametersTest, EscapesTheName) {
  const HyperParameters model =
      ReadAfter([](GgufBuilder&) {}, {.name = "a\nb\xff" + std::string(10000, 'c')});
  EXPECT_THAT(model.name, testing::StartsWith("a\\nb\\xff"));
  EXPECT_LE(model.name.size(), 800u);
}

TEST(HyperParametersTest, RefusesMissingKeys) {
  for (const std::string key : {"general.architecture", "llama.block_count", "llama.context_length",
                                "llama.embedding_length", "llama.feed_forward_length",
                                "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"}) {
    EXPECT_EQ(RefusalAfter([&](GgufBuilder& b) { EXPECT_TRUE(b.Remove(key)); }),
              absl::StrCat("model.gguf: metadata key '", key, "' is missing"));
  }
}

TEST(HyperParametersTest, RefusesCountsOutOfRange) {
  const std::pair<std::string, uint64_t> kLimits[] = {
      {"llama.block_count", 1024},          {"llama.context_length", 1 << 24},
      {"llama.embedding_length", 65536},    {"llama.feed_forward_length", 1 << 20},
      {"llama.attention.head_count", 1024}, {"llama.attention.head_count_kv", 1024},
      {"llama.rope.dimension_count", 16},   {"llama.vocab_size", 1 << 22}};
  for (const auto& [key, limit] : kLimits) {
    for (const uint64_t value : {uint64_t{0}, limit + 1, uint64_t{1} << 32, UINT64_MAX}) {
      EXPECT_EQ(RefusalAfter([&, key = key](GgufBuilder& b) {
                  b.Remove(key);
                  b.AddUint64(key, value);
                }),
                absl::StrCat("model.gguf: metadata key '", key, "' is ", value, ", must be 1 to ", limit));
    }
    EXPECT_THAT(RefusalAfter([&, key = key](GgufBuilder& b) {
                  b.Remove(key);
                  b.AddNumbers<uint32_t>(key, GgufType::kUint32, {2, 2});
                }),
                HasSubstr("is an array, must be an unsigned integer"));
  }
}

TEST(HyperParametersTest, RefusesBadFloats) {
  for (const std::string key : {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"}) {
    for (const float value : {0.0f, -1.0f, kNan, kInfinity, -kInfinity, 1e30f}) {
      EXPECT_THAT(RefusalAfter([&](GgufBuilder& b) {
                    b.Remove(key);
                    b.AddFloat32(key, value);
                  }),
                  HasSubstr(absl::StrCat("metadata key '", key, "' is ")))
          << value;
    }
  }
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.Remove("llama.attention.layer_norm_rms_epsilon");
                b.AddNumber<double>("llama.attention.layer_norm_rms_epsilon", GgufType::kFloat64, 1e-300);
              }),
              HasSubstr("too small for a float"));
}

TEST(HyperParametersTest, RefusesHeadsThatDoNotFit) {
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.Remove("llama.attention.head_count_kv");
                b.AddUint32("llama.attention.head_count_kv", 3);
              }),
              HasSubstr("'llama.attention.head_count_kv' is 3, must divide the 4 heads"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.Remove("llama.attention.head_count");
                b.AddUint32("llama.attention.head_count", 6);
              }),
              HasSubstr("the hidden size 64 is not a multiple of the 6 heads"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) { b.AddUint32("llama.attention.key_length", 32); }),
              HasSubstr("keys have 32 elements a head and values 16"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.AddUint32("llama.attention.key_length", 15);
                b.AddUint32("llama.attention.value_length", 15);
              }),
              HasSubstr("the head size is 15, must be even"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.Remove("llama.rope.dimension_count");
                b.AddUint32("llama.rope.dimension_count", 7);
              }),
              HasSubstr("'llama.rope.dimension_count' is 7, must be even"));
}

TEST(HyperParametersTest, ReadsLinearRopeScaling) {
  HyperParameters model = ReadAfter([](GgufBuilder&) {}, {.rope_linear_factor = 4});
  EXPECT_EQ(model.rope_scaling, RopeScaling::kLinear);
  EXPECT_EQ(model.rope_scale_factor, 4.0);
  // Without a type the factor alone means linear scaling, also under its old name.
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    model = ReadAfter([&](GgufBuilder& b) { b.AddFloat32(key, 2); });
    EXPECT_EQ(model.rope_scaling, RopeScaling::kLinear);
    EXPECT_EQ(model.rope_scale_factor, 2.0);
  }
  model = ReadAfter([](GgufBuilder& b) {
    b.AddString("llama.rope.scaling.type", "none");
    b.AddFloat32("llama.rope.scaling.factor", 2);
  });
  EXPECT_EQ(model.rope_scaling, RopeScaling::kNone);
  EXPECT_EQ(model.rope_scale_factor, 1.0);
  model = ReadAfter([](GgufBuilder& b) { b.AddFloat32("llama.rope.scaling.factor", 1); });
  EXPECT_EQ(model.rope_scaling, RopeScaling::kNone);
}

TEST(HyperParametersTest, RefusesOtherRopeScaling) {
  for (const char* type : {"yarn", "longrope", "", "lin\near"}) {
    EXPECT_THAT(RefusalAfter([&](GgufBuilder& b) { b.AddString("llama.rope.scaling.type", type); }),
                HasSubstr("only 'none' and 'linear' are supported"));
  }
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) { b.AddString("llama.rope.scaling.type", "linear"); }),
              HasSubstr("'llama.rope.scaling.factor' is missing"));
  for (const float factor : {0.0f, -2.0f, kNan, kInfinity, 1e-20f, 1e20f}) {
    EXPECT_THAT(RefusalAfter([&](GgufBuilder& b) { b.AddFloat32("llama.rope.scaling.factor", factor); }),
                HasSubstr("'llama.rope.scaling.factor' is "));
  }
}

TEST(HyperParametersTest, RefusesOtherKindsOfModel) {
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.Remove("general.architecture");
                b.AddString("general.architecture", "qwen2");
              }),
              HasSubstr("'general.architecture' is 'qwen2'; only 'llama'"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) { b.AddUint32("llama.expert_count", 8); }),
              HasSubstr("mixture of 8 experts"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) { b.AddBool("llama.attention.causal", false); }),
              HasSubstr("not causal"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) { b.AddUint32("llama.attention.sliding_window", 256); }),
              HasSubstr("sliding window of 256 tokens"));
  const HyperParameters same = ReadAfter([](GgufBuilder& b) {
    b.AddUint32("llama.expert_count", 0);
    b.AddBool("llama.attention.causal", true);
    b.AddUint32("llama.attention.sliding_window", 512);
  });
  EXPECT_EQ(same.num_layers, 3u);
}

TEST(HyperParametersTest, RefusesVocabulariesOfAnotherSize) {
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.Remove("llama.vocab_size");
                b.AddUint32("llama.vocab_size", 321);
              }),
              HasSubstr("'llama.vocab_size' is 321, but tensor 'token_embd.weight' has 320 rows"));
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                b.Remove("tokenizer.ggml.tokens");
                b.AddStrings("tokenizer.ggml.tokens", {"a", "b"});
              }),
              HasSubstr("'tokenizer.ggml.tokens' has 2 tokens, but tensor 'token_embd.weight' has 320 rows"));
}

const TinyLlamaOptions kWhole = {.layers = 2, .tied = false, .rope_freqs = true};

std::vector<std::string> TensorNames(const TinyLlamaOptions& options) {
  const std::vector<uint8_t> image = BuildTinyLlama(options);
  const auto file = GgufFile::Parse(image, "names");
  EXPECT_TRUE(file.ok()) << file.status();
  std::vector<std::string> names;
  for (const TensorInfo& tensor : (*file)->tensors()) names.push_back(tensor.name);
  return names;
}

TEST(HyperParametersTest, RefusesMissingTensors) {
  int needed = 0;
  for (const std::string& name : TensorNames(kWhole)) {
    if (name == "output.weight" || name == "rope_freqs.weight") continue;
    ++needed;
    EXPECT_EQ(RefusalAfter([&](GgufBuilder& b) { EXPECT_TRUE(b.RemoveTensor(name)); }, kWhole),
              absl::StrCat("model.gguf: tensor '", name, "' is missing"));
  }
  EXPECT_EQ(needed, 2 * 9 + 2);
}

TEST(HyperParametersTest, RefusesWrongShapes) {
  for (const std::string& name : TensorNames(kWhole)) {
    const std::string another = RefusalAfter(
        [&](GgufBuilder& b) {
          GgufTensorSpec* tensor = b.FindTensor(name);
          tensor->shape.back() += 1;
          tensor->bytes.resize(tensor->bytes.size() + tensor->shape[0] * sizeof(float));
        },
        kWhole);
    // One more row of the embedding is another vocabulary.
    EXPECT_THAT(another, HasSubstr(name == "token_embd.weight" ? "has 321 rows"
                                                               : "tensor '" + name + "' has shape ["));
    EXPECT_THAT(RefusalAfter([&](GgufBuilder& b) { b.FindTensor(name)->shape.push_back(1); }, kWhole),
                HasSubstr("tensor '" + name + "' has shape ["));
  }
  EXPECT_THAT(RefusalAfter([](GgufBuilder& b) {
                std::swap(b.FindTensor("blk.1.ffn_up.weight")->shape[0],
                          b.FindTensor("blk.1.ffn_up.weight")->shape[1]);
              }),
              HasSubstr("tensor 'blk.1.ffn_up.weight' has shape [96, 64], must be [64, 96]"));
}

TEST(HyperParametersTest, RefusesNormsThatAreNotF32) {
  for (const std::string name :
       {"blk.0.attn_norm.weight", "blk.1.ffn_norm.weight", "output_norm.weight", "rope_freqs.weight"}) {
    EXPECT_EQ(RefusalAfter([&](GgufBuilder& b) { b.FindTensor(name)->type = 1; }, kWhole),
              absl::StrCat("model.gguf: tensor '", name, "' has type F16, must be F32"));
  }
}

TEST(HyperParametersTest, RefusesTensorsItWouldNotUse) {
  const auto add = [](const std::string& name) {
    return [name](GgufBuilder& b) { b.AddTensor({name, 0, {64}, std::vector<uint8_t>(64 * 4), {}}); };
  };
  EXPECT_EQ(RefusalAfter(add("blk.0.attn_q.bias")),
            "model.gguf: tensor 'blk.0.attn_q.bias': models with biases are not supported");
  EXPECT_THAT(RefusalAfter(add("blk.0.attn_q_norm.weight")),
              HasSubstr("tensor 'blk.0.attn_q_norm.weight' is not part of"));
  EXPECT_THAT(RefusalAfter(add("blk.3.attn_norm.weight")),
              HasSubstr("tensor 'blk.3.attn_norm.weight' is not part of"));
}

TEST(HyperParametersTest, RefusesRopeFrequenciesThatCannotDivide) {
  for (const float value : {0.0f, -1.0f, kNan, kInfinity}) {
    EXPECT_THAT(RefusalAfter(
                    [&](GgufBuilder& b) {
                      std::memcpy(b.FindTensor("rope_freqs.weight")->bytes.data() + 7 * sizeof(float), &value,
                                  sizeof(float));
                    },
                    kWhole),
                HasSubstr("tensor 'rope_freqs.weight' element 7 is "));
  }
}

TEST(HyperParametersTest, FindsTensorsByRole) {
  const std::vector<uint8_t> image = BuildTinyLlama(kWhole);
  const auto file = GgufFile::Parse(image, "whole");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(ReadHyperParameters(**file).ok());
  for (uint32_t layer = 0; layer < 2; ++layer) {
    const LayerTensors t = FindLayerTensors(**file, layer);
    const std::pair<const TensorInfo*, std::string> kRoles[] = {
        {t.attn_norm, "attn_norm"}, {t.attn_q, "attn_q"},           {t.attn_k, "attn_k"},
        {t.attn_v, "attn_v"},       {t.attn_output, "attn_output"}, {t.ffn_norm, "ffn_norm"},
        {t.ffn_gate, "ffn_gate"},   {t.ffn_up, "ffn_up"},           {t.ffn_down, "ffn_down"}};
    for (const auto& [tensor, role] : kRoles)
      EXPECT_EQ(tensor->name, absl::StrCat("blk.", layer, ".", role, ".weight"));
  }
  const EndTensors ends = FindEndTensors(**file);
  EXPECT_EQ(ends.token_embedding->name, "token_embd.weight");
  EXPECT_EQ(ends.output_norm->name, "output_norm.weight");
  EXPECT_EQ(ends.output->name, "output.weight");
  EXPECT_EQ(ends.rope_freqs->name, "rope_freqs.weight");

  const std::vector<uint8_t> tied_image = BuildTinyLlama({});
  const auto tied = GgufFile::Parse(tied_image, "tied");
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_EQ(FindEndTensors(**tied).output, FindEndTensors(**tied).token_embedding);
  EXPECT_EQ(FindEndTensors(**tied).rope_freqs, nullptr);
}

TEST(HyperParametersTest, AddsUpTheWeightsOfAStage) {
  constexpr uint64_t kLayer = 4 * (64 + 64 * 64 + 2 * 32 * 64 + 64 * 64 + 64 + 3 * 96 * 64);
  constexpr uint64_t kEmbedding = 4 * 320 * 64;
  constexpr uint64_t kNorm = 4 * 64;
  constexpr uint64_t kFreqs = 4 * 8;
  const std::vector<uint8_t> tied_image = BuildTinyLlama({.layers = 3});
  const auto tied = GgufFile::Parse(tied_image, "tied");
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_EQ(StageWeightBytes(**tied, 0, 3, true, true), 3 * kLayer + kEmbedding + kNorm);
  EXPECT_EQ(StageWeightBytes(**tied, 0, 1, true, false), kLayer + kEmbedding);
  EXPECT_EQ(StageWeightBytes(**tied, 1, 1, false, false), kLayer);
  EXPECT_EQ(StageWeightBytes(**tied, 1, 2, false, true), 2 * kLayer + kNorm + kEmbedding);
  const std::vector<uint8_t> whole_image = BuildTinyLlama(kWhole);
  const auto whole = GgufFile::Parse(whole_image, "whole");
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(StageWeightBytes(**whole, 0, 2, true, true), 2 * kLayer + 2 * kEmbedding + kNorm + kFreqs);
  EXPECT_EQ(StageWeightBytes(**whole, 1, 1, false, true), kLayer + kEmbedding + kNorm + kFreqs);
}

}  // namespace
}  // namespace millrace
