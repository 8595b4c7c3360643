// The tokenizers of several model families against llama.cpp's and Hugging Face's, and their speed. Run by
// tests/oracles.sh, which gets the data; not part of the suite.
#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "model/tokenizer.h"
#include "tests/unit/tokenizer/tokenizer_cases.h"

namespace millrace {
namespace {

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << "cannot read " << path;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// llama.cpp's cases: texts with a separator line between in .inp, and a line of ids for each in .out.
std::vector<TokenizerCase> ReadLlamaCppCases(const std::string& vocabulary) {
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string texts = ReadText(vocabulary + ".inp");
  std::istringstream ids(ReadText(vocabulary + ".out"));
  std::vector<TokenizerCase> cases;
  std::string line;
  for (size_t at = 0; at < texts.size() && std::getline(ids, line);) {
    const size_t end = std::min(texts.find(separator, at), texts.size());
    cases.push_back({texts.substr(at, end - at), ParseIds(line)});
    at = end + separator.size();
  }
  EXPECT_FALSE(std::getline(ids, line)) << vocabulary << ": more lines of ids than texts";
  return cases;
}

class FamilyOracleTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    folder_ = RequireEnvironment("MILLRACE_LLAMA_CPP_MODELS", "the folder models/ of llama.cpp's sources");
    ASSERT_FALSE(folder_.empty());
    tokenizer_ = OpenTokenizer(Path());
    ASSERT_NE(tokenizer_, nullptr);
  }

  std::string Path() const { return folder_ + "/ggml-vocab-" + GetParam() + ".gguf"; }

  std::string folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(FamilyOracleTest, GivesTheIdsOfLlamaCpp) {
  const auto cases = ReadLlamaCppCases(Path());
  EXPECT_GE(cases.size(), 40u);
  ExpectCases(*tokenizer_, cases, false);
}

TEST_P(FamilyOracleTest, GivesTheIdsOfHuggingFace) {
  const std::string cases_folder =
      RequireEnvironment("MILLRACE_TOKENIZER_CASES", "a folder with what make_tokenizer_golden.py wrote");
  ASSERT_FALSE(cases_folder.empty());
  const auto cases = ReadTokenizerCases(cases_folder + "/" + GetParam() + ".txt");
  EXPECT_GE(cases.size(), 1000u);
  ExpectCases(*tokenizer_, cases, true);
}

// Of processor time, so that what else the machine does counts little.
double MegabytesPerSecond(const Tokenizer& tokenizer, const std::string& text) {
  const std::clock_t begin = std::clock();
  const std::vector<TokenId> ids = tokenizer.Encode(text, PlainOptions(true));
  const std::clock_t end = std::clock();
  EXPECT_FALSE(ids.empty());
  return text.size() * 1e-6 * CLOCKS_PER_SEC / (end - begin);
}

TEST_P(FamilyOracleTest, EncodesFastEnough) {
  std::string prose;
  const std::string words =
      ReadText("tests/golden/prompts.json") + ReadText("model/tokenizer.h") + ReadText("model/tokenizer.cc");
  while (prose.size() < 10'000'000) prose += words;
  EXPECT_GE(MegabytesPerSecond(*tokenizer_, prose), 5.0);
  for (const char* unit : {"a", " ", "!", "<", "\n", "\u6771", "<|im_end|>", "\xFF", "7"}) {
    std::string text;
    while (text.size() < 10'000'000) text += unit;
    const double speed = MegabytesPerSecond(*tokenizer_, text);
    std::cout << GetParam() << ": 10 MB of one unit, first byte " << int{static_cast<uint8_t>(unit[0])}
              << ": " << 10 / speed << " s\n";
    EXPECT_GE(speed, 0.5);
  }
  std::cout << GetParam() << ": text " << MegabytesPerSecond(*tokenizer_, prose) << " MB/s\n";
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyOracleTest, ::testing::Values("gpt-2", "llama-bpe", "qwen2"));

TEST(SmolLm2OracleTest, GivesTheIdsOfHuggingFace) {
  const auto tokenizer = OpenTokenizer(RequireEnvironment("MILLRACE_TEST_MODEL", "the SmolLM2 GGUF file"));
  const std::string folder =
      RequireEnvironment("MILLRACE_TOKENIZER_CASES", "a folder with what make_tokenizer_golden.py wrote");
  ASSERT_TRUE(tokenizer != nullptr && !folder.empty());
  ExpectCases(*tokenizer, ReadTokenizerCases(folder + "/smollm.txt"), true);
}

}  // namespace
}  // namespace millrace
