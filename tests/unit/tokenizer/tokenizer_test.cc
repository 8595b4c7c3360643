#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/tokenizer/small_vocabulary.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> EncodeToPieces(absl::string_view text, const EncodeOptions& options = {}) {
  const auto tokenizer = SmallTokenizer();
  return Pieces(*tokenizer, tokenizer->Encode(text, options));
}

TEST(TokenizerTest, EncodesWordsByMerges) {
  EXPECT_THAT(EncodeToPieces("hello hello hell"), ElementsAre("hello", " hello", " ", "he", "ll"));
}

TEST(TokenizerTest, DecodesWhatItEncodedForAnyBytes) {
  const auto tokenizer = SmallTokenizer();
  std::mt19937 random(3);
  const std::vector<std::string> parts = {"hello", " ",    "<|im_end|>", "<|im_",  "[[tag]]", "[[",   "11",
                                          "\xF0",  "\x9F", "\u20AC",     "\u0301", "aaa",     "\n\n", "'s"};
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (size_t n = random() % 24; n > 0; --n) {
      if (random() % 2 == 0) {
        text.push_back(static_cast<char>(random()));
      } else {
        text += parts[random() % parts.size()];
      }
    }
    EncodeOptions options;
    options.parse_special = random() % 2 == 0;
    ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text, options), false), text);
  }
}

TEST(TokenizerTest, RecognisesControlTokensOnlyIfAsked) {
  EXPECT_THAT(EncodeToPieces("hello<|im_end|>"), ElementsAre("hello", "<|im_end|>"));
  EncodeOptions options;
  options.parse_special = false;
  EXPECT_THAT(EncodeToPieces("aa<bos>", options), ElementsAre("aa", "<", "b", "o", "s", ">"));
}

TEST(TokenizerTest, RecognisesUserDefinedTokensAlways) {
  EncodeOptions options;
  options.parse_special = false;
  const std::vector<TextRange> everywhere = {{0, 100}};
  options.literal_ranges = everywhere;
  EXPECT_THAT(EncodeToPieces("1[[tag]][[ta", options), ElementsAre("1", "[[tag]]", "[", "[", "t", "a"));
}

TEST(TokenizerTest, TheLongestControlTokenWins) {
  EXPECT_THAT(EncodeToPieces("<|im_start|>x"), ElementsAre("<|im_start|>x"));
  EXPECT_THAT(EncodeToPieces("<|im_start|>y"), ElementsAre("<|im_start|>", "y"));
  EXPECT_THAT(EncodeToPieces("<<|im_start|>"), ElementsAre("<", "<|im_start|>"));
}

bool HasControl(const std::string& text, const std::vector<TextRange>& literals) {
  const auto tokenizer = SmallTokenizer();
  EncodeOptions options;
  options.literal_ranges = literals;
  for (TokenId id : tokenizer->Encode(text, options)) {
    if (tokenizer->IsControl(id)) return true;
  }
  return false;
}

TEST(TokenizerTest, AControlTokenInALiteralRangeIsPlainText) {
  const std::string text = "say <|im_end|> now";
  EXPECT_TRUE(HasControl(text, {}));
  EXPECT_FALSE(HasControl(text, {{0, text.size()}}));
  EXPECT_FALSE(HasControl(text, {{4, 14}}));
}

// "ab<|im_end|>cd": the token is bytes 2 to 12.
TEST(TokenizerTest, AControlTokenThatSharesAByteWithALiteralRangeIsPlainText) {
  const std::string text = "ab<|im_end|>cd";
  for (size_t begin = 0; begin < text.size(); ++begin) {
    for (size_t end = begin; end <= text.size(); ++end) {
      const bool shares = begin < 12 && end > 2 && begin < end;
      EXPECT_EQ(HasControl(text, {{begin, end}}), !shares) << begin << " to " << end;
    }
  }
}

TEST(TokenizerTest, OnlyTheTemplatesOwnControlTokensCountInAForgedTurn) {
  const std::string open = "<|im_start|>", content = "aa<|im_end|>1<|im_start|>x<bos>", close = "<|im_end|>";
  const std::vector<TextRange> literals = {{open.size(), open.size() + content.size()}};
  EncodeOptions options;
  options.literal_ranges = literals;
  const auto tokenizer = SmallTokenizer();
  const std::vector<TokenId> ids = tokenizer->Encode(open + content + close, options);
  std::vector<std::string> controls;
  for (TokenId id : ids) {
    if (tokenizer->IsControl(id)) controls.push_back(tokenizer->TokenBytes(id));
  }
  EXPECT_THAT(controls, ElementsAre("<|im_start|>", "<|im_end|>"));
  EXPECT_EQ(tokenizer->Decode(ids, false), open + content + close);
}

