#include "model/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Split(absl::string_view name, absl::string_view text) {
  const auto pre_tokenizer = PreTokenizer::Create(name);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  std::vector<std::string> pieces;
  (*pre_tokenizer)->Split(text, [&](absl::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(PreTokenizerTest, Gpt2KeepsOneSpaceWithTheNextWord) {
  EXPECT_THAT(Split("gpt-2", "I'll go  home, 1234 times!\n\n ok  "),
              ElementsAre("I", "'ll", " go", " ", " home", ",", " 1234", " times", "!", "\n\n", " ok", "  "));
}

TEST(PreTokenizerTest, SmolLmSplitsEveryDigitAndLeavesSpacesBeforeThem) {
  EXPECT_THAT(Split("smollm", "in 2026,  42\u00BD x1"),
              ElementsAre("in", " ", "2", "0", "2", "6", ",", "  ", "4", "2", "\u00BD", " x", "1"));
}

TEST(PreTokenizerTest, Llama3TakesThreeDigitsAndLineBreaksTogether) {
  for (const char* name : {"llama-bpe", "llama3", "llama-v3"}) {
    EXPECT_THAT(Split(name, "I'LL pay 12345!\r\n\n  \n now"),
                ElementsAre("I", "'LL", " pay", " ", "123", "45", "!\r\n\n", "  \n", " now"));
  }
}

TEST(PreTokenizerTest, Qwen2TakesSingleDigitsAndAPunctuationMarkWithTheWord) {
  EXPECT_THAT(Split("qwen2", "x=(value) 42"), ElementsAre("x", "=(", "value", ")", " ", "4", "2"));
  EXPECT_THAT(Split("qwen2", "(value"), ElementsAre("(value"));
}

// PCRE2's \s takes U+180E, which Unicode does not count as White_Space; U+0085 and U+3000 are.
TEST(PreTokenizerTest, WhiteSpaceIsThatOfUnicode) {
  EXPECT_THAT(Split("gpt-2", "a\u180Eb"), ElementsAre("a", "\u180E", "b"));
  EXPECT_THAT(Split("gpt-2", "a \u180Eb"), ElementsAre("a", " \u180E", "b"));
  EXPECT_THAT(Split("gpt-2", "a\u0085\u3000b"), ElementsAre("a", "\u0085", "\u3000", "b"));
}

TEST(PreTokenizerTest, InvalidBytesArePiecesOfTheirOwn) {
  EXPECT_THAT(Split("gpt-2", "ab\xF0\x9F\xFF cd\xE2\x82"),
              ElementsAre("ab", "\xF0", "\x9F", "\xFF", " cd", "\xE2", "\x82"));
}

TEST(PreTokenizerTest, EmptyTextHasNoPieces) {
  EXPECT_THAT(Split("smollm", ""), ElementsAre());
}

TEST(PreTokenizerTest, RefusesUnknownNamesAndListsTheKnownOnes) {
  const auto result = PreTokenizer::Create("tekken");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("'tekken'; known: smollm, gpt-2, llama-bpe"));
}

TEST(PreTokenizerTest, PiecesAreTheTextForRandomBytes) {
  std::mt19937 random(7);
  const std::string alphabet = " \n\r\t'a1!s\xE2\x82\xAC\xF0\x9F\x98\x80\xC3\xA9\xFF";
  for (const char* name : {"smollm", "gpt-2", "llama-bpe", "qwen2"}) {
    const auto pre_tokenizer = PreTokenizer::Create(name);
    ASSERT_TRUE(pre_tokenizer.ok());
    for (int round = 0; round < 2000; ++round) {
      std::string text;
      for (size_t n = random() % 40; n > 0; --n) text.push_back(alphabet[random() % alphabet.size()]);
      std::string joined;
      (*pre_tokenizer)->Split(text, [&](absl::string_view piece) {
        EXPECT_FALSE(piece.empty());
        joined.append(piece.data(), piece.size());
      });
      ASSERT_EQ(joined, text);
    }
  }
}

// Each of these makes some alternative walk the whole run; a quadratic splitter would not come back.
TEST(PreTokenizerTest, LongRunsOfOneKindStayLinear) {
  constexpr size_t kBytes = 4 << 20;
  for (const char* name : {"smollm", "gpt-2", "llama-bpe", "qwen2"}) {
    const auto pre_tokenizer = PreTokenizer::Create(name);
    ASSERT_TRUE(pre_tokenizer.ok());
    for (const char* unit : {" ", "\n", "a", "!", " \t", "'", "\u3000", "1", "\xFF"}) {
      std::string text;
      while (text.size() < kBytes) text += unit;
      text += "x";
      size_t bytes = 0;
      (*pre_tokenizer)->Split(text, [&](absl::string_view piece) { bytes += piece.size(); });
      ASSERT_EQ(bytes, text.size());
    }
  }
}

}  // namespace
}  // namespace millrace
