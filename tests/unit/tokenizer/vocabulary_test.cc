#include "model/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/gguf_file.h"
#include "model/tokenizer.h"
#include "tests/testing/gguf_builder.h"
#include "tests/unit/tokenizer/small_vocabulary.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

std::vector<int32_t> TypeNumbers(const Vocabulary& vocabulary) {
  std::vector<int32_t> types;
  for (TokenType type : vocabulary.types) types.push_back(static_cast<int32_t>(type));
  return types;
}

// The small vocabulary as a file.
GgufBuilder SmallFile() {
  const Vocabulary vocabulary = SmallVocabulary();
  GgufBuilder file;
  file.AddString("tokenizer.ggml.model", "gpt2");
  file.AddString("tokenizer.ggml.pre", vocabulary.pre_tokenizer);
  file.AddStrings("tokenizer.ggml.tokens", vocabulary.tokens);
  file.AddNumbers<int32_t>("tokenizer.ggml.token_type", GgufType::kInt32, TypeNumbers(vocabulary));
  file.AddStrings("tokenizer.ggml.merges", vocabulary.merges);
  file.AddUint32("tokenizer.ggml.bos_token_id", *vocabulary.bos);
  file.AddUint32("tokenizer.ggml.eos_token_id", *vocabulary.eos);
  return file;
}

absl::StatusOr<Vocabulary> Read(const GgufBuilder& builder) {
  const std::vector<uint8_t> image = builder.Build();
  const auto file = GgufFile::Parse(image, "small.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  return ReadVocabulary(**file);
}

TEST(VocabularyTest, ReadsEveryKey) {
  GgufBuilder builder = SmallFile();
  builder.AddBool("tokenizer.ggml.add_bos_token", true);
  builder.AddUint32("tokenizer.ggml.eot_token_id", 3);
  builder.AddUint32("tokenizer.ggml.eom_token_id", 4);
  const auto vocabulary = Read(builder);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  const Vocabulary expected = SmallVocabulary();
  EXPECT_EQ(vocabulary->source, "small.gguf");
  EXPECT_EQ(vocabulary->pre_tokenizer, "gpt-2");
  EXPECT_EQ(vocabulary->tokens, expected.tokens);
  EXPECT_EQ(vocabulary->types, expected.types);
  EXPECT_EQ(vocabulary->merges, expected.merges);
  EXPECT_EQ(vocabulary->bos, expected.bos);
  EXPECT_EQ(vocabulary->eos, expected.eos);
  EXPECT_EQ(vocabulary->eot, 3u);
  EXPECT_EQ(vocabulary->eom, 4u);
  EXPECT_EQ(vocabulary->add_bos, true);
}

TEST(VocabularyTest, OptionalKeysMayBeAbsent) {
  GgufBuilder builder = SmallFile();
  for (const char* key : {"token_type", "bos_token_id", "eos_token_id"}) {
    ASSERT_TRUE(builder.Remove(std::string("tokenizer.ggml.") + key));
  }
  const auto vocabulary = Read(builder);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_TRUE(vocabulary->types.empty());
  EXPECT_FALSE(vocabulary->bos || vocabulary->eos || vocabulary->eot || vocabulary->eom ||
               vocabulary->add_bos);
  EXPECT_TRUE(Tokenizer::FromVocabulary(*vocabulary).ok());
}

TEST(VocabularyTest, RefusesWhatIsMissingOrOfAnotherType) {
  const auto replace = [](const char* key, std::function<void(GgufBuilder*)> add) {
    return [key, add](GgufBuilder* builder) {
      builder->Remove(key);
      add(builder);
    };
  };
  const std::pair<std::string, std::function<void(GgufBuilder*)>> cases[] = {
      {"tokenizer.ggml.model", [](GgufBuilder* b) { b->Remove("tokenizer.ggml.model"); }},
      {"tokenizer.ggml.pre", [](GgufBuilder* b) { b->Remove("tokenizer.ggml.pre"); }},
      {"tokenizer.ggml.tokens", [](GgufBuilder* b) { b->Remove("tokenizer.ggml.tokens"); }},
      {"tokenizer.ggml.merges", [](GgufBuilder* b) { b->Remove("tokenizer.ggml.merges"); }},
      {"tokenizer.ggml.model: is 'llama'; only 'gpt2'",
       replace("tokenizer.ggml.model",
               [](GgufBuilder* b) { b->AddString("tokenizer.ggml.model", "llama"); })},
      {"tokenizer.ggml.tokens",
       replace("tokenizer.ggml.tokens", [](GgufBuilder* b) { b->AddUint32("tokenizer.ggml.tokens", 7); })},
      {"tokenizer.ggml.token_type: must be an array of integers",
       replace("tokenizer.ggml.token_type",
               [](GgufBuilder* b) { b->AddString("tokenizer.ggml.token_type", "control"); })},
      {"tokenizer.ggml.token_type: token 0 has type 7, must be 1 to 6",
       replace("tokenizer.ggml.token_type",
               [](GgufBuilder* b) {
                 b->AddNumbers<uint8_t>("tokenizer.ggml.token_type", GgufType::kUint8, {7});
               })},
      {"tokenizer.ggml.token_type: token 1 has type -1",
       replace("tokenizer.ggml.token_type",
               [](GgufBuilder* b) {
                 b->AddNumbers<int32_t>("tokenizer.ggml.token_type", GgufType::kInt32, {1, -1});
               })},
      {"tokenizer.ggml.bos_token_id: is 271, must be below the 271 tokens",
       replace("tokenizer.ggml.bos_token_id",
               [](GgufBuilder* b) { b->AddUint32("tokenizer.ggml.bos_token_id", 271); })},
      {"tokenizer.ggml.eos_token_id: is 18446744073709551615",
       replace("tokenizer.ggml.eos_token_id",
               [](GgufBuilder* b) { b->AddUint64("tokenizer.ggml.eos_token_id", UINT64_MAX); })},
      {"tokenizer.ggml.eom_token_id",
       [](GgufBuilder* b) { b->AddString("tokenizer.ggml.eom_token_id", "three"); }},
      {"tokenizer.ggml.add_bos_token",
       [](GgufBuilder* b) { b->AddUint32("tokenizer.ggml.add_bos_token", 1); }},
  };
  for (const auto& [message, spoil] : cases) {
    GgufBuilder builder = SmallFile();
    spoil(&builder);
    const auto vocabulary = Read(builder);
    EXPECT_EQ(vocabulary.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(vocabulary.status().message()), HasSubstr("small.gguf"));
    EXPECT_THAT(std::string(vocabulary.status().message()), HasSubstr(message));
  }
}

TEST(VocabularyTest, ATokenizerIsMadeFromAFile) {
  const std::vector<uint8_t> image = SmallFile().Build();
  const auto file = GgufFile::Parse(image, "small.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto tokenizer = Tokenizer::FromGguf(**file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode("hello<|im_end|>", {}), true), "hello");
}

}  // namespace
}  // namespace millrace