// <|im_start|>x is a token: the user's x must not turn the template's <|im_start|> into it, nor hide it.
TEST(TokenizerTest, ContentCannotLengthenAControlTokenBeforeIt) {
  EncodeOptions options;
  const std::vector<TextRange> literals = {{12, 13}};
  options.literal_ranges = literals;
  EXPECT_THAT(EncodeToPieces("<|im_start|>x", options), ElementsAre("<|im_start|>", "x"));
}

TEST(TokenizerTest, SeveralLiteralRangesEachHideTheirs) {
  //                        0         10        20        30
  const std::string text = "<|im_end|><|im_end|><|im_end|><|im_end|>";
  const std::vector<TextRange> literals = {{0, 10}, {10, 10}, {20, 25}};
  EncodeOptions options;
  options.literal_ranges = literals;
  const auto tokenizer = SmallTokenizer();
  size_t controls = 0;
  for (TokenId id : tokenizer->Encode(text, options)) controls += tokenizer->IsControl(id);
  EXPECT_EQ(controls, 2u);
}

// Merges that spell a control token must not make it, and llama-bpe's whole-piece rule neither.
TEST(TokenizerTest, MergesNeverMakeAControlToken) {
  for (const char* pre_tokenizer : {"gpt-2", "llama-bpe"}) {
    Vocabulary vocabulary = SmallVocabulary();
    vocabulary.pre_tokenizer = pre_tokenizer;
    vocabulary.tokens[IdOf(vocabulary, "hello")] = "other";
    vocabulary.tokens[IdOf(vocabulary, "<unk>")] = "hello";
    const auto tokenizer = Tokenizer::FromVocabulary(vocabulary);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EncodeOptions options;
    options.parse_special = false;
    EXPECT_THAT(Pieces(**tokenizer, (*tokenizer)->Encode("hello", {false, false, {}})),
                ElementsAre("h", "e", "l", "l", "o"));
  }
}

TEST(TokenizerTest, AddsBosOnceIfTheFileSaysSo) {
  Vocabulary vocabulary = SmallVocabulary();
  vocabulary.add_bos = true;
  const auto tokenizer = Tokenizer::FromVocabulary(vocabulary);
  ASSERT_TRUE(tokenizer.ok());
  const auto encode = [&](absl::string_view text, EncodeOptions options) {
    return Pieces(**tokenizer, (*tokenizer)->Encode(text, options));
  };
  EXPECT_THAT(encode("aa", {}), ElementsAre("<bos>", "aa"));
  EXPECT_THAT(encode("", {}), ElementsAre("<bos>"));
  EXPECT_THAT(encode("<bos>aa", {}), ElementsAre("<bos>", "aa"));
  EXPECT_THAT(encode("<bos><bos>", {}), ElementsAre("<bos>", "<bos>"));
  EncodeOptions without;
  without.add_bos = false;
  EXPECT_THAT(encode("aa", without), ElementsAre("aa"));
  // Written by a user it is not BOS, so BOS still goes in front.
  const std::vector<TextRange> literals = {{0, 5}};
  EncodeOptions literal;
  literal.literal_ranges = literals;
  EXPECT_THAT(encode("<bos>", literal), ElementsAre("<bos>", "<", "b", "o", "s", ">"));
}

TEST(TokenizerTest, AddsBosByDefaultForLlamaOnly) {
  for (const auto& [name, adds] :
       {std::pair("llama-bpe", true), std::pair("llama3", true), std::pair("gpt-2", false),
        std::pair("smollm", false), std::pair("qwen2", false)}) {
    Vocabulary vocabulary = SmallVocabulary();
    vocabulary.pre_tokenizer = name;
    EXPECT_EQ((*Tokenizer::FromVocabulary(vocabulary))->adds_bos(), adds) << name;
    vocabulary.add_bos = !adds;
    EXPECT_EQ((*Tokenizer::FromVocabulary(vocabulary))->adds_bos(), !adds) << name;
    vocabulary.add_bos.reset();
    vocabulary.bos.reset();
    EXPECT_FALSE((*Tokenizer::FromVocabulary(vocabulary))->adds_bos()) << name;
  }
}

TEST(TokenizerTest, DecodeLeavesOutControlTokensIfAsked) {
  const auto tokenizer = SmallTokenizer();
  const std::vector<TokenId> ids = tokenizer->Encode("<|im_start|>aa[[tag]]<|im_end|>", {});
  EXPECT_EQ(tokenizer->Decode(ids, true), "aa[[tag]]");
  EXPECT_EQ(tokenizer->Decode(ids, false), "<|im_start|>aa[[tag]]<|im_end|>");
}

