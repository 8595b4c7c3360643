#include "model/detokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/utf8.h"
#include "tests/unit/tokenizer/small_vocabulary.h"

namespace millrace {
namespace {

class StreamDetokenizerTest : public ::testing::Test {
 protected:
  StreamDetokenizer WithStops(std::vector<std::string> stops) {
    return StreamDetokenizer(tokenizer_.get(), std::move(stops));
  }

  TokenId Id(absl::string_view text) { return IdOf(vocabulary_, text); }
  TokenId Byte(int byte) { return static_cast<TokenId>(byte & 0xFF); }

  Vocabulary vocabulary_ = SmallVocabulary();
  std::unique_ptr<Tokenizer> tokenizer_ = SmallTokenizer();
};

void ExpectStep(const StreamDetokenizer::Step& step, size_t tokens, absl::string_view text) {
  EXPECT_EQ(step.released_tokens, tokens);
  EXPECT_EQ(step.text, text);
  EXPECT_FALSE(step.matched_stop.has_value());
}

void ExpectMatch(const StreamDetokenizer::Step& step, size_t tokens, absl::string_view text, size_t stop) {
  EXPECT_EQ(step.released_tokens, tokens);
  EXPECT_EQ(step.text, text);
  ASSERT_TRUE(step.matched_stop.has_value());
  EXPECT_EQ(*step.matched_stop, stop);
}

TEST_F(StreamDetokenizerTest, ReleasesPlainTokensAtOnce) {
  StreamDetokenizer detokenizer = WithStops({});
  ExpectStep(detokenizer.Push(Id("hello")), 1, "hello");
  ExpectStep(detokenizer.Push(Id("aa")), 1, "aa");
  ExpectStep(detokenizer.Flush(), 0, "");
}

TEST_F(StreamDetokenizerTest, HoldsBackAnIncompleteCharacter) {
  StreamDetokenizer detokenizer = WithStops({});
  ExpectStep(detokenizer.Push(Byte(0xF0)), 0, "");
  ExpectStep(detokenizer.Push(Byte(0x9F)), 0, "");
  ExpectStep(detokenizer.Push(Byte(0x98)), 0, "");
  ExpectStep(detokenizer.Push(Byte(0x80)), 4, "\U0001F600");
}

TEST_F(StreamDetokenizerTest, BytesThatCannotBecomeACharacterAreReplaced) {
  StreamDetokenizer detokenizer = WithStops({});
  ExpectStep(detokenizer.Push(Byte(0xE2)), 0, "");
  ExpectStep(detokenizer.Push(Byte(0x82)), 0, "");
  ExpectStep(detokenizer.Push(Byte('A')), 3, "\uFFFDA");
  ExpectStep(detokenizer.Push(Byte(0xFF)), 1, "\uFFFD");
  ExpectStep(detokenizer.Push(Byte(0xE2)), 0, "");
  ExpectStep(detokenizer.Push(Byte(0xE2)), 1, "\uFFFD");
  ExpectStep(detokenizer.Flush(), 1, "\uFFFD");
}

TEST_F(StreamDetokenizerTest, ControlTokensGiveNoText) {
  StreamDetokenizer detokenizer = WithStops({"<|im_end|>"});
  ExpectStep(detokenizer.Push(Id("<|im_end|>")), 1, "");
  ExpectStep(detokenizer.Push(Byte(0xC3)), 0, "");
  ExpectStep(detokenizer.Push(Id("<bos>")), 0, "");
  ExpectStep(detokenizer.Push(Byte(0xA9)), 3, "\u00E9");
}

TEST_F(StreamDetokenizerTest, AStopOverSeveralTokensEndsTheText) {
  StreamDetokenizer detokenizer = WithStops({"o\nh"});
  ExpectStep(detokenizer.Push(Id("aa")), 1, "aa");
  ExpectStep(detokenizer.Push(Id("hello")), 0, "");
  ExpectStep(detokenizer.Push(Byte('\n')), 0, "");
  ExpectMatch(detokenizer.Push(Id("hello")), 3, "hell", 0);
}

TEST_F(StreamDetokenizerTest, WhatOnlyBeganLikeAStopComesOutLater) {
  StreamDetokenizer detokenizer = WithStops({"o\nh"});
  ExpectStep(detokenizer.Push(Id("hello")), 0, "");
  ExpectStep(detokenizer.Push(Id("hello")), 1, "hello");
  ExpectStep(detokenizer.Push(Byte('\n')), 0, "");
  ExpectStep(detokenizer.Flush(), 2, "hello\n");
}

TEST_F(StreamDetokenizerTest, TheTailOfAPossibleStopMayBeginAnother) {
  StreamDetokenizer detokenizer = WithStops({"1112"});
  for (int i = 0; i < 3; ++i) ExpectStep(detokenizer.Push(Byte('1')), 0, "");
  for (int i = 0; i < 3; ++i) ExpectStep(detokenizer.Push(Byte('1')), 1, "1");
  ExpectMatch(detokenizer.Push(Byte('2')), 4, "", 0);
}

TEST_F(StreamDetokenizerTest, TheEarliestThenTheLongestStopWins) {
  ExpectMatch(WithStops({"l", "el", "ello"}).Push(Id("hello")), 1, "h", 2);
  ExpectMatch(WithStops({"lo", "el"}).Push(Id("hello")), 1, "h", 1);
  ExpectMatch(WithStops({"lo", "helloo"}).Push(Id("hello")), 1, "hel", 0);
}

TEST_F(StreamDetokenizerTest, AStopMayHoldPartOfACharacterBack) {
  StreamDetokenizer detokenizer = WithStops({"\u20AC!"});
  ExpectStep(detokenizer.Push(Byte(0xE2)), 0, "");
  ExpectStep(detokenizer.Push(Byte(0x82)), 0, "");
  ExpectStep(detokenizer.Push(Byte(0xAC)), 0, "");
  ExpectMatch(detokenizer.Push(Byte('!')), 4, "", 0);
}

TEST_F(StreamDetokenizerTest, BeforeMinTokensNothingMatchesAndNothingIsHeld) {
  StreamDetokenizer detokenizer = WithStops({"11"});
  ExpectStep(detokenizer.Push(Byte('1'), false), 1, "1");
  ExpectStep(detokenizer.Push(Id("11"), false), 1, "11");
  ExpectStep(detokenizer.Push(Byte('1')), 0, "");  // wholly later text only: this 1 is the first that counts
  ExpectMatch(detokenizer.Push(Byte('1')), 2, "", 0);
}

TEST_F(StreamDetokenizerTest, ACharacterBegunBeforeMinTokensBelongsToNoMatch) {
  StreamDetokenizer detokenizer = WithStops({"\u00E9"});
  ExpectStep(detokenizer.Push(Byte(0xC3), false), 0, "");
  ExpectStep(detokenizer.Push(Byte(0xA9)), 2, "\u00E9");
  ExpectStep(detokenizer.Push(Byte(0xC3)), 0, "");
  ExpectMatch(detokenizer.Push(Byte(0xA9)), 2, "", 0);
}

// The definition: after each token, look at the whole text so far.
struct Outcome {
  std::string text;
  size_t tokens = 0;
  std::optional<size_t> stop;
};

Outcome RunByDefinition(const Tokenizer& tokenizer, const std::vector<TokenId>& ids,
                        const std::vector<std::string>& stops) {
  for (size_t count = 1; count <= ids.size(); ++count) {
    std::string bytes = tokenizer.Decode(absl::MakeSpan(ids).first(count), true);
    size_t whole = 0;  // an incomplete character at the end is no text yet
    while (whole < bytes.size() && NextUtf8(bytes.substr(whole)).kind != Utf8Unit::kIncomplete) {
      whole += NextUtf8(bytes.substr(whole)).length;
    }
    const std::string text = ReplaceInvalidUtf8(bytes.substr(0, whole));
    for (size_t begin = 0; begin < text.size(); ++begin) {
      std::optional<size_t> best;
      for (size_t i = 0; i < stops.size(); ++i) {
        const bool here = text.compare(begin, stops[i].size(), stops[i]) == 0;
        if (here && (!best || stops[i].size() > stops[*best].size())) best = i;
      }
      if (best) return {text.substr(0, begin), count, best};
    }
  }
  return {ReplaceInvalidUtf8(tokenizer.Decode(ids, true)), ids.size(), std::nullopt};
}

TEST_F(StreamDetokenizerTest, AgreesWithTheDefinitionOnRandomTokensAndStops) {
  std::mt19937 random(5);
  const std::vector<TokenId> choice = {Id("hello"), Id("he"),   Id("llo"),        Id("aa"),
                                       Byte('a'),   Byte('1'),  Byte(0xE2),       Byte(0x82),
                                       Byte(0xAC),  Byte(0xFF), Id("<|im_end|>"), Id("11")};
  const std::vector<std::string> pool = {"a1",      "11",  "lo\u20AC", "ello", "ll",
                                         "\uFFFD1", "aaa", "ahe",      "oa",   "\u20AC\u20AC"};
  size_t matched = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<TokenId> ids(1 + random() % 12);
    for (TokenId& id : ids) id = choice[random() % choice.size()];
    std::vector<std::string> stops;
    for (size_t n = random() % 4; n > 0; --n) stops.push_back(pool[random() % pool.size()]);
    StreamDetokenizer detokenizer = WithStops(stops);
    Outcome outcome;
    for (size_t i = 0; i < ids.size() && !outcome.stop; ++i) {
      const StreamDetokenizer::Step step = detokenizer.Push(ids[i]);
      EXPECT_EQ(ValidUtf8Prefix(step.text), step.text.size());
      outcome.text += step.text;
      outcome.tokens += step.released_tokens;
      outcome.stop = step.matched_stop;
      if (!outcome.stop) {
        const auto released = absl::MakeSpan(ids).first(outcome.tokens);
        ASSERT_EQ(outcome.text, ReplaceInvalidUtf8(tokenizer_->Decode(released, true)));
      }
    }
    if (!outcome.stop) {
      const StreamDetokenizer::Step step = detokenizer.Flush();
      outcome.text += step.text;
      outcome.tokens += step.released_tokens;
    }
    const Outcome expected = RunByDefinition(*tokenizer_, ids, stops);
    ASSERT_EQ(outcome.text, expected.text);
    ASSERT_EQ(outcome.tokens, expected.tokens);
    ASSERT_EQ(outcome.stop.has_value(), expected.stop.has_value());
    if (outcome.stop) {
      ASSERT_EQ(stops[*outcome.stop], stops[*expected.stop]);
    }
    matched += outcome.stop.has_value();
  }
  EXPECT_GT(matched, 1000u);
}

TEST(CountCharactersTest, CountsCharactersNotBytes) {
  EXPECT_EQ(CountCharacters(""), 0u);
  EXPECT_EQ(CountCharacters("abc"), 3u);
  EXPECT_EQ(CountCharacters("\u00E9\u20AC\U0001F600"), 3u);
}

}  // namespace
}  // namespace millrace