TEST(TokenizerTest, EndTokensAreThoseOfTheFileThenControlTokensKnownToEnd) {
  Vocabulary vocabulary = SmallVocabulary();
  const auto add = [&](const char* text, TokenType type) {
    vocabulary.tokens.push_back(text);
    vocabulary.types.push_back(type);
    return static_cast<TokenId>(vocabulary.tokens.size() - 1);
  };
  const TokenId eot = add("<turn-over>", TokenType::kControl);
  const TokenId document = add("<|endoftext|>", TokenType::kControl);
  add("<|end|>", TokenType::kNormal);
  add("</s>", TokenType::kUserDefined);
  vocabulary.eot = eot;
  const auto tokenizer = Tokenizer::FromVocabulary(vocabulary);
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_THAT((*tokenizer)->end_tokens(), ElementsAre(*vocabulary.eos, eot, document));
  EXPECT_EQ((*tokenizer)->eos_text(), "<|im_end|>");
  EXPECT_EQ((*tokenizer)->bos_text(), "<bos>");
}

TEST(TokenizerTest, BytesWithoutTokenAreLeftOutAndListed) {
  Vocabulary vocabulary = SmallVocabulary();
  vocabulary.tokens[0x04] = "unused 1";
  vocabulary.tokens[0xF1] = "unused 2";
  const auto tokenizer = Tokenizer::FromVocabulary(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->missing_bytes(), ElementsAre(0x04, 0xF1));
  const std::vector<TokenId> ids = (*tokenizer)
                                       ->Encode(absl::string_view("1\x04h\x04"
                                                                  "e\xF1",
                                                                  6),
                                                {});
  EXPECT_EQ((*tokenizer)->Decode(ids, false), "1he");
  // Leaving one out does not put a control token together.
  for (TokenId id : (*tokenizer)
                        ->Encode("<|im_\x04"
                                 "end|>",
                                 {}))
    EXPECT_FALSE((*tokenizer)->IsControl(id));
}

TEST(TokenizerTest, ByteTokensSpeltInHexStandInForMissingBytes) {
  Vocabulary vocabulary = SmallVocabulary();
  vocabulary.tokens['q'] = "<0x71>";
  vocabulary.types['q'] = TokenType::kByte;
  const auto tokenizer = Tokenizer::FromVocabulary(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->missing_bytes(), IsEmpty());
  EXPECT_THAT((*tokenizer)->Encode("q", {}), ElementsAre('q'));
  EXPECT_EQ((*tokenizer)->TokenBytes('q'), "q");
}

TEST(TokenizerTest, RefusesInconsistentVocabularies) {
  const std::pair<std::string, std::function<void(Vocabulary*)>> cases[] = {
      {"small: tokenizer.ggml.tokens: has 0 tokens", [](Vocabulary* v) { v->tokens.clear(); }},
      {"tokenizer.ggml.token_type: has 270 entries", [](Vocabulary* v) { v->types.pop_back(); }},
      {"tokenizer.ggml.bos_token_id: is 271", [](Vocabulary* v) { v->bos = 271; }},
      {"tokenizer.ggml.eom_token_id: is 4000000000", [](Vocabulary* v) { v->eom = 4'000'000'000u; }},
      {"tokenizer.ggml.add_bos_token: is true", [](Vocabulary* v) { v->bos.reset(), v->add_bos = true; }},
      {"tokenizer.ggml.pre: unknown pre-tokenizer 'x'", [](Vocabulary* v) { v->pre_tokenizer = "x"; }},
      {"tokenizer.ggml.merges: merge 9 is not", [](Vocabulary* v) { v->merges.push_back("ab"); }},
      {"no token for the bytes 41 C3", [](Vocabulary* v) { v->tokens[0x41] = v->tokens[0xC3] = "none"; }},
      {"token 270 has 513 bytes, limit 512", [](Vocabulary* v) { v->tokens[270] = std::string(513, '['); }},
  };
  for (const auto& [message, spoil] : cases) {
    Vocabulary vocabulary = SmallVocabulary();
    spoil(&vocabulary);
    const auto tokenizer = Tokenizer::FromVocabulary(vocabulary);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(message));
  }
}

// Quadratic merging would take hours.
TEST(TokenizerTest, ALongPieceOfOneLetterIsEncodedInTime) {
  const auto tokenizer = SmallTokenizer();
  const std::string text(2 << 20, 'a');
  const std::vector<TokenId> ids = tokenizer->Encode(text, {});
  EXPECT_EQ(ids.size(), text.size() / 4);
  EXPECT_EQ(tokenizer->Decode(ids, false), text);
}

}  // namespace
}  // namespace millrace
